"""Errors of the operating system, as retune reports them."""

import os

import pytest

from retune.errors import FULL, PATHS, REMEDIES, DiskFull, RetuneError, as_retune_error


@pytest.mark.parametrize("number", REMEDIES, ids=os.strerror)
def test_a_system_error_names_file_and_remedy_and_only_a_full_disk_interrupts(number):
    error = as_retune_error(OSError(number, os.strerror(number), "a/b"))
    assert str(error) == f"a/b: {os.strerror(number)}; {REMEDIES[number]}"
    assert type(error) is (DiskFull if number in FULL else RetuneError)
    assert (number in FULL) != (number in PATHS)


def test_the_subject_says_what_failed():
    error = OSError(28, os.strerror(28), "/cache/.tmp")
    assert str(as_retune_error(error, "x cannot be written")).startswith("x cannot be written: No space left")
    assert as_retune_error(own := RetuneError("as it is")) is own
