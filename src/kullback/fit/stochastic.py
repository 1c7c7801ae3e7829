"""Fits by gradients, which need PyTorch: of modules, and of normals of many dimensions, reparameterised."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np

from kullback import families
from kullback.densities.gaussian_mixtures import Components
from kullback.densities.resolve import resolve
from kullback.errors import MissingDependencyError, ShapeError, SupportError
from kullback.families import Distribution
from kullback.fit.gaussian.multivariate import member_of
from kullback.fit.result import Fit, Minimum, Step, without_entropy
from kullback.measure import measure
from kullback.result import Estimate
from kullback.samples.pareto_k import pareto_k

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError("this fit needs PyTorch: pip install 'kullback[train]'") from error

__all__ = ["fit_module_forward", "fit_module_reverse", "fit_normals_reverse", "of_tensors", "to_torch_distribution"]

_JUDGED = 16_384  # draws that the end is judged by
_SHOWN = 100  # steps of a path
_SAME = 0.01  # nats between ends


def to_torch_distribution(family: type, record: Any, independent: bool) -> Any:
    """A distribution of PyTorch from a record of the same family, in float64.

    Args:
        family: Of `torch.distributions`.
        record: Its record, or components.
        independent: Of a mixture of vectors, whether the entries of each component are.
    """
    if isinstance(record, Components):
        return _mixture(record, independent)
    if isinstance(record, families.NormalMixture) and family.__name__ == "MixtureSameFamily":
        weights, locs, scales = map(_double, (record.weights, record.locs, record.scales))
        return family(torch.distributions.Categorical(weights), torch.distributions.Normal(locs, scales))
    if isinstance(record, families.Independent):
        return family(torch.distributions.Normal(_double(record.base.loc), _double(record.base.scale)), 1)
    return family(**{name: _double(value) for name, value in vars(record).items() if value is not None})


def _mixture(parts: Components, independent: bool = False) -> torch.distributions.MixtureSameFamily:
    weights, locs, covariances = map(_double, parts)
    if independent:
        scales = covariances.diagonal(dim1=-2, dim2=-1).sqrt()
        normals = torch.distributions.Independent(torch.distributions.Normal(locs, scales), 1)
    else:
        normals = torch.distributions.MultivariateNormal(locs, covariance_matrix=covariances)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(weights), normals)


def _double(value: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(value, np.float64))


def of_tensors(log_prob: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
    """A function of tensors, at an array."""
    return log_prob(torch.from_numpy(np.array(x, np.float64))).detach().numpy()


def fit_module_forward(
    module: torch.nn.Module,
    *,
    samples: Any,
    weights: Any,
    steps: int,
    learning_rate: float,
    seed: int,
    batch_size: int = 512,
) -> Fit:
    """Maximum likelihood of a module on samples, by Adam on shuffled batches; the rate falls to 0."""
    parameter = _first(module)
    x = torch.as_tensor(samples).detach().to(parameter)
    if x.shape[0] == 0 or not torch.isfinite(x).all():
        raise SupportError(f"expected finite samples of shape (n, ...), n > 0, got shape {tuple(x.shape)}")
    shares = torch.full((len(x),), 1 / len(x)) if weights is None else torch.as_tensor(weights) / np.sum(weights)
    shares = shares.to(parameter)
    generator = torch.Generator().manual_seed(seed)
    optimiser, schedule = _optimiser(module, steps, learning_rate)
    path = []
    for step in range(steps):
        if batch_size < len(x):
            rows = torch.multinomial(shares, batch_size, replacement=True, generator=generator)
            loss = -_of(module).log_prob(x[rows]).mean()
        else:
            loss = -(shares * _of(module).log_prob(x)).sum()
        if step % max(1, steps // _SHOWN) == 0:
            path.append(Step(None, loss.item()))
        _descend(loss, optimiser, schedule)
    with torch.no_grad():
        value = -float((shares * _of(module).log_prob(x)).sum())
    told = {"method": "gradients", "cross_entropy": value}
    return Fit(module, float("nan"), without_entropy(value), tuple(path), (Minimum(module, value),), True, told)


def fit_module_reverse(
    module: torch.nn.Module,
    *,
    log_prob: Callable[[Any], Any] | None,
    target: Any,
    steps: int,
    draws: int,
    learning_rate: float,
    seed: int,
    record: Callable[[], Any] = lambda: None,
) -> Fit:
    """KL(module || target) downhill along x = rsample(): the module's own log-density is held still in its parameters.

    The score of q has mean zero and is left out, so that the gradient's noise vanishes where q is p. The path shows of
    the module what `record` gives.
    """
    log_density = _log_density(log_prob, target)
    still = deepcopy(module).requires_grad_(False)
    optimiser, schedule = _optimiser(module, steps, learning_rate)
    path = []
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        for step in range(steps):
            with torch.no_grad():
                for copy, own in zip(still.parameters(), module.parameters(), strict=True):
                    copy.copy_(own)
            x, weights = _drawn(module, draws)
            gap = weights @ _finite(_of(still).log_prob(x) - log_density(x), x)
            if step % max(1, steps // _SHOWN) == 0:
                path.append(Step(record(), gap.item()))
            _descend(gap, optimiser, schedule)
        with torch.no_grad():
            known = _of(module)
            x = (known.rsample if getattr(known, "has_rsample", True) else known.sample)(torch.Size([_JUDGED]))
            gap = _finite(known.log_prob(x) - log_density(x), x).double().numpy()
    finally:
        torch.random.set_rng_state(state)
    return _judged(module, gap, path, normalised=log_prob is None)


def fit_normals_reverse(
    family: type,
    *,
    starts: Sequence[Components | Distribution],
    independent: bool,
    log_prob: Callable[[Any], Any] | None,
    target: Any,
    **settings: Any,
) -> Fit:
    """The normals of vectors, or mixtures of them, nearest to a target by KL(member || target), one for each start.

    Args:
        family: As `member_of` has it.
        starts: Components, or records of low-rank normals. Ends less than a hundredth of a nat apart are one minimum.
        independent: Whether the entries of each normal are.
        log_prob: Or target: as `fit_reverse` has them.
        target: A distribution.
        **settings: Of `fit_module_reverse`.
    """
    ends = []
    for start in starts:
        module = _Normals(start, independent) if isinstance(start, Components) else _LowRank(start)

        def member(module: Any = module) -> Any:
            return _member(family, module.record())

        fit = fit_module_reverse(module, log_prob=log_prob, target=target, record=member, **settings)
        ends.append((fit, member(), _member(family, start)))
    path = ends[0][0].path
    ends.sort(key=lambda end: end[0].diagnostics.get("evidence_bound", -end[0].kl), reverse=True)
    minima: list[Minimum] = []
    for fit, found, start in ends:
        twin = next((i for i, one in enumerate(minima) if measure(found, one.distribution).value < _SAME), None)
        if twin is None:
            minima.append(Minimum(found, fit.kl, (start,)))
        else:
            minima[twin] = replace(minima[twin], basin=(*minima[twin].basin, start))
    return replace(ends[0][0], distribution=ends[0][1], path=path, minima=tuple(minima))


def _member(family: type, found: Components | Distribution) -> Any:
    return member_of(family, found, None) if isinstance(found, Components) else found


class _Normals(torch.nn.Module):
    """A normal of vectors, or a mixture: logits, means and Cholesky factors, whose diagonals are in logarithms."""

    def __init__(self, start: Components, independent: bool) -> None:
        super().__init__()
        roots = torch.linalg.cholesky(_double(start.covariances))
        self.logits = torch.nn.Parameter(_double(start.weights).log(), requires_grad=start.weights.size > 1)
        self.locs = torch.nn.Parameter(_double(start.locs))
        self.log_diagonals = torch.nn.Parameter(roots.diagonal(dim1=-2, dim2=-1).log().clone())
        self.below = torch.nn.Parameter(roots.tril(-1) * (not independent), requires_grad=not independent)

    def forward(self) -> torch.distributions.Distribution:
        normals = torch.distributions.MultivariateNormal(self.locs, scale_tril=self._roots())
        if len(self.locs) > 1:
            return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=self.logits), normals)
        return torch.distributions.MultivariateNormal(self.locs[0], scale_tril=self._roots()[0])

    def strata(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As many draws of each component, and what each draw weighs: both have gradients."""
        each = -(-count // len(self.locs))
        noise = torch.randn(len(self.locs), each, self.locs.shape[1], dtype=self.locs.dtype)
        x = self.locs[:, None] + noise @ self._roots().mT
        return x.flatten(0, 1), (self.logits.softmax(0) / each).repeat_interleave(each)

    def record(self) -> Components:
        with torch.no_grad():
            weights, roots = self.logits.softmax(0), self._roots()
            parts = (weights, self.locs, roots @ roots.mT)
        return Components(*(part.detach().numpy().copy() for part in parts))

    def _roots(self) -> torch.Tensor:
        return self.below.tril(-1) + torch.diag_embed(self.log_diagonals.exp())


class _LowRank(torch.nn.Module):
    """A normal by its mean, a factor and a diagonal, in logarithms."""

    def __init__(self, start: Any) -> None:
        super().__init__()
        loc, factor, diagonal = map(_double, (start.loc, start.cov_factor, start.cov_diag))
        self.loc = torch.nn.Parameter(loc)
        self.factor = torch.nn.Parameter(factor)
        self.log_diagonal = torch.nn.Parameter(diagonal.log())

    def forward(self) -> torch.distributions.Distribution:
        return torch.distributions.LowRankMultivariateNormal(self.loc, self.factor, self.log_diagonal.exp())

    def record(self) -> Distribution:
        return families.LowRankMultivariateNormal(
            loc=self.loc.detach().numpy().copy(),
            cov_factor=self.factor.detach().numpy().copy(),
            cov_diag=self.log_diagonal.detach().exp().numpy(),
        )


def _of(module: torch.nn.Module) -> Any:
    """The distribution that a module is, or makes when called."""
    return module if hasattr(module, "log_prob") else module()


def _drawn(module: torch.nn.Module, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws that carry gradients, and what each weighs."""
    if isinstance(module, _Normals):
        return module.strata(count)
    x = _of(module).rsample(torch.Size([count]))
    return x, torch.full((count,), 1 / count).to(x)


def _first(module: torch.nn.Module) -> torch.Tensor:
    found = next((one for one in module.parameters() if one.requires_grad), None)
    if found is None:
        raise SupportError("expected a module with parameters to train, got one without")
    return found


def _optimiser(module: torch.nn.Module, steps: int, learning_rate: float) -> Any:
    _first(module)
    optimiser = torch.optim.Adam([one for one in module.parameters() if one.requires_grad], lr=learning_rate)
    return optimiser, torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)


def _descend(loss: torch.Tensor, optimiser: torch.optim.Optimizer, schedule: Any) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    schedule.step()


def _log_density(log_prob: Callable[[Any], Any] | None, target: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    if log_prob is not None:
        return log_prob
    if isinstance(target, torch.distributions.Distribution):
        return target.log_prob
    parts = resolve(target).components
    if parts is not None:
        return _mixture(parts).log_prob
    if hasattr(target, "log_prob"):
        return target.log_prob
    raise SupportError(
        f"expected a target whose log_prob takes tensors, got {type(target).__name__}; pass log_prob, a function of "
        "tensors of shape (n, d)"
    )


def _finite(gap: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    if gap.ndim != 1:
        raise ShapeError(
            f"expected one log-density for each draw of shape {tuple(x.shape[1:])}, got {tuple(gap.shape)}"
        )
    if not torch.isfinite(gap).all():
        at = int(torch.nonzero(~torch.isfinite(gap))[0])
        raise SupportError(
            f"expected finite log-densities, but log q - log p is {float(gap[at])} at x = {x[at].tolist()}: KL(q || p) "
            "is inf where q goes beyond p's support; map the target to the whole space first"
        )
    return gap


def _judged(module: torch.nn.Module, gap: np.ndarray, path: list[Step], *, normalised: bool) -> Fit:
    value, std_error = float(gap.mean()), float(gap.std(ddof=1) / gap.size**0.5)
    told: dict[str, Any] = {"method": "gradients", "pareto_k": pareto_k(-gap)}
    interval = (value - 1.96 * std_error, value + 1.96 * std_error)
    if normalised:
        kl, estimate = value, Estimate(value, std_error, gap.size, method="Monte Carlo", interval=interval)
    else:
        told |= {"evidence_bound": -value, "std_error": std_error}
        kl = float("nan")
        estimate = Estimate(
            kl,
            method="Monte Carlo",
            status="unreliable",
            warnings=("KL(q || p) = log of p's integral - evidence bound, and that integral is not known",),
        )
    return Fit(module, kl, estimate, tuple(path), (Minimum(module, kl),), True, told)
