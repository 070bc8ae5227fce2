"""Restores a loaded base bit for bit after an adapter, including everything that the adapter changed.

An adapter can do more than add layers beside linear ones: replace whole modules (`modules_to_save`), overwrite biases, norms and
embeddings, or edit the base's own weights at its initialisation (PiSSA, OLoRA, LoftQ, CorDA). So all attributes of the model's
modules are saved before and restored after, and the bits of the weights are compared.
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
    """An adapter changed the base, and the change cannot be undone: the base has to be loaded again."""


@contextmanager
def preserved(base: nn.Module, copied: Callable[[str], bool] = lambda name: False) -> Iterator[None]:
    """Restore the base at the end of the block, however it ends: modules, weights, hooks, flags and settings.

    Large weights are not copied: a weight that was replaced is restored from its original storage. Copies are made of what may
    be overwritten in place: vectors and buffers (biases, norms, rotary frequencies), and the weights chosen by `copied`.

    Args:
        base: the loaded base, without an adapter.
        copied: whether the weight of this name is going to be overwritten.

    Raises:
        BaseChanged: at the end, if bits of a weight differ after all.
    """
    _reshard(base)
    structure = [_Attributes(part) for part in _parts(base)]
    sharded = any(hasattr(parameter, "to_local") for parameter in base.parameters())
    tensors = {} if sharded else _tensors(base)  # FSDP replaces the tensors of its modules in every pass
    weights = set(dict(base.named_parameters()))
    storages = {name: tensor.detach() for name, tensor in tensors.items()}
    flags = {name: tensor.requires_grad for name, tensor in tensors.items()}
    checksums = _checksums(storages)
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
            for name in _differing(checksums, storages, copies):
                storages[name].copy_(copies[name])
        if sharded:
            base.requires_grad_(False)
        changed = _differing(checksums, storages, storages)
        if changed:
            some = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            raise BaseChanged(
                f"an adapter must leave the base unchanged, but it changed {some}; the base will be loaded again"
            )


@contextmanager
def reload_if_changed(forget: Callable[[], None]) -> Iterator[None]:
    """Catch the `BaseChanged` of `preserved` in the block and call `forget`, so that the base is loaded again.

    Results of the block stay valid: they were computed with the adapter on the intact base. Other errors propagate.
    """
    try:
        yield
    except BaseChanged as error:
        forget()
        logging.getLogger(__name__).warning("%s", error)
        # `preserved` raises in its `finally`: an error of the block, now the context, must not be lost.
        if not isinstance(error.__context__, BaseChanged | None):
            raise error.__context__ from None


class _Attributes:
    """A snapshot of an object's attributes, and of the contents of those that are containers (modules, parameters, hooks)."""

    def __init__(self, owner: Any) -> None:
        self.owner, self.kind = owner, type(owner)
        self.values = dict(vars(owner))
        self.contents = {
            name: value.copy() for name, value in self.values.items() if isinstance(value, dict | set | list)
        }

    def restore(self) -> None:
        if type(self.owner) is not self.kind:
            self.owner.__class__ = self.kind
        current = vars(self.owner)
        for name in set(current) - set(self.values):
            del current[name]
        current.update(self.values)
        for name, content in self.contents.items():
            container = self.values[name]
            if isinstance(container, list):
                container[:] = content
            else:
                container.clear()
                container.update(content)


def _parts(base: nn.Module) -> Iterator[Any]:
    """Yield every object whose attributes make up the model, each once: its modules and their configs."""
    seen: set[int] = set()
    for module in base.modules():
        candidates = [module, *(v for k, v in vars(module).items() if k in ("config", "generation_config"))]
        for part in candidates:
            if id(part) not in seen and hasattr(part, "__dict__"):
                seen.add(id(part))
                yield part


def _reshard(base: nn.Module) -> None:
    """Drop the gathered weights of an FSDP base: its modules must hold their shards when their state is saved or compared."""
    module: Any
    for module in base.modules():
        if hasattr(module, "reshard"):
            module.reshard()


def _tensors(base: nn.Module) -> dict[str, Tensor]:
    return {**dict(base.named_parameters()), **dict(base.named_buffers())}


def _differing(checksums: dict[str, int], storages: dict[str, Tensor], names: Iterable[str]) -> list[str]:
    """Return which of the named tensors have another checksum than before."""
    current = _checksums({name: storages[name] for name in names})
    return [name for name, total in current.items() if total != checksums[name]]


def _checksums(storages: dict[str, Tensor]) -> dict[str, int]:
    """Return the checksum of each tensor: one pass over the memory, which takes about as long as a short forward."""
    sums = [_checksum(storage) for storage in storages.values()]
    return dict(zip(storages, [int(total) for total in sums], strict=True))


def _checksum(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor's memory, read as 64-bit integers (bytes if that is not possible), modulo 2**64."""
    flat = tensor.contiguous().view(-1)
    size = flat.numel() * flat.element_size()
    if flat.dtype == torch.bool or size == 0:
        return flat.sum(dtype=torch.int64)
    words = torch.int64 if size % 8 == 0 and flat.data_ptr() % 8 == 0 else torch.uint8
    return flat.view(words).sum(dtype=torch.int64)
