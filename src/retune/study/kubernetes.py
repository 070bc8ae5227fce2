"""The rules of Kubernetes' API server for names, labels, quantities and paths, as types of study keys.

Source: k8s.io/apimachinery, pkg/util/validation and pkg/api/resource; k8s.io/kubernetes, pkg/apis/core/validation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_ENV = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
_IMAGE = re.compile(
    r"([A-Za-z0-9][-A-Za-z0-9.]*(:[0-9]+)?/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
    r"(:[A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?(@sha256:[0-9a-f]{64})?"
)
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+|n|u|m|k|[KMGTPE]i|[MGTPE])?")
_FACTORS = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(1000),
}
_FACTORS |= {unit: Decimal(1000) ** power for power, unit in enumerate("MGTPE", 2)}
_FACTORS |= {f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)}
_MOUNTED = ("/tmp", "/dev/shm", "/etc/retune/ca")  # in every pod
_SYSTEM = (
    "/bin",
    "/dev",
    "/etc",
    "/lib",
    "/lib64",
    "/proc",
    "/sbin",
    "/sys",
    "/usr",
    "/var/run/secrets",
    "/opt/venv",
)


def number(quantity: str) -> Decimal:
    """Return the value of a quantity such as ``500m`` or ``1.5Gi``.

    Raises:
        ValueError: if it is not a quantity.

    """
    match = _QUANTITY.fullmatch(quantity)
    if match is None:
        raise ValueError(f"must be a quantity such as 500m, 4 or 32Gi, but got {quantity!r}")
    digits, unit = Decimal(match[1]), match[2] or ""
    return digits * _FACTORS[unit] if unit in _FACTORS else Decimal(match[1] + unit)


def canonical_bytes(quantity: str) -> str:
    """Return a size in whole bytes in Kubernetes' canonical form: ``1536Mi`` for ``1.5Gi``, ``500k`` for ``500000``.

    Katib 0.19 converts a trial's template to a Job and back, and refuses it if anything in it has changed by that.
    """
    size = math.ceil(number(quantity))
    binary, decimal = (1024, ("", "Ki", "Mi", "Gi", "Ti", "Pi")), (1000, ("", "k", "M", "G", "T", "P"))
    for factor, units in (binary, decimal) if "i" in quantity else (decimal,):
        power = max(n for n in range(len(units)) if size % factor**n == 0)
        if power:
            return f"{size // factor**power}{units[power]}"
    return str(size)


def _matching(pattern: re.Pattern[str], rule: str, most: int | None = None) -> Callable[[str], str]:
    """Return a function that returns a text of this pattern and at most so many characters, and refuses any other."""

    def check(text: str) -> str:
        if (most is not None and len(text) > most) or not pattern.fullmatch(text):
            raise ValueError(f"must be {rule}, but got {text!r}")
        return text

    return check


_label = _matching(_LABEL, "lower-case letters, digits and inner dashes, at most 63 of them")
_name = _matching(_SUBDOMAIN, "lower-case letters, digits, inner dashes and dots, at most 253 of them", 253)
label_value = _matching(
    _VALUE, "a label's value: letters, digits, inner `-`, `_` and `.`, at most 63 of them"
)
_env_name = _matching(
    _ENV, "an environment variable's name: letters, digits, `_`, `-` and `.`, no digit first"
)
_image = _matching(
    _IMAGE, "an image such as registry.example/team/retune-train:1.0, with a lower-case path", 512
)


def _label_key(text: str) -> str:
    prefix, slash, name = text.rpartition("/")
    if (
        (slash and (len(prefix) > 253 or not _SUBDOMAIN.fullmatch(prefix)))
        or not name
        or not _VALUE.fullmatch(name)
    ):
        raise ValueError(
            "must be a label's key: letters, digits, `-`, `_` and `.`, at most 63 of them, after a domain and `/` if "
            f"there is one, but got {text!r}"
        )
    return text


def _data_key(text: str) -> str:
    if not _KEY.fullmatch(text) or text.startswith(".."):
        raise ValueError(
            f"must be a key of a ConfigMap or Secret: letters, digits, `-`, `_` and `.`, but got {text!r}"
        )
    return text


def _resource(text: str) -> str:
    domain, slash, name = text.partition("/")
    if (
        not slash
        or not _SUBDOMAIN.fullmatch(domain)
        or "kubernetes.io" in domain
        or text.startswith("requests.")
        or not name
        or not _VALUE.fullmatch(name)
        or len(text) > 243  # a quota names it with `requests.` before it
    ):
        raise ValueError(
            f"must be an extended resource such as nvidia.com/gpu or nvidia.com/mig-1g.10gb, but got {text!r}"
        )
    return text


def _positive(text: str) -> str:
    if number(text) <= 0:
        raise ValueError(f"must be above 0, but got {text!r}")
    return text


def _memory(text: str) -> str:
    if number(text) < 6 << 20:
        raise ValueError(
            f"must be 6Mi or more, below which no container starts, but got {text!r}; is a unit missing, as in 32Gi?"
        )
    return text


def _mount(text: str) -> str:
    path = text.rstrip("/") or "/"
    if not text.startswith("/") or ":" in text or {".", ".."} & set(text.split("/")) or "//" in text:
        raise ValueError(f"must be an absolute path without `:`, `.` and `..`, but got {text!r}")
    if path == "/" or path in _MOUNTED or any(f"{path}/".startswith(f"{folder}/") for folder in _SYSTEM):
        raise ValueError(
            "must be a folder of its own, such as /models, and none of those that the pods have: "
            f"/, {', '.join((*_MOUNTED, *_SYSTEM))}, but got {text!r}"
        )
    return path


def _as_text(value: Any) -> Any:
    """Convert a number to a text: Kubernetes accepts ``cpu: 4``, which YAML reads as a number, like ``cpu: "4"``."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Label = Annotated[str, AfterValidator(_label)]
"""RFC 1123 label: of a namespace, a queue, a container."""
Name = Annotated[str, AfterValidator(_name)]
"""RFC 1123 subdomain: of a Secret, a claim, a service account, a class."""
LabelKey = Annotated[str, AfterValidator(_label_key)]
LabelValue = Annotated[str, AfterValidator(label_value)]
EnvName = Annotated[str, AfterValidator(_env_name)]
DataKey = Annotated[str, AfterValidator(_data_key)]
Image = Annotated[str, AfterValidator(_image)]
Resource = Annotated[str, AfterValidator(_resource)]
Cpu = Annotated[str, BeforeValidator(_as_text), AfterValidator(_positive)]
Memory = Annotated[str, BeforeValidator(_as_text), AfterValidator(_memory)]
Size = Annotated[str, BeforeValidator(_as_text), AfterValidator(_positive)]
Mount = Annotated[str, AfterValidator(_mount)]
Text = Annotated[str, BeforeValidator(_as_text)]
