"""How GPUs are divided among workers, and the refusal to train on a CPU when GPUs are required."""

import os

import pytest
import torch

from retune import gpus
from retune.errors import InputError
from retune.training.resident import ResidentBase
from retune.trials.run_trial import run_trial
from retune.trials.task import TrialTask

WHOLE = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-11111111-2222-3333-4444-555555555555)
GPU 1: Tesla T4 (UUID: GPU-66666666-7777-8888-9999-000000000000)
"""
SPLIT = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa)
  MIG 3g.20gb     Device  0: (UUID: MIG-bbbb)
  MIG 1g.5gb      Device  1: (UUID: MIG-cccc)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-dddd)
"""


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("0,1", ["0", "1"]),
        (" 2 , 0", ["2", "0"]),
        ("", []),
        ("-1", []),
        ("1,-1,0", ["1"]),  # as in CUDA, what stands behind is hidden
        ("NoDevFiles", []),
        ("GPU-8f3e,MIG-12ab", ["GPU-8f3e", "MIG-12ab"]),
        ("MIG-GPU-8f3e/1/0", ["MIG-GPU-8f3e/1/0"]),
    ],
)
def test_what_cuda_visible_devices_says_goes_first(monkeypatch, named, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert gpus.visible() == found


@pytest.mark.parametrize(
    ("printed", "status", "found"),
    [
        (WHOLE, 0, ["GPU-11111111-2222-3333-4444-555555555555", "GPU-66666666-7777-8888-9999-000000000000"]),
        (SPLIT, 0, ["MIG-bbbb", "MIG-cccc", "GPU-dddd"]),
        ("No devices found.\n", 0, []),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", 9, []),
    ],
)
def test_else_nvml_says_and_by_uuid(monkeypatch, tmp_path, printed, status, found):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'X'\n{printed}X\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gpus.visible() == found


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("where", ["katib", "a pipeline's step"])
def test_a_trial_that_was_given_a_gpu_is_refused_without_one(small, tmp_path, monkeypatch, where):
    study = small(
        "cluster.gpus=1", *(["engine.kind=katib", "cluster.images.train=x"] if where == "katib" else [])
    )
    if where != "katib":
        monkeypatch.setenv("KFP_POD_NAME", "pod")
    task = TrialTask(trial="t", number=2, role="search", folder=str(tmp_path / "t"))
    with pytest.raises(InputError, match=r"`cluster\.gpus` asks for, but CUDA finds none \(torch"):
        run_trial(study, str(tmp_path / "data"), task, ResidentBase(study.model))
    assert not (tmp_path / "t").exists()


def test_none_asked_for_none_needed():
    gpus.require(0)
