"""The short form of `python -m benchmarks.faults`: nothing is lost. S3 and MLflow have tests of their own."""

import pytest

from benchmarks import faults

FAULTS = [faults.full_disk, pytest.param(faults.training_disk, marks=pytest.mark.slow), faults.flipped_bits, faults.clock_jumps,
          faults.network_cuts, faults.fuzzed_studies, faults.fuzzed_requests]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_nothing_is_lost(fault):
    line = fault(True)
    if line.note:
        pytest.skip(line.note)
    assert line.tried >= 5
    assert line.lost == []


def test_what_is_lost_is_told():
    line = faults.Line("x")
    line.count(None)
    line.count("a wrong result")
    assert "| x | 2 | 1 | 1 |" in faults.table([line])


def test_a_flipped_bit_that_nobody_sees_counts_as_lost(monkeypatch):
    """The table can fail: without the checksum of records it does."""
    careless = lambda content: {k: v for k, v in content.items() if k != "checksum"}  # noqa: E731
    monkeypatch.setattr("retune.records.unseal", careless)
    assert faults.flipped_bits(True).lost
