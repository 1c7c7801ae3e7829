"""Forward fits: the member of a family that minimises KL(target || member), by maximum likelihood."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from math import inf, nan, pi
from typing import Any

import numpy as np

from kullback import families
from kullback.closed_forms.supports import is_count_family, shared_support
from kullback.densities.density import Density
from kullback.densities.from_families import as_density, has_density
from kullback.densities.gaussian_mixtures import Components
from kullback.densities.nodes import line_nodes
from kullback.densities.resolve import resolve
from kullback.errors import ParameterError, ShapeError, SupportError
from kullback.families import Distribution
from kullback.fit.gaussian.mixtures import MixtureParametrisation
from kullback.fit.gaussian.multivariate import (
    NORMAL_FAMILIES,
    fit_mixture_forward,
    fit_mixture_to_samples,
    fit_normal_forward,
    nearest_normal,
    require_varying_entries,
)
from kullback.fit.gaussian.univariate_mixtures import starts_of_increasing_size
from kullback.fit.limits import without_limit
from kullback.fit.moment_matching import closed_form_mle, match_moments
from kullback.fit.result import Fit, closed_form_fit, renamed, unknown_kl_from_samples
from kullback.fit.samples import (
    WRAPPED,
    as_samples,
    matched_weights,
    mean_and_covariance,
    normalised_weights,
    require_samples_between_ends,
    require_samples_in_support,
    vectors_in_support,
)
from kullback.fit.solver.multistart import minimise_from_starts
from kullback.fit.solver.objectives import CrossEntropyObjective, univariate_objective
from kullback.fit.solver.parametrisation import parametrise
from kullback.fit.solver.starting_points import (
    approximate_member,
    missing_start_error,
    univariate_starts,
    widened_starts,
)
from kullback.fit.target_family import (
    family_adapter,
    is_module,
    list_of_starts,
    reject_options,
    unexpected_option,
    validate_components,
)
from kullback.fit.target_moments import (
    LARGEST_MISSING_KL,
    finite_kl,
    fit_by_measure,
    match_moments_of_target,
)
from kullback.fit.targets import univariate_density
from kullback.measure import measure
from kullback.numerics.arrays import Array, ArrayLike, as_numpy

__all__ = ["fit_forward"]

_MULTIVARIATE = (
    families.Dirichlet,
    families.Independent,
    families.LowRankMultivariateNormal,
    families.MultivariateNormal,
    families.OneHotCategorical,
)
_TARGET_SAMPLES = 65_536  # for the training of a module
# Families with members that are concentrated near any point of the support.
_CONCENTRATED = (
    *(families.Beta, families.Cauchy, families.Gamma, families.Gumbel, families.InverseGamma, families.InverseGaussian),
    *(families.Kumaraswamy, families.Laplace, families.LogNormal, families.Logistic, families.Normal),
    *(families.NormalMixture, families.Pareto, families.StudentT, families.TanhNormal, families.TruncatedNormal),
    *(families.Uniform, families.VonMises, families.Weibull),
)
_LARGEST_ERROR = 1e-4  # nats, relative above 1, of the KL of a fit that is called converged
_SCALE_RATIO = 4.0  # of adjacent scales of which the best is a start
_LEAST_SPREAD = 1e-306  # of samples: the squares of smaller differences lose digits


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
    **unexpected: Any,
) -> Fit:
    """The member q of a family that minimises KL(p || q), where p is the target: maximum likelihood.

    argmin_q KL(p || q) = argmax_q E_p[log q(x)]

    The fit is in closed form where moments of p determine it. Otherwise a trust-region Newton method minimises KL or,
    from samples, the cross-entropy. A `torch.nn.Module` is trained by Adam.

    Args:
        family: A class of `kullback.families` (`Independent` stands for independent normals), a class of
            `torch.distributions` (`MixtureSameFamily` stands for mixtures of normals), or a `torch.nn.Module` with
            `log_prob`, which is trained in place.
        samples: Samples of p, shape (n,) or (n, d). Pass either samples or target.
        target: The distribution p, of any kind that `kullback.measure` accepts.
        weights: The weights of the samples, shape (n,), non-negative; None for equal weights. Where samples and
            weights have labels, they are matched by label.
        start: A member of the family at which the descent begins; `path` records this descent. Where a closed form
            exists, it is still the result.
        starts: Further starting points.
        fixed: Parameters that are not fitted, by name, such as `{"total_count": 10}`. If all are fixed, the result is
            this member with its KL.
        components: The number of components of a mixture, or the rank of the factor of a low-rank normal.
        steps: The number of training steps of a module.
        learning_rate: The initial learning rate of Adam for a module, with cosine decay to 0.
        seed: The seed of the batches, and of the samples of a target, for a module.

    Returns:
        A `Fit` whose `kl` is KL(p || q) in nats. From samples alone `kl` is nan, because the entropy of p is unknown,
        and `cross_entropy`, also of each step and minimum, is the weighted mean of -log q(x), in nats.

    Raises:
        SupportError: KL(p || q) is `inf` for every member, because p or a sample has mass outside the support of the
            family, or because the tails of p are too heavy; or the likelihood has no maximum; or neither or both of
            samples and target are given; or log_prob is given.
        ShapeError: The samples or weights have the wrong shape.
        ParameterError: A parameter must be fixed or cannot be fixed, a start belongs to another family, a start or the
            number of components is required, or the family does not use an option that is given.
        TypeError: An option does not exist.
        MissingDependencyError: The family is a module and PyTorch is not installed.

    References:
        Bishop (2006), "Pattern Recognition and Machine Learning", section 10.1.2, for the two directions of KL.

    Example:
        >>> from kullback.families import Normal, NormalMixture
        >>> two = NormalMixture(weights=[0.5, 0.5], locs=[0.0, 20.0], scales=[2.0, 2.0])
        >>> fit = fit_forward(Normal, target=two)
        >>> round(fit.distribution.loc, 9), round(fit.distribution.scale, 9), round(fit.kl, 9)
        (10.0, 10.198039027, 0.935901952)
        >>> fit_forward(Normal, samples=[-1.0, 0.0, 1.0, 4.0]).distribution.loc
        1.0
    """
    if "log_prob" in unexpected:
        raise SupportError(
            "expected samples or target, got log_prob: the forward fit needs the expectation E_p[log q], which an "
            "unnormalised log-density does not give; use fit_reverse, or draw samples by MCMC and pass them"
        )
    if unexpected:
        raise unexpected_option("fit_forward", unexpected, fit_forward.__kwdefaults__ or ())
    if (samples is None) == (target is None):
        raise SupportError("expected either samples or target, got " + ("neither" if target is None else "both"))
    if samples is None and weights is not None:
        raise SupportError("expected weights together with samples, got weights together with target")
    weights = matched_weights(samples, weights)
    if is_module(family):
        unused = {"start": (start, None), "starts": (starts, ()), "fixed": (fixed, None)}
        reject_options("a module", components=(components, None), **unused)
        return _fit_module(family, samples, target, weights, steps, learning_rate, seed)
    training = {"steps": (steps, 2_000), "learning_rate": (learning_rate, 0.005), "seed": (seed, 0)}
    reject_options("a family that is not a module", **training)
    requested_starts = ([start] if start is not None else []) + list_of_starts(starts)
    x = None if samples is None else as_samples(samples)
    adapter = family_adapter(family, requested_starts, target if x is None else x)
    members = [adapter.from_requested(one) for one in requested_starts]
    fixed, components = adapter.validate_fixed(fixed), validate_components(adapter.family, components)
    if (member := adapter.fixed_member(fixed)) is not None:
        return adapter.convert_fit(_fit_of_member(member, x, weights, target))
    if adapter.family is Components:
        fit = _fit_mixture(adapter.mixture_parametrisation(members, components), x, target, weights, members)
    elif x is not None:
        fit = _fit_to_samples(adapter.family, x, weights, members, fixed, components)
    else:
        fit = _fit_to_target(adapter.family, target, members, fixed, components)
    return adapter.convert_fit(fit)


def _fit_of_member(member: Distribution, x: Array | None, weights: Any, target: Any) -> Fit:
    """The fit of a family whose parameters are all fixed: the member with its KL, or its cross-entropy of samples."""
    diagnostics: dict[str, Any] = {"method": "fixed parameters"}
    if x is None:
        return closed_form_fit(member, measure(target, member), diagnostics)
    w = normalised_weights(weights, len(x))
    x, w = x[w > 0], w[w > 0]
    if has_density(type(member)):
        _require_univariate(type(member), x)
        require_samples_in_support(type(member), member, x)
        value = _cross_entropy(member, x, w)
    else:
        sampler = resolve(member).sampler
        value = nan if sampler is None else -float(sampler.log_density(x) @ w)
    return closed_form_fit(member, unknown_kl_from_samples(value), diagnostics | {"cross_entropy": value})


def _fit_module(
    module: Any, samples: Any, target: Any, weights: Any, steps: int, learning_rate: float, seed: int
) -> Fit:
    """Train a module on samples, or on samples drawn from the target."""
    if samples is None:
        sampler = resolve(target).native_sampler
        if sampler is None or sampler.sample is None:
            raise SupportError(
                f"expected a target that can be sampled, got {type(target).__name__}: pass samples of the target"
            )
        samples = sampler.sample(_TARGET_SAMPLES, np.random.default_rng(seed))
    return import_module("kullback.fit.stochastic").fit_module_forward(
        module, samples=samples, weights=weights, steps=steps, learning_rate=learning_rate, seed=seed
    )


def _fit_mixture(
    parametrisation_of_size: Callable[[int], MixtureParametrisation],
    x: Array | None,
    target: Any,
    weights: Any,
    starts: list[Components],
) -> Fit:
    """Fit a mixture of multivariate normals to samples x, or to a target where x is None."""
    if x is None:
        return fit_mixture_forward(parametrisation_of_size, target, starts)
    w = normalised_weights(weights, len(x))
    return fit_mixture_to_samples(parametrisation_of_size(x.shape[1]), x[w > 0], w[w > 0], starts)


def _fit_to_samples(
    family: type[Distribution],
    x: Array,
    weights: ArrayLike | None,
    starts: list[Distribution],
    fixed: dict[str, Any],
    components: Any,
) -> Fit:
    """Maximise the likelihood of samples."""
    w = normalised_weights(weights, len(x))
    x, w = x[w > 0], w[w > 0]
    if family is families.NormalMixture and components is not None and components > x.size:
        raise SupportError(
            f"expected at least as many samples as components, got {x.size} samples and components={components}: the "
            "likelihood has no maximum"
        )
    if x.ndim == 1 and family in _MULTIVARIATE:
        raise ShapeError(
            f"expected samples of shape (n, d) for the multivariate family {family.__name__}, got shape {x.shape}"
        )
    if has_density(family):
        _require_univariate(family, x)
    elif x.ndim == 2:
        x = vectors_in_support(family, x)
        if family is families.Dirichlet and (x == x[0]).all():
            raise _constant_samples_error(family, x)
    closed_form = closed_form_mle(family, x, w, fixed)
    if family in NORMAL_FAMILIES:
        require_varying_entries(x)
        closed_form = nearest_normal(family, *mean_and_covariance(x, w), components)
    elif closed_form is None:
        closed_form = match_moments(family, lambda f: np.tensordot(w, f(x), axes=1), fixed)
    if not has_density(family):
        return _closed_form_fit_without_density(family, closed_form, x, w)
    is_constant = x.min() == x.max()
    at_an_end = (
        closed_form is None and family in (families.Pareto, families.Uniform) and x.min() > shared_support(family)[0]
    )
    if is_constant and (at_an_end if fixed else family in _CONCENTRATED):
        raise _constant_samples_error(family, x)
    if closed_form is None and not is_constant:
        _require_representable_spread(x)
    starts = starts or _starts_from_samples(family, closed_form, x, w, fixed, components)
    member = closed_form or starts[0]
    # Samples outside of the support can lead to a closed form with one outcome, whose support is smaller.
    require_samples_in_support(family, _member_with_two_counts(family, fixed) or member, x)
    if closed_form is not None and starts == [closed_form]:
        value = _cross_entropy(closed_form, x, w)
        diagnostics = {"method": "closed form", "cross_entropy": value}
        return closed_form_fit(closed_form, unknown_kl_from_samples(value), diagnostics)
    parametrisation = parametrise(family, starts[0], fixed)
    objective = CrossEntropyObjective(parametrisation, x, w)
    found = minimise_from_starts(parametrisation, objective, starts, is_unbounded=objective.is_unbounded)
    if closed_form is None and not found.minima:
        raise SupportError(
            f"expected a finite likelihood at a start, but it is not finite at any of {len(starts)}: pass start=, a "
            "member with a positive density at every sample"
        )
    best = closed_form or found.minima[0].distribution
    value = _cross_entropy(best, x, w)
    diagnostics = {"method": "Newton" if closed_form is None else "closed form", "cross_entropy": value}
    converged = closed_form is not None or found.converged
    if is_constant and not converged:
        raise _constant_samples_error(family, x)
    sample = None if converged else objective.only_sample_of_a_component(parametrisation.to_vector(best))
    if sample is not None:
        raise SupportError(
            f"expected samples for which the likelihood of {family.__name__} has a maximum, but it increases without "
            f"bound as the scale of a component at the sample {sample!r} decreases; fix the scales, pass more samples "
            "or request fewer components"
        )
    path, minima = renamed(found.path, "cross_entropy"), renamed(found.minima, "cross_entropy")
    fit = Fit(best, nan, unknown_kl_from_samples(value), path, minima, converged, diagnostics)
    return fit if closed_form else without_limit(fit, lambda member: _cross_entropy(member, x, w), fixed)


def _constant_samples_error(family: type[Distribution], x: Array) -> SupportError:
    received = "got one sample" if len(x) == 1 else f"but all {len(x)} samples are {x[0].tolist()!r}"
    return SupportError(
        f"expected two or more samples that differ, {received}: the likelihood of {family.__name__} has no maximum; "
        "pass samples that differ"
    )


def _require_representable_spread(x: Array) -> None:
    """Raise SupportError if float64 does not resolve the spread of samples that differ."""
    low, high = float(x.min()), float(x.max())
    with np.errstate(over="ignore"):
        spread = np.float64(high) - low
    if not _LEAST_SPREAD < spread < np.inf:
        raise SupportError(
            f"expected samples whose spread is between {_LEAST_SPREAD:g} and the largest number of float64, got "
            f"samples from {low!r} to {high!r}; change the unit of the samples"
        )


def _require_univariate(family: type[Distribution], x: Array) -> None:
    if x.ndim > 1:
        raise ShapeError(
            f"expected samples of shape (n,) for the univariate family {family.__name__}, got shape {x.shape}; for "
            "vectors, fit MultivariateNormal or Independent"
        )


def _closed_form_fit_without_density(
    family: type[Distribution], closed_form: Distribution | None, x: Array, weights: Array
) -> Fit:
    """The fit of a family for which only the closed form is available."""
    if closed_form is None:
        raise ParameterError(
            f"expected a family with a closed-form likelihood fit for samples of shape {x.shape}, got {family.__name__}"
        )
    sampler = resolve(closed_form).sampler
    value = nan if sampler is None else -float(sampler.log_density(x) @ weights)
    diagnostics = {"method": "closed form"} | ({} if sampler is None else {"cross_entropy": value})
    return closed_form_fit(closed_form, unknown_kl_from_samples(value), diagnostics)


def _starts_from_samples(
    family: type[Distribution],
    closed_form: Distribution | None,
    x: Array,
    weights: Array,
    fixed: dict[str, Any],
    components: Any,
) -> list[Distribution]:
    """Starting points that match the samples: the closed form, an approximate member, or mixtures of clusters."""
    if family is families.NormalMixture and components is not None and not fixed:
        return _mixture_starts_from_samples(x, weights, components)
    member = closed_form or approximate_member(family, x, weights, fixed, components)
    if member is None:
        if counts := _member_with_two_counts(family, fixed):
            require_samples_in_support(family, counts, x)
        # A member that fits positive samples shows whether the support is the reason.
        positive = approximate_member(family, np.abs(x) + 1, weights, fixed, components)
        if positive is not None:
            require_samples_in_support(family, positive, x)
        if not is_count_family(family) and family is not families.Pareto:
            require_samples_between_ends(family, x)
        if family is families.Pareto:
            raise SupportError(
                f"expected samples above 0 for Pareto, but the least is {float(x.min())!r}; leave out the samples that "
                "are not positive"
            )
        raise missing_start_error(family, fixed)
    return [closed_form or _with_best_scale(member, x, weights, fixed)]


def _mixture_starts_from_samples(x: Array, weights: Array, count: int) -> list[Any]:
    """Starting mixtures of a number of normals, and fits of fewer components to find them."""

    def other_starts(count: int) -> list[Any]:
        member = approximate_member(families.NormalMixture, x, weights, {}, count)
        return [] if member is None else [member]

    def fit(starts: list[Any]) -> Any:
        parametrisation = parametrise(families.NormalMixture, starts[0], {})
        objective = CrossEntropyObjective(parametrisation, x, weights)
        found = minimise_from_starts(parametrisation, objective, starts, is_unbounded=objective.is_unbounded)
        return found.minima[0].distribution if found.minima else None

    return starts_of_increasing_size(x, weights, count, other_starts, fit)


def _member_with_two_counts(family: type[Distribution], fixed: dict[str, Any]) -> Distribution | None:
    """The member of a family of counts for one 0 and one 1; None for other families, or without a closed form."""
    if not is_count_family(family):
        return None
    return match_moments(family, lambda f: f(np.array([0.0, 1.0])).mean(-1), fixed)


def _with_best_scale(member: Any, x: Array, weights: Array, fixed: dict[str, Any]) -> Distribution:
    """The member with the scale of the largest likelihood among multiples of its scale, up to the range of the samples.

    The quartiles of samples with heavy tails do not determine the scale of a family with light tails, and from an
    exponentially small likelihood the descent takes many steps.
    """
    if not hasattr(member, "scale") or "scale" in fixed:
        return member
    scale = float(as_numpy(member.scale))
    largest = float(np.abs(x - as_numpy(getattr(member, "loc", 0.0))).max())
    factors = _SCALE_RATIO ** np.arange(1 + max(0.0, np.log(largest / scale) / np.log(_SCALE_RATIO)) if largest else 1)
    members = [replace(member, scale=float(factor) * scale) for factor in factors]
    values = [_cross_entropy(wider, x, weights) for wider in members]
    return members[int(np.nanargmin(values))] if np.isfinite(values).any() else member


def _cross_entropy(member: Distribution, x: Array, weights: Array) -> float:
    density = as_density(member)
    assert density is not None
    with np.errstate(all="ignore"):
        return -float(density.log_density(x, np.zeros_like(x)) @ weights)


def _fit_to_target(
    family: type[Distribution], target: Any, starts: list[Distribution], fixed: dict[str, Any], components: Any
) -> Fit:
    """Minimise KL(target || member)."""
    density = univariate_density(target)
    if density is None or not has_density(family):
        return fit_normal_forward(family, target, components)
    _require_target_in_support(family, density)
    has_support_bounds = family is families.Uniform or (family is families.Pareto and "scale" not in fixed)
    closed_form = _match_support(family, density, fixed) if has_support_bounds else None
    matched = None if closed_form else match_moments_of_target(family, density, fixed)
    if matched is not None and not matched.is_resolved:
        return fit_by_measure(matched.member, density, target, fixed)
    closed_form = closed_form or (matched and matched.member)
    if closed_form is not None and (not starts or measure(target, closed_form).value == inf):
        return closed_form_fit(closed_form, finite_kl(target, closed_form), {"method": "closed form"})
    starts = starts or _starts_from_target(family, density, fixed, components)
    if not starts:
        raise missing_start_error(family, fixed)
    parametrisation = parametrise(family, starts[0], fixed)
    objective = univariate_objective(parametrisation, density, alpha=1.0)
    found = minimise_from_starts(parametrisation, objective, starts, lower_bound=0.0)
    if not found.minima:
        raise SupportError(
            f"expected KL(target || {family.__name__}) to be finite at a start, but it is inf at all {len(starts)}: "
            "the target has mass outside the family's support, or its tails are heavier than the family's"
        )
    best = closed_form or found.minima[0].distribution
    estimate = finite_kl(target, best)
    missing = abs(estimate.value - found.minima[0].kl)
    if closed_form is None and missing > estimate.error + LARGEST_MISSING_KL * max(1.0, estimate.value):
        # The nodes of the objective omit a part of the tails, which the integral has.
        fit = fit_by_measure(best, density, target, fixed)
        return without_limit(fit, lambda member: measure(target, member).value, fixed)
    diagnostics = {"method": "Newton" if closed_form is None else "closed form"}
    is_known = estimate.error <= _LARGEST_ERROR * max(1.0, estimate.value)
    converged = is_known and (closed_form is not None or found.converged)
    if not is_known:
        diagnostics["not_converged"] = f"the error of KL is {estimate.error:.2g} nats, of which no start is the cause"
    fit = Fit(best, estimate.value, estimate, found.path, found.minima, converged, diagnostics)
    return fit if closed_form else without_limit(fit, lambda member: measure(target, member).value, fixed)


def _starts_from_target(
    family: type[Distribution], density: Density, fixed: dict[str, Any], components: Any
) -> list[Distribution]:
    """Starting points that are matched to the target and to parts of it."""
    if family is families.NormalMixture and components is not None and not fixed:
        return _mixture_starts_from_target(density, components)
    return widened_starts(univariate_starts(family, density, fixed, components), density, fixed)


def _mixture_starts_from_target(density: Density, count: int) -> list[Any]:
    """Starting mixtures of a number of normals, and fits of fewer components to find them."""
    nodes = line_nodes(density, density)
    mass = np.exp(nodes.log_mass(density))
    x, mass = nodes.x[mass > 0], mass[mass > 0] / mass.sum()

    def other_starts(count: int) -> list[Any]:
        return widened_starts(univariate_starts(families.NormalMixture, density, {}, count), density, {})

    def fit(starts: list[Any]) -> Any:
        parametrisation = parametrise(families.NormalMixture, starts[0], {})
        objective = univariate_objective(parametrisation, density, alpha=1.0)
        found = minimise_from_starts(parametrisation, objective, starts, lower_bound=0.0)
        return found.minima[0].distribution if found.minima else None

    return starts_of_increasing_size(x, mass, count, other_starts, fit)


def _require_target_in_support(family: type[Distribution], density: Density) -> None:
    if family is families.VonMises and (density.support[0] < -pi or density.support[1] > pi):
        raise SupportError(
            f"expected a target of angles in (-pi, pi] for VonMises, got a target with support {density.support}, so "
            "that KL(target || member) is inf for every member; pass samples of the target that are wrapped into "
            f"(-pi, pi] by {WRAPPED}"
        )
    low, high = shared_support(family)
    if density.support[0] < low or density.support[1] > high:
        raise SupportError(
            f"expected a target within {family.__name__}'s support {(low, high)}, got a target with support "
            f"{density.support}, so that KL(target || member) is inf for every member; fit a family of wider support, "
            "or transform the target"
        )


def _match_support(family: type[Distribution], density: Density, fixed: dict[str, Any]) -> Distribution | None:
    """The `Uniform` or `Pareto` with the support of the target: KL is inf for a narrower member, larger for a wider."""
    low, high = density.support
    if family is families.Pareto:
        if not low > 0:
            raise SupportError(
                f"expected a target above 0 for Pareto, got a target with support {density.support}: KL is inf for "
                "every member"
            )
        if "alpha" in fixed:
            return families.Pareto(scale=low, **fixed)
        matched = match_moments_of_target(family, density, {"scale": low})
        return matched and matched.member
    if not {"low", "high"} - set(fixed) <= {name for name, end in (("low", low), ("high", high)) if abs(end) < inf}:
        raise SupportError(
            f"expected a target of bounded support for Uniform, got a target with support {density.support}: KL is inf "
            "for every member"
        )
    return families.Uniform(**({"low": low, "high": high} | fixed))
