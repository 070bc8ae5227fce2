"""The GPU's half of the comparison, on a base small enough for a CPU."""

import pytest

from benchmarks import bench_pack


@pytest.mark.slow
def test_side_by_side_and_alone_agree(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # the program goes elsewhere, and this brings the next test back
    result = bench_pack.main(
        ["--shape", "tiny", "--trials", "2", "--alone", "1", "--peers", "1", "--records", "16"]
    )
    assert result["difference_to_alone"] < 1e-4
    assert result["run_alone"] == 1
    assert "side_by_side" in capsys.readouterr().out
