"""How long a study takes and how much memory a card needs, computed from the shape of its base: nothing is loaded.

    python studies/estimate.py studies/tribes2024/round1.yaml --tokens 190

A training step on frozen weights costs about 4 FLOPs per parameter and token (2 forward, 2 for the gradients of the activations),
and 6 per parameter of the adapter. The hours are those at `--share` of a card's peak. Memory is the weights in bfloat16, the largest
adapter of the search with its gradients and AdamW's state (16 bytes a parameter), and the activations of the longest record with
layers computed again (as `retune.training.memory_budget` counts). Benchmarks are not counted.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from retune.study import Study, load

CARDS = {
    "A100 40 GB": (312e12, 40),
    "A100 80 GB": (312e12, 80),
    "H100 80 GB": (989e12, 80),
    "H200 141 GB": (989e12, 141),
}
"""Peak of dense bfloat16 in FLOP/s and memory in GB, as the vendor states them."""


@dataclass(frozen=True)
class Shape:
    """A Llama: sizes as in its config.json."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    tied: bool

    def linear(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a block's linear layers."""
        query, key = self.heads * self.head, self.kv_heads * self.head
        return {
            "q_proj": (self.hidden, query), "k_proj": (self.hidden, key), "v_proj": (self.hidden, key),
            "o_proj": (query, self.hidden), "gate_proj": (self.hidden, self.inner), "up_proj": (self.hidden, self.inner),
            "down_proj": (self.inner, self.hidden),
        }  # fmt: skip

    @property
    def parameters(self) -> int:
        """All weights, norms left out."""
        tables = self.hidden * self.vocabulary * (1 if self.tied else 2)
        return tables + self.layers * sum(a * b for a, b in self.linear().values())

    def adapter(self, rank: int, targets: str | list[str]) -> int:
        """Parameters of an adapter."""
        found = [size for name, size in self.linear().items() if targets == "all-linear" or name in targets]
        return self.layers * rank * sum(a + b for a, b in found)


SHAPES = {
    "meta-llama/Llama-2-7b-hf": Shape(4096, 11008, 32, 32, 32, 128, 32000, False),
    "meta-llama/Llama-3.2-3B": Shape(3072, 8192, 28, 24, 8, 128, 128256, True),
}


def trials(study: Study) -> float:
    """Trainings of the whole data: search, repeats, and of a proxy's trials their share."""
    search = study.search
    repeats = search.repeats * (search.finalists + 1)
    share = search.proxy.share if search.proxy else 1.0
    return search.trials * share + repeats + (search.finalists if search.proxy else 0)


def hours(study: Study, shape: Shape, tokens: float, rank: int, flops: float) -> float:
    """Hours of one whole training on a card that does `flops` a second."""
    seen = study.data.train * study.training.epochs * tokens
    each = 4 * shape.parameters + 6 * shape.adapter(rank, study.training.target_modules)
    return seen * each / flops / 3600


def gigabytes(study: Study, shape: Shape, rank: int) -> float:
    """Memory of a card that trains one trial."""
    weights = 2 * shape.parameters
    adapter = 16 * shape.adapter(rank, study.training.target_modules)
    token = 2 * (shape.layers * shape.hidden + 20 * shape.hidden + 4 * shape.inner) * 1.5
    return (weights + adapter + token * study.data.max_length) / 1e9


def highest_rank(study: Study) -> int:
    """The largest rank that the search can try."""
    found = [p for p in study.search.space.parameters if p.name == "rank"]
    return max(int(p.value(p.levels - 1)) for p in found) if found else study.training.rank


def table(study: Study, shape: Shape, tokens: float, share: float) -> str:
    """Return the table of all cards."""
    rank, count = highest_rank(study), trials(study)
    lines = [
        f"{study.name}: {shape.parameters / 1e9:.2f} billion parameters, {study.data.train:,} records of {tokens:g} tokens, "
        f"{study.training.epochs} epochs; {count:g} whole trainings; {gigabytes(study, shape, rank):.0f} GB a card at rank {rank}.",
        "",
        f"| card | fits | hours a training, at {share:.0%} of the peak | hours of the search on one card | on 8 |",
        "|---|---|---|---|---|",
    ]
    for card, (peak, memory) in CARDS.items():
        each = hours(study, shape, tokens, rank, peak * share)
        fits = "yes" if gigabytes(study, shape, rank) < 0.9 * memory else "no"
        lines.append(f"| {card} | {fits} | {each:.1f} | {count * each:.0f} | {count * each / 8:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table of a study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument(
        "--tokens", type=float, required=True, help="mean tokens of a record: `retune mix` prints them"
    )
    parser.add_argument("--share", type=float, default=0.35, help="of a card's peak that training reaches")
    given = parser.parse_args()
    study = load(given.study, given.overrides)
    shape = next((shape for name, shape in SHAPES.items() if study.model.base.endswith(name)), None)
    if shape is None:
        parser.error(f"the shapes of {list(SHAPES)} are known, but the base is {study.model.base}")
    print(table(study, shape, given.tokens, given.share))


if __name__ == "__main__":
    main()
