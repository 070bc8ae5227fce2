"""A setting as text: what each hyper-parameter of LoRA does, and the values (Baek et al. 2026, domain-aware prompting)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from retune.space import Space, Value

KNOWLEDGE = {
    "rank": "The rank is the inner dimension of the two low-rank matrices. A higher rank can learn more from much or varied data "
    "and overfits small data.",
    "alpha": "The update is multiplied by alpha divided by the rank, so alpha acts like a second learning rate of the adapter.",
    "dropout": "Dropout hides a share of the adapter's inputs while training, against overfitting; little is enough for "
    "short trainings.",
    "learning_rate": "The learning rate is the size of a step. It matters most: too low and nothing is learnt, too high and the "
    "training diverges. With a high alpha or rank a lower one is right.",
    "weight_decay": "Weight decay pulls the adapter's weights to zero and matters little in short trainings.",
    "batch_size": "The batch size is the number of records in a step. A larger one has less noise and wants a higher rate.",
    "epochs": "Epochs are passes over the data; more of them learn more and overfit more.",
}
OPENING = "Fine-tuning a language model on instructions by LoRA: the weights stay frozen, a low-rank update is learnt."


def opening(space: Space) -> str:
    """Return what all settings of a space have in common: the domain knowledge."""
    known = [KNOWLEDGE[name] for name in space.names if name in KNOWLEDGE]
    return " ".join([OPENING, *known])


def written(space: Space, assignment: Mapping[str, Value]) -> str:
    """Return a setting's text, without the opening: each value, its order of magnitude, and its place in the range."""
    parts = []
    for parameter in space.parameters:
        name, value = parameter.name.replace("_", " "), assignment[parameter.name]
        if isinstance(value, str):
            parts.append(f"{name} is {value}")
            continue
        text = f"{name} is {value:g}"
        if 0 < abs(value) < 0.01 or abs(value) >= 10_000:
            text += f", ten to the power of {math.log10(abs(value)):.2f}"
        parts.append(f"{text}, {_place(parameter.unit(parameter.level(value)))}")
    rank, alpha = assignment.get("rank"), assignment.get("alpha")
    if isinstance(rank, int | float) and isinstance(alpha, int | float) and rank:
        parts.append(f"alpha divided by rank is {alpha / rank:.3g}")
    return "The setting: " + "; ".join(parts) + "."


def _place(unit: float) -> str:
    words = ("very low", "low", "medium", "high", "very high")
    return f"{words[min(int(unit * len(words)), len(words) - 1)]} at {100 * unit:.0f} percent of its range"
