"""The section `data` of a study: which records, how many of them, and how they become text for the model."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from retune.study.names import FormatName
from retune.study.section import Section

ColumnName = Literal["prompt", "input", "completion", "system", "messages", "text"]
PROMPTS = ("auto", "chat", "alpaca", "none")
_ALIASES = {
    "instruction": "prompt", "question": "prompt", "output": "completion", "response": "completion",
    "answer": "completion", "context": "input", "conversations": "messages",
}  # fmt: skip


def _columns(value: Any) -> Any:
    """Replace the parts' names in other formats, such as `instruction` and `answer`, by ours."""
    if not isinstance(value, dict):
        return value
    return {_ALIASES.get(key, key) if isinstance(key, str) else key: name for key, name in value.items()}


class File(Section):
    """A data set: a file or folder, and how its records are read."""

    uri: str
    format: FormatName = Field(
        "auto",
        description="how the fields of a record are named; auto looks at them. The kind of file is seen from its content",
    )
    columns: Annotated[dict[ColumnName, str], BeforeValidator(_columns)] = Field(
        default_factory=dict,
        description="fields by their part: `prompt` and `completion` (and `input`, `system`), or `messages`, or `text`",
    )
    split: str | None = Field(
        None, description="of a folder or hub data set that has several; default: train"
    )

    @model_validator(mode="after")
    def _check_file(self) -> Self:
        problems = []
        if self.uri.startswith("hf://") and not self.uri.startswith("hf://datasets/"):
            problems.append(
                "data on a hub has the form hf://datasets/<owner>/<name>, with or without a path behind it, "
                f"but got {self.uri!r}, which names a model"
            )
        if not self.uri.strip():
            problems.append("`uri` must name a file or folder, but is empty")
        scheme, mark, _ = self.uri.partition("://")
        if mark and scheme not in ("s3", "hf", "file"):
            problems.append(f"`uri` is a path, or begins with s3://, hf:// or file://, but got {self.uri!r}")
        names = set(self.columns)
        whole = names & {"messages", "text"}
        if (
            names
            and not (len(whole) == 1 and names <= {*whole, "system"})
            and not ({"prompt", "completion"} <= names and not whole)
        ):
            problems.append(
                "`columns` names `prompt` and `completion`, or `messages` alone, or `text` alone, "
                f"but got {sorted(names)}"
            )
        return self._checked(problems)


class Source(File):
    """One data set and its share of both splits; without shares all records of every source are used."""

    share: float | None = Field(None, gt=0, le=1)


def _amount(value: Any) -> Any:
    """Check a number of records: a count, a share, or `all`.

    In one function, since pydantic would report one error for each member of the union.
    """
    if value == "all":
        return value
    if isinstance(value, float) and value.is_integer() and value > 1:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        percent = str(value).strip().removesuffix("%")
        hint = (
            f"; write {float(percent) / 100:g}"
            if str(value).strip().endswith("%") and percent.isdigit()
            else ""
        )
        raise ValueError(
            f"must be a number of records, a share such as 0.05 or `all`, but got {value!r}{hint}"
        )
    if isinstance(value, float) and not 0 < value < 1:
        hint = "; write `all`" if value == 1 else ""
        raise ValueError(f"a share must lie between 0 and 1, but got {value!r}{hint}")
    if value <= 0:
        raise ValueError(f"a number of records must be above 0, but got {value!r}")
    return value


def _held_out(value: Any) -> Any:
    """Convert a path to a `File`; anything else is an amount."""
    if isinstance(value, str) and value != "all" and not value.strip().endswith("%"):
        return {"uri": value}
    if value == "all":
        raise ValueError(
            "`train` may be `all`, and `validation` a number, a share or a file of its own, but got 'all'"
        )
    return value if isinstance(value, dict | File) else _amount(value)


Amount = Annotated[int | float | Literal["all"], BeforeValidator(_amount)]


class Data(Section):
    """The data sets to mix. Every source has the same share in both splits."""

    sources: list[Source] = Field(min_length=1)
    train: Amount = Field(description="records: a number, a share of what there is, or `all` that is left")
    validation: Annotated[int | float | File, BeforeValidator(_held_out)] = Field(
        description="records: a number, a share of what there is, or a file of its own"
    )
    max_length: int = Field(512, ge=16, description="tokens; longer records are cut at the end")
    loss_on: Literal["completion", "all"] = "completion"
    prompt: str = Field(
        "auto",
        description=(
            "`chat`: the base's own chat template; `alpaca`; `none`: the texts as they are; or a file with a template. "
            "auto: chat for conversations if the base has a chat template, else alpaca"
        ),
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_single_share(cls, value: Any) -> Any:
        """Set the share of a single source to 1, so that studies with and without it have the same digest."""
        if isinstance(value, dict) and isinstance(value.get("sources"), list) and len(value["sources"]) == 1:
            (only,) = value["sources"]
            if isinstance(only, dict) and only.get("share") is None and only.get("uri"):
                return {**value, "sources": [{**only, "share": 1.0}]}
        return value

    @model_validator(mode="after")
    def _check_amounts(self) -> Self:
        problems = []
        shares = [source.share for source in self.sources]
        known = [share for share in shares if share is not None]
        if known and len(known) < len(shares):
            problems.append(
                f"either every source has a `share` or none, but got {shares}; without shares each gives all it has"
            )
        elif known and abs(sum(known) - 1) > 1e-6:
            problems.append(f"the shares must add up to 1, but got {sum(known):g} from {shares}")
        if (
            isinstance(self.train, float)
            and isinstance(self.validation, float)
            and self.train + self.validation > 1
        ):
            problems.append(
                "`train` and `validation` as shares must add up to 1 at most, "
                f"but got {self.train:g} + {self.validation:g}"
            )
        return self._checked(problems)
