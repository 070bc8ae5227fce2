"""LoRA adapters on a base model that stays loaded: add, remove, save, load.

Weights and files are PEFT's own, so that ``PeftModel.from_pretrained`` loads what a trial saved. When an adapter is removed, the
original modules are put back, so the next trial starts from the unchanged base.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from retune import models
from retune.adapter import CONFIG, WEIGHTS
from retune.errors import InputError, is_out_of_memory
from retune.space import Value
from retune.study import TUNABLE, Training
from retune.study.sentences import sentences
from retune.study.training import EDITING, FROM_DATA
from retune.training import inits
from retune.training.base_state import preserved
from retune.training.inits import FirstRecords
from retune.training.targets import excluded_modules, peft_targets, target_names

models.quiet()  # importing PEFT imports bitsandbytes, if installed, which prints advice


def setting(training: Training, assignment: Mapping[str, Value]) -> Training:
    """Return a trial's training settings: the study's, with the values of the assignment.

    Raises:
        InputError: naming every value that is not allowed.
    """
    problems = [
        f"a trial can tune {list(TUNABLE)}, but the assignment has {name!r}"
        for name in assignment
        if name not in TUNABLE
    ]
    known = {name: value for name, value in assignment.items() if name in TUNABLE}
    try:
        chosen = training.tuned(known)
    except ValidationError as error:
        problems += sentences(error, Training)
    if problems:
        raise InputError(problems, "assignment")
    return chosen


@contextmanager
def adapted(
    base: nn.Module,
    chosen: Training,
    base_name: str,
    seed: int,
    revision: str | None = None,
    records: FirstRecords | None = None,
) -> Iterator[Any]:
    """Yield the base with a new LoRA adapter, float32 and trainable; remove it at the end.

    Enter `retune.training.self_check.reading` inside this block, not around it: an initialisation may run the base's own
    forward on `records`.

    Args:
        base: the loaded base. chosen: rank, targets, variant and initialisation.
        base_name, revision: of the base, for the adapter's settings. seed: of the random numbers in A.
        records: for the initialisations `eva` and `lora-ga`.

    Raises:
        InputError: if the target modules do not fit the model, or the initialisation is not possible.
    """
    from peft import LoraConfig, get_peft_model

    sharded = any(hasattr(parameter, "to_local") for parameter in base.parameters())
    if sharded and chosen.init in (*EDITING, *FROM_DATA):
        raise InputError(
            f"`init: {chosen.init}` needs the whole base in each process, but this one is sharded (FSDP); choose another `init` "
            "or do not shard",
            "training",
        )
    config = LoraConfig(
        r=chosen.rank,
        lora_alpha=chosen.scaled_alpha,
        lora_dropout=chosen.dropout,
        target_modules=peft_targets(base, chosen),
        use_rslora=chosen.variant == "rslora",
        use_dora=chosen.variant == "dora",
        exclude_modules=excluded_modules(base),
        task_type="CAUSAL_LM",
        **inits.peft_options(chosen.init),
    )
    edited = set(target_names(base, chosen)) if chosen.init in EDITING else set()
    with preserved(base, lambda name: name.removesuffix(".weight") in edited):
        torch.manual_seed(seed)
        inits.prepare(base, config, chosen.init, records)
        model = get_peft_model(base, config, autocast_adapter_dtype=True)
        inits.finish(model, chosen.init, records)
        config.base_model_name_or_path = base_name  # PEFT put the local folder there
        config.revision = revision
        yield model


def unsupported(settings: Mapping[str, Any]) -> list[str]:
    """Return every reason why an adapter with these settings (`adapter_config.json`) cannot be scored here."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        return [f"an adapter must have peft_type 'LORA', but it has {kind!r}"]
    rules = [rule for name, rule in _UNSUPPORTED.items() if settings.get(name)]
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and (edit := next((e for e in _DATA_EDITS if start.startswith(e)), None)):
        rules.append(
            f"an adapter with init_lora_weights {start!r} belongs to a base that was edited {_DATA_EDITS[edit]}, which cannot be "
            "repeated here: save it with PEFT's `path_initial_model_for_weight_conversion`, or save that base, name it as the "
            "base and set init_lora_weights to true"
        )
    return rules


# Initialisations that edit the base by something that the adapter's files do not contain.
_DATA_EDITS = {
    "pissa_niter": "at random",
    "corda": "by activations on the data of its training (CorDA)",
    "lora_ga": "by gradients on the data of its training (LoRA-GA)",
    "loftq": "by a quantisation on its GPU (LoftQ)",
}
_UNSUPPORTED = {
    "alora_invocation_tokens": "an activated LoRA (`alora_invocation_tokens`) works only after its invocation tokens, "
    "which no record or question here contains",
    "arrow_config": "an Arrow router (`arrow_config`) needs the other adapters that it routes to",
    "megatron_config": "an adapter for Megatron layers (`megatron_config`) fits no transformers model",
    "monteclora_config": "MonteCLoRA (`monteclora_config`) draws its weights at random, so its answers are not reproducible",
}
# Values of `init_lora_weights` that leave the base's weights unchanged.
_KEEP_BASE = (None, True, False, "gaussian", "eva", "orthogonal", "mica")


@contextmanager
def loaded(base: nn.Module, folder: Path) -> Iterator[Any]:
    """Yield the base with the adapter saved in `folder`, for inference; remove it at the end.

    PEFT's own loader adds the adapter, whatever kind of LoRA it is. Then the tensors on the model are compared with those in
    the file.

    Raises:
        InputError: if the folder has no adapter, one of another base model, or one of an unsupported kind.
        BaseChanged: at the end, if the base has to be loaded again.
    """
    from peft import PeftModel
    from safetensors.torch import load_file

    try:
        content = json.loads((folder / CONFIG).read_text())
        if not isinstance(content, dict):
            raise ValueError(f"{CONFIG} must be a JSON object")
        saved = load_file(folder / WEIGHTS)
    except Exception as error:  # safetensors has errors of its own for a file that is cut off
        raise InputError(
            f"an adapter folder must have a readable {CONFIG} and {WEIGHTS}, but {folder} has not: {error}"
        ) from error
    if problems := unsupported(content):
        raise InputError([f"{problem} ({folder})" for problem in problems])
    edits = content.get("init_lora_weights") not in _KEEP_BASE
    own = {_plain_name(name) for name in saved if "lora_" not in name}
    with preserved(base, lambda name: edits or name in own):
        try:
            model = PeftModel.from_pretrained(base, folder).eval()
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())
            raise InputError(f"the adapter in {folder} does not fit the base model: {reason}") from error
        if lacking := _unmatched(model, saved):
            raise InputError(
                f"the adapter in {folder} does not fit the base model: {len(lacking)} of its {len(saved)} tensors were not "
                f"loaded, among them {lacking[0]}"
            )
        yield model


def _plain_name(name: str) -> str:
    """Return the name that a tensor of an adapter's file has in the base."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _unmatched(model: Any, saved: Mapping[str, Tensor]) -> list[str]:
    """Return the names of a file's tensors that are not on the model, or not with these values.

    PEFT at most warns of them, and the scores would be those of an incomplete adapter.
    """
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    base = {_plain_name(name): tensor for name, tensor in model.named_parameters()}
    lacking = []
    for name, tensor in saved.items():
        there = state.get(name, base.get(_plain_name(name)))
        if there is None or there.shape != tensor.shape:
            lacking.append(name)
            continue
        wanted = tensor.to(there.dtype)
        if not torch.allclose(there.detach().cpu(), wanted, rtol=0, atol=0, equal_nan=True):
            lacking.append(name)
    return sorted(lacking)


def add_noise(model: Any) -> None:
    """Add noise to all trained parameters, the same each time: with B = 0 a new adapter would have no effect to check."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator) * 0.05
                parameter.add_(noise.to(parameter.device, parameter.dtype))


def weights(model: Any) -> dict[str, Tensor]:
    """Return the adapter's weights under PEFT's names, on the CPU, sorted by name."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: state[name].detach().cpu().contiguous() for name in sorted(state)}


def files(model: Any) -> dict[str, bytes]:
    """Return the two files of the adapter; the same weights and setting give the same bytes.

    An adapter whose initialisation edited the base is written as one for the unedited base (`inits.to_plain_adapter`).
    """
    return to_files(model.peft_config["default"], weights(model), model)


def to_files(config: Any, weights: dict[str, Tensor], model: nn.Module) -> dict[str, bytes]:
    """Return the two files of an adapter.

    Args:
        config: PEFT's settings of it. weights: under PEFT's names, on the CPU. model: with the adapter.
    """
    from safetensors.torch import save

    before, config.inference_mode = config.inference_mode, True
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        content = json.loads(Path(folder, CONFIG).read_text())
    config.inference_mode = before
    # PEFT has a set, whose order differs between processes
    if not isinstance(content["target_modules"], str):
        content["target_modules"] = sorted(content["target_modules"])
    tensors, content = inits.to_plain_adapter(model, weights, content)
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    return {WEIGHTS: save(tensors, metadata={"format": "pt"}), CONFIG: text.encode()}
