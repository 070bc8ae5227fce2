"""A base model that stays loaded while adapters are trained on it one after another."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch

from retune import adapter as adapter_files
from retune.data import mixing
from retune.data.encode import tokenize_examples
from retune.data.subset import Subset, choose
from retune.data.tokens import Tokens
from retune.errors import InputError
from retune.models import LoadedBase, load_base, locate, tokenizer_problems
from retune.study import Data, Model, Study, Training
from retune.study.training import EDITING
from retune.training import inits, lora, lora_linear, self_check
from retune.training.base_state import reload_if_changed
from retune.training.devices import Devices
from retune.training.inits import FirstRecords
from retune.training.self_check import Checked, reading
from retune.training.validate import validation_loss

CHECK_OVERRIDES = {"rank": 4, "alpha": 8.0, "alpha_ratio": None, "dropout": 0.0, "init": "default"}
"""Settings that the adapters of checks have in place of a trial's."""
_CHECK_DROPOUT = 0.1  # if a trial has dropout: then its randomness is checked too


def data_digest(data_uri: str) -> str:
    """Return the digest of mixed data.

    Raises:
        InputError: if there is none.
    """
    return mixing.read_mix_record(data_uri).digest


class ResidentBase:
    """The frozen base model of a study, loaded once, when it is first needed.

    Between trials the base is exactly as it was loaded: the same modules and the same bits. Tokenised splits are kept, so that a
    trial on a loaded base starts at once.

    Args:
        model: which base, in which precision.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._base: LoadedBase | None = None
        self._devices: Devices | None = None
        self._splits: dict[tuple[Any, ...], Tokens] = {}
        self._proxy_subsets: dict[tuple[Any, ...], tuple[Tokens, Subset]] = {}
        self._checked: dict[tuple[Any, ...], Checked] = {}

    @property
    def devices(self) -> Devices:
        """The processes that train together."""
        if self._devices is None:
            self._devices = Devices()
        return self._devices

    def load(self) -> LoadedBase:
        """Return the base, loading it the first time.

        Raises:
            InputError: if it cannot be found or read.
        """
        if self._base is None:
            sharded = self.devices.sharded
            if sharded and self.model.quantization:
                raise InputError(
                    f"`model.quantization: {self.model.quantization}` cannot be combined with sharding (ACCELERATE_USE_FSDP): "
                    "in 4 bits each GPU holds the whole base; remove one of the two",
                    "model.quantization",
                )
            self._base = load_base(self.model, load=self.devices.load if sharded else None)
        return self._base

    def tokens(self, data_uri: str, split: Literal["train", "validation"], data: Data) -> Tokens:
        """Return a tokenised split of mixed data: as `mix` stored it, else tokenised here, once per content of the data.

        Raises:
            InputError: if there is no mixed data at `data_uri`, it is damaged, or the tokenizer does not fit the base.
        """
        key = (data_digest(data_uri), split, data.max_length, data.loss_on)
        if key not in self._splits:
            base = self.load()
            rows = base.model.get_input_embeddings().weight.shape[0]
            if problems := tokenizer_problems(base.tokenizer, rows):
                raise InputError(problems, "model.base")
            self._splits[key] = mixing.load_tokens(
                data_uri, split, lambda: base.tokenizer, locate(self.model), data.max_length, data.loss_on
            )
        return self._splits[key]

    def proxy_subset(self, data_uri: str, study: Study) -> tuple[Tokens, Subset]:
        """Return the training records of proxy trials (`search.proxy`), and the description of this subset.

        Raises:
            InputError: as `tokens`.
        """
        proxy, data = study.search.proxy, study.data
        assert proxy is not None  # only proxy trials call this
        key = (data_digest(data_uri), proxy.share, study.seed, data.max_length, data.loss_on)
        if key not in self._proxy_subsets:
            self.tokens(data_uri, "validation", data)  # raises if the tokenizer does not fit the base
            chosen, subset = choose(mixing.load_split(data_uri, "train"), proxy.share, study.seed)
            template = mixing.read_mix_record(data_uri).prompt
            tokenizer = self.load().tokenizer
            tokens = tokenize_examples(chosen, tokenizer, template, data.max_length, data.loss_on)
            self._proxy_subsets[key] = tokens, subset
        return self._proxy_subsets[key]

    def checked(self, training: Training, longest: int) -> Checked:
        """Return how losses are computed on this base, from a check on generated records at the first call.

        Args:
            training: its target modules and variant are those of the check's adapter. longest: tokens of the longest record.

        Raises:
            InputError: if the base gives no losses that one can train or judge by.
        """
        probe = training.model_copy(
            update=CHECK_OVERRIDES | ({"dropout": _CHECK_DROPOUT} if training.dropout else {})
        )
        key = (
            str(probe.target_modules), probe.first_layer, probe.last_layer, probe.variant, longest, probe.dropout
        )  # fmt: skip
        if key not in self._checked:
            base = self.load()
            with (
                self.devices.together(),
                reload_if_changed(self.forget),
                lora.adapted(base.model, probe, self.model.base, 0) as model,
            ):
                lora.add_noise(model)
                checked = self_check.check(model, base.tokenizer, longest, train=True)
            self._checked[key] = self._slowest(checked)
        return self._checked[key]

    def _slowest(self, own: Checked) -> Checked:
        """Return the result of the process that found the slowest way: all processes must compute in the same way."""
        all_found: list[Checked] = self.devices.gather_object(own)
        return max(all_found, key=lambda each: self_check.WAYS.index(each.way))

    @contextmanager
    def adapter(
        self, chosen: Training, longest: int, seed: int, train: Tokens | None = None
    ) -> Iterator[Any]:
        """Yield the base with a new adapter, ready for `loss_sum`; afterwards the base is untouched again.

        Args:
            chosen: the trial's setting. longest: tokens of the longest record. seed: draws A.
            train: the training data, whose first records some initialisations read.
        """
        checked = self.checked(chosen, longest)
        base = self.load().model
        records = None if train is None else FirstRecords(train, chosen.step_records, seed)
        with ExitStack() as stack:
            with self.devices.together():
                stack.enter_context(reload_if_changed(self.forget))
                adapted = lora.adapted(base, chosen, self.model.base, seed, self.model.revision, records)
                model = stack.enter_context(adapted)
                stack.enter_context(reading(model, checked))
            if chosen.init in EDITING:
                self.devices.broadcast(inits.edited(model))
            if checked.way == "flattened":
                lora_linear.install(model)
            yield model

    def evaluate(self, adapter_uri: str | None, data_uri: str, study: Study) -> float:
        """Return the validation loss of a saved adapter, or of the base alone, on the given mixed data.

        Raises:
            InputError: if the adapter or the data cannot be read or do not fit.
        """
        tokens = self.tokens(data_uri, "validation", study.data)
        if adapter_uri is None:
            checked = self.checked(study.training, study.data.max_length)
            base = self.load().model
            with reading(base, checked):
                return validation_loss(base, tokens, self.devices)
        folder = adapter_files.fetch(adapter_uri)
        base = self.load().model
        with ExitStack() as stack:
            with self.devices.together():
                stack.enter_context(reload_if_changed(self.forget))
                model = stack.enter_context(lora.loaded(base, folder))
                outcome = self_check.check(model, self.load().tokenizer, study.data.max_length, train=False)
            with reading(model, self._slowest(outcome)):
                loss = validation_loss(model, tokens, self.devices)
        return loss

    def forget(self) -> None:
        """Drop the base, since it is no longer what it was; it is loaded again when it is next needed."""
        self._base = None

    def release(self, failed: bool = False) -> None:
        """Free what the last trial held.

        Args:
            failed: also collect reference cycles, as exceptions leave them; this takes a good part of a second.
        """
        if failed:
            gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
