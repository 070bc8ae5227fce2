"""The script for a GPU, with its programs on a CPU."""

import json

import pytest

from benchmarks import bench_gpu


@pytest.mark.slow
def test_every_line_is_measured_or_says_why_not(tmp_path, monkeypatch, capfd):
    """One program runs; the second fails; the third finds no time left."""
    real = bench_gpu.measurements

    def three(options, folder):
        first, second, third, *_ = real(options, folder)
        words = [*first.words, "--trials", "2", "--alone", "1", "--peers", "1", "--records", "16"]
        yield bench_gpu.Measurement(first.name, words, first.rows, first.equal)
        yield bench_gpu.Measurement("none", ["bench_pack.py", "--trials", "none"], second.rows, second.equal)
        monkeypatch.setattr("time.monotonic", lambda: float("inf"))
        yield third

    monkeypatch.setattr(bench_gpu, "measurements", three)
    rows = bench_gpu.main(["--shapes", "tiny", "tiny", "--out", str(tmp_path / "gpu.json")])
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"] == rows
    measured = {row["what"]: row["value"] for row in rows if "value" in row}
    assert {row["base"] for row in rows if "value" in row} == {"tiny, 16 trials"}
    assert all(value > 0 for value in measured.values())
    assert measured["real tokens/s side by side"] / measured["real tokens/s of one trial"] == pytest.approx(
        measured["times one after another"]
    )
    whys = {row["base"]: row["why"] for row in rows if "why" in row}
    assert whys == {
        "none": "not measured: it ended with code 2",
        "tiny, compiled before": "not measured: no time left",
    }
    table = capfd.readouterr().out
    assert table.count("\n") == len(rows) + 2
    assert "losses differ by at most" in table
