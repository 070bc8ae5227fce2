"""Reading a study file: YAML, dotted overrides, absolute paths, validation."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from yaml.constructor import SafeConstructor

from retune.errors import InputError, nearest
from retune.study.data import PROMPTS
from retune.study.model import Study
from retune.study.problems import all_problems, takes_text

# Far above any study, and low enough that a file from elsewhere can exhaust neither memory nor time
MAX_BYTES = 1 << 20
_MAX_DEPTH = 50
_MAX_NODES = 100_000
_MAX_NUMBER_LENGTH = 100
# PyYAML's loader in C ends the process if a text is nested too deeply; each level takes one of the characters that are counted
_FAST_LEVELS = 2000
_READ_DIFFERENTLY = re.compile(r"[\t!?]|[|>][-+\d]*#")  # by the two loaders
_DATA = {".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt"}  # endings of names of data files


def load(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file, apply overrides, resolve paths and validate all of it.

    Args:
        path: the YAML file.
        overrides: ``dotted.key=value``, the value read as YAML; list items by number (``data.sources.0.share=0.5``).

    Raises:
        InputError: with every problem found.

    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise InputError(
            f"the study file cannot be read: {error.strerror}{_swapped(path, overrides) or _alternatives(path)}",
            str(path),
        ) from error
    except UnicodeDecodeError as error:
        reason = (
            "UTF-16"
            if data[:2] in (b"\xff\xfe", b"\xfe\xff")
            else f"byte {error.start} is 0x{data[error.start]:02x}"
        )
        raise InputError(
            f"a study file must be UTF-8, but {reason}; {_as_data(path) or 'save it as UTF-8'}", str(path)
        ) from error
    if len(data) > MAX_BYTES:
        raise InputError(
            f"not valid YAML: a study file has at most {MAX_BYTES >> 20} MiB{_as_data(path, '; ')}", str(path)
        )
    return loads(text, path, overrides)


def loads(text: str, path: Path, overrides: Sequence[str] = ()) -> Study:
    """Return the study that a text describes, as `load` would from a file with this text at `path`.

    Raises:
        InputError: with every problem found.

    """
    try:
        content = _read(text, str(path))
    except ValueError as error:
        raise InputError(_as_data(path) or f"not valid YAML: {error}", str(path)) from error
    if not isinstance(content, dict):
        what = "is empty" if content is None else f"is {type(content).__name__}: {str(content)[:40]!r}"
        hint = _as_data(path, "; ")
        raise InputError(f"a study file is a mapping of keys to values, but this one {what}{hint}", str(path))
    for override in overrides:
        _override(content, override)
    if invalid := list(_invalid_texts(content, ())):
        raise InputError(invalid[:10], str(path))
    try:
        _resolve(content, path.resolve().parent, Path.cwd())
    except InputError as error:
        raise InputError(error.problems, str(path)) from error
    return parse(content, str(path))


def _as_data(path: Path, before: str = "") -> str:
    """Return the advice if the name of a supposed study file is that of a data file; "" otherwise."""
    if not set(path.suffixes) & _DATA:
        return ""
    return (
        f"{before}this looks like data: `retune init --data {shlex.quote(str(path))}` writes a study for it"
    )


def _swapped(path: Path, overrides: Sequence[str]) -> str:
    """Return the end of the message about an override in the place of the study file; "" if there is no such file."""
    study = next((word for word in overrides if "=" not in word and Path(word).is_file()), None)
    return f"; the study file comes first: {study} {path}" if study and "=" in str(path) else ""


def _alternatives(path: Path) -> str:
    """Return the end of the message about a path that is no file: the similar or the only files in its folder."""
    folder = path if _is_folder(path) else path.parent
    if not _is_folder(folder):
        return ""
    files = sorted(file.name for file in folder.iterdir() if file.suffix in (".yaml", ".yml"))
    near = nearest(path.name, files) if folder != path else None
    if near:
        return f"; did you mean {str(folder / near)!r}?"
    if files:
        return f"; {'it' if folder == path else 'its folder'} holds {files[:5]}"
    return "; name a study's YAML file (`retune init` writes one)"


def parse(content: Mapping[str, Any], subject: str = "study") -> Study:
    """Validate the content of a study file.

    Raises:
        InputError: with every problem found.

    """
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise InputError(all_problems(content, error), subject) from error


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the study file, for editors."""
    schema = Study.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "retune study", **schema}


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"an override has the form key.subkey=value, but got {override!r}", "command line")
    node: Any = content
    *parents, last = key.split(".")
    if len(parents) >= _MAX_DEPTH:
        raise InputError(f"a key has at most {_MAX_DEPTH} parts, but got {len(parents) + 1}", "command line")
    for parent in parents:
        if isinstance(node, list):
            node = node[_index(node, parent, override)]
        else:
            if not isinstance(node.get(parent), dict | list):
                node[parent] = {}
            node = node[parent]
        if not isinstance(node, dict | list):
            raise InputError(
                f"{parent!r} must be a section or a list, but is {node!r} in {override!r}", "command line"
            )
    try:
        value = _read(text, override) if text else ""
        if isinstance(value, int | float | date) and takes_text(key.split(".")):
            value = text  # e.g. of the revision 12e4567, which YAML reads as a number
    except ValueError as error:
        raise InputError(f"the value is not valid YAML in {override!r}: {error}", "command line") from error
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    else:
        node[last] = value


def _index(items: list[Any], text: str, override: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) >= len(items):
        raise InputError(
            f"`0 <= index < {len(items)}` must hold, but got {text!r} in {override!r}", "command line"
        )
    return int(text)


def _read(text: str, name: str) -> Any:
    """Return the content of a YAML text; `name` is the file's name in errors.

    Raises:
        ValueError: if it is not valid, or nested deeper or, with its aliases expanded, larger than any study.

    """
    try:
        if sum(map(text.count, "[{-:")) < _FAST_LEVELS and not _READ_DIFFERENTLY.search(text):
            with contextlib.suppress(yaml.YAMLError, UnicodeError):
                return _content(_FastLoader, text, name)
        return _content(_Loader, text, name)  # its errors quote the line
    except yaml.YAMLError as error:
        raise ValueError(f"{error}{_yaml_hint(error, text)}") from error
    except RecursionError as error:
        raise ValueError(f"sections and lists are nested deeper than {_MAX_DEPTH} levels") from error
    except (
        LookupError,
        AttributeError,
        TypeError,
        OverflowError,
    ) as error:
        # PyYAML raises these when a value does not fit its tag, as in `!!bool no bool`
        raise ValueError(f"a value is not what its tag says: {error!r}") from error


def _content(kind: Any, text: str, name: str) -> Any:
    loader = kind(text)
    loader.name = name
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _yaml_hint(error: yaml.YAMLError, text: str) -> str:
    """Return the remedy for common mistakes in YAML, which PyYAML's message does not name, as the end of that message."""
    mark = getattr(error, "problem_mark", None)
    message, lines = str(error), text.splitlines()
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    if "single document" in message:
        return "\na file holds one study: what follows `---` belongs in a file of its own"
    if "\t" in line[: mark.column + 1 if mark else 0]:
        return "\nindent with spaces: YAML does not allow tabs there"
    if "\u00a0" in text:
        number = text[: text.index("\u00a0")].count("\n") + 1
        return f"\nline {number} holds a no-break space: write an ordinary one"
    if "cannot start any token" in message:
        return "\na value that begins with this character needs quotes around it"
    if "mapping values are not allowed" in message and line.count(": ") > 1:
        return "\na value that holds a colon and a space needs quotes around it"
    return ""


def _construct_int(loader: Any, node: yaml.ScalarNode) -> int:
    _require_short(node)
    value: int = SafeConstructor.construct_yaml_int(loader, node)
    if value.bit_length() > 64:
        raise yaml.constructor.ConstructorError(None, None, "a number has at most 64 bits", node.start_mark)
    return value


def _construct_float(loader: Any, node: yaml.ScalarNode) -> float:
    _require_short(node)
    value: float = SafeConstructor.construct_yaml_float(loader, node)
    return value


def _require_short(node: yaml.ScalarNode) -> None:
    """Refuse a number that takes long to read: YAML 1.1 has numbers of base 60, 1:1:1:…, which grow with each part."""
    if len(str(node.value)) > _MAX_NUMBER_LENGTH:
        raise yaml.constructor.ConstructorError(
            None, None, f"a number has at most {_MAX_NUMBER_LENGTH} characters", node.start_mark
        )


class _Constructor(SafeConstructor):
    """Reads ``1e-4`` as a number (a text in YAML 1.1) and refuses duplicate keys (PyYAML keeps the last).

    A few lines of nested aliases can expand to more than any memory holds ("billion laughs"), so nodes are counted first.
    """

    def get_single_node(self) -> Any:
        """Return the document's node; refuse one larger than any study."""
        node = super().get_single_node()  # type: ignore[misc]  # the loaders below have it
        if node is not None:
            self._measure(node, {}, 1)
        return node

    def _measure(self, node: yaml.Node, known: dict[int, int], level: int) -> int:
        """Return the number of nodes with all aliases expanded."""
        if level > _MAX_DEPTH:
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"sections and lists are nested deeper than {_MAX_DEPTH} levels",
                node.start_mark,
            )
        if id(node) not in known:
            # Ends the recursion for a list that contains itself, which the validation refuses
            known[id(node)] = 1
            inner: list[yaml.Node] = []
            if isinstance(node, yaml.SequenceNode):
                inner = node.value
            elif isinstance(node, yaml.MappingNode):
                inner = [part for pair in node.value for part in pair]
            known[id(node)] = 1 + sum(self._measure(part, known, level + 1) for part in inner)
        if known[id(node)] > _MAX_NODES:
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"with its aliases expanded it has more than {_MAX_NODES:,} values",
                node.start_mark,
            )
        return known[id(node)]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping; refuse duplicate keys."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = sorted(key for key, count in Counter(keys).items() if count > 1)
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate keys: {twice}", node.start_mark)
        return super().construct_mapping(node, deep)


class _Loader(_Constructor, yaml.SafeLoader):
    """PyYAML's loader in Python."""


class _FastLoader(_Constructor, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's loader in C, several times as fast, where it is built."""


_FLOAT = re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)\Z")
for _kind in (_Loader, _FastLoader):
    _kind.add_constructor("tag:yaml.org,2002:int", _construct_int)
    _kind.add_constructor("tag:yaml.org,2002:float", _construct_float)
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def _invalid_texts(content: Any, path: tuple[str, ...]) -> Iterator[str]:
    """Yield the problems of texts with characters that no file name and no protocol can hold."""
    if isinstance(content, str) and _INVALID.search(content):
        key = ".".join(path) or "the file"
        yield f"a text has no null character and no half of a surrogate pair, but got {content[:100]!a} for `{key[:100]}`"
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _invalid_texts(key, path)
            yield from _invalid_texts(value, (*path, ascii(key)[1:-1] if isinstance(key, str) else str(key)))
    elif isinstance(content, list) and len(path) < _MAX_DEPTH:
        for number, value in enumerate(content):
            yield from _invalid_texts(value, (*path, str(number)))


_INVALID = re.compile("[\0\ud800-\udfff]")


def _resolve(content: dict[str, Any], inputs: Path, outputs: Path) -> None:
    """Make the relative paths in `content` absolute, in place; values of a wrong kind are left to the validation."""
    for source in _dicts(_get(content, "data", "sources")):
        _absolute(source, "uri", inputs)
    data = _get(content, "data")
    if isinstance(data, dict):
        held_out = data.get("validation")
        if isinstance(held_out, dict):
            _absolute(held_out, "uri", inputs)
        elif isinstance(held_out, str) and held_out != "all" and not held_out.strip().endswith("%"):
            _absolute(data, "validation", inputs)
        if data.get("prompt") not in PROMPTS:
            _absolute(data, "prompt", inputs)
    model = _get(content, "model")
    if isinstance(model, str):
        model = content["model"] = {"base": model}
    if isinstance(model, dict) and isinstance(model.get("base"), str):
        base = model["base"]
        if base.startswith((".", "~")) or _is_folder(inputs / base):
            _absolute(model, "base", inputs)
    files = _get(content, "benchmark", "data")
    if isinstance(files, dict):
        for task in list(files):
            _absolute(files, task, inputs)
    starts = _get(content, "search", "warm_start")
    if isinstance(starts, list):
        holder = {str(k): uri for k, uri in enumerate(starts)}
        for key in holder:
            _absolute(holder, key, inputs)
        starts[:] = list(holder.values())
    artifacts = content.setdefault("artifacts", {})
    if isinstance(artifacts, dict):
        artifacts.setdefault("uri", "./artifacts")
        _absolute(artifacts, "uri", outputs)
    tracking = content.setdefault("tracking", {})
    if isinstance(tracking, dict):
        uri = tracking.setdefault("uri", "sqlite:///mlflow.db")
        if isinstance(uri, str) and uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
            tracking["uri"] = f"sqlite:///{outputs / uri.removeprefix('sqlite:///')}"
        _absolute(tracking, "tensorboard", outputs)


def _get(content: Any, *keys: str) -> Any:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _dicts(items: Any) -> Iterable[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _absolute(holder: dict[str, Any], key: str, folder: Path) -> None:
    uri = holder.get(key)
    if isinstance(uri, str) and uri and "://" not in uri:
        try:
            holder[key] = str((folder / Path(uri).expanduser()).resolve())
        except (OSError, RuntimeError) as error:  # too long, a loop of links, the home of nobody
            raise InputError(
                f"a path must be one of this machine, but got {uri[:200]!r} for `{key}`: {error}"
            ) from error


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # too long
        return False
