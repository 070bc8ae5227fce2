"""Restores a loaded base bit for bit after an adapter, whatever the adapter changed.

An adapter can do more to a base than stand beside a linear layer: replace whole modules (`modules_to_save`), overwrite
biases, norms and embeddings, or begin by editing the base's own weights (PiSSA, OLoRA, LoftQ, CorDA). So everything that
makes up the model is noted before, put back afterwards, and the weights' bits are compared.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from retune.errors import RetuneError


class BaseChanged(RetuneError):
    """The base is not what it was before the adapter and cannot be brought back: it has to be loaded again."""


@contextmanager
def preserved(base: nn.Module, copied: Callable[[str], bool] = lambda name: False) -> Iterator[None]:
    """Bring the base back at the end of the block, however it ends: modules, weights, hooks, flags and settings.

    No copy is made of large weights: a weight that was exchanged is put back from the storage it had before. Vectors
    and buffers (biases, norms, rotary frequencies) are copied, and so is what `copied` says, for what is written in
    place.

    Args:
        base: the loaded base, without an adapter.
        copied: tells by its name whether a weight is going to be overwritten.

    Raises:
        BaseChanged: at the end, if bits of a weight differ all the same.
    """
    _reshard(base)
    structure = [_Attributes(part) for part in _parts(base)]
    sharded = any(hasattr(parameter, "to_local") for parameter in base.parameters())
    tensors = {} if sharded else _tensors(base)  # FSDP exchanges the tensors of its modules all the time
    weights = set(dict(base.named_parameters()))
    storages = {name: tensor.detach() for name, tensor in tensors.items()}
    flags = {name: tensor.requires_grad for name, tensor in tensors.items()}
    sums = _sums(storages)
    copies = {
        name: storage.to("cpu", copy=True)
        for name, storage in storages.items()
        if storage.dim() < 2 or name not in weights or copied(name)
    }
    try:
        yield
    finally:
        _reshard(base)
        for part in structure:
            part.restore()
        with torch.no_grad():
            for name, tensor in tensors.items():
                if not tensor.is_set_to(storages[name]):
                    tensor.data = storages[name]
                tensor.grad = None
                tensor.requires_grad_(flags[name])
            for name in _differing(sums, storages, copies):
                storages[name].copy_(copies[name])
        if sharded:
            base.requires_grad_(False)
        lost = _differing(sums, storages, storages)
        if lost:
            some = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
            raise BaseChanged(
                f"an adapter must leave the base as it was, but it changed {some}: the base must be loaded again"
            )


@contextmanager
def reload_if_changed(forget: Callable[[], None]) -> Iterator[None]:
    """Wrap `preserved`: call `forget` to drop a base that could not be restored, so that it is loaded again.

    Results computed before, with the adapter on the intact base, stay valid. An error in the block propagates.
    """
    try:
        yield
    except BaseChanged as error:
        forget()
        logging.getLogger(__name__).warning("%s", error)
        if not isinstance(error.__context__, BaseChanged | None):
            raise error.__context__ from None


class _Attributes:
    """What an object's attributes were; of containers (modules, parameters, hooks) also what was in them."""

    def __init__(self, owner: Any) -> None:
        self.owner, self.kind = owner, type(owner)
        self.values = dict(vars(owner))
        self.contents = {
            name: value.copy() for name, value in self.values.items() if isinstance(value, dict | set | list)
        }

    def restore(self) -> None:
        if type(self.owner) is not self.kind:
            self.owner.__class__ = self.kind
        now = vars(self.owner)
        for name in set(now) - set(self.values):
            del now[name]
        now.update(self.values)
        for name, content in self.contents.items():
            container = self.values[name]
            if isinstance(container, list):
                container[:] = content
            else:
                container.clear()
                container.update(content)


def _parts(base: nn.Module) -> Iterator[Any]:
    """Give every object whose attributes make up the model: its modules and their settings, each once."""
    seen: set[int] = set()
    for module in base.modules():
        found = [module, *(v for k, v in vars(module).items() if k in ("config", "generation_config"))]
        for part in found:
            if id(part) not in seen and hasattr(part, "__dict__"):
                seen.add(id(part))
                yield part


def _reshard(base: nn.Module) -> None:
    """Let a base under FSDP put its gathered weights away: which of the two stand in a module is part of its state."""
    module: Any
    for module in base.modules():
        if hasattr(module, "reshard"):
            module.reshard()


def _tensors(base: nn.Module) -> dict[str, Tensor]:
    return {**dict(base.named_parameters()), **dict(base.named_buffers())}


def _differing(sums: dict[str, int], storages: dict[str, Tensor], names: Iterable[str]) -> list[str]:
    """Return which of the named tensors have other bits than when their sums were taken."""
    now = _sums({name: storages[name] for name in names})
    return [name for name, total in now.items() if total != sums[name]]


def _sums(storages: dict[str, Tensor]) -> dict[str, int]:
    """Return a sum over the bits of each tensor: one pass over the memory, as long as a short forward takes."""
    made = [_sum(storage) for storage in storages.values()]
    return dict(zip(storages, [int(total) for total in made], strict=True))


def _sum(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor's bits, read as whole numbers; it wraps around."""
    flat = tensor.contiguous().view(-1)
    size = flat.numel() * flat.element_size()
    if flat.dtype == torch.bool or size == 0:
        return flat.sum(dtype=torch.int64)
    words = torch.int64 if size % 8 == 0 and flat.data_ptr() % 8 == 0 else torch.uint8
    return flat.view(words).sum(dtype=torch.int64)
