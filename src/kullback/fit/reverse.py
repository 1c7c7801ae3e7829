"""Reverse fits: the member of a family that minimises KL(member || target), by variational inference."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from math import inf, log
from numbers import Real
from typing import Any

import numpy as np

from kullback import families
from kullback.closed_forms.supports import is_count_family
from kullback.densities.density import Density
from kullback.densities.from_families import as_density, has_density
from kullback.densities.gaussian_mixtures import Components
from kullback.densities.integral import kl_integral
from kullback.densities.resolve import resolve
from kullback.errors import ParameterError, SupportError
from kullback.families import Distribution
from kullback.fit.gaussian.mixtures import MixtureParametrisation
from kullback.fit.gaussian.multivariate import (
    NORMAL_FAMILIES,
    convert_to_family,
    fit_independent_reverse,
    fit_two_dimensional_reverse,
    is_normal,
    require_rank,
    starts_from_target_samples,
)
from kullback.fit.limits import without_limit
from kullback.fit.result import Fit, Minimum, Step, with_distributions
from kullback.fit.solver.multistart import MultistartResult
from kullback.fit.solver.starting_points import missing_start_error, univariate_starts
from kullback.fit.solver.support_boundary import minimise_with_support_bounds
from kullback.fit.target_family import (
    FamilyAdapter,
    family_adapter,
    is_module,
    list_of_starts,
    reject_options,
    unexpected_option,
    validate_components,
)
from kullback.fit.targets import Modes, evaluate_log_prob, find_modes, normalise, sample_dimension, univariate_density
from kullback.measure import measure
from kullback.numerics.arrays import Array
from kullback.result import Estimate
from kullback.samples.pareto_k import pareto_k

__all__ = ["fit_reverse"]

_DEFAULT_SETTINGS = {"steps": 2_000, "draws": 64, "learning_rate": 0.02, "seed": 0}
_IMPORTANCE_SAMPLES = 4_000
_LOCATION_SCALE = (
    families.Cauchy,
    families.Gumbel,
    families.Laplace,
    families.Logistic,
    families.Normal,
    families.StudentT,
)


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
    **unexpected: Any,
) -> Fit:
    """The member q of a family that minimises KL(q || p), where p is the target: variational inference.

    argmin_q KL(q || p) = argmax_q E_q[log p(x) - log q(x)]

    The log-density of p may lack its normalising constant. Univariate families, and two-dimensional normals and their
    mixtures, are fitted by quadrature and a trust-region Newton method from many starting points. Multivariate normals
    and mixtures in more dimensions, and modules, are fitted by reparameterised stochastic gradients without the score
    term ("sticking the landing"), which need PyTorch.

    Args:
        family: A class of `kullback.families` (`Independent` stands for independent normals), a class of
            `torch.distributions` (`MixtureSameFamily` stands for mixtures of normals), or a `torch.nn.Module`, which is
            trained in place. A module has `log_prob(x)` and `rsample(shape)`, or returns a distribution that has them
            when it is called, as zuko's flows do.
        log_prob: The log-density of p up to a constant, at points of shape (n,) or (n, d), given as an array or, where
            PyTorch is needed, as a tensor. Pass either log_prob or target. The modes of a univariate log_prob are
            searched on a grid: a narrow mode is missed, and is not part of the integral, where log_prob is -inf at all
            grid points around it, for example because it is the logarithm of a density that underflows.
        target: The distribution p, of any kind that `kullback.measure` accepts.
        start: A member of the family at which the first descent begins; `path` records this descent. For multivariate
            families it also determines the number of dimensions.
        starts: Further starting points. Members that are matched to parts of the target are always added for
            univariate and two-dimensional fits.
        fixed: Parameters that are not fitted, by name. If all are fixed, the result is this member with its KL.
        components: The number of components of a mixture, or the rank of the factor of a low-rank normal.
        support: The bounds of the support of a univariate log_prob.
        steps: The number of stochastic gradient steps.
        draws: The number of samples of q in each step.
        learning_rate: The initial learning rate of Adam, with cosine decay to 0.
        seed: The seed of the samples.

    Returns:
        A `Fit` with every minimum found, whose `kl` is KL(q || p) in nats. With log_prob, `diagnostics` has
        "evidence_bound", E_q[log p - log q] in nats, and `kl` is nan unless the integral of p could be computed
        ("log_evidence", in nats).

    Raises:
        SupportError: KL(q || p) is `inf` at every start, because every member has mass where p has none; or neither or
            both of log_prob and target are given; or samples are given; or log_prob is nan at a point or has no finite
            integral.
        ShapeError: log_prob does not return one value for each sample of a stochastic gradient step.
        ParameterError: A parameter must be fixed or cannot be fixed, the family is neither univariate nor a family of
            normals, a start or the number of components is required, or the fit does not use an option that is given.
        TypeError: An option does not exist.
        MissingDependencyError: The fit needs PyTorch, and PyTorch is not installed.

    References:
        Roeder, Wu and Duvenaud (2017), "Sticking the Landing", for the gradient [roeder2017].
        Yao, Vehtari, Simpson and Gelman (2018), "Yes, but Did It Work?", for `pareto_k` as a diagnostic [yao2018].

    Example:
        >>> from kullback.families import Normal, NormalMixture
        >>> two = NormalMixture(weights=[0.5, 0.5], locs=[0.0, 20.0], scales=[2.0, 2.0])
        >>> fit = fit_reverse(Normal, target=two, start=Normal(loc=10.0, scale=5**0.5))
        >>> len(fit.path) > 3, [round(minimum.distribution.scale, 5) for minimum in fit.minima]
        (True, [2.00002, 2.00002, 8.44514])
    """
    if "samples" in unexpected:
        raise SupportError(
            "expected log_prob or target, got samples: KL(q || p) = E_q[log q - log p] needs log p at samples of q, "
            "which samples of p do not give; pass log_prob, known up to a constant, or fit a density to the samples "
            "first (fit_forward or a kernel density estimate) and pass it as target, which keeps the errors of that fit"
        )
    if unexpected:
        raise unexpected_option("fit_reverse", unexpected, fit_reverse.__kwdefaults__ or ())
    if (log_prob is None) == (target is None):
        raise SupportError("expected either log_prob or target, got " + ("neither" if target is None else "both"))
    _require_interval(support)
    settings = {"steps": steps, "draws": draws, "learning_rate": learning_rate, "seed": seed}
    unused: dict[str, tuple[Any, Any]] = {"support": (support, (-inf, inf))}
    if is_module(family):
        unused |= {"start": (start, None), "starts": (starts, ()), "fixed": (fixed, None)}
        reject_options("a module", components=(components, None), **unused)
        return import_module("kullback.fit.stochastic").fit_module_reverse(
            family, log_prob=log_prob, target=target, **settings
        )
    requested_starts = ([start] if start is not None else []) + list_of_starts(starts)
    adapter = family_adapter(family, requested_starts, target)
    members, fixed = [adapter.from_requested(one) for one in requested_starts], adapter.validate_fixed(fixed)
    components = validate_components(adapter.family, components)
    if log_prob is None or not has_density(adapter.family):
        reject_options("a target" if log_prob is None else "a multivariate family", **unused)
    if (member := adapter.fixed_member(fixed)) is not None:
        return adapter.convert_fit(_fit_of_member(member, log_prob, target, support))
    modes = None
    if log_prob is not None and adapter.family in _LOCATION_SCALE and support == (-inf, inf) and not (members or fixed):
        modes = find_modes(log_prob, support)
        standard = _fit_standardised(adapter.family, log_prob, modes)
        if standard is not None:
            return adapter.convert_fit(standard)
    if has_density(adapter.family):
        training = {"steps": (steps, 2_000), "draws": (draws, 64), "learning_rate": (learning_rate, 0.02)}
        reject_options("a univariate family", seed=(seed, 0), **training)
        fit = _fit_univariate(adapter.family, log_prob, target, members, fixed, components, support, modes)
    else:
        fit = _fit_multivariate(adapter, log_prob, target, members, components, settings)
    return adapter.convert_fit(fit)


# Univariate families


def _require_interval(support: Any) -> None:
    """Raise SupportError unless the support is a pair of numbers in increasing order."""
    is_pair = isinstance(support, tuple | list) and len(support) == 2 and all(isinstance(x, Real) for x in support)
    if not (is_pair and support[0] < support[1]):
        raise SupportError(f"expected support=(low, high), two numbers with low < high, got {support!r}")


def _fit_standardised(family: type[Distribution], log_prob: Callable[[Any], Any], modes: Modes) -> Fit | None:
    """The fit in units of the width of the highest mode, where the mode is far from 0 or its width is far from 1.

    KL does not change under x = location + width u. None where the density is of ordinary location and width.
    """
    location, width = modes.anchors[0]
    if 1e-4 < width < 1e4 and abs(location) < 1e5 * max(width, 1.0):
        return None

    limit = min(1e308 / width - abs(location) / width, 1e308)

    def standardised(u: Any) -> Any:
        inside = abs(u) <= limit
        return np.where(inside, evaluate_log_prob(log_prob, location + width * np.where(inside, u, 0.0)), -inf)

    fit = _fit_univariate(family, standardised, None, [], {}, None, (-inf, inf))

    def restored(member: Any) -> Any:
        return replace(member, loc=location + width * member.loc, scale=width * member.scale)

    diagnostics = dict(fit.diagnostics)
    for name in ("log_evidence", "evidence_bound"):
        diagnostics[name] += log(width)
    return replace(with_distributions(fit, restored), diagnostics=diagnostics)


def _fit_of_member(
    member: Distribution, log_prob: Callable[[Any], Any] | None, target: Any, support: tuple[float, float]
) -> Fit:
    """The fit of a family whose parameters are all fixed: the member with its KL."""
    diagnostics: dict[str, Any] = {"method": "fixed parameters"}
    if log_prob is None:
        estimate = _kl(member, target) if isinstance(target, Density) else measure(member, target)
    elif has_density(type(member)):
        normalised = normalise(log_prob, support)
        diagnostics["log_evidence"] = normalised.log_evidence
        estimate = normalised.with_error_of_evidence(_kl(member, normalised.density))
        diagnostics["evidence_bound"] = diagnostics["log_evidence"] - estimate.value
    else:
        raise ParameterError(
            f"expected a parameter of {type(member).__name__} that is not fixed; with log_prob, all parameters can be "
            "fixed for univariate families only"
        )
    step, minimum = Step(member, estimate.value), Minimum(member, estimate.value, (member,))
    return Fit(member, estimate.value, estimate, (step,), (minimum,), True, diagnostics)


def _fit_univariate(
    family: type[Distribution],
    log_prob: Callable[[Any], Any] | None,
    target: Any,
    starts: list[Distribution],
    fixed: dict[str, Any],
    components: int | None,
    support: tuple[float, float],
    modes: Modes | None = None,
) -> Fit:
    diagnostics: dict[str, Any] = {"method": "quadrature"}
    normalised = None
    if log_prob is None:
        density = univariate_density(target)
        if density is None:
            raise SupportError(
                f"expected a target with a univariate density for the univariate family {family.__name__}, got "
                f"{type(target).__name__}; pass log_prob, the target's log-density"
            )
    else:
        if is_count_family(family):
            raise SupportError(
                f"expected a family on the real line for log_prob, whose integral is computed, got the discrete family "
                f"{family.__name__}; pass a distribution on the integers as target"
            )
        normalised = normalise(log_prob, support, modes)
        density, diagnostics["log_evidence"] = normalised.density, normalised.log_evidence
    matched_starts = univariate_starts(family, density, fixed, components)
    if not starts + matched_starts:
        raise missing_start_error(family, fixed)
    if _kl((starts + matched_starts)[0], density).value == inf:
        matched_starts = [member for member in matched_starts if _kl(member, density).value < inf]
        if not matched_starts:
            raise _infinite_kl_error(family, density)
    found = minimise_with_support_bounds(
        family, density, starts + matched_starts, fixed, lambda member: _kl(member, density).value
    )
    if not found.minima:
        raise _infinite_kl_error(family, density)
    best = found.minima[0].distribution
    estimate = _kl(best, density) if target is None or target is density else measure(best, target)
    if estimate.value == inf and estimate.status == "exact":  # at points that the descents do not reach
        raise _infinite_kl_error(family, density)
    if normalised is not None:
        estimate = normalised.with_error_of_evidence(estimate)
        diagnostics["evidence_bound"] = diagnostics["log_evidence"] - estimate.value
    diagnostics["pareto_k"] = _pareto_k(best, density)
    return without_limit(_as_fit(found, estimate, diagnostics), lambda member: _kl(member, density).value, fixed)


def _infinite_kl_error(family: type[Distribution], density: Density) -> SupportError:
    (low, high), reason = (
        density.support,
        "the family has tails too heavy for the target; fit a family of lighter tails",
    )
    if low > -inf or high < inf:
        reason = (
            f"the family has mass outside the target's support {density.support}, or tails too heavy for the target; "
            "fit a family of narrower support or lighter tails"
        )
    return SupportError(
        f"expected KL({family.__name__} || target) to be finite at a start, but it is inf at each: {reason}, or use "
        "fit_forward"
    )


def _kl(member: Distribution, target: Density) -> Estimate:
    """KL(member || target), in nats."""
    density = as_density(member)
    assert density is not None
    return kl_integral(density, target)


def _pareto_k(best: Distribution, target: Density) -> float:
    """The Pareto shape of the importance weights p/q of samples of the fit; nan where it cannot be sampled."""
    density = as_density(best)
    if density is None or density.sample is None:
        return float("nan")
    x = np.asarray(density.sample(_IMPORTANCE_SAMPLES, np.random.default_rng(0)), np.float64)
    zeros = np.zeros_like(x)
    with np.errstate(all="ignore"):
        return pareto_k(target.log_density(x, zeros) - density.log_density(x, zeros))


def _as_fit(found: MultistartResult, estimate: Estimate, diagnostics: dict[str, Any]) -> Fit:
    best, converged = found.minima[0].distribution, found.converged and estimate.status != "unreliable"
    return Fit(best, estimate.value, estimate, found.path, found.minima, converged, diagnostics)


# Multivariate normals and their mixtures


def _fit_multivariate(
    adapter: FamilyAdapter,
    log_prob: Callable[[Any], Any] | None,
    target: Any,
    starts: list[Any],
    components: int | None,
    settings: dict[str, Any],
) -> Fit:
    family = adapter.family
    if family not in (*NORMAL_FAMILIES, Components):
        raise ParameterError(
            f"expected a univariate family, multivariate normals or mixtures of normals, got {family.__name__}; to fit "
            "another family, pass a torch.nn.Module with log_prob and rsample"
        )
    mixture_starts = [resolve(start).components for start in starts]
    size = _require_dimension(mixture_starts[0] if mixture_starts else target)
    if size is None:
        raise ParameterError(
            "expected start=, a member of the family, because log_prob does not determine the number of dimensions"
        )
    rank = components
    if family is families.LowRankMultivariateNormal:
        rank = require_rank(np.shape(starts[0].cov_factor)[-1] if components is None and starts else components, size)
    if size == 2:
        parametrisation = adapter.mixture_parametrisation(starts, components)(2)
        fit = _fit_two_dimensional(parametrisation, log_prob, target, mixture_starts)
        return FamilyAdapter(family, lambda found: convert_to_family(family, found, rank)).convert_fit(fit)
    is_normal_target = log_prob is None and is_normal(target)
    if is_normal_target and family is families.Independent and settings == _DEFAULT_SETTINGS and not starts:
        return fit_independent_reverse(target)
    fit = import_module("kullback.fit.stochastic").fit_normals_reverse(
        family,
        starts=_stochastic_starts(adapter, starts, mixture_starts, rank, size, target),
        independent=adapter.independent,
        log_prob=log_prob,
        target=target,
        **settings,
    )
    if is_normal_target and family in NORMAL_FAMILIES:  # the KL of the fit has a closed form
        estimate = measure(fit.distribution, target)
        fit = replace(fit, kl=estimate.value, estimate=estimate)
    return fit


def _require_dimension(example: Any) -> int | None:
    """The number of dimensions of an example; None without an example.

    Raises:
        SupportError: The example cannot be sampled, or is univariate.
    """
    size = None if example is None else sample_dimension(example)
    if size or example is None:
        return size
    expected = (
        "a target with log_prob(x) and sample(count)" if size is None else "a multivariate target, like the family"
    )
    raise SupportError(f"expected {expected}, got {type(example).__name__}")


def _fit_two_dimensional(
    parametrisation: MixtureParametrisation,
    log_prob: Callable[[Any], Any] | None,
    target: Any,
    starts: Sequence[Any],
) -> Fit:
    fit, log_density = fit_two_dimensional_reverse(parametrisation, target, log_prob and _of_arrays(log_prob), starts)
    sampler = resolve(fit.distribution).sampler
    assert sampler is not None
    assert sampler.sample is not None
    x = np.asarray(sampler.sample(_IMPORTANCE_SAMPLES, np.random.default_rng(0)))
    return replace(fit, diagnostics=fit.diagnostics | {"pareto_k": pareto_k(log_density(x) - sampler.log_density(x))})


def _of_arrays(log_prob: Callable[[Any], Any]) -> Callable[[Array], Array]:
    """A log-density of arrays, from a log-density of arrays or tensors."""
    return lambda x: evaluate_log_prob(log_prob, x)


def _stochastic_starts(
    adapter: FamilyAdapter,
    starts: list[Any],
    mixture_starts: list[Any],
    rank: int | None,
    size: int,
    target: Any,
) -> Sequence[Any]:
    """The starting points of stochastic gradients: members for low-rank normals, components for other families."""
    if adapter.family is families.LowRankMultivariateNormal:
        factor = 0.1 * np.random.default_rng(0).normal(size=(size, rank or 0))
        return starts or [adapter.family(loc=np.zeros(size), cov_factor=factor, cov_diag=np.ones(size))]
    parametrisation = adapter.mixture_parametrisation(starts, rank)(size)
    if starts:
        return mixture_starts
    if parametrisation.count == 1:
        return [Components(np.ones(1), np.zeros((1, size)), np.eye(size)[None])]
    return starts_from_target_samples(target, parametrisation.count)
