"""A Gaussian process on a projection of embeddings, trained with it by marginal likelihood (deep kernel learning).

Source: Wilson et al. 2016. The projection, the learnable token after the texts, and the three hyper-parameters of the process
are fitted together by Adam on the marginal likelihood, with weak priors. In double precision, so that equal data give
equal models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_STEPS, _RATE = 40, 0.05
_JITTER = 1e-6  # on the diagonal, so that the Cholesky decomposition of nearly equal settings succeeds


@dataclass(frozen=True)
class Kernel:
    """A fitted model.

    Attributes:
        project: maps embeddings of shape (m, width) to points of shape (m, k).
        inputs: the projected embeddings of the measured settings, shape (n, k).
        values: their standardised values, shape (n,).
        logs: logarithms of length scale, signal variance and noise variance.
        token: the fitted token, None without one.
        likelihood: the negative log posterior at the end of the fit.

    """

    project: Callable[[torch.Tensor], torch.Tensor]
    inputs: torch.Tensor
    values: torch.Tensor
    logs: torch.Tensor
    token: torch.Tensor | None
    likelihood: float

    def predict(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation at projected points of shape (m, k)."""
        import torch

        factor = torch.linalg.cholesky(_covariance(self.inputs, self.inputs, self.logs, noise=True))
        cross = _covariance(points, self.inputs, self.logs)
        mean = cross @ torch.cholesky_solve(self.values[:, None], factor)[:, 0]
        half = torch.linalg.solve_triangular(factor, cross.T, upper=False)
        variance = self.logs[1].exp() - (half**2).sum(dim=0)
        return mean, variance.clamp(min=1e-12).sqrt()

    def condition_on(self, point: torch.Tensor, value: torch.Tensor) -> Kernel:
        """Return the model with one more measured point, its hyper-parameters unchanged."""
        import torch

        inputs = torch.cat([self.inputs, point[None]])
        values = torch.cat([self.values, value[None]])
        return Kernel(self.project, inputs, values, self.logs, self.token, self.likelihood)


def fit(
    embed: Callable[[torch.Tensor | None], torch.Tensor],
    values: torch.Tensor,
    token: torch.Tensor | None,
    dimensions: int | None,
    seed: int,
) -> Kernel:
    """Fit to standardised values of shape (n,).

    Args:
        embed: returns the embeddings of the measured settings, shape (n, width), given the token.
        values: the measured objective.
        token: its initial value; None to do without a learnable token.
        dimensions: of the projection; None to use the embeddings themselves.
        seed: of the initial projection.

    """
    import torch

    with torch.no_grad():
        first = embed(token)
    center, spread = first.mean(dim=0), first.std(dim=0).clamp(min=1e-6)
    scale = first.shape[1] ** -0.5
    draw = torch.randn(
        first.shape[1], dimensions or 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    matrix = draw.requires_grad_(True) if dimensions else None
    # Unit length scale and signal variance, and 5 % noise (exp(-3)); the priors below are centred on them
    logs = torch.tensor([0.0, 0.0, -3.0], dtype=torch.float64).requires_grad_(True)
    learnt = token.clone().requires_grad_(True) if token is not None else None

    def project(embedded: torch.Tensor) -> torch.Tensor:
        standard = (embedded - center) / spread
        projection: torch.Tensor = (standard @ matrix if matrix is not None else standard) * scale
        return projection

    def loss() -> torch.Tensor:
        points = project(embed(learnt) if learnt is not None else first)
        factor = torch.linalg.cholesky(_covariance(points, points, logs, noise=True))
        weights = torch.cholesky_solve(values[:, None], factor)[:, 0]
        prior = 0.5 * (logs[0] ** 2 + logs[1] ** 2 + ((logs[2] + 3.0) / 1.5) ** 2)
        if matrix is not None:
            prior = prior + 0.5 * (matrix**2).mean() * matrix.shape[1]
        total: torch.Tensor = 0.5 * values @ weights + factor.diagonal().log().sum() + prior
        return total

    trained = [parameter for parameter in (logs, matrix, learnt) if parameter is not None]
    optimiser = torch.optim.Adam(trained, lr=_RATE)
    value = torch.zeros(())
    for _ in range(_STEPS):
        optimiser.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        projection = learnt.detach() if learnt is not None else None
        points = project(embed(projection) if projection is not None else first)
    if matrix is not None:
        matrix.requires_grad_(False)
    return Kernel(project, points.detach(), values, logs.detach(), projection, float(value.detach()))


def _covariance(
    left: torch.Tensor, right: torch.Tensor, logs: torch.Tensor, noise: bool = False
) -> torch.Tensor:
    """Return the Matérn 5/2 covariance; `logs` are those of length, signal and noise variance."""
    import torch

    squares = ((left[:, None] - right[None]) ** 2).sum(dim=-1)
    distance = (5.0 * squares + 1e-12).sqrt() * (-logs[0]).exp()
    kernel: torch.Tensor = logs[1].exp() * (1 + distance + distance**2 / 3) * (-distance).exp()
    if noise:
        kernel = kernel + (logs[2].exp() + _JITTER) * torch.eye(len(left), dtype=torch.float64)
    return kernel
