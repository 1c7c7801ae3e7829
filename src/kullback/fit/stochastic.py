"""Fits by stochastic gradients in PyTorch: of modules, and of normals in more than two dimensions."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from math import nan
from typing import Any

import numpy as np

from kullback import families
from kullback.densities.gaussian_mixtures import Components
from kullback.densities.resolve import resolve
from kullback.errors import DistributionTypeError, MissingDependencyError, ShapeError, SupportError
from kullback.families import Distribution
from kullback.fit.gaussian.multivariate import convert_to_family
from kullback.fit.result import Fit, Minimum, Step, renamed, unknown_kl_from_samples
from kullback.measure import measure
from kullback.numerics.arguments import shown
from kullback.result import Estimate
from kullback.samples.pareto_k import pareto_k

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError("this fit needs PyTorch: pip install 'kullback[train]'") from error

__all__ = [
    "call_with_tensor",
    "fit_module_forward",
    "fit_module_reverse",
    "fit_normals_reverse",
    "target_log_density",
    "to_torch_distribution",
]

_EVALUATION_SAMPLES = 16_384
_PATH_STEPS = 100
_SAME_MINIMUM_NATS = 0.01


# Conversion between NumPy and PyTorch


def to_torch_distribution(family: type, member: Any, independent: bool) -> Any:
    """A float64 distribution of PyTorch that equals a member of the same family of `kullback.families`.

    Args:
        family: The class of `torch.distributions`.
        member: The member, or the components of a mixture of multivariate normals.
        independent: Whether the entries of each component of a multivariate mixture are independent.
    """
    if isinstance(member, Components):
        return _torch_mixture(member, independent)
    if isinstance(member, families.NormalMixture) and family.__name__ == "MixtureSameFamily":
        weights, locs, scales = map(_as_tensor, (member.weights, member.locs, member.scales))
        return family(torch.distributions.Categorical(weights), torch.distributions.Normal(locs, scales))
    if isinstance(member, families.Independent):
        return family(torch.distributions.Normal(_as_tensor(member.base.loc), _as_tensor(member.base.scale)), 1)
    return family(**{name: _as_tensor(value) for name, value in vars(member).items() if value is not None})


def _torch_mixture(mixture: Components, independent: bool = False) -> torch.distributions.MixtureSameFamily:
    weights, locs, covariances = map(_as_tensor, mixture)
    if independent:
        scales = covariances.diagonal(dim1=-2, dim2=-1).sqrt()
        normals = torch.distributions.Independent(torch.distributions.Normal(locs, scales), 1)
    else:
        normals = torch.distributions.MultivariateNormal(locs, covariance_matrix=covariances)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(weights), normals)


def _as_tensor(value: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(value, np.float64))


def call_with_tensor(log_prob: Callable[[Any], Any], x: np.ndarray) -> Any:
    """The values of a function of tensors at an array; what it returns, if it returns no tensor."""
    result = log_prob(torch.from_numpy(np.array(x, np.float64)))
    return result.detach().numpy() if isinstance(result, torch.Tensor) else result


# Fits of modules


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
    """Train a module by maximum likelihood on samples, with Adam, random batches and cosine decay of the rate.

    Args:
        module: A module with `log_prob`, or one that returns a distribution when it is called. It is trained in place.
        samples: The samples, shape (n, ...).
        weights: The weights of the samples, shape (n,); None for equal weights.
        steps: The number of steps.
        learning_rate: The initial learning rate.
        seed: The seed of the batches.
        batch_size: The number of samples in a batch; all samples are used where there are no more.

    Returns:
        The fit, with KL nan and the cross-entropy in `diagnostics`. The distributions in `path` are None.
    """
    parameter = _first_trainable_parameter(module)
    x = torch.as_tensor(samples).detach().to(parameter)
    if x.shape[0] == 0 or not torch.isfinite(x).all():
        raise SupportError(
            f"expected finite samples of shape (n, ...) with n > 0, got shape {tuple(x.shape)}"
            f"{' with infinite or nan entries' if x.shape[0] else ''}"
        )
    probs = torch.full((len(x),), 1 / len(x)) if weights is None else torch.as_tensor(weights) / np.sum(weights)
    probs = probs.to(parameter)
    generator = torch.Generator().manual_seed(seed)
    optimiser, schedule = _optimiser(module, steps, learning_rate)
    path = []
    for step in range(steps):
        if batch_size < len(x):
            batch = torch.multinomial(probs, batch_size, replacement=True, generator=generator)
            loss = -_distribution(module).log_prob(x[batch]).mean()
        else:
            loss = -(probs * _distribution(module).log_prob(x)).sum()
        if step % max(1, steps // _PATH_STEPS) == 0:
            path.append(Step(None, nan, cross_entropy=loss.item()))
        _optimise(loss, optimiser, schedule)
    with torch.no_grad():
        value = -float((probs * _distribution(module).log_prob(x)).sum())
    diagnostics = {"method": "gradients", "cross_entropy": value}
    estimate = unknown_kl_from_samples(value)
    minimum = Minimum(module, nan, cross_entropy=value)
    return Fit(module, nan, estimate, tuple(path), (minimum,), True, diagnostics)


def fit_module_reverse(
    module: torch.nn.Module,
    *,
    log_prob: Callable[[Any], Any] | None,
    target: Any,
    steps: int,
    draws: int,
    learning_rate: float,
    seed: int,
    current_distribution: Callable[[], Any] = lambda: None,
) -> Fit:
    """Minimise KL(module || target) by reparameterised gradients without the score term.

    The gradient of E[log q(x) - log p(x)] flows only through x = rsample(): log q is evaluated with frozen parameters,
    because its score has expectation zero. The variance of this gradient vanishes where q = p.

    Args:
        module: A module with `log_prob` and `rsample`, or one that returns such a distribution when it is called. It is
            trained in place.
        log_prob: The log-density of the target up to a constant, a function of tensors.
        target: A distribution, in place of log_prob.
        steps: The number of steps.
        draws: The number of samples of q in a step.
        learning_rate: The initial learning rate of Adam, with cosine decay to 0.
        seed: The seed of the samples.
        current_distribution: The distribution that the path shows for the module's current parameters.

    References:
        Roeder, Wu and Duvenaud (2017), "Sticking the Landing: Simple, Lower-Variance Gradient Estimators for
        Variational Inference" [roeder2017].
    """
    log_density = target_log_density(log_prob, target)
    frozen = deepcopy(module).requires_grad_(False)
    optimiser, schedule = _optimiser(module, steps, learning_rate)
    path = []
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        for step in range(steps):
            with torch.no_grad():
                for copied, trained in zip(frozen.parameters(), module.parameters(), strict=True):
                    copied.copy_(trained)
            x, weights = _weighted_samples(module, draws)
            kl = weights @ _require_finite(_distribution(frozen).log_prob(x) - log_density(x), x)
            if step % max(1, steps // _PATH_STEPS) == 0:
                path.append(Step(current_distribution(), kl.item()))
            _optimise(kl, optimiser, schedule)
        with torch.no_grad():
            fitted = _distribution(module)
            sample = fitted.rsample if getattr(fitted, "has_rsample", True) else fitted.sample
            x = sample(torch.Size([_EVALUATION_SAMPLES]))
            log_ratios = _require_finite(fitted.log_prob(x) - log_density(x), x).double().numpy()
    finally:
        torch.random.set_rng_state(state)
    return _monte_carlo_fit(module, log_ratios, path, is_normalised=log_prob is None)


def _distribution(module: torch.nn.Module) -> Any:
    """The module itself if it has `log_prob`, else the distribution that it returns when it is called."""
    if hasattr(module, "log_prob"):
        return module
    expected = "expected a module with log_prob, or one that returns a distribution when it is called without arguments"
    try:
        distribution = module()
    except TypeError as error:
        raise DistributionTypeError(f"{expected}, got {type(module).__name__}: {error}") from error
    if not hasattr(distribution, "log_prob"):
        returned = shown(distribution)
        raise DistributionTypeError(f"{expected}, got {type(module).__name__}, which returns {returned}")
    return distribution


def _weighted_samples(module: torch.nn.Module, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Reparameterised samples of a module and their weights, with sum 1."""
    if isinstance(module, _MixtureModule):
        return module.stratified_samples(count)
    x = _distribution(module).rsample(torch.Size([count]))
    return x, torch.full((count,), 1 / count).to(x)


def _first_trainable_parameter(module: torch.nn.Module) -> torch.Tensor:
    parameter = next((parameter for parameter in module.parameters() if parameter.requires_grad), None)
    if parameter is None:
        raise SupportError(
            f"expected a module with trainable parameters, got {type(module).__name__} without any: set "
            "requires_grad on its parameters"
        )
    return parameter


def _optimiser(module: torch.nn.Module, steps: int, learning_rate: float) -> Any:
    _first_trainable_parameter(module)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=learning_rate)
    return optimiser, torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)


def _optimise(loss: torch.Tensor, optimiser: torch.optim.Optimizer, schedule: Any) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    schedule.step()


def target_log_density(log_prob: Callable[[Any], Any] | None, target: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The log-density of the target as a function of tensors."""
    if log_prob is not None:
        return log_prob
    if isinstance(target, torch.distributions.Distribution):
        return target.log_prob
    components = resolve(target).components
    if components is not None:
        return _torch_mixture(components).log_prob
    if hasattr(target, "log_prob"):
        return target.log_prob
    raise SupportError(
        f"expected a target whose log_prob takes tensors, got {type(target).__name__}; pass log_prob, a function of "
        "tensors of shape (n, d)"
    )


def _require_finite(log_ratios: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The log-ratios log q(x) - log p(x), if they are finite numbers of shape (n,).

    Raises:
        ShapeError: The log-ratios have another shape.
        SupportError: A log-ratio is infinite or nan.
    """
    if log_ratios.ndim != 1:
        raise ShapeError(
            f"expected log-densities of shape ({len(x)},), one for each sample of shape {tuple(x.shape[1:])}, got log "
            f"q - log p of shape {tuple(log_ratios.shape)}"
        )
    if not torch.isfinite(log_ratios).all():
        index = int(torch.nonzero(~torch.isfinite(log_ratios))[0])
        raise SupportError(
            f"expected finite log-densities, but log q - log p is {float(log_ratios[index])} at x = "
            f"{x[index].tolist()}: KL(q || p) is inf where q has mass outside p's support; transform the target to "
            "unbounded coordinates"
        )
    return log_ratios


def _monte_carlo_fit(module: torch.nn.Module, log_ratios: np.ndarray, path: list[Step], *, is_normalised: bool) -> Fit:
    """The fit of a trained module, with KL or the evidence bound as the mean of log q(x) - log p(x) over samples."""
    value, std_error = float(log_ratios.mean()), float(log_ratios.std(ddof=1) / log_ratios.size**0.5)
    diagnostics: dict[str, Any] = {"method": "gradients", "pareto_k": pareto_k(-log_ratios)}
    interval = (value - 1.96 * std_error, value + 1.96 * std_error)
    if is_normalised:
        estimate = Estimate(value, std_error, log_ratios.size, method="Monte Carlo", interval=interval)
        return Fit(module, value, estimate, tuple(path), (Minimum(module, value),), True, diagnostics)
    diagnostics |= {"evidence_bound": -value, "std_error": std_error}
    estimate = Estimate(
        nan,
        method="Monte Carlo",
        status="unreliable",
        warnings=("KL(q || p) = log of the integral of p - evidence bound, and the integral is unknown",),
    )
    minimum, path_of_bounds = Minimum(module, nan, evidence_bound=-value), renamed(path, "evidence_bound", sign=-1)
    return Fit(module, nan, estimate, path_of_bounds, (minimum,), True, diagnostics)


# Fits of multivariate normals and of their mixtures


def fit_normals_reverse(
    family: type,
    *,
    starts: Sequence[Components | Distribution],
    independent: bool,
    log_prob: Callable[[Any], Any] | None,
    target: Any,
    **settings: Any,
) -> Fit:
    """Minimise KL(q || target) over multivariate normals q or their mixtures, from each starting point.

    Args:
        family: The family of the result: a family of normals, or `Components`.
        starts: Components, or members of `LowRankMultivariateNormal`.
        independent: Whether the entries of each normal are independent.
        log_prob: The log-density of the target up to a constant, a function of tensors.
        target: A distribution, in place of log_prob.
        **settings: The steps, draws, learning_rate and seed of `fit_module_reverse`.

    Returns:
        The fit of the lowest KL. End points that differ by less than 0.01 nats are one minimum.
    """
    ends = []
    for start in starts:
        module = _MixtureModule(start, independent) if isinstance(start, Components) else _LowRankModule(start)

        def member(module: Any = module) -> Any:
            return _as_member(family, module.to_distribution())

        fit = fit_module_reverse(module, log_prob=log_prob, target=target, current_distribution=member, **settings)
        ends.append((fit, member(), _as_member(family, start)))
    path = ends[0][0].path
    ends.sort(key=lambda end: end[0].diagnostics.get("evidence_bound", -end[0].kl), reverse=True)
    minima: list[Minimum] = []
    for fit, end, start in ends:
        index = next(
            (i for i, minimum in enumerate(minima) if measure(end, minimum.distribution).value < _SAME_MINIMUM_NATS),
            None,
        )
        if index is None:
            minima.append(replace(fit.minima[0], distribution=end, basin=(start,)))
        else:
            minima[index] = replace(minima[index], basin=(*minima[index].basin, start))
    return replace(ends[0][0], distribution=ends[0][1], path=path, minima=tuple(minima))


def _as_member(family: type, distribution: Components | Distribution) -> Any:
    return convert_to_family(family, distribution, None) if isinstance(distribution, Components) else distribution


class _MixtureModule(torch.nn.Module):
    """A multivariate normal or a mixture: logits, means and Cholesky factors with the logarithm of their diagonals."""

    def __init__(self, start: Components, independent: bool) -> None:
        super().__init__()
        factors = torch.linalg.cholesky(_as_tensor(start.covariances))
        self.logits = torch.nn.Parameter(_as_tensor(start.weights).log(), requires_grad=start.weights.size > 1)
        self.locs = torch.nn.Parameter(_as_tensor(start.locs))
        self.log_diagonals = torch.nn.Parameter(factors.diagonal(dim1=-2, dim2=-1).log().clone())
        self.off_diagonals = torch.nn.Parameter(factors.tril(-1) * (not independent), requires_grad=not independent)

    def forward(self) -> torch.distributions.Distribution:
        normals = torch.distributions.MultivariateNormal(self.locs, scale_tril=self._factors())
        if len(self.locs) > 1:
            return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=self.logits), normals)
        return torch.distributions.MultivariateNormal(self.locs[0], scale_tril=self._factors()[0])

    def stratified_samples(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Equally many samples of each component, and their weights; both are differentiable."""
        per_component = -(-count // len(self.locs))
        noise = torch.randn(len(self.locs), per_component, self.locs.shape[1], dtype=self.locs.dtype)
        x = self.locs[:, None] + noise @ self._factors().mT
        return x.flatten(0, 1), (self.logits.softmax(0) / per_component).repeat_interleave(per_component)

    def to_distribution(self) -> Components:
        with torch.no_grad():
            weights, factors = self.logits.softmax(0), self._factors()
            parts = (weights, self.locs, factors @ factors.mT)
        return Components(*(part.detach().numpy().copy() for part in parts))

    def _factors(self) -> torch.Tensor:
        return self.off_diagonals.tril(-1) + torch.diag_embed(self.log_diagonals.exp())


class _LowRankModule(torch.nn.Module):
    """A normal with covariance F F^T + D: its mean, the factor F and the logarithm of the diagonal D."""

    def __init__(self, start: Any) -> None:
        super().__init__()
        loc, factor, diagonal = map(_as_tensor, (start.loc, start.cov_factor, start.cov_diag))
        self.loc = torch.nn.Parameter(loc)
        self.factor = torch.nn.Parameter(factor)
        self.log_diagonal = torch.nn.Parameter(diagonal.log())

    def forward(self) -> torch.distributions.Distribution:
        return torch.distributions.LowRankMultivariateNormal(self.loc, self.factor, self.log_diagonal.exp())

    def to_distribution(self) -> Distribution:
        return families.LowRankMultivariateNormal(
            loc=self.loc.detach().numpy().copy(),
            cov_factor=self.factor.detach().numpy().copy(),
            cov_diag=self.log_diagonal.detach().exp().numpy(),
        )
