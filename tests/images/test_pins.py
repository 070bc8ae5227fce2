"""A layer's pins cover all requirements of its packages, so that no package is installed in its newest version by accident."""

import importlib.util
import re
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

spec = importlib.util.spec_from_file_location("pins", ROOT / "images" / "pins.py")
pins = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pins)
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
CUDA = (ROOT / "images" / "cuda.txt").read_text()  # of torch's layer alone


def names(text):
    return {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in text.splitlines() if "==" in line}


def required(package, found):
    """Return a package and all its requirements here, transitively."""
    package = re.sub(r"[-_.]+", "-", package).lower()
    if package not in found:
        found.add(package)
        for line in metadata.requires(package) or []:
            wish = Requirement(line)
            if wish.marker is None or wish.marker.evaluate({"extra": ""}):
                required(wish.name, found)
    return found


@pytest.mark.parametrize(("layer", "package"), [("pip", "hatchling"), ("torch", "torch")])
def test_a_layer_has_the_pins_of_all_that_it_installs(layer, package):
    assert required(package, set()) & names(CONSTRAINTS) == names(pins.of(layer, CONSTRAINTS))


def test_all_that_torch_requires_is_pinned():
    assert required("torch", set()) <= names(CONSTRAINTS) | names(CUDA)
    assert names(CUDA) == names(pins.of("torch", CUDA))


def test_hashes_are_those_of_the_pins():
    hashes = (ROOT / "images" / "hashes.txt").read_text()
    for layer in pins.LAYERS:
        found = pins.of(layer, hashes)
        pinned = names(pins.of(layer, CONSTRAINTS)) | (names(CUDA) if layer == "torch" else set())
        assert names(re.sub(r"\s*\\$", "", found, flags=re.M)) == pinned
        assert found.count("--hash=sha256:") > len(names(pins.of(layer, CONSTRAINTS)))


def test_a_change_of_another_pin_changes_no_layer():
    other = re.sub(r"^click==.*$", "click==0.0.1", CONSTRAINTS, flags=re.M)
    assert other != CONSTRAINTS
    for layer in pins.LAYERS:
        assert pins.of(layer, other) == pins.of(layer, CONSTRAINTS)
