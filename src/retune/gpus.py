"""The GPUs of this machine: which there are, and what to do where a study asks for one and there is none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from retune.errors import InputError

_LISTED = re.compile(r"^(?P<indent>\s*).*\(UUID: (?P<uuid>(?:GPU|MIG)-[^)]+)\)", re.MULTILINE)


@dataclass(frozen=True)
class Use:
    """How busy a GPU is: `busy` in percent of the time, memory in MiB; None where the driver does not tell."""

    index: str
    name: str
    busy: float | None
    memory_used: float | None
    memory_total: float | None


def visible() -> list[str]:
    """Return the GPUs that CUDA may use here, as CUDA_VISIBLE_DEVICES names them; empty if there are none.

    What CUDA_VISIBLE_DEVICES says goes first, be it indices, UUIDs or MIG instances; as in CUDA, nothing behind an entry
    that is no device (``-1``) counts. Else NVML tells, by ``nvidia-smi -L``. It names them by UUID, since CUDA counts them in
    another order; of a GPU that is split up (MIG), CUDA sees the instances only. The files /dev/nvidiaN tell neither.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        found = []
        for entry in (part.strip() for part in named.split(",")):
            if not re.fullmatch(r"\d+|(GPU|MIG)-.+", entry):
                break
            found.append(entry)
        return found
    if shutil.which("nvidia-smi"):
        try:
            listed = subprocess.run(
                ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return []  # no driver: CUDA finds nothing either
        return listed_by_nvml(listed.stdout)
    if Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists():
        return _counted_by_torch()
    return []


def listed_by_nvml(text: str) -> list[str]:
    """Return the UUIDs in what ``nvidia-smi -L`` printed; in place of a GPU that is split up, those of its instances."""
    found: list[str] = []
    for match in _LISTED.finditer(text):
        uuid = match["uuid"]
        if uuid.startswith("MIG-") and found and found[-1].startswith("GPU-"):
            found.pop()
        found.append(uuid)
    return found


def in_use() -> list[Use]:
    """Return how busy each GPU of this machine is at this moment, by ``nvidia-smi``; empty where there is none.

    Raises:
        subprocess.TimeoutExpired: if the driver does not answer within some seconds.
    """
    if not shutil.which("nvidia-smi"):
        return []
    asked = "index,name,utilization.gpu,memory.used,memory.total"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return [
        Use(row[0], row[1], _number(row[2]), _number(row[3]), _number(row[4]))
        for row in rows
        if done.returncode == 0 and len(row) == 5
    ]


def _number(text: str) -> float | None:
    """Return a number of nvidia-smi's; None for ``[N/A]``, as a GPU that is split up has."""
    try:
        return float(text)
    except ValueError:
        return None


def _counted_by_torch() -> list[str]:
    """Return CUDA's own indices, asked for in a process of its own: CUDA cannot be set up anew in a forked one."""
    code = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return [str(number) for number in range(int(done.stdout))] if done.stdout.strip().isdigit() else []


def in_a_step_of_a_cluster() -> bool:
    """Return whether this is a step's pod of a Kubeflow pipeline; on a laptop `cluster.gpus` is not read."""
    return "KFP_POD_NAME" in os.environ


def require(wanted: int) -> None:
    """Refuse to train or score on a CPU where the study gives this pod `wanted` GPUs, `cluster.gpus`.

    Raises:
        InputError: with what CUDA found instead.
    """
    if not wanted:
        return
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if there >= processes:
        return
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    why = [f"torch {torch.__version__} was built {built}"]
    why += [f"CUDA_VISIBLE_DEVICES is {named!r}"] if named is not None else []
    raise InputError(
        f"this needs {processes} GPU{'s' if processes > 1 else ''} of the {wanted} that `cluster.gpus` asks for, but CUDA finds "
        f"{there or 'none'} ({', '.join(why)}); mend the node or the image, or set cluster.gpus=0 to train on CPUs",
        "cluster.gpus",
    )
