"""Our algorithms in the Kubeflow SDK (`pip install kubeflow==0.5.*`), for an objective that has nothing to do with adapters.

The cluster knows them after `retune katib register`. The SDK names only Katib's own; this class names any of ours.
"""

# No `from __future__ import annotations`: the SDK reads the types of an algorithm's fields.
import sys
from dataclasses import dataclass

from kubeflow.optimizer import Objective, OptimizerClient, Search, TrainJobTemplate, TrialConfig
from kubeflow.optimizer.types.algorithm_types import (
    ALGORITHM_REGISTRY,
    BaseAlgorithm,
    algorithm_to_katib_spec,
)
from kubeflow.trainer import CustomTrainer, TrainerClient


@dataclass
class MadsGlobal(BaseAlgorithm):
    """`mads-global`: few trials, dear ones. The settings are fields; docs/search.md lists them."""

    seed: int | None = None

    @property
    def algorithm_name(self) -> str:
        """Its name in Katib; of the others `nomad`, `gp`, `lhs`, `soo`, `bamsoo`, `retune-tpe`, `retune-random`."""
        return "mads-global"

    def _to_katib_spec(self) -> object:
        return algorithm_to_katib_spec(self)


ALGORITHM_REGISTRY["mads-global"] = MadsGlobal  # so that `get_job` and `list_jobs` know it again


def train(learning_rate: str, rank: str) -> None:
    """The function that each trial runs; Katib's collector reads the line that it prints."""
    loss = (float(learning_rate) - 0.01) ** 2 + 1 / float(rank)
    print(f"loss={loss}")


if __name__ == "__main__":
    name = OptimizerClient().optimize(
        TrainJobTemplate(
            trainer=CustomTrainer(
                func=train, num_nodes=1, image="docker.io/library/python:3.11", env={"PYTHONUNBUFFERED": "1"}
            ),
            runtime=TrainerClient().get_runtime("torch-distributed"),
        ),
        search_space={"learning_rate": Search.loguniform(1e-5, 1e-1), "rank": Search.choice([2, 4, 8, 16])},
        objectives=[Objective(metric="loss", direction="minimize")],
        algorithm=MadsGlobal(seed=7),
        trial_config=TrialConfig(num_trials=12, parallel_trials=2),
    )
    print(name, OptimizerClient().get_job(name).algorithm, file=sys.stdout)
