"""The member of a family nearest to a target by KL(target || member): maximum likelihood, which covers."""

from collections.abc import Callable, Sequence
from importlib import import_module
from math import inf, nan
from typing import Any

import numpy as np

from kullback import families
from kullback.closed_forms.supports import shared_support
from kullback.densities.density import Density
from kullback.densities.from_families import as_density, has_density
from kullback.densities.gaussian_mixtures import Components
from kullback.densities.nodes import mean_of
from kullback.densities.resolve import resolve
from kullback.errors import ParameterError, ShapeError, SupportError
from kullback.families import Distribution
from kullback.fit.gaussian.mixtures import MixtureChart
from kullback.fit.gaussian.multivariate import (
    NORMALS,
    forward_of_mixture,
    forward_of_normal,
    likelihood_of_mixture,
    nearest_normal,
)
from kullback.fit.moment_matching import moments_of, of_samples
from kullback.fit.result import Fit, Minimum, Step, without_entropy
from kullback.fit.samples import draws_of, mean_and_covariance, require_inside, shares_of
from kullback.fit.solver.multistart import search
from kullback.fit.solver.objectives import Likelihood, problem_on_the_line
from kullback.fit.solver.parametrisation import coordinates_of
from kullback.fit.solver.starting_points import guess_of, no_start, starts_on_the_line
from kullback.fit.target_family import family_adapter, is_module
from kullback.fit.targets import density_of
from kullback.measure import measure
from kullback.numerics.arrays import Array, ArrayLike
from kullback.result import Estimate

__all__ = ["fit_forward"]

_OF_VECTORS = (
    families.Dirichlet,
    families.Independent,
    families.LowRankMultivariateNormal,
    families.MultivariateNormal,
    families.OneHotCategorical,
)
_DRAWS = 65_536  # of a target that a module is trained on


def fit_forward(
    family: Any,
    *,
    samples: ArrayLike | None = None,
    target: Any = None,
    weights: ArrayLike | None = None,
    start: Any = None,
    starts: Sequence[Any] = (),
    fixed: dict[str, Any] | None = None,
    components: int | None = None,
    steps: int = 2_000,
    learning_rate: float = 0.005,
    seed: int = 0,
    **refused: Any,
) -> Fit:
    """The q of a family that minimises KL(target || q): the forward fit, which is maximum likelihood.

    argmin_q KL(p || q) = argmax_q E_p[log q(x)], by the moments of p where they decide it, else by Newton's rule.

    Args:
        family: A record class of `kullback.families` (`Independent` is that of normals), a class of
            `torch.distributions` (`MixtureSameFamily` is that of normals), or a `torch.nn.Module` with `log_prob`
            (trained in place, on samples).
        samples: Draws of p, shape (n,) or (n, d); p need not be known.
        target: p itself, in place of samples: any distribution that `kullback.measure` takes.
        weights: What each sample counts, shape (n,), not negative; all alike if left out.
        start: Where the descent begins, a member; its path is kept. A closed form then is its end.
        starts: More of them.
        fixed: Parameters that are not fitted, by name, such as `{"total_count": 10}`.
        components: How many components a mixture, or factors a low-rank normal, is to have.
        steps: Of a module's training.
        learning_rate: Of that training, Adam's, falling to 0.
        seed: Of its batches.

    Returns:
        A `Fit`. From samples alone KL is nan, since p's entropy is not known: `diagnostics["cross_entropy"]` is
        -mean log q(x), nats.

    Raises:
        SupportError: KL(p || q) is `inf` for every q of the family: a sample lies outside its support, or p's tails
            are too heavy for it; or neither or both of samples and target are given, or a log-density alone.
        ShapeError: The samples' shape is not that of draws.
        ParameterError: A parameter must be fixed, or cannot be.

    Example:
        >>> from kullback.families import Normal, NormalMixture
        >>> two = NormalMixture(weights=[0.5, 0.5], locs=[0.0, 20.0], scales=[2.0, 2.0])
        >>> fit = fit_forward(Normal, target=two)
        >>> round(fit.distribution.loc, 9), round(fit.distribution.scale, 9), round(fit.kl, 9)
        (10.0, 10.198039027, 0.935901952)
        >>> fit_forward(Normal, samples=[-1.0, 0.0, 1.0, 4.0]).distribution.loc
        1.0
    """
    if "log_prob" in refused:
        raise SupportError(
            "expected samples of the target or the target itself: E_p[log q] is an average over p, and a log-density "
            "alone gives no draws; fit_reverse can use log_prob, or draw from it first, by MCMC, and pass samples"
        )
    if refused:
        raise TypeError(f"fit_forward() got an unexpected keyword argument {next(iter(refused))!r}")
    if (samples is None) == (target is None):
        raise SupportError("expected either samples or target, got " + ("neither" if target is None else "both"))
    if samples is None and weights is not None:
        raise SupportError("expected weights with samples alone: a target has its own")
    if is_module(family):
        return _of_module(family, samples, target, weights, steps, learning_rate, seed)
    given = ([start] if start is not None else []) + list(starts)
    x = None if samples is None else draws_of(samples)
    kind = family_adapter(family, given, target if x is None else x)
    begin = [kind.record(one) for one in given]
    fixed = kind.fixed(fixed)
    if kind.record_class is Components:
        fit = _of_mixture(kind.chart(begin, components), x, target, weights, begin)
    elif x is not None:
        fit = _of_samples(kind.record_class, x, weights, begin, fixed, components)
    else:
        fit = _of_target(kind.record_class, target, begin, fixed, components)
    return kind.returned(fit)


def _of_module(
    module: Any, samples: Any, target: Any, weights: Any, steps: int, learning_rate: float, seed: int
) -> Fit:
    if samples is None:
        sampler = resolve(target).native_sampler
        if sampler is None:
            raise SupportError(f"expected a target with draws, got {type(target).__name__}: pass samples of it")
        samples = sampler.sample(_DRAWS, np.random.default_rng(seed))
    return import_module("kullback.fit.stochastic").fit_module_forward(
        module, samples=samples, weights=weights, steps=steps, learning_rate=learning_rate, seed=seed
    )


def _of_mixture(
    chart: Callable[[int], MixtureChart], x: Array | None, target: Any, weights: Any, begin: list[Components]
) -> Fit:
    if x is None:
        return forward_of_mixture(chart, target, begin)
    shares = shares_of(weights, len(x))
    return likelihood_of_mixture(chart(x.shape[1]), x[shares > 0], shares[shares > 0], begin)


def _of_samples(
    kind: type[Distribution],
    x: Array,
    weights: ArrayLike | None,
    begin: list[Distribution],
    fixed: dict[str, Any],
    components: Any,
) -> Fit:
    shares = shares_of(weights, len(x))
    x, shares = x[shares > 0], shares[shares > 0]
    if x.ndim == 1 and kind in _OF_VECTORS:
        raise ShapeError(
            f"expected samples of shape (n, d) for {kind.__name__}, whose draws are vectors, got {x.shape}"
        )
    if x.ndim > 1 and has_density(kind):
        raise ShapeError(
            f"expected samples of shape (n,) for {kind.__name__}, whose draws are numbers, got {x.shape}; for vectors "
            "there are MultivariateNormal and Independent"
        )
    closed = of_samples(kind, x, shares, fixed)
    if kind in NORMALS:
        closed = nearest_normal(kind, *mean_and_covariance(x, shares), components)
    elif closed is None:
        closed = moments_of(kind, lambda f: np.tensordot(shares, f(x), axes=1), fixed)
    if not has_density(kind):
        if closed is None:
            raise ParameterError(
                f"expected a family whose likelihood is known here for samples of shape {x.shape}, got {kind.__name__}"
            )
        sampler = resolve(closed).sampler
        value = nan if sampler is None else -float(sampler.log_density(x) @ shares)
        told = {"method": "closed form"} | ({} if sampler is None else {"cross_entropy": value})
        return _alone(closed, without_entropy(value), told)
    if closed is None and x.min() == x.max():
        raise SupportError(
            f"expected samples that differ, but all {x.size} are {float(x[0])!r}: {kind.__name__} has its "
            "greatest likelihood nowhere"
        )
    if not begin:
        guess = closed or guess_of(kind, x, shares, fixed, components)
        if guess is None and (other := guess_of(kind, np.abs(x) + 1, shares, fixed, components)) is not None:
            require_inside(kind, other, x)
        if guess is None and kind is families.Pareto:
            raise SupportError(f"expected samples above 0 for Pareto, but the least is {float(x.min())!r}")
        if guess is None:
            raise no_start(kind)
        begin = [guess, *_scattered(guess, x)]
    require_inside(kind, closed or begin[0], x)
    if closed is not None and begin == [closed]:
        value = _cross_entropy(closed, x, shares)
        return _alone(closed, without_entropy(value), {"method": "closed form", "cross_entropy": value})
    chart = coordinates_of(kind, begin[0], fixed)
    found = search(chart, Likelihood(chart, x, shares), begin)
    if closed is None and not found.minima:
        raise SupportError(f"expected a finite likelihood at a start, but none of {len(begin)} has one: pass start=")
    best = closed or found.minima[0].distribution
    value = _cross_entropy(best, x, shares)
    told = {"method": "Newton" if closed is None else "closed form", "cross_entropy": value}
    converged = closed is not None or found.converged
    return Fit(best, nan, without_entropy(value), found.path, found.minima, converged, told)


def _scattered(guess: Distribution, x: Array) -> list[Distribution]:
    """A mixture's likelihood has many maxima: more starts, with components at samples."""
    if not isinstance(guess, families.NormalMixture):
        return []
    rng = np.random.default_rng(0)
    places = [rng.choice(x, np.size(guess.locs), replace=False) for _ in range(3)]
    return [families.NormalMixture(weights=guess.weights, locs=locs, scales=guess.scales) for locs in places]


def _cross_entropy(record: Distribution, x: Array, shares: Array) -> float:
    density = as_density(record)
    assert density is not None
    with np.errstate(all="ignore"):
        return -float(density.log_density(x, np.zeros_like(x)) @ shares)


def _of_target(
    kind: type[Distribution], target: Any, begin: list[Distribution], fixed: dict[str, Any], components: Any
) -> Fit:
    density = density_of(target)
    if density is None or not has_density(kind):
        return forward_of_normal(kind, target, components)
    _require_held(kind, density)
    closed = _bounds(kind, density) if kind in (families.Uniform, families.Pareto) and not fixed else None
    closed = closed or moments_of(kind, mean_of(density), fixed)
    if closed is not None and (not begin or measure(target, closed).value == inf):
        return _alone(closed, _finite(target, closed), {"method": "closed form"})
    begin = begin or starts_on_the_line(kind, density, fixed, components)
    if not begin:
        raise no_start(kind)
    chart = coordinates_of(kind, begin[0], fixed)
    found = search(chart, problem_on_the_line(chart, density, alpha=1.0), begin)
    if not found.minima:
        raise SupportError(
            f"expected KL(target || {kind.__name__}) to be finite at a start, but it is inf at all {len(begin)}: "
            "the target's support or tails go beyond the family's"
        )
    best = closed or found.minima[0].distribution
    estimate = _finite(target, best)
    told = {"method": "Newton" if closed is None else "closed form"}
    converged = closed is not None or found.converged
    return Fit(best, estimate.value, estimate, found.path, found.minima, converged, told)


def _require_held(kind: type[Distribution], density: Density) -> None:
    low, high = shared_support(kind)
    if density.support[0] < low or density.support[1] > high:
        raise SupportError(
            f"expected a target within {kind.__name__}'s support {(low, high)}, got one on {density.support}, so that "
            "KL(target || member) is inf for every member; pick a wider family, or map the target inside"
        )


def _bounds(kind: type[Distribution], density: Density) -> Distribution | None:
    """The members that end where the target does: narrower ones miss some of it, wider ones cover too much."""
    low, high = density.support
    if kind is families.Pareto:
        if not low > 0:
            raise SupportError(f"expected a target above 0 for Pareto, got one on {density.support}: KL is inf")
        return moments_of(kind, mean_of(density), {"scale": low})
    if high - low == inf:
        raise SupportError(f"expected a target of bounded support for Uniform, got {density.support}: KL is inf")
    return families.Uniform(low=low, high=high)


def _finite(target: Any, closed: Distribution) -> Estimate:
    estimate = measure(target, closed)
    if estimate.value == inf:
        raise SupportError(
            f"expected a target whose KL to some {type(closed).__name__} is finite, but {'; '.join(estimate.warnings)}"
        )
    return estimate


def _alone(best: Distribution, estimate: Estimate, told: dict[str, Any]) -> Fit:
    """What a closed form gives: no descent led there."""
    here = told.get("cross_entropy", estimate.value)
    minima = (Minimum(best, here, (best,)),)
    return Fit(best, estimate.value, estimate, (Step(best, here),), minima, True, told)
