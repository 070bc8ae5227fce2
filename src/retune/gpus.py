"""The GPUs of this machine: which ones CUDA may use, how busy they are, and the refusal to run without one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from retune.errors import InputError

# A line of `nvidia-smi -L`: "GPU 0: NVIDIA H100 (UUID: GPU-…)"; instances of it are indented below: "(UUID: MIG-…)"
_DEVICE = re.compile(r"^(?P<indent>\s*).*\(UUID: (?P<uuid>(?:GPU|MIG)-[^)]+)\)", re.MULTILINE)


@dataclass(frozen=True)
class Usage:
    """How busy a GPU is: `busy` in percent of the time, memory in MiB; None where the driver does not report it."""

    index: str
    name: str
    busy: float | None
    memory_used: float | None
    memory_total: float | None


def visible() -> list[str]:
    """Return the GPUs that CUDA may use here, as CUDA_VISIBLE_DEVICES names them; empty if there are none.

    CUDA_VISIBLE_DEVICES decides if it is set, be it with indices, UUIDs or MIG instances; as in CUDA, entries behind one
    that is no device (``-1``) do not count. Otherwise ``nvidia-smi -L`` lists them by UUID, since CUDA numbers them in
    another order. CUDA sees only the instances of a partitioned GPU (MIG), which the files /dev/nvidiaN do not show.
    """
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    if variable is not None:
        devices = []
        for entry in (part.strip() for part in variable.split(",")):
            if not re.fullmatch(r"\d+|(GPU|MIG)-.+", entry):
                break
            devices.append(entry)
        return devices
    if shutil.which("nvidia-smi"):
        try:
            listing = subprocess.run(
                ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return []  # no driver: CUDA finds nothing either
        return parse_listing(listing.stdout)
    if Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists():  # a container without nvidia-smi, or WSL
        return _indices_by_torch()
    return []


def parse_listing(text: str) -> list[str]:
    """Return the UUIDs that ``nvidia-smi -L`` printed; for a partitioned GPU (MIG) those of its instances."""
    devices: list[str] = []
    for match in _DEVICE.finditer(text):
        uuid = match["uuid"]
        if uuid.startswith("MIG-") and devices and devices[-1].startswith("GPU-"):
            devices.pop()
        devices.append(uuid)
    return devices


def usage() -> list[Usage]:
    """Return how busy each GPU of this machine is at this moment, by ``nvidia-smi``; empty where there is none.

    Raises:
        subprocess.TimeoutExpired: if the driver does not answer within some seconds.
    """
    if not shutil.which("nvidia-smi"):
        return []
    columns = "index,name,utilization.gpu,memory.used,memory.total"
    command = ["nvidia-smi", f"--query-gpu={columns}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return [
        Usage(row[0], row[1], _number(row[2]), _number(row[3]), _number(row[4]))
        for row in rows
        if done.returncode == 0 and len(row) == 5
    ]


def _number(text: str) -> float | None:
    """Return a number that nvidia-smi printed; None for ``[N/A]``, its utilisation of a partitioned GPU."""
    try:
        return float(text)
    except ValueError:
        return None


def _indices_by_torch() -> list[str]:
    """Return CUDA's own indices, from another process: once CUDA is initialised here, forked workers cannot use it."""
    code = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return [str(number) for number in range(int(done.stdout))] if done.stdout.strip().isdigit() else []


def in_pipeline_step() -> bool:
    """Return whether this process runs in a step's pod of a Kubeflow pipeline, where `cluster.gpus` applies."""
    return "KFP_POD_NAME" in os.environ


def require(requested: int) -> None:
    """Refuse to train or score on a CPU in a pod that was given `requested` GPUs (`cluster.gpus`).

    Raises:
        InputError: with what CUDA found instead.
    """
    if not requested:
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
    if count >= processes:
        return
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    details = [f"torch {torch.__version__} was built {build}"]
    details += [f"CUDA_VISIBLE_DEVICES is {variable!r}"] if variable is not None else []
    raise InputError(
        f"this needs {processes} GPU{'s' if processes > 1 else ''} of the {requested} that `cluster.gpus` asks for, but CUDA "
        f"finds {count or 'none'} ({', '.join(details)}); repair the node or the image, or set cluster.gpus=0 to train on CPUs",
        "cluster.gpus",
    )
