"""The member of a family nearest to a target by KL(member || target): variational inference, which seeks modes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from math import inf
from typing import Any

import numpy as np

from kullback import families
from kullback.densities.density import Density
from kullback.densities.from_families import as_density, has_density
from kullback.densities.gaussian_mixtures import Components
from kullback.densities.quadrature import kl_quadrature
from kullback.densities.resolve import resolve
from kullback.densities.summation import kl_summation
from kullback.errors import ParameterError, SupportError
from kullback.families import Distribution
from kullback.fit.gaussian.mixtures import MixtureChart
from kullback.fit.gaussian.multivariate import NORMALS, member_of, require_rank, reverse_in_the_plane, starts_of_draws
from kullback.fit.result import Fit
from kullback.fit.solver.multistart import MultistartResult
from kullback.fit.solver.starting_points import no_start, starts_on_the_line
from kullback.fit.solver.support_boundary import search_with_edges
from kullback.fit.target_family import FamilyAdapter, family_adapter, is_module
from kullback.fit.targets import called, density_of, dimensions, normalised
from kullback.measure import measure
from kullback.numerics.arrays import Array
from kullback.result import Estimate
from kullback.samples.pareto_k import pareto_k

__all__ = ["fit_reverse"]

_DRAWS = 4_000  # for the importance weights


def fit_reverse(
    family: Any,
    *,
    log_prob: Callable[[Any], Any] | None = None,
    target: Any = None,
    start: Any = None,
    starts: Sequence[Any] = (),
    fixed: dict[str, Any] | None = None,
    components: int | None = None,
    support: tuple[float, float] = (-inf, inf),
    steps: int = 2_000,
    draws: int = 64,
    learning_rate: float = 0.02,
    seed: int = 0,
    **refused: Any,
) -> Fit:
    """The q of a family that minimises KL(q || target): the reverse fit, which is variational inference.

    argmin_q KL(q || p) = argmax_q E_q[log p(x) - log q(x)], so that log p may lack its constant. On the line, and for
    normals and their mixtures in the plane, by quadrature and Newton's rule from many starts; for those of more
    dimensions by reparameterised gradients that stick the landing (only the path through x is differentiated), which
    needs PyTorch.

    Args:
        family: A record class of `kullback.families` (`Independent` is that of normals), a class of
            `torch.distributions` (`MixtureSameFamily` is that of normals), or a `torch.nn.Module` with `log_prob(x)`
            and `rsample(shape)`, or whose call gives such a distribution (zuko's flows); a module is trained in place.
        log_prob: The target's log-density up to a constant: of places (n,) on the line, (n, d) beyond, as an array, or
            as a tensor where PyTorch is needed.
        target: A distribution, in place of log_prob.
        start: Where a descent begins, a member; its path is kept. Of vectors it also says how many dimensions.
        starts: More of them; members matched to pieces of the target are tried besides.
        fixed: Parameters that are not fitted, by name.
        components: How many components a mixture, or factors a low-rank normal, is to have.
        support: The ends of log_prob's support, on the line.
        steps: Of the reparameterised gradients.
        draws: For each of those steps.
        learning_rate: Of those steps, Adam's, falling to 0.
        seed: Of the draws.

    Returns:
        A `Fit` with every minimum that was found. With `log_prob`, `diagnostics["evidence_bound"]` is E_q[log p - log
        q], nats, and `kl` is known where the integral of p could be taken (`diagnostics["log_evidence"]`), else nan.

    Raises:
        SupportError: Samples are given, which cannot do it; neither or both of log_prob and target are; log_prob is nan
            or has no finite integral; or every member has mass where the target has none.
        MissingDependencyError: More than two dimensions without PyTorch.

    Source: [roeder2017] for the gradient; [yao2018] for what Pareto's k says.

    Example:
        >>> from kullback.families import Normal, NormalMixture
        >>> two = NormalMixture(weights=[0.5, 0.5], locs=[0.0, 20.0], scales=[2.0, 2.0])
        >>> fit = fit_reverse(Normal, target=two, start=Normal(loc=10.0, scale=5**0.5))
        >>> len(fit.path) > 3, [round(one.distribution.scale, 5) for one in fit.minima]
        (True, [2.00002, 2.00002, 8.44514])
    """
    if "samples" in refused:
        raise SupportError(
            "expected log_prob or target: KL(q || p) = E_q[log q - log p] asks for log p where q goes, and samples of "
            "p alone do not tell it; give log_prob, up to a constant, or fit a density to the samples first "
            "(fit_forward, a kernel density estimate) and pass that as target, knowing that its errors are kept"
        )
    if refused:
        raise TypeError(f"fit_reverse() got an unexpected keyword argument {next(iter(refused))!r}")
    if (log_prob is None) == (target is None):
        raise SupportError("expected either log_prob or target, got " + ("neither" if target is None else "both"))
    settings = {"steps": steps, "draws": draws, "learning_rate": learning_rate, "seed": seed}
    if is_module(family):
        return import_module("kullback.fit.stochastic").fit_module_reverse(
            family, log_prob=log_prob, target=target, **settings
        )
    given = ([start] if start is not None else []) + list(starts)
    kind = family_adapter(family, given, target)
    begin, fixed = [kind.record(one) for one in given], kind.fixed(fixed)
    if has_density(kind.record_class):
        fit = _on_the_line(kind.record_class, log_prob, target, begin, fixed, components, support)
    else:
        fit = _of_vectors(kind, log_prob, target, begin, components, settings)
    return kind.returned(fit)


def _on_the_line(
    kind: type[Distribution],
    log_prob: Callable[[Any], Any] | None,
    target: Any,
    begin: list[Distribution],
    fixed: dict[str, Any],
    components: int | None,
    support: tuple[float, float],
) -> Fit:
    diagnostics: dict[str, Any] = {"method": "quadrature"}
    if log_prob is None:
        density = density_of(target)
        if density is None:
            raise SupportError(
                f"expected a target with a density on the line, as {kind.__name__} has, got {type(target).__name__}; "
                "pass its log_prob"
            )
    else:
        density, diagnostics["log_evidence"] = normalised(log_prob, support)
    own = starts_on_the_line(kind, density, fixed, components)
    if not begin + own:
        raise no_start(kind)
    if _kl((begin + own)[0], density).value == inf:
        own = [one for one in own if _kl(one, density).value < inf]
        if not own:
            raise _never_finite(kind, density)
    found = search_with_edges(kind, density, begin + own, fixed, lambda one: _kl(one, density).value)
    if not found.minima:
        raise _never_finite(kind, density)
    best = found.minima[0].distribution
    estimate = _kl(best, density) if target is None else measure(best, target)
    if log_prob is not None:
        diagnostics["evidence_bound"] = diagnostics["log_evidence"] - estimate.value
    diagnostics["pareto_k"] = _tail(best, density)
    return _fit(found, estimate, diagnostics)


def _never_finite(kind: type[Distribution], density: Density) -> SupportError:
    return SupportError(
        f"expected KL({kind.__name__} || target) to be finite at a start, but it is inf at each: the family has mass "
        f"where the target, supported on {density.support}, has none, or tails too heavy for it"
    )


def _kl(one: Distribution, density: Density) -> Estimate:
    mine = as_density(one)
    assert mine is not None
    return (kl_summation if density.discrete else kl_quadrature)(mine, density)


def _tail(best: Distribution, density: Density) -> float:
    mine = as_density(best)
    if mine is None or mine.sample is None:
        return float("nan")
    x = np.asarray(mine.sample(_DRAWS, np.random.default_rng(0)), np.float64)
    zeros = np.zeros_like(x)
    with np.errstate(all="ignore"):
        return pareto_k(density.log_density(x, zeros) - mine.log_density(x, zeros))


def _fit(found: MultistartResult, estimate: Estimate, diagnostics: dict[str, Any]) -> Fit:
    best = found.minima[0].distribution
    return Fit(best, estimate.value, estimate, found.path, found.minima, found.converged, diagnostics)


def _of_vectors(
    kind: FamilyAdapter,
    log_prob: Callable[[Any], Any] | None,
    target: Any,
    begin: list[Any],
    count: int | None,
    settings: dict[str, Any],
) -> Fit:
    family = kind.record_class
    if family not in (*NORMALS, Components):
        raise ParameterError(
            f"expected a family on the line, or normals of vectors or their mixtures, got {family.__name__}; a "
            "torch.nn.Module with log_prob and rsample fits any other"
        )
    parts = [resolve(one).components for one in begin]
    size = _dimensions(parts[0] if parts else target)
    if size is None:
        raise ParameterError("expected start=, a member of the family: it says how many dimensions log_prob takes")
    rank = count
    if family is families.LowRankMultivariateNormal:
        rank = require_rank(np.shape(begin[0].cov_factor)[-1] if count is None and begin else count, size)
    if size == 2:
        fit = _in_the_plane(kind.chart(begin, count)(2), log_prob, target, parts)
        return FamilyAdapter(family, lambda found: member_of(family, found, rank)).returned(fit)
    return import_module("kullback.fit.stochastic").fit_normals_reverse(
        family,
        starts=_far_starts(kind, begin, parts, rank, size, target),
        independent=kind.independent,
        log_prob=log_prob,
        target=target,
        **settings,
    )


def _far_starts(
    kind: FamilyAdapter, begin: list[Any], parts: list[Any], count: int | None, size: int, target: Any
) -> Sequence[Any]:
    """Where the gradients begin: low-rank normals as records, others as components."""
    if kind.record_class is families.LowRankMultivariateNormal:
        factor = 0.1 * np.random.default_rng(0).normal(size=(size, count or 0))
        return begin or [kind.record_class(loc=np.zeros(size), cov_factor=factor, cov_diag=np.ones(size))]
    chart = kind.chart(begin, count)(size)
    if begin:
        return parts
    if chart.count == 1:
        return [Components(np.ones(1), np.zeros((1, size)), np.eye(size)[None])]
    return starts_of_draws(target, chart.count)


def _in_the_plane(chart: MixtureChart, log_prob: Callable[[Any], Any] | None, target: Any, begin: Sequence[Any]) -> Fit:
    fit, log_density = reverse_in_the_plane(chart, target, log_prob and _in_arrays(log_prob), begin)
    best = resolve(fit.distribution).sampler
    assert best is not None
    x = np.asarray(best.sample(_DRAWS, np.random.default_rng(0)))
    return replace(fit, diagnostics=fit.diagnostics | {"pareto_k": pareto_k(log_density(x) - best.log_density(x))})


def _in_arrays(log_prob: Callable[[Any], Any]) -> Callable[[Array], Array]:
    return lambda x: called(log_prob, x)


def _dimensions(example: Any) -> int | None:
    size = None if example is None else dimensions(example)
    if size or example is None:
        return size
    wanted = "with log_prob(x) and sample(count)" if size is None else "of vectors, as the family's members are"
    raise SupportError(f"expected a target {wanted}, got {type(example).__name__}")
