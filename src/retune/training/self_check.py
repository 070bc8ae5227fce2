"""Selects how a base's losses are computed, by a check on generated records before the first trial.

Our way reads a batch as one flattened sequence, with attention and layers of our own. What transformers' plain forward
gives for each record alone, with eager attention, is right by definition. Both are asked for the losses of some made-up
records and for the gradients of an adapter; where they differ beyond rounding, transformers' own forward is taken, over
padded batches if that gives the same, else one record at a time, and where that is no fixed number either, the base is
refused. What a few short records cannot show (a window longer than they are,
rotary frequencies that change with the length) is read from the base's config.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from retune.data.batches import Batch, flatten
from retune.data.tokens import Tokens, pack
from retune.errors import InputError, is_out_of_memory
from retune.training import draws_check, head, llama_layer, lora_linear, memory, one_by_one, reach
from retune.training.attention import segments
from retune.training.layer_steps import PLAIN, compiled
from retune.training.loss import loss_sum
from retune.training.model_attention import by_segments
from retune.training.one_by_one import Reading, by_record, transformers_model

Way = Literal["flattened", "padded", "padded, eager", "one by one", "one by one, eager"]
WAYS: tuple[Way, ...] = get_args(Way)
"""From fast to slow."""
LENGTHS = (11, reach.NEAR, 3, 22)
# What a token's loss may differ by at least, in nats, and by how much a record's may change with its neighbours.
_LEAST: dict[torch.dtype | None, tuple[float, float]] = {
    torch.float64: (1e-9, 1e-9),
    torch.float32: (1e-5, 3e-6),
    torch.float16: (4e-3, 2e-3),
    torch.bfloat16: (2e-2, 1e-2),
    None: (2e-2, 1e-2),
}
_ROUNDINGS = 30  # a model rounds at every step of every layer; how much one at its input changes is measured
_GRADIENTS = {torch.float64: 1e-6, torch.float32: 2e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
_KINDS_OF_LAYERS = {"full_attention", "attention", "sliding_attention", "chunked_attention"}
_EAGER_BYTES = 16  # for each score of a head: itself, its share in float32, and copies of both
_USUAL = 10.0  # nats, as an even guess among 22,000 tokens has
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checked:
    """What the check found.

    Attributes:
        way: how losses are computed from here on.
        reason: why not by flattened batches; empty if they are used.
        difference: of the largest token's loss between that way and the plain one, in nats. allowed: what is rounding.
        gradients: norm of the difference of an adapter's gradients over their norm; None where none were asked for.
        slower: how many times longer the made-up records took one by one than flattened; None if it was not measured.
        seconds: what the check took.
        in_parts: whether logits are made for some tokens at a time (`retune.training.head`).
        layers: why layers that `retune.training.llama_layer` knows are not written out; empty if they are or it knows none.
        compared: tokens of the longest record that was compared. longest: of the longest that will be read.
    """

    way: Way
    reason: str = ""
    difference: float = 0.0
    allowed: float = 0.0
    gradients: float | None = None
    slower: float | None = None
    seconds: float = 0.0
    in_parts: bool = True
    layers: str = ""
    compared: int = 0
    longest: int | None = None

    def record(self) -> dict[str, Any]:
        """Return it as it is written into a trial's record."""
        return asdict(self)

    @property
    def note(self) -> str:
        """One line for the log: what is done instead and what it costs; empty where nothing is lost."""
        if self.way == "flattened":
            return ""
        if self.way.startswith("padded"):
            cost = ", which computes what is padded too"
        elif self.slower:
            cost = f", which took {self.slower:.1f} times as long on generated records"
        else:
            cost = ", which is slower"
        whole = "" if self.in_parts else ", with all logits of a pass in memory"
        return f"batches are computed {self.way} by transformers' own forward{cost}{whole}: {self.reason}"


def reading(model: Any, checked: Checked) -> AbstractContextManager[None]:
    """Return the context in which `retune.training.loss.loss_sum` computes as the check decided."""
    if checked.way == "flattened":
        return by_segments(transformers_model(model), checked.longest)
    reading = Reading(checked.way.startswith("padded"), checked.in_parts)
    return by_record(transformers_model(model), checked.way.endswith("eager"), reading)


def check(model: Any, tokenizer: Any, longest: int, train: bool) -> Checked:
    """Compare our way with the plain one on made-up records, and say which is taken.

    Args:
        model: the base, best with an adapter on it, outside of any of the two ways; as it was afterwards.
        tokenizer: the base's; None if any token may be made up.
        longest: the longest record that will be read, in tokens.
        train: whether the adapter is going to be trained: then gradients are compared too.

    Raises:
        InputError: if the plain forward gives no losses that one can train or judge by.
    """
    begin = time.monotonic()
    core = transformers_model(model)
    training = model.training
    model.eval()
    device = next(core.parameters()).device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            found = _Check(model, core, tokenizer, longest, train).run()
    finally:
        model.train(training)
        for parameter in model.parameters():
            parameter.grad = None
    found = replace(found, seconds=round(time.monotonic() - begin, 3))
    if found.note:
        _LOG.warning("%s", found.note)
    return found


def generated_tokens(core: Any, tokenizer: Any, longest: int) -> Tokens:
    """Return random records of ordinary tokens. The seed is fixed, and none is longer than the base allows."""
    room = _room(core, longest)
    return _generated(core, tokenizer, [max(2, min(length, room)) for length in LENGTHS])


def _room(core: Any, longest: int) -> int:
    """Return the longest record that can be made up for a base, if those that will be read have up to `longest` tokens."""
    config = text_config(core)
    table = getattr(config, "max_position_embeddings", None) or 0
    return int(min(longest, fixed_rotary(config), table if table > 0 else longest))


def _generated(core: Any, tokenizer: Any, lengths: Sequence[int]) -> Tokens:
    drawn = ordinary_tokens(core, tokenizer, sum(lengths))
    records, start = [], 0
    for length in lengths:
        records.append(
            (
                drawn[start : start + length],
                [place >= max(min(2, length - 1), length // 3) for place in range(length)],
            )
        )
        start += length
    return pack(records)


def ordinary_tokens(core: Any, tokenizer: Any, count: int) -> list[int]:
    """Return tokens that mean nothing special to the model, drawn at random; always the same ones.

    Args:
        core: the transformers model. tokenizer: its own; None if there is none.
        count: how many.
    """
    size = int(core.get_input_embeddings().weight.shape[0])
    if hasattr(tokenizer, "__len__"):
        size = min(size, len(tokenizer))
    special = set(getattr(tokenizer, "all_special_ids", range(4)))
    ordinary = [token for token in range(size) if token not in special][: 1 << 16]
    draws = torch.randint(len(ordinary), (count,), generator=torch.Generator().manual_seed(0))
    return [ordinary[draw] for draw in draws.tolist()]


class _Check:
    """The check of one model; the model is in evaluation mode."""

    def __init__(self, model: Any, core: Any, tokenizer: Any, longest: int, train: bool) -> None:
        self.model, self.core, self.longest, self.train = model, core, longest, train
        device = next(core.parameters()).device
        self.tokens = tokens = generated_tokens(core, tokenizer, longest)
        self.batch = flatten(tokens, list(range(len(LENGTHS)))).to(device)
        self.singles = [flatten(tokens, [record]).to(device) for record in range(len(LENGTHS))]
        self.dtype = next(core.parameters()).dtype
        self.allowed, self.beside = least(core)
        self.gradients = gradients_allowed(self.dtype)
        self.adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.kind = core.config.model_type
        self.compared = max(self.batch.lengths)
        self.far = self._far(tokenizer, device)

    def _far(self, tokenizer: Any, device: torch.device) -> Batch | None:
        """Return a batch with a record that is long enough for what a base does to long ones (`reach`); None if there is none.

        Its losses alone are compared. One for which eager attention has not the memory is left out, with a line in the log.
        """
        wanted = min(_room(self.core, self.longest), reach.of(text_config(self.core), self.longest))
        if wanted <= self.compared:
            return None
        heads = int(getattr(text_config(self.core), "num_attention_heads", None) or 1)
        free = memory.free(device)
        if free is not None and heads * wanted**2 * _EAGER_BYTES > free:
            _LOG.warning(
                "records of more than %d tokens are not compared with transformers' own forward: for one of %d, which the "
                "base computes in another way, eager attention has not the memory",
                self.compared, wanted,
            )  # fmt: skip
            return None
        self.compared = wanted
        return flatten(_generated(self.core, tokenizer, [9, wanted]), [0, 1]).to(device)

    def run(self) -> Checked:
        with by_record(self.core, eager=True):
            right = self._right()
            self.right_far = self._right_far()
            of_right = (
                self._read(lambda: self._gradients(self._one_by_one), "training") if self.train else None
            )
        plain, seconds = self._plain(right)
        eager = not plain <= self.allowed
        reason = unsupported_reason(self.core, self.longest)
        if not reason:
            layers = self._layers(right, of_right)
            reason, difference, gradients = self._flattened(right, of_right)
            if not reason:
                return Checked(
                    "flattened", "", difference, self.allowed, gradients, layers=layers,
                    compared=self.compared, longest=self.longest,
                )  # fmt: skip
        flat_seconds = self._flat_seconds()
        slower = round(seconds / flat_seconds, 1) if flat_seconds else None
        if self.train:
            with by_record(self.core, eager), self._training():
                self._read(
                    lambda: one_by_one.logits(self.model, self.singles[0].ids, self.singles[0].rows),
                    "training",
                )
        ways: list[Way] = ["padded, eager", "one by one, eager"] if eager else ["padded", "one by one"]
        limit = fixed_rotary(text_config(self.core))
        if self.longest > limit:
            ways = ways[1:]  # padding would change the length
        for way in ways:
            for in_parts in (True, False):
                found = Checked(
                    way, reason, 0.0 if eager else plain, self.allowed, None, slower, in_parts=in_parts,
                    compared=self.compared, longest=self.longest,
                )  # fmt: skip
                if way == ways[-1] and not in_parts:
                    return found  # which is what was compared with the plain forward above
                difference, gradients = self._plain_sums(found, right, of_right)
                close = gradients is None or gradients <= self.gradients
                if difference <= self.allowed and close:
                    return replace(found, difference=max(found.difference, difference), gradients=gradients)
        raise AssertionError("the last way is always taken")

    def _plain_sums(
        self, tried: Checked, right: Tensor, of_right: Tensor | None
    ) -> tuple[float, float | None]:
        """Return how far a way through transformers' own forward is from the right losses, and its gradients."""
        gradients = None
        try:
            with reading(self.model, tried):
                with torch.no_grad():
                    with head.in_parts_of(self.core, len(right) // 3):
                        difference = abs(
                            float(loss_sum(self.model, self.batch)) - float(right.double().sum())
                        )
                    difference /= len(right)
                    if tried.way.startswith("padded"):
                        difference = max(difference, apart(right, self._padded(self.batch.ids)))
                        difference = max(difference, self._far_apart(lambda b: self._padded(b.ids, b)))
                        if self._beside(self._padded) > self.beside:
                            return math.inf, None
                if of_right is not None:
                    made = self._gradients(lambda: loss_sum(self.model, self.batch) / len(right))
                    gradients = float((made - of_right).norm() / of_right.norm())
                    if self._draws_differ():
                        return math.inf, None
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return math.inf, None
        return difference, gradients

    def _padded(self, ids: Tensor, batch: Batch | None = None) -> Tensor:
        """Return the loss of each counted token of the padded batch with other tokens in it."""
        batch = replace(batch or self.batch, ids=ids)
        return _losses(one_by_one.logits(self.model, *one_by_one.pad(batch)), batch.targets)

    def _right(self) -> Tensor:
        """Return the losses that are right by definition, after looking whether they are losses at all."""
        right, again, cut = (self._read(read) for read in (self._one_by_one, self._one_by_one, self._cut))
        if not bool(torch.isfinite(right).all()):
            raise self._refused("finite losses, but it does not")
        if not apart(right, again) <= self.allowed:
            raise self._refused(
                f"the same losses to the same records, but two readings differ by {apart(right, again):.2g}"
            )
        self.allowed = allowed(self.core, right, lambda: self._read(self._one_by_one))
        later = apart(right[: len(cut)], cut)
        if not later <= self.allowed:
            raise self._refused(
                f"losses that depend on earlier tokens alone, but they change by {later:.2g} with what follows"
            )
        return right

    def _right_far(self) -> Tensor | None:
        """Return the right losses of the far batch; what rounding changes there is allowed from here on."""
        if self.far is None:
            return None
        singles = self._singles_of(self.far)
        right, again = (self._read(lambda: self._one_by_one(singles)) for _ in range(2))
        if not bool(torch.isfinite(right).all()):
            raise self._refused("finite losses, but it does not")
        self.allowed = max(
            self.allowed, allowed(self.core, right, lambda: self._read(lambda: self._one_by_one(singles)))
        )
        if not apart(right, again) <= self.allowed:
            raise self._refused(
                f"the same losses to the same records, but two readings differ by {apart(right, again):.2g}"
            )
        return right

    def _far_apart(self, read: Callable[[Batch], Tensor]) -> float:
        """Return how far a way's losses are from the right ones on the far batch; 0 if there is none."""
        if self.far is None or self.right_far is None:
            return 0.0
        return apart(self.right_far, read(self.far))

    def _singles_of(self, batch: Batch) -> list[Batch]:
        """Return the records of a batch by themselves."""
        found, start = [], 0
        for length in batch.lengths:
            mine = (batch.rows >= start) & (batch.rows < start + length)
            found.append(
                replace(
                    batch, ids=batch.ids[:, start : start + length], rows=batch.rows[mine] - start, lengths=[length],
                    positions=batch.positions[:, start : start + length], targets=batch.targets[mine],
                )
            )  # fmt: skip
            start += length
        return found

    def _refused(self, rule: str) -> InputError:
        return InputError(f"a base (here of type {self.kind}) must give {rule}", "model.base")

    def _read(self, read: Callable[[], Tensor], what: str = "evaluation") -> Tensor:
        """Return what the plain forward gives, without gradients; refuse a base with which it fails."""
        try:
            with torch.no_grad():
                return read()
        except Exception as error:
            if isinstance(error, InputError) or is_out_of_memory(error):
                raise
            raise InputError(
                f"a base (here of type {self.kind}) must read single records, but in {what} its forward failed: "
                f"{_line(error)}",
                "model.base",
            ) from error

    def _cut(self) -> Tensor:
        """Return the losses of the first record's first counted tokens, with what follows them cut off."""
        single = self.singles[0]
        kept = max(1, len(single.rows) // 2)
        ids = single.ids[:, : int(single.rows[kept - 1]) + 1]
        return _losses(one_by_one.logits(self.model, ids, single.rows[:kept]), single.targets[:kept])

    def _one_by_one(self, singles: Sequence[Batch] | None = None) -> Tensor:
        """Return the loss of each counted token, each record read by itself."""
        return torch.cat(
            [
                _losses(one_by_one.logits(self.model, each.ids, each.rows), each.targets)
                for each in singles or self.singles
            ]
        )

    def _plain(self, right: Tensor) -> tuple[float, float]:
        """Return how far the loaded attention is from the eager one (infinity if it fails), and the seconds it took."""
        begin = time.monotonic()
        try:
            with torch.no_grad(), by_record(self.core):
                difference = max(
                    apart(right, self._one_by_one()),
                    self._far_apart(lambda batch: self._one_by_one(self._singles_of(batch))),
                )
        except Exception as error:
            if is_out_of_memory(error):
                raise
            difference = math.inf
        return difference, time.monotonic() - begin

    def _flattened(self, right: Tensor, of_right: Tensor | None) -> tuple[str, float, float | None]:
        """Return why flattened batches cannot be used (empty if they can), and the differences found."""
        difference, gradients, drawn = math.inf, None, ""
        try:
            with (
                by_segments(self.core, self.longest),
                lora_linear.installed(self.model) if self.train else nullcontext(),
            ):
                with torch.no_grad():
                    difference = apart(right, self._flat(self.batch.ids))
                    difference = max(difference, self._far_apart(lambda batch: self._flat(batch.ids, batch)))
                    beside = self._beside(self._flat)
                    with head.in_parts_of(self.core, len(right) // 3):
                        whole = float(loss_sum(self.model, self.batch))
                if of_right is not None:
                    made = self._gradients(lambda: loss_sum(self.model, self.batch) / len(right))
                    gradients = float((made - of_right).norm() / of_right.norm())
                    drawn = self._draws_differ()
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return f"flattened batches do not pass through it: {_line(error)}", difference, gradients
        difference = max(difference, abs(whole - float(right.double().sum())) / len(right))
        rules = [
            (
                difference <= self.allowed,
                f"a token's loss in a flattened batch differs by {difference:.2g} from the plain forward, "
                f"rounding allows {self.allowed:.2g}",
            ),
            (
                beside <= self.beside,
                f"in a flattened batch a record's losses change by {beside:.2g} with those before it",
            ),
            (
                gradients is None or gradients <= self.gradients,
                f"in a flattened batch the adapter's gradients differ by {gradients or 0.0:.2g} of their size",
            ),
            (not drawn, drawn),
        ]
        return next((reason for holds, reason in rules if not holds), ""), difference, gradients

    def _layers(self, right: Tensor, of_right: Tensor | None) -> str:
        """Let layers be written out (`retune.training.llama_layer`) if that gives the right losses, and on a GPU is faster.

        Returns:
            why they are not; empty if they are, or always are, or there are none that could be.
        """
        if llama_layer.certain(self.core) or not llama_layer.known(self.core):
            return ""
        if llama_layer.refused(self.core):
            return "they were found wrong or slower before"
        if any(hasattr(parameter, "to_local") for parameter in self.core.parameters()):
            reason = "the base is sharded"
        else:
            reason = self._best_steps(right, of_right)
        if reason:
            llama_layer.allow(self.core, None)
            _LOG.warning("layers are computed by transformers' own code: %s", reason)
        return reason

    def _best_steps(self, right: Tensor, of_right: Tensor | None) -> str:
        """Let layers be written out by those steps that are right and, on a GPU, take the least time; return why none are."""
        timed = of_right is not None and self.batch.ids.device.type == "cuda"
        reason, times = "", {}
        for how in [PLAIN, compiled()] if timed else [PLAIN]:
            llama_layer.allow(self.core, how)
            wrong = self._flattened(right, of_right)[0]
            if not wrong:
                times[how.name] = (self._seconds() if timed else 0.0), how
            reason = reason or wrong
        if not times:
            return reason
        seconds, how = min(times.values(), key=lambda found: found[0])
        llama_layer.allow(self.core, None)
        own = self._seconds() if timed else math.inf
        if own < seconds:
            return f"written out, a pass takes {seconds * 1e3:.1f} ms, as they are {own * 1e3:.1f} ms"
        llama_layer.allow(self.core, how)
        if timed:
            _LOG.info(
                "layers are written out, with %s steps: %.1f ms a pass, not %.1f",
                how.name,
                seconds * 1e3,
                own * 1e3,
            )
        return ""

    def _seconds(self) -> float:
        """Return the least seconds of five training passes over the made-up records; reading gradients waits for the device."""
        found = []
        with by_segments(self.core), lora_linear.installed(self.model):
            for _ in range(5):
                begin = time.monotonic()
                self._gradients(lambda: loss_sum(self.model, self.batch))
                found.append(time.monotonic() - begin)
        return min(found)

    def _draws_differ(self) -> str:
        """Return how what a training pass draws depends on what shares it; empty if it does not."""
        with self._training(), torch.enable_grad():
            return draws_check.differs(self.model, self.tokens, self.adapter, self.allowed, self.gradients)

    def _flat(self, ids: Tensor, batch: Batch | None = None) -> Tensor:
        """Return the loss of each counted token of the flattened batch with other tokens in it."""
        batch = batch or self.batch
        out = self.model(
            input_ids=ids,
            position_ids=batch.positions,
            logits_to_keep=batch.rows,
            use_cache=False,
            segments=segments(batch.lengths, batch.tails, ids.device),
        ).logits[0]
        return _losses(out, batch.targets)

    def _beside(self, losses: Callable[[Tensor], Tensor]) -> float:
        """Return how much the last record's losses change with the tokens of the others: 0 is right."""
        other, before = self.batch.ids.clone(), self.batch.ids.shape[1] - self.batch.lengths[-1]
        own = other[0, before:]
        other[0, :before] = own.repeat(-(-before // len(own)))[:before]
        mine = -len(self.singles[-1].rows)
        return apart(losses(self.batch.ids)[mine:], losses(other)[mine:])

    def _gradients(self, loss: Callable[[], Tensor]) -> Tensor:
        """Return the gradients of the adapter's weights for the mean loss, one behind the other, in float32."""
        with torch.enable_grad():
            made = torch.autograd.grad(loss().mean(), self.adapter, allow_unused=True)
        whole = torch.cat(
            [
                (torch.zeros_like(parameter) if gradient is None else gradient).float().flatten()
                for parameter, gradient in zip(self.adapter, made, strict=True)
            ]
        )
        if not bool(torch.isfinite(whole).all()) or not bool(whole.any()):
            raise InputError(
                f"an adapter on `target_modules` must have a gradient, but in this base (of type {self.kind}) it is zero "
                "or not finite",
                "training",
            )
        return whole

    @contextmanager
    def _training(self) -> Iterator[None]:
        self.model.train()
        try:
            yield
        finally:
            self.model.eval()

    def _flat_seconds(self) -> float | None:
        """Return the seconds that a flattened batch takes, right or wrong; None if it does not pass."""
        try:
            with by_segments(self.core), torch.no_grad():
                begin = time.monotonic()
                self._flat(self.batch.ids)
                return time.monotonic() - begin
        except Exception:
            return None


def unsupported_reason(core: nn.Module, longest: int) -> str:
    """Return why a base's config excludes flattened batches, even if short records pass; empty if it does not.

    Args:
        core: the transformers model.
        longest: the longest record that will be read, in tokens.
    """
    config = text_config(core)
    limit = fixed_rotary(config)
    if longest > limit:
        return f"its rotary frequencies change with the length from {limit} tokens on, and records may have {longest}"
    other = sorted(set(getattr(config, "layer_types", None) or ()) - _KINDS_OF_LAYERS)
    if other:
        return f"it has layers of the kind {', '.join(other)}, which keep records apart in no flattened batch"
    if any(isinstance(part, nn.Conv1d) for part in core.modules()):
        return "it has convolutions along the sequence, which run over the records' borders"
    for name in ("index_topk", "index_top_k"):
        top = getattr(config, name, None)
        if top is not None and longest > top:
            return f"its attention chooses {top} of a record's tokens, and records may have {longest}"
    return ""


def least(core: Any) -> tuple[float, float]:
    """Return what rounding may change a token's loss by at least, and what its neighbours in a batch may, in nats."""
    return _LEAST.get(next(core.parameters()).dtype, _LEAST[None])


def gradients_allowed(dtype: torch.dtype) -> float:
    """Return what rounding may change an adapter's gradients by, as a share of their norm."""
    return _GRADIENTS.get(dtype, _GRADIENTS[torch.bfloat16])


def allowed(core: Any, right: Tensor, read: Callable[[], Tensor]) -> float:
    """Return what rounding may change a model's numbers by, in nats.

    Args:
        core: the transformers model. right: what `read` gave.
        read: reads something with the model and returns logarithms of probabilities.
    """
    with perturbed(core):
        return max(least(core)[0], _ROUNDINGS * apart(right, read()))


@contextmanager
def perturbed(core: Any) -> Iterator[None]:
    """Perturb the embeddings' output by one rounding of its data type inside the block."""
    draws = torch.Generator().manual_seed(0)

    def shake(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        noise = torch.randn(output.shape, generator=draws).to(output.device, output.dtype)
        return output + output * noise * torch.finfo(output.dtype).eps

    handle = core.get_input_embeddings().register_forward_hook(shake)
    try:
        yield
    finally:
        handle.remove()


def text_config(core: Any) -> Any:
    """Return the part of a transformers model's config that is about text."""
    return core.config.get_text_config()


def fixed_rotary(config: Any) -> float:
    """Return up to how many tokens a base's rotary frequencies do not depend on the length; infinity if they never do."""
    found: Any = getattr(config, "rope_parameters", None) or {}
    forms = [found, *(form for form in found.values() if isinstance(form, dict))]
    limits: list[float] = [math.inf]
    for form in forms:
        if form.get("rope_type") in ("dynamic", "longrope", "su"):
            given = [form.get("original_max_position_embeddings"), getattr(config, "original_max_position_embeddings", None),
                     getattr(config, "max_position_embeddings", None)]  # fmt: skip
            limits += [int(limit) for limit in given if limit]
    return min(limits)


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits.float(), targets, reduction="none")


def apart(right: Tensor, other: Tensor) -> float:
    """Return the largest difference between logarithms of probabilities; NaN if there is one.

    Rounding grows with the numbers: those beyond `_USUAL` nats count in proportion.
    """
    size = max(1.0, float(right.detach().abs().max()) / _USUAL)
    return float((right.detach().double() - other.detach().double()).abs().max()) / size


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
