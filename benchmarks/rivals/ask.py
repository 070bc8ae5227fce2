"""A rival search library in an environment of its own: `search_runs.py` starts this and talks to it in JSON lines.

    <environment>/bin/python benchmarks/rivals/ask.py botorch|hebo|nni|smac

The first line is ``{"levels": [8, 5, …], "ordered": [true, …], "default": [2, …], "seed": 0, "trials": 50}``; points are
levels. Then ``{"ask": n}`` is answered by n points, and ``{"tell": [[point, value or null], …]}`` by nothing. Each library
is run as it recommends for noisy, batched, mixed spaces; the default setting is the first point. A failed trial is reported
as the worst value so far to a library that knows no failed trials.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")
Point = list[int]


class AskTell:
    """The base of all libraries: the space, the results, and the default setting as first point."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self.levels: list[int] = setup["levels"]
        self.ordered: list[bool] = setup["ordered"]
        self.default: Point = setup["default"]
        self.seed: int = setup["seed"]
        self.trials: int = setup["trials"]
        self.results: list[tuple[Point, float | None]] = []
        self.proposals: list[tuple[Point, Any]] = []

    def ask(self, count: int) -> list[Point]:
        """Return the next points, the default setting first of all."""
        first = [] if self.results else [self.default]
        return first + self.propose(count - len(first)) if count > len(first) else first

    def propose(self, count: int) -> list[Point]:
        """Return `count` points that the library proposes."""
        raise NotImplementedError

    def tell(self, results: list[tuple[Point, float | None]]) -> None:
        """Add measured points; None is a failed trial."""
        self.results += results

    def proposal_of(self, point: Point) -> Any | None:
        """Take out and return the handle of a point that the library proposed; None for the default setting, which is ours."""
        for index, (proposed, proposal) in enumerate(self.proposals):
            if proposed == point:
                del self.proposals[index]
                return proposal
        return None

    @property
    def worst(self) -> float:
        """The worst value so far."""
        return max((value for _, value in self.results if value is not None), default=0.0)

    def finite_results(self) -> list[tuple[Point, float]]:
        """Return the results with a number for each failed trial."""
        return [(point, self.worst if value is None else value) for point, value in self.results]


class Botorch(AskTell):
    """A mixed single-task GP and qLogNoisyExpectedImprovement, after 2 (d + 1) Sobol points."""

    def propose(self, count: int) -> list[Point]:  # noqa: D102
        import torch
        from botorch.acquisition.logei import qLogNoisyExpectedImprovement
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import MixedSingleTaskGP, SingleTaskGP
        from botorch.models.transforms import Standardize
        from botorch.optim import optimize_acqf, optimize_acqf_mixed
        from gpytorch.mlls import ExactMarginalLogLikelihood

        dimension = len(self.levels)
        tops = torch.tensor([max(n - 1, 1) for n in self.levels], dtype=torch.double)
        start = 2 * (dimension + 1)
        torch.manual_seed(1000 * self.seed + len(self.results))
        if len(self.results) < start:
            engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=self.seed)
            rows = engine.draw(len(self.results) + count)[-count:].tolist()
            return [[min(int(x * n), n - 1) for x, n in zip(row, self.levels, strict=True)] for row in rows]
        results = self.finite_results()
        x = torch.tensor([point for point, _ in results], dtype=torch.double) / tops
        y = -torch.tensor([[value] for _, value in results], dtype=torch.double)
        categories = [k for k, ordered in enumerate(self.ordered) if not ordered]
        bounds = torch.stack([torch.zeros(dimension), torch.ones(dimension)]).double()
        if categories:
            model: Any = MixedSingleTaskGP(x, y, cat_dims=categories, outcome_transform=Standardize(1))
        else:
            model = SingleTaskGP(x, y, outcome_transform=Standardize(1))
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        acquisition = qLogNoisyExpectedImprovement(model, X_baseline=x, prune_baseline=True)
        if categories:
            [axis] = categories
            fixed = [{axis: level / max(self.levels[axis] - 1, 1)} for level in range(self.levels[axis])]
            found, _ = optimize_acqf_mixed(acquisition, bounds, count, 4, fixed, raw_samples=128)
        else:
            found, _ = optimize_acqf(acquisition, bounds, count, 4, raw_samples=128, sequential=True)
        return [[int(v) for v in (row * tops).round().tolist()] for row in found]


class Hebo(AskTell):
    """HEBO with its defaults: warped inputs and outputs, MACE."""

    def __init__(self, setup: dict[str, Any]) -> None:
        super().__init__(setup)
        import numpy as np
        import pandas as pd
        import torch
        from hebo.design_space.design_space import DesignSpace
        from hebo.optimizers.hebo import HEBO

        np.random.seed(self.seed)
        torch.manual_seed(self.seed)
        space = DesignSpace().parse(
            [
                {"name": f"p{k}", "type": "int", "lb": 0, "ub": n - 1}
                if ordered
                else {"name": f"p{k}", "type": "cat", "categories": list(range(n))}
                for k, (n, ordered) in enumerate(zip(self.levels, self.ordered, strict=True))
            ]
        )
        self.optimizer, self.frame = HEBO(space, scramble_seed=self.seed), pd.DataFrame

    def propose(self, count: int) -> list[Point]:  # noqa: D102
        return [[int(v) for v in row] for row in self.optimizer.suggest(n_suggestions=count).values.tolist()]

    def tell(self, results: list[tuple[Point, float | None]]) -> None:  # noqa: D102
        import numpy as np

        super().tell(results)
        rows = self.frame([point for point, _ in results], columns=[f"p{k}" for k in range(len(self.levels))])
        values = [self.worst if value is None else value for _, value in results]
        self.optimizer.observe(rows, np.array(values).reshape(-1, 1))


class Nni(AskTell):
    """NNI's TPE with its defaults, the algorithm that Tribes et al. ran; failed trials are reported as failed."""

    def __init__(self, setup: dict[str, Any]) -> None:
        super().__init__(setup)
        from nni.algorithms.hpo.tpe_tuner import TpeTuner

        self.tuner = TpeTuner(seed=self.seed)
        self.tuner.update_search_space(
            {
                f"p{k}": {"_type": "quniform", "_value": [0, n - 1, 1]}
                if ordered
                else {"_type": "choice", "_value": list(range(n))}
                for k, (n, ordered) in enumerate(zip(self.levels, self.ordered, strict=True))
            }
        )
        self.count = 0

    def propose(self, count: int) -> list[Point]:  # noqa: D102
        points: list[Point] = []
        for _ in range(count):
            values = self.tuner.generate_parameters(self.count)
            points.append([int(values[f"p{k}"]) for k in range(len(self.levels))])
            self.proposals.append((points[-1], self.count))
            self.count += 1
        return points

    def tell(self, results: list[tuple[Point, float | None]]) -> None:  # noqa: D102
        super().tell(results)
        for point, value in results:
            number = self.proposal_of(point)
            if number is None:  # NNI's tuner accepts no points that it has not proposed
                continue
            if value is None:
                self.tuner.trial_end(number, False)
            else:
                self.tuner.receive_trial_result(number, {f"p{k}": v for k, v in enumerate(point)}, -value)


class Smac(AskTell):
    """SMAC3's facade for hyper-parameters with its defaults, each setting tried once, as in SMAC's example of ask and tell."""

    def __init__(self, setup: dict[str, Any]) -> None:
        super().__init__(setup)
        from ConfigSpace import CategoricalHyperparameter, ConfigurationSpace, UniformIntegerHyperparameter
        from smac import HyperparameterOptimizationFacade, Scenario

        self.space = ConfigurationSpace(seed=self.seed)
        for k, (n, ordered, level) in enumerate(zip(self.levels, self.ordered, self.default, strict=True)):
            self.space.add(
                UniformIntegerHyperparameter(f"p{k}", 0, n - 1, default_value=level)
                if ordered
                else CategoricalHyperparameter(f"p{k}", list(range(n)), default_value=level)
            )
        self.folder = tempfile.TemporaryDirectory()  # SMAC writes a record of its run
        scenario = Scenario(
            self.space, n_trials=self.trials, seed=self.seed, output_directory=Path(self.folder.name)
        )
        facade = HyperparameterOptimizationFacade
        self.facade = facade(
            scenario,
            lambda config, seed: 0.0,
            intensifier=facade.get_intensifier(scenario, max_config_calls=1),
            overwrite=True,
            logging_level=False,
        )
        self.trial_seed: int | None = None

    def propose(self, count: int) -> list[Point]:  # noqa: D102
        points: list[Point] = []
        for _ in range(count):
            trial = self.facade.ask()
            self.trial_seed = trial.seed
            points.append([int(trial.config[f"p{k}"]) for k in range(len(self.levels))])
            self.proposals.append((points[-1], trial))
        return points

    def tell(self, results: list[tuple[Point, float | None]]) -> None:  # noqa: D102
        from ConfigSpace import Configuration
        from smac.runhistory.dataclasses import TrialInfo, TrialValue

        super().tell(results)
        for point, value in results:
            trial = self.proposal_of(point)
            if trial is None:
                setting = Configuration(self.space, {f"p{k}": level for k, level in enumerate(point)})
                trial = TrialInfo(setting, seed=self.trial_seed)
            self.facade.tell(trial, TrialValue(self.worst if value is None else value), save=False)


RIVALS: dict[str, type[AskTell]] = {"botorch": Botorch, "hebo": Hebo, "nni": Nni, "smac": Smac}


def main() -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    rival = RIVALS[sys.argv[1]](json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        request = json.loads(line)
        if "ask" in request:
            answers.write(json.dumps(rival.ask(request["ask"])) + "\n")
        else:
            rival.tell([(point, value) for point, value in request["tell"]])


if __name__ == "__main__":
    main()
