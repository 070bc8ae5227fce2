"""The times of a schedule, in the fields of cron."""

from __future__ import annotations

from retune.errors import InputError

_FIELDS = (
    ("second", 0, 59),
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day", 1, 31),
    ("month", 1, 12),
    ("weekday", 0, 6),
)
_NAMES = {
    "month": ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
    "weekday": ("sun", "mon", "tue", "wed", "thu", "fri", "sat"),
}


def six_fields(cron: str) -> str:
    """Return the times of a schedule in the six fields that Kubeflow Pipelines expects, with seconds first.

    Raises:
        InputError: with every invalid field.

    """
    fields = cron.split()
    if len(fields) not in (5, 6):
        raise InputError(
            f"a schedule has five fields (minute hour day month weekday), or six with seconds first, but got {cron!r}; "
            "every Monday at three is '0 3 * * 1'"
        )
    fields = ["0", *fields] if len(fields) == 5 else fields
    problems = [
        f"the {name} of a schedule is `*`, or numbers from {low} to {high} as in 5, 1-5, 1,15 or */10, but got {field!r}"
        for field, (name, low, high) in zip(fields, _FIELDS, strict=True)
        if not all(_is_time(part, name, low, high) for part in field.split(","))
    ]
    if problems:
        raise InputError(problems, f"--cron {cron!r}")
    return " ".join(fields)


def _is_time(part: str, name: str, low: int, high: int) -> bool:
    """Return whether one part of a schedule's field is a number, a range or ``*``, with or without a step."""
    field, slash, step = part.partition("/")
    if slash and not (step.isascii() and step.isdigit() and int(step) > 0):
        return False
    if field in ("*", "?") and (field == "*" or name in ("day", "weekday")):
        return True
    names = _NAMES.get(name, ())
    ends = [str(low + names.index(end)) if end in names else end for end in field.lower().split("-")]
    if len(ends) > 2 or not all(end.isascii() and end.isdigit() and low <= int(end) <= high for end in ends):
        return False
    return int(ends[0]) <= int(ends[-1])
