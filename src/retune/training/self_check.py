"""Selects how a base's losses are computed, by a check on generated records before the first trial.

The fast way computes a batch as one flattened sequence, with our own attention and layers. The reference is transformers' plain
forward of each record alone, with eager attention. Both compute the losses of some generated records and the gradients of an
adapter. If they differ by more than rounding, transformers' own forward is used: on padded batches if that agrees with the
reference, else on one record at a time. If even the reference is not reproducible, the base is refused. What a few short records
cannot show (a window longer than they are, rotary frequencies that change with the length) is read from the base's config.
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
from torch import Tensor
from torch.nn.functional import cross_entropy

from retune.data.batches import Batch, flatten
from retune.data.tokens import Tokens
from retune.errors import InputError, is_out_of_memory, one_line
from retune.training import (
    head,
    llama_layer,
    lora_linear,
    memory,
    plain_forward,
    randomness_check,
)
from retune.training.attention import segments
from retune.training.config_limits import length_needed, rotary_limit, text_config, unsupported_reason
from retune.training.generated_records import generate, generated_tokens, length_limit
from retune.training.layer_steps import PLAIN, compiled
from retune.training.loss import loss_sum
from retune.training.model_attention import by_segments
from retune.training.plain_forward import Reading, by_plain_forward, transformers_model
from retune.training.rounding import gradient_tolerance, max_difference, min_tolerances, rounding_tolerance

Way = Literal["flattened", "padded", "padded, eager", "one by one", "one by one, eager"]
WAYS: tuple[Way, ...] = get_args(Way)
"""From fast to slow."""
_EAGER_BYTES = 16  # of eager attention per score: the score, its probability in float32, and copies of both
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checked:
    """The result of the check.

    Attributes:
        way: how losses are computed from now on.
        reason: why not by flattened batches; empty if they are used.
        difference: the largest of a token's loss from the reference, in nats. allowed: the tolerance.
        gradients: difference of an adapter's gradients from the reference, as a share of their norm; None if not compared.
        slower: time of one record at a time over that of a flattened batch; None if not measured.
        seconds: duration of the check.
        in_parts: whether logits are computed in chunks (`retune.training.head`).
        layers: why layers supported by `retune.training.llama_layer` are not fused; empty if they are, or none is supported.
        compared: tokens of the longest generated record. longest: tokens of the longest record in training.
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
        """Return the fields for a trial's record."""
        return asdict(self)

    @property
    def note(self) -> str:
        """One line for the log: what is used instead of flattened batches, why, and what it costs; empty if they are used."""
        if self.way == "flattened":
            return ""
        if self.way.startswith("padded"):
            cost = ", which also computes the padding"
        elif self.slower:
            cost = f", which took {self.slower:.1f} times as long on generated records"
        else:
            cost = ", which is slower"
        whole = "" if self.in_parts else ", with all logits of a pass in memory"
        return f"batches are computed {self.way} by transformers' own forward{cost}{whole}: {self.reason}"


def reading(model: Any, checked: Checked) -> AbstractContextManager[None]:
    """Return the context in which `retune.training.loss.loss_sum` computes in the way that the check selected."""
    if checked.way == "flattened":
        return by_segments(transformers_model(model), checked.longest)
    reading = Reading(checked.way.startswith("padded"), checked.in_parts)
    return by_plain_forward(transformers_model(model), checked.way.endswith("eager"), reading)


def check(model: Any, tokenizer: Any, longest: int, train: bool) -> Checked:
    """Compare the ways of computing losses with the reference on generated records, and return the fastest that agrees.

    Args:
        model: the base, with an adapter if one is used later; outside of `reading`. Unchanged afterwards.
        tokenizer: the base's; None if there are no special tokens to avoid.
        longest: the longest record in training, in tokens.
        train: whether the adapter is going to be trained: then gradients are compared too.

    Raises:
        InputError: if the reference itself fails, is not finite, not reproducible or not causal.
    """
    begin = time.monotonic()
    core = transformers_model(model)
    training = model.training
    model.eval()
    device = next(core.parameters()).device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            checked = _Check(model, core, tokenizer, longest, train).run()
    finally:
        model.train(training)
        for parameter in model.parameters():
            parameter.grad = None
    checked = replace(checked, seconds=round(time.monotonic() - begin, 3))
    if checked.note:
        _LOG.warning("%s", checked.note)
    return checked


class _Check:
    """The check of one model; the model is in evaluation mode."""

    def __init__(self, model: Any, core: Any, tokenizer: Any, longest: int, train: bool) -> None:
        self.model, self.core, self.longest, self.train = model, core, longest, train
        self.device = next(core.parameters()).device
        self.tokens = generated_tokens(core, tokenizer, longest)
        self.batch = self._flatten(self.tokens)
        self.singles = _singles(self.batch)
        dtype = next(core.parameters()).dtype
        self.tolerance, self.neighbour_tolerance = min_tolerances(core)
        self.gradient_tolerance = gradient_tolerance(dtype)
        self.adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.kind = core.config.model_type
        self.compared = max(self.batch.lengths)
        self.long_batch = self._generate_long(tokenizer)

    def _flatten(self, tokens: Tokens) -> Batch:
        return flatten(tokens, list(range(len(tokens)))).to(self.device)

    def _generate_long(self, tokenizer: Any) -> Batch | None:
        """Return a batch with a record long enough for what the base does only to long ones; None if that is not needed.

        Only its losses are compared. If eager attention has not enough memory for it, it is left out, with a warning.
        """
        config = text_config(self.core)
        wanted = min(length_limit(self.core, self.longest), length_needed(config, self.longest))
        if wanted <= self.compared:
            return None
        heads = int(getattr(config, "num_attention_heads", None) or 1)
        free = memory.free(self.device)
        if free is not None and heads * wanted**2 * _EAGER_BYTES > free:
            _LOG.warning(
                "records of more than %d tokens are not compared with transformers' own forward: for one of %d, which the "
                "base computes in another way, eager attention has not the memory",
                self.compared, wanted,
            )  # fmt: skip
            return None
        self.compared = wanted
        return self._flatten(generate(self.core, tokenizer, [9, wanted]))

    def run(self) -> Checked:
        with by_plain_forward(self.core, eager=True):
            reference = self._reference()
            self.long_reference = self._long_reference()
            reference_gradients = None
            if self.train:
                reference_gradients = self._run_plain(lambda: self._gradients(self._one_by_one), "training")
        plain, seconds = self._plain(reference)
        eager = not plain <= self.tolerance
        reason = unsupported_reason(self.core, self.longest)
        if not reason:
            layers = self._fuse_layers(reference, reference_gradients)
            reason, difference, gradients = self._flattened(reference, reference_gradients)
            if not reason:
                return Checked(
                    "flattened", "", difference, self.tolerance, gradients, layers=layers,
                    compared=self.compared, longest=self.longest,
                )  # fmt: skip
        flat_seconds = self._flat_seconds()
        slower = round(seconds / flat_seconds, 1) if flat_seconds else None
        if self.train:
            # Some models take another path in training mode: refuse those that fail on it
            with by_plain_forward(self.core, eager), self._training():
                first = self.singles[0]
                self._run_plain(lambda: plain_forward.logits(self.model, first.ids, first.rows), "training")
        ways: list[Way] = ["padded, eager", "one by one, eager"] if eager else ["padded", "one by one"]
        if self.longest > rotary_limit(text_config(self.core)):
            ways = ways[1:]  # padding would change a record's length, and so its rotary frequencies
        for way in ways:
            for in_parts in (True, False):
                candidate = Checked(
                    way, reason, 0.0 if eager else plain, self.tolerance, None, slower, in_parts=in_parts,
                    compared=self.compared, longest=self.longest,
                )  # fmt: skip
                if way == ways[-1] and not in_parts:
                    return candidate  # this is what `_plain` compared with the reference
                difference, gradients = self._compare(candidate, reference, reference_gradients)
                gradients_agree = gradients is None or gradients <= self.gradient_tolerance
                if difference <= self.tolerance and gradients_agree:
                    return replace(
                        candidate, difference=max(candidate.difference, difference), gradients=gradients
                    )
        raise AssertionError("the last way is always taken")

    def _compare(
        self, candidate: Checked, reference: Tensor, reference_gradients: Tensor | None
    ) -> tuple[float, float | None]:
        """Return how far a way through transformers' own forward is from the reference, in losses and in gradients."""
        gradients = None
        try:
            with reading(self.model, candidate):
                with torch.no_grad():
                    with head.chunks_of(self.core, len(reference) // 3):
                        total = float(loss_sum(self.model, self.batch))
                    difference = abs(total - float(reference.double().sum())) / len(reference)
                    if candidate.way.startswith("padded"):
                        difference = max(difference, max_difference(reference, self._padded(self.batch)))
                        difference = max(difference, self._long_difference(self._padded))
                        if self._neighbour_effect(self._padded) > self.neighbour_tolerance:
                            return math.inf, None
                if reference_gradients is not None:
                    own = self._gradients(lambda: loss_sum(self.model, self.batch) / len(reference))
                    gradients = float((own - reference_gradients).norm() / reference_gradients.norm())
                    if self._randomness_differs():
                        return math.inf, None
        except Exception as error:  # any error of a model's own code: this way is not possible with it
            if is_out_of_memory(error):
                raise
            return math.inf, None
        return difference, gradients

    def _padded(self, batch: Batch) -> Tensor:
        """Return the loss of each counted token of a batch, computed with padding."""
        return _losses(plain_forward.logits(self.model, *plain_forward.pad(batch)), batch.targets)

    def _reference(self) -> Tensor:
        """Return the reference losses; refuse a base whose plain forward is not finite, reproducible and causal."""
        reference, again, shortened = (
            self._run_plain(losses) for losses in (self._one_by_one, self._one_by_one, self._shortened)
        )
        self._require_same(reference, again)
        self.tolerance = rounding_tolerance(self.core, reference, lambda: self._run_plain(self._one_by_one))
        change = max_difference(reference[: len(shortened)], shortened)
        if not change <= self.tolerance:
            raise self._refused(
                f"losses that depend on earlier tokens alone, but they change by {change:.2g} with what follows"
            )
        return reference

    def _long_reference(self) -> Tensor | None:
        """Return the reference losses of the long batch, and raise the tolerance to that of its rounding."""
        if self.long_batch is None:
            return None
        singles = _singles(self.long_batch)

        def losses() -> Tensor:
            return self._run_plain(lambda: self._one_by_one(singles))

        reference, again = losses(), losses()
        self.tolerance = max(self.tolerance, rounding_tolerance(self.core, reference, losses))
        self._require_same(reference, again)
        return reference

    def _require_same(self, losses: Tensor, again: Tensor) -> None:
        """Refuse a base whose losses are not finite, or not the same in two computations."""
        if not bool(torch.isfinite(losses).all()):
            raise self._refused("finite losses, but it does not")
        difference = max_difference(losses, again)
        if not difference <= self.tolerance:
            raise self._refused(
                f"the same losses to the same records, but two readings differ by {difference:.2g}"
            )

    def _long_difference(self, losses: Callable[[Batch], Tensor]) -> float:
        """Return how far a way's losses of the long batch are from the reference; 0 if there is none."""
        if self.long_batch is None or self.long_reference is None:
            return 0.0
        return max_difference(self.long_reference, losses(self.long_batch))

    def _refused(self, rule: str) -> InputError:
        return InputError(f"a base (here of type {self.kind}) must give {rule}", "model.base")

    def _run_plain(self, compute: Callable[[], Tensor], mode: str = "evaluation") -> Tensor:
        """Return what `compute` does with the plain forward, without gradients; refuse a base with which it fails."""
        try:
            with torch.no_grad():
                return compute()
        except Exception as error:
            if isinstance(error, InputError) or is_out_of_memory(error):
                raise
            raise InputError(
                f"a base (here of type {self.kind}) must read single records, but in {mode} its forward failed: "
                f"{one_line(error)}",
                "model.base",
            ) from error

    def _shortened(self) -> Tensor:
        """Return the losses of the first half of the first record's counted tokens, with all later tokens removed."""
        single = self.singles[0]
        count = max(1, len(single.rows) // 2)
        ids = single.ids[:, : int(single.rows[count - 1]) + 1]
        return _losses(plain_forward.logits(self.model, ids, single.rows[:count]), single.targets[:count])

    def _one_by_one(self, singles: Sequence[Batch] | None = None) -> Tensor:
        """Return the loss of each counted token, with one record per forward."""
        return torch.cat(
            [
                _losses(plain_forward.logits(self.model, each.ids, each.rows), each.targets)
                for each in singles or self.singles
            ]
        )

    def _plain(self, reference: Tensor) -> tuple[float, float]:
        """Return how far the loaded attention is from the eager one (infinity if it fails), and the seconds it took."""
        begin = time.monotonic()
        try:
            with torch.no_grad(), by_plain_forward(self.core):
                difference = max(
                    max_difference(reference, self._one_by_one()),
                    self._long_difference(lambda batch: self._one_by_one(_singles(batch))),
                )
        except Exception as error:
            if is_out_of_memory(error):
                raise
            difference = math.inf
        return difference, time.monotonic() - begin

    def _flattened(
        self, reference: Tensor, reference_gradients: Tensor | None
    ) -> tuple[str, float, float | None]:
        """Return why flattened batches cannot be used (empty if they can), and the differences in losses and gradients."""
        difference, gradients, randomness = math.inf, None, ""
        try:
            with (
                by_segments(self.core, self.longest),
                lora_linear.installed(self.model) if self.train else nullcontext(),
            ):
                with torch.no_grad():
                    difference = max_difference(reference, self._flat(self.batch))
                    difference = max(difference, self._long_difference(self._flat))
                    neighbour_effect = self._neighbour_effect(self._flat)
                    with head.chunks_of(self.core, len(reference) // 3):
                        total = float(loss_sum(self.model, self.batch))
                if reference_gradients is not None:
                    own = self._gradients(lambda: loss_sum(self.model, self.batch) / len(reference))
                    gradients = float((own - reference_gradients).norm() / reference_gradients.norm())
                    randomness = self._randomness_differs()
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return f"flattened batches do not pass through it: {one_line(error)}", difference, gradients
        difference = max(difference, abs(total - float(reference.double().sum())) / len(reference))
        rules = [
            (
                difference <= self.tolerance,
                f"a token's loss in a flattened batch differs by {difference:.2g} from the plain forward, "
                f"rounding allows {self.tolerance:.2g}",
            ),
            (
                neighbour_effect <= self.neighbour_tolerance,
                f"in a flattened batch a record's losses change by {neighbour_effect:.2g} with those before it",
            ),
            (
                gradients is None or gradients <= self.gradient_tolerance,
                f"in a flattened batch the adapter's gradients differ by {gradients or 0.0:.2g} of their size",
            ),
            (not randomness, randomness),
        ]
        return next((reason for holds, reason in rules if not holds), ""), difference, gradients

    def _fuse_layers(self, reference: Tensor, reference_gradients: Tensor | None) -> str:
        """Allow fused layers (`retune.training.llama_layer`) if they agree with the reference and, on a GPU, are faster.

        Returns:
            why they are not used; empty if they are, if they always are, or if the model has no such layers.
        """
        if llama_layer.trusted(self.core) or not llama_layer.supported(self.core):
            return ""
        if llama_layer.disabled(self.core):
            return "they were found wrong or slower before"
        if any(hasattr(parameter, "to_local") for parameter in self.core.parameters()):
            reason = "the base is sharded"
        else:
            reason = self._select_steps(reference, reference_gradients)
        if reason:
            llama_layer.set_steps(self.core, None)
            _LOG.warning("layers are computed by transformers' own code: %s", reason)
        return reason

    def _select_steps(self, reference: Tensor, reference_gradients: Tensor | None) -> str:
        """Set the steps of fused layers that agree with the reference and, on a GPU, are fastest; return why none are set."""
        timed = reference_gradients is not None and self.batch.ids.device.type == "cuda"
        reason, times = "", {}
        for steps in [PLAIN, compiled()] if timed else [PLAIN]:
            llama_layer.set_steps(self.core, steps)
            wrong = self._flattened(reference, reference_gradients)[0]
            if not wrong:
                times[steps.name] = (self._pass_seconds() if timed else 0.0), steps
            reason = reason or wrong
        if not times:
            return reason
        seconds, steps = min(times.values(), key=lambda timing: timing[0])
        llama_layer.set_steps(self.core, None)
        own_seconds = self._pass_seconds() if timed else math.inf
        if own_seconds < seconds:
            return f"fused, a pass takes {seconds * 1e3:.1f} ms, by transformers {own_seconds * 1e3:.1f} ms"
        llama_layer.set_steps(self.core, steps)
        if timed:
            _LOG.info(
                "layers are fused, with %s steps: a pass takes %.1f ms, by transformers %.1f ms",
                steps.name, seconds * 1e3, own_seconds * 1e3,
            )  # fmt: skip
        return ""

    def _pass_seconds(self) -> float:
        """Return the shortest duration of five training passes; `_gradients` reads values, so it waits for the GPU."""
        seconds = []
        with by_segments(self.core), lora_linear.installed(self.model):
            for _ in range(5):
                begin = time.monotonic()
                self._gradients(lambda: loss_sum(self.model, self.batch))
                seconds.append(time.monotonic() - begin)
        return min(seconds)

    def _randomness_differs(self) -> str:
        """Return how the randomness of a training pass depends on which records share it; empty if it does not."""
        with self._training(), torch.enable_grad():
            return randomness_check.difference(
                self.model, self.tokens, self.adapter, self.tolerance, self.gradient_tolerance
            )

    def _flat(self, batch: Batch) -> Tensor:
        """Return the loss of each counted token of a batch, computed as one flattened sequence."""
        out = self.model(
            input_ids=batch.ids,
            position_ids=batch.positions,
            logits_to_keep=batch.rows,
            use_cache=False,
            segments=segments(batch.lengths, batch.tails, batch.ids.device),
        ).logits[0]
        return _losses(out, batch.targets)

    def _neighbour_effect(self, losses: Callable[[Batch], Tensor]) -> float:
        """Return how much the last record's losses change with the tokens of the other records: 0 is right."""
        ids, before = self.batch.ids.clone(), self.batch.ids.shape[1] - self.batch.lengths[-1]
        own = ids[0, before:]
        ids[0, :before] = own.repeat(-(-before // len(own)))[:before]
        own_losses = -len(self.singles[-1].rows)
        changed = losses(replace(self.batch, ids=ids))
        return max_difference(losses(self.batch)[own_losses:], changed[own_losses:])

    def _gradients(self, loss: Callable[[], Tensor]) -> Tensor:
        """Return the concatenated gradients of the adapter's weights for the mean loss, in float32."""
        with torch.enable_grad():
            computed = torch.autograd.grad(loss().mean(), self.adapter, allow_unused=True)
        gradients = torch.cat(
            [
                (torch.zeros_like(parameter) if gradient is None else gradient).float().flatten()
                for parameter, gradient in zip(self.adapter, computed, strict=True)
            ]
        )
        if not bool(torch.isfinite(gradients).all()) or not bool(gradients.any()):
            raise InputError(
                f"an adapter on `target_modules` must have a gradient, but in this base (of type {self.kind}) it is zero "
                "or not finite",
                "training",
            )
        return gradients

    @contextmanager
    def _training(self) -> Iterator[None]:
        self.model.train()
        try:
            yield
        finally:
            self.model.eval()

    def _flat_seconds(self) -> float | None:
        """Return the seconds of a flattened batch, right or wrong; None if it fails."""
        try:
            with by_segments(self.core), torch.no_grad():
                begin = time.monotonic()
                self._flat(self.batch)
                return time.monotonic() - begin
        except Exception:
            return None


def _singles(batch: Batch) -> list[Batch]:
    """Return each record of a flattened batch as a batch of its own."""
    singles, start = [], 0
    for length in batch.lengths:
        own = (batch.rows >= start) & (batch.rows < start + length)
        singles.append(
            replace(
                batch, ids=batch.ids[:, start : start + length], rows=batch.rows[own] - start, lengths=[length],
                positions=batch.positions[:, start : start + length], targets=batch.targets[own],
            )
        )  # fmt: skip
        start += length
    return singles


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits.float(), targets, reduction="none")
