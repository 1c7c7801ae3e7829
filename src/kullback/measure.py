"""KL divergence of two distributions as an estimate: by a closed form, within an error bound, or from samples."""

from dataclasses import fields, replace
from math import inf, isnan
from numbers import Real
from typing import Any, Literal

import numpy as np
from array_api_compat import is_array_api_obj

from kullback.closed_forms.registry import overflows
from kullback.densities.bounded_estimate import infinite_kl
from kullback.densities.composites import require_no_mask
from kullback.densities.gaussian_mixtures import mixture_bounds
from kullback.densities.integral import kl_integral
from kullback.densities.point_masses import kl_of_point_masses, kl_without_common_density
from kullback.densities.relaxed_categorical import kl_relaxed_categorical
from kullback.densities.resolve import ResolvedDistribution, as_family, not_a_distribution, resolve
from kullback.densities.shared_transforms import without_shared_transforms
from kullback.distributions import kl, shared_bases
from kullback.errors import KullbackError, NoClosedFormError, ShapeError, SupportError
from kullback.families import Categorical, Distribution, Independent
from kullback.numerics.arguments import is_name
from kullback.numerics.arrays import as_numpy, require_concrete, untracked
from kullback.numerics.labels import is_labelled, plain_arrays
from kullback.result import Estimate, Status
from kullback.samples.monte_carlo import kl_monte_carlo, require_options

__all__ = ["components_of", "measure", "require_distribution", "require_error", "resolve_all", "sum_of_estimates"]

_METHODS = ("closed form", "quadrature", "Monte Carlo")
_IMPROBABLE = 5.0  # standard errors above an upper bound that sampling error does not explain
_STATUS_ORDER: list[Status] = ["exact", "bounded", "estimated", "overflow", "unreliable"]


def measure(
    p: Any,
    q: Any,
    *,
    error: float = 1e-10,
    method: Literal["closed form", "quadrature", "Monte Carlo"] | None = None,
    draws: int = 65_536,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """KL(p || q) of two distributions, with a bound or an estimate of its error.

    KL(p || q) = E_p[log p(x) - log q(x)]. The closed form of the pair is used if there is one. Otherwise univariate
    distributions are measured by adaptive quadrature or summation of p phi(log q/p), phi(d) = e^d - 1 - d, with a
    bound on the error, and multivariate distributions from samples of p.

    Args:
        p: A distribution of `kullback.families`, a distribution of PyTorch, SciPy, NumPyro or TensorFlow Probability, a
            Gaussian mixture made by `kullback.densities.gaussian_mixtures.components`, or an object with `log_prob(x)`
            and `sample(count)`.
        q: A distribution of one of the same types. If p and q are both arrays or lists of shape (n,), they are
            probabilities.
        error: The largest acceptable error bound of quadrature and summation: in nats where KL is below 1, relative to
            KL above 1.
        method: The method to use; None selects it as described above. "quadrature" includes summation.
        draws: The number of samples of a Monte Carlo estimate.
        seed: The seed of the random generator of a Monte Carlo estimate.
        confidence: The coverage probability of the interval of a Monte Carlo estimate.

    Returns:
        An `Estimate` in nats. Its status is "exact" for a closed form and where KL is known to be `inf` (`warnings`
        states where q is 0, or which tail of p is too heavy); "overflow" if the KL is finite but above the largest
        floating-point number, which is then the lower end of `interval`; "bounded" if `error` bounds the error of the
        value; "estimated" if the value is from samples, with `std_error`; "unreliable" if `warnings` states why the
        value may be wrong, such as draws that contradict the log-densities.

    Raises:
        NoClosedFormError: The pair has no closed form, no univariate densities and no samplers.
        ParameterError: A parameter is outside its domain.
        DistributionTypeError: p or q is not a distribution.
        ShapeError: p or q is a batch, or p and q are distributions on different spaces.
        NotNormalizedError: Probabilities do not sum to 1.
        SupportError: A log-density is nan, `error` is not positive, `method` is unknown, or `draws`, `seed` or
            `confidence` is outside its domain.

    References:
        Hershey and Olsen (2007), eqs. 18 and 21-24, for the bounds of Gaussian mixtures.

    Example:
        >>> from kullback.families import Cauchy, Logistic, Normal, StudentT
        >>> measure(Normal(loc=0.0, scale=1.0), Normal(loc=1.0, scale=2.0)).status
        'exact'
        >>> estimate = measure(StudentT(df=5.0, loc=0.0, scale=1.0), Logistic(loc=0.0, scale=1.0))
        >>> round(estimate.value, 12), estimate.status, estimate.method, estimate.error < 1e-10
        (0.091582858462, 'bounded', 'quadrature', True)
        >>> measure(Cauchy(loc=0.0, scale=1.0), Normal(loc=0.0, scale=1.0)).value
        inf
    """
    require_error(error)
    require_options(draws, seed, confidence)
    if method is not None and not is_name(method, _METHODS):
        raise SupportError(f"expected method to be one of {', '.join(map(repr, _METHODS))} or None, got {method!r}")
    p, q = resolve_all(p, q)
    if method in (None, "closed form"):
        exact = _by_closed_form(p, q, error)
        if exact is not None:
            return exact
    for distribution in (p, q):
        require_distribution(distribution)
    if method in (None, "closed form") and (found := kl_of_point_masses(p, q)) is not None:
        return found
    if bases := without_shared_transforms(p.given, q.given):
        p, q = map(resolve, bases)
        exact = _by_closed_form(p, q, error) if method in (None, "closed form") else None
        if exact is not None:
            return exact
    p, q = _without_shared_transform(p, q)
    if method in (None, "closed form") and (found := kl_without_common_density(p, q)) is not None:
        return found
    if method in (None, "quadrature"):
        bounded = _by_quadrature(p, q, error)
        if bounded is not None:
            return bounded
    if method in (None, "Monte Carlo"):
        estimated = _by_monte_carlo(p, q, draws, seed, confidence)
        if estimated is not None:
            return estimated
    raise _no_method(p, q, method)


def _no_method(p: ResolvedDistribution, q: ResolvedDistribution, method: str | None) -> NoClosedFormError:
    missing = f"no {method} for this pair" if method else "no closed form, no univariate densities and no samplers"
    needs = "pass objects with log_prob(x) and sample(count) to estimate the KL from samples"
    if method in (None, "Monte Carlo") and q.sampler is not None and p.sampler is not None:
        missing, needs = "a log-density of p, but no sampler", f"add sample(count) or rvs(size) to {_name(p.given)}"
    return NoClosedFormError(
        f"expected a method to compute KL({_name(p.given)} || {_name(q.given)}), but there is {missing}; {needs}"
    )


def require_error(error: float) -> None:
    """Raise SupportError unless the acceptable error bound is positive."""
    if isinstance(error, bool) or not (isinstance(error, Real) and error > 0):
        raise SupportError(f"expected error > 0, got {error!r}; quadrature reaches error bounds of about 1e-10")


def resolve_all(*given: Any) -> list[ResolvedDistribution]:
    """The given distributions, resolved; probabilities, if all are arrays or lists, as categorical distributions."""
    if not isinstance(given[0], Distribution) and all(map(_is_array_or_list, given)):
        arrays = plain_arrays(*given)
        for array in arrays:
            require_concrete(array)
            if np.ndim(array) != 1:
                raise ShapeError(
                    f"expected probabilities of shape (n,), got an array of shape {np.shape(array)}; call "
                    "kullback.kl_probs for an array of distributions, kl_log_probs and kl_logits for logarithms"
                )
        given = tuple(Categorical(probs=array) for array in arrays)
    return [resolve(each) for each in given]


def _is_array_or_list(given: Any) -> bool:
    return type(given) in (list, tuple) or is_array_api_obj(given) or is_labelled(given)


def _by_closed_form(p: ResolvedDistribution, q: ResolvedDistribution, error: float) -> Estimate | None:
    try:
        sides = p.family_in_float64, q.family_in_float64
        result = _known(kl(*sides))
    except NoClosedFormError:
        return None
    except TypeError:  # parameters of several libraries
        if p.density is not None and q.density is not None:
            return None
        try:
            sides = p.family, q.family
            result = _known(kl(*sides))
        except (NoClosedFormError, TypeError):
            return None
    array = np.asarray(result)
    if array.size != 1:
        raise ShapeError(
            f"expected one distribution at a time, got a batch of shape {array.shape}; call kl for a batch, or measure "
            "each distribution separately"
        )
    value = float(array.reshape(()))
    if isnan(value):  # an intermediate result overflows
        return None
    if value == inf:
        try:
            bounded = _by_quadrature(p, q, error)
        except SupportError:  # float64 does not resolve the densities
            bounded = None
        if bounded is not None and bounded.status == "bounded":  # a part of the formula overflows, and KL does not
            return bounded
        if _overflows(p, q):
            reason = f"the KL is finite, but above the largest number of {array.dtype}"
            largest = float(np.finfo(array.dtype).max)
            return Estimate(
                inf, error=inf, interval=(largest, inf), method="closed form", status="overflow", warnings=(reason,)
            )
        if bounded is not None and bounded.value < inf and p.density is not None and not p.density.discrete:
            return _above_float64()
        reason = bounded.warnings[0] if bounded is not None and bounded.value == inf else "by the closed form"
        return infinite_kl(reason, "closed form")
    if value < 0:
        raise SupportError(
            f"expected a closed form to be >= 0, got {value} for KL({_name(p.given)} || {_name(q.given)})"
        )
    eps = max(float(np.finfo(array.dtype).eps), *map(_eps, sides))
    rounding = 0.0 if eps == np.finfo(np.float64).eps else 8 * eps * value
    interval = (value - rounding, value + rounding)
    return Estimate(value, error=rounding, interval=interval, method="closed form", status="exact")


def _known(result: Any) -> Any:
    """The value of a closed form without automatic differentiation, which an `Estimate` does not have."""
    require_concrete(result)
    return untracked(result)


def _overflows(p: ResolvedDistribution, q: ResolvedDistribution) -> bool:
    """Whether the KL by the closed form, which is inf, is finite but above the largest floating-point number."""
    families = p.family_in_float64, q.family_in_float64
    try:
        bases = shared_bases(*families)
    except NoClosedFormError:
        bases = None
    return overflows(*(bases or families))


def _eps(family: Any) -> float:
    """The largest rounding unit of the NumPy parameters of a family; a KL without axes is float64 for every dtype."""
    if isinstance(family, Distribution) and family.support is not None:
        return 0.0  # univariate families have been converted to float64
    if isinstance(family, Distribution):
        return max(map(_eps, vars(family).values()), default=0.0)
    dtype = getattr(family, "dtype", None)
    return float(np.finfo(dtype).eps) if isinstance(dtype, np.dtype) and dtype.kind == "f" else 0.0


def _above_float64() -> Estimate:
    """The estimate where the closed form exceeds float64, and neither the supports nor the tails make KL infinite."""
    largest = float(np.finfo(np.float64).max)
    warning = f"the KL is larger than {largest:.2g}, the largest float64, or infinite"
    interval = (largest, inf)
    return Estimate(inf, error=inf, interval=interval, method="closed form", status="unreliable", warnings=(warning,))


def _by_quadrature(p: ResolvedDistribution, q: ResolvedDistribution, error: float) -> Estimate | None:
    """KL by quadrature, by summation, or componentwise for independent components; None if densities are missing."""
    if p.density is not None and q.density is not None:
        if p.density.discrete != q.density.discrete:
            kinds = ["discrete" if density.discrete else "continuous" for density in (p.density, q.density)]
            return infinite_kl(f"p is {kinds[0]} and q is {kinds[1]}: q is 0 where p is not", "supports")
        try:
            return kl_integral(p.density, q.density, error=error)
        except (OverflowError, FloatingPointError, MemoryError) as overflow:
            raise _beyond_float64(p, q) from overflow
        except ValueError as invalid:
            if isinstance(invalid, KullbackError) or "NaN to integer" not in str(invalid):
                raise
            raise _beyond_float64(p, q) from invalid
    if p.relaxed_categorical is not None and q.relaxed_categorical is not None:
        (temperature_p, logits_p), (temperature_q, logits_q) = p.relaxed_categorical, q.relaxed_categorical
        return kl_relaxed_categorical(logits_p, logits_q, error=error) if temperature_p == temperature_q else None
    if isinstance(p.family, Independent) and isinstance(q.family, Independent):
        return _of_independent(p.family, q.family, error)
    return None


def _beyond_float64(p: ResolvedDistribution, q: ResolvedDistribution) -> SupportError:
    return SupportError(
        f"expected parameters for which {_name(p.given)} and {_name(q.given)} can be integrated in float64, but the "
        "integral overflows; KL does not change when x is divided by a constant: rescale both distributions"
    )


def _by_monte_carlo(
    p: ResolvedDistribution, q: ResolvedDistribution, draws: int, seed: int, confidence: float
) -> Estimate | None:
    """KL from samples, with its interval narrowed by the bounds of Gaussian mixtures where they apply."""
    if p.sampler is None or p.sampler.sample is None or q.sampler is None:
        return None
    estimate = kl_monte_carlo(p.sampler, q.sampler, draws=draws, seed=seed, confidence=confidence)
    if p.components is None or q.components is None or estimate.interval in (None, (0.0, inf)):
        return estimate
    bounds, (low, high) = mixture_bounds(p.components, q.components), estimate.interval
    if estimate.value - bounds.upper > _IMPROBABLE * estimate.std_error:
        warning = (
            f"the estimate is more than {_IMPROBABLE:g} standard errors above the upper bound {bounds.upper:.6g}: too "
            "few samples dominate the mean"
        )
        return replace(estimate, status="unreliable", warnings=(*estimate.warnings, warning))
    if not low <= bounds.variational <= high:
        warning = (
            f"the variational approximation {bounds.variational:.6g} is outside the confidence interval; the upper "
            f"bound {bounds.upper:.6g} is valid"
        )
        estimate = replace(estimate, warnings=(*estimate.warnings, warning))
    if estimate.value > bounds.upper:
        warning = f"the estimate is larger than the upper bound {bounds.upper:.6g}, by sampling error"
        return replace(estimate, warnings=(*estimate.warnings, warning))
    return replace(estimate, interval=(low, min(high, bounds.upper)))


def _of_independent(p: Independent, q: Independent, error: float) -> Estimate | None:
    """KL of independent components: the sum over the components."""
    components_p, components_q = components_of(p), components_of(q)
    if len(components_p) != len(components_q):
        raise ShapeError(
            f"expected equally many independent components, got {len(components_p)} of p and {len(components_q)} of q"
        )
    estimates = []
    for pair in zip(components_p, components_q, strict=True):
        estimate = _by_closed_form(*pair, error) or _by_quadrature(*pair, error)
        if estimate is None:
            return None
        estimates.append(estimate)
    total = sum_of_estimates(estimates)
    low, high = total.interval or (0.0, inf)
    return replace(total, interval=(max(0.0, low), high))


def sum_of_estimates(estimates: list[Estimate]) -> Estimate:
    """The sum of exact or bounded estimates, with the status and the method of the least accurate estimate."""
    worst = max(estimates, key=lambda estimate: _STATUS_ORDER.index(estimate.status))
    value, error = sum(estimate.value for estimate in estimates), sum(estimate.error for estimate in estimates)
    return Estimate(
        value,
        error=error,
        interval=(value - error, value + error) if value < inf else (inf, inf),
        method=worst.method,
        status=worst.status,
        warnings=tuple(dict.fromkeys(warning for estimate in estimates for warning in estimate.warnings)),
    )


def components_of(independent: Independent) -> list[ResolvedDistribution]:
    """The univariate components of an Independent without further batch axes."""
    base = independent.base
    values = {field.name: getattr(base, field.name) for field in fields(base)}
    given = {name: as_numpy(value) for name, value in values.items() if value is not None}
    shape = np.broadcast_shapes(*(value.shape for value in given.values()))
    if len(shape) != independent.event_dims:
        raise ShapeError(
            f"expected one distribution at a time, got a batch of shape {shape}; measure each distribution separately"
        )
    given = {name: np.broadcast_to(value, shape) for name, value in given.items()}
    return [resolve(type(base)(**{name: value[i] for name, value in given.items()})) for i in np.ndindex(shape)]


def _without_shared_transform(
    p: ResolvedDistribution, q: ResolvedDistribution
) -> tuple[ResolvedDistribution, ResolvedDistribution]:
    """The bases of two distributions under one invertible map, which have the same KL; otherwise p and q unchanged.

    The base densities are resolved in float64 where the transformed densities are not, such as tanh near 1.
    """
    if p.family is None or q.family is None:
        return p, q
    if isinstance(p.family, Independent) and isinstance(q.family, Independent):
        if p.family.event_dims == q.family.event_dims:
            inner = resolve(p.family.base), resolve(q.family.base)
            bases = _without_shared_transform(*inner)
            if bases == inner:
                return p, q
            p, q = (resolve(Independent(base=base.given, event_dims=p.family.event_dims)) for base in bases)
            return p, q
        return p, q
    try:
        bases = shared_bases(p.family, q.family)
    except NoClosedFormError:
        return p, q
    return _without_shared_transform(*map(resolve, bases)) if bases else (p, q)


def require_distribution(distribution: ResolvedDistribution) -> None:
    """Raise an error for an object that is not a distribution, and for a distribution with a mask."""
    given = distribution.given
    has_log_density = any(hasattr(given, name) for name in ("log_prob", "logpdf", "logpmf"))
    if not has_log_density and not isinstance(given, Distribution) and distribution.components is None:
        raise not_a_distribution(given, "an object with log_prob(x) and sample(count)")
    if hasattr(given, "freeze") and distribution.density is None:  # a family of SciPy without parameters
        as_family(given)
    require_no_mask(given)


def _name(distribution: Any) -> str:
    return type(distribution).__name__
