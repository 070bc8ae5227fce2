"""One instruction data set out of several: exact shares, splits disjoint by text, the same every time.

Rules, in this order:

1. A record with an empty instruction or output (white space counts as empty) is dropped.
2. Two records are the same if prompt and completion are, after Unicode normalisation (NFC) and with each run
   of white space read as one space. The first is kept; of several sources, the one of the file with the
   lowest SHA-256, so that their order in the study file does not matter.
3. A record whose prompt alone fills `max_length` tokens is dropped: nothing would be left to learn.
4. Each source gives the same share of both splits, as exact counts by largest remainder.
5. What is drawn is decided by a hash of seed and prompt, without replacement. Records with the same prompt
   never come into different splits, not even from different sources: an answer in train would give away the
   one in validation.

A draw does not depend on what else is mixed in, unless texts are shared. Rules 1 to 3 are in
`retune.data.sift`, 4 and 5 in `retune.data.draw`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from retune import models, store
from retune.data import sift, sources
from retune.data.draw import Drawn, counts, draw, grouped, largest
from retune.data.mix_record import MixRecord, SourceRecord, SplitRecord
from retune.data.sift import Stock, Text
from retune.data.sources import Example
from retune.errors import InputError
from retune.records import canonical, digest, versions
from retune.study import Data, Model

__all__ = ["MixRecord", "load_split", "mix", "read_mix", "read_mix_record", "recipe_digest"]

Split = Literal["train", "validation"]
RULES = 1  # raised when the rules above change: then the same recipe gives other data
MARKER = "mix.json"
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip


def recipe_digest(data: Data, seed: int, tokenizer: Any = None) -> str:
    """Return the digest of all that decides the mixed data: settings, seed, tokenizer, content of the files.

    Where the files lie is not part of it. Costs one reading of each file; of remote ones a look at the ETag.

    Args:
        data: the study's `data` section.
        seed: the study's seed.
        tokenizer: a transformers tokenizer, the folder it is loaded from, or None.

    Raises:
        InputError: if a file is missing.
    """
    return _recipe(data, seed, _tokenizer_digest(tokenizer), sift.stocks(data.sources))


def mix(
    data: Data, seed: int, tokenizer: Any, out_uri: str, progress: Callable[[str], None] | None = None
) -> MixRecord:
    """Mix the sources of a study into ``train.jsonl`` and ``validation.jsonl``; ``mix.json`` is written last.

    If the folder holds the result of the same recipe already, and undamaged, nothing is written.

    Args:
        data: the study's `data` section.
        seed: decides what is drawn.
        tokenizer: a transformers tokenizer, or the folder of one, which is loaded only if it is needed; None
            leaves out rule 3 and the token statistics.
        out_uri: the folder to write to.
        progress: called with the name of each part of the work before it begins.

    Raises:
        InputError: if a file is missing, damaged or of another schema, or a source has too few records; with
            the problems of all sources. Nothing is written then.
    """
    tell = progress or (lambda part: None)
    tell("reading")
    stocks = sift.stocks(data.sources)
    named = _tokenizer_digest(tokenizer)
    recipe = _recipe(data, seed, named, stocks)
    if kept := _kept(out_uri, recipe):
        return kept
    sift.parse(stocks)
    sift.drop_doubles(stocks)
    if isinstance(tokenizer, str | Path):
        tokenizer = models.load_tokenizer(Model(base=str(tokenizer)))
    if tokenizer is not None:
        sift.drop_too_long(stocks, tokenizer, data.max_length)
    tell("drawing")
    drawn = _draw(data, seed, stocks)
    splits: dict[Split, list[tuple[Stock, Text]]] = {
        "train": [(stocks[source], stocks[source].texts[place]) for source, place in drawn.train],
        "validation": [(stocks[source], stocks[source].texts[place]) for source, place in drawn.validation],
    }
    if tokenizer is not None:
        tell("counting tokens")
        sift.count_tokens([text for part in splits.values() for _, text in part], tokenizer)
    tell("writing")
    files = {split: _jsonl([text for _, text in part]) for split, part in splits.items()}
    record = _record(data, seed, named, recipe, stocks, splits, files)
    store.remove(store.join(out_uri, MARKER))  # while the files change, the folder must not look complete
    for split, content in files.items():
        store.write(store.join(out_uri, f"{split}.jsonl"), content)
    store.write(store.join(out_uri, MARKER), record.to_json())
    return record


def read_mix_record(uri: str) -> MixRecord:
    """Return the record of the mixed data in a folder.

    Raises:
        InputError: if there is none.
    """
    try:
        return MixRecord.model_validate_json(store.read(store.join(uri, MARKER)))
    except FileNotFoundError as error:
        raise InputError(f"no mixed data there, {MARKER} is missing; run `retune mix` first", uri) from error
    except ValueError as error:
        raise InputError(f"{MARKER} cannot be read; run `retune mix` again ({error})", uri) from error


def load_split(uri: str, split: Split) -> list[Example]:
    """Return the records of a split of mixed data, in the order of the draw.

    Raises:
        InputError: if there is none, or it is not what was mixed.
    """
    asked = read_mix_record(uri).splits[split].sha256
    file = store.join(uri, f"{split}.jsonl")
    try:
        content = store.download(file).read_bytes()
    except FileNotFoundError as error:
        raise InputError("the file is missing; run `retune mix` again", file) from error
    found = hashlib.sha256(content).hexdigest()
    if found != asked:
        raise InputError(f"{MARKER} says SHA-256 {asked}, but it is {found}; run `retune mix` again", file)
    return [Example(**json.loads(line)) for line in content.decode().split("\n")[:-1]]


def read_mix(uri: str) -> tuple[list[Example], list[Example], MixRecord]:
    """Return train, validation and record of the mixed data in a folder.

    Raises:
        InputError: if there is none, or it is not what was mixed.
    """
    return load_split(uri, "train"), load_split(uri, "validation"), read_mix_record(uri)


def _recipe(data: Data, seed: int, tokenizer: str | None, stocks: Sequence[Stock]) -> str:
    files = [[s.sha256, s.source.format, s.source.share, sources.name(s.source)] for s in stocks]
    asked: dict[str, Any] = {"train": data.train, "validation": data.validation, "sources": files}
    if tokenizer is not None:
        asked |= {"tokenizer": tokenizer, "max_length": data.max_length}
    return digest({"rules": RULES, "seed": seed, **asked})


def _tokenizer_digest(tokenizer: Any) -> str | None:
    """Return the digest of a tokenizer's files; of one made in memory, that of its own JSON."""
    if tokenizer is None:
        return None
    folder = tokenizer if isinstance(tokenizer, str | Path) else tokenizer.name_or_path
    files = {name: Path(folder) / name for name in _TOKENIZER_FILES} if folder else {}
    found = {
        name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items() if file.is_file()
    }
    if found:
        return digest(found)
    if isinstance(tokenizer, str | Path):
        raise InputError(
            f"the folder must hold a tokenizer, but {tokenizer} has none of its files", "model.base"
        )
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    return digest(
        {key: part for key, part in made.items() if key not in ("truncation", "padding")}
    )  # set by use


def _kept(uri: str, recipe: str) -> MixRecord | None:
    """Return the record of what lies in the folder, if that was made by this recipe and is whole."""
    try:
        record = read_mix_record(uri)
        if record.recipe != recipe:
            return None
        load_split(uri, "train")
        load_split(uri, "validation")
    except InputError:
        return None
    return record


def _draw(data: Data, seed: int, stocks: Sequence[Stock]) -> Drawn:
    """Draw both splits.

    Raises:
        InputError: if a source has too few records; with what was asked, what there is and what would work.
    """
    groups = grouped([[text.keys for text in stock.texts] for stock in stocks], seed)
    shares = [stock.source.share for stock in stocks]
    train, validation = counts(data.train, shares), counts(data.validation, shares)
    drawn = draw(groups, train, validation)
    if not any(drawn.missing):
        return drawn
    problems = [
        f"{sources.name(stock.source)} (share {stock.source.share:g}) must give {first:,} + {second:,} ="
        f" {first + second:,} records, but gives {first + second - missing:,}: of {stock.read:,} read,"
        f" {stock.empty:,} are empty, {stock.duplicate:,} duplicate, {stock.shared:,} shared with another"
        f" source, {stock.too_long:,} too long, and no prompt serves both splits"
        for stock, missing, first, second in zip(stocks, drawn.missing, train, validation, strict=True)
        if missing
    ]
    most = largest(groups, shares, data.train, data.validation)
    if most:
        problems.append(f"the most that these shares allow is data.train={most[0]} data.validation={most[1]}")
    raise InputError(problems, "data")


def _jsonl(texts: Sequence[Text]) -> bytes:
    return "".join(canonical(text.example._asdict()) + "\n" for text in texts).encode()


def _record(
    data: Data,
    seed: int,
    tokenizer: str | None,
    recipe: str,
    stocks: Sequence[Stock],
    splits: dict[Split, list[tuple[Stock, Text]]],
    files: dict[Split, bytes],
) -> MixRecord:
    def part(split: Split, stock: Stock | None = None) -> SplitRecord:
        texts = [text for owner, text in splits[split] if stock is None or owner is stock]
        lengths = [(text.prompt_tokens, text.completion_tokens) for text in texts]
        return SplitRecord.of(lengths if tokenizer else None, len(texts), data.max_length)

    whole: dict[str, SplitRecord] = {split: part(split) for split in splits}
    for split, content in files.items():
        whole[split].sha256 = hashlib.sha256(content).hexdigest()
    given = [
        SourceRecord(
            **stock.source.model_dump(include={"format", "share"}),
            name=sources.name(stock.source),
            sha256=stock.sha256,
            read=stock.read,
            empty=stock.empty,
            duplicate=stock.duplicate,
            shared=stock.shared,
            too_long=stock.too_long,
            available=len(stock.texts),
            splits={split: part(split, stock) for split in splits},
        )
        for stock in stocks
    ]
    return MixRecord(
        digest=digest({"recipe": recipe, "files": {split: record.sha256 for split, record in whole.items()}}),
        recipe=recipe,
        rules=RULES,
        seed=seed,
        max_length=data.max_length if tokenizer else None,
        tokenizer=tokenizer,
        sources=sorted(given, key=lambda source: (-source.share, source.name)),
        splits=whole,
        versions=versions("tokenizers", "transformers") if tokenizer else versions(),
    )
