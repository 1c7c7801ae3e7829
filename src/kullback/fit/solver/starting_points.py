"""Starting points of descents: members matched to parts of the target, because each minimum lies near one of them."""

from dataclasses import MISSING, fields, replace
from itertools import combinations, pairwise
from math import inf
from typing import Any

import numpy as np

from kullback import families
from kullback.closed_forms.supports import is_count_family, shared_support
from kullback.densities.density import Density
from kullback.densities.from_families import as_density
from kullback.densities.integral import kl_integral
from kullback.densities.integrand import terms
from kullback.densities.nodes import line_nodes
from kullback.errors import KullbackError, ParameterError, SupportError
from kullback.families import Distribution
from kullback.fit.moment_matching import match_moments
from kullback.fit.solver.parametrisation import count_parameters
from kullback.numerics.arrays import Array

__all__ = ["approximate_member", "missing_start_error", "univariate_starts", "widened_starts"]

_MAX_STARTS = 30
_WIDER = tuple(1.5**power for power in range(1, 8))  # factors on the scale of a start of infinite KL
_LARGE_KL = 50.0  # nats above which a KL by nodes may be infinite
_TAIL_MASS = 1e-3  # the mass of a heavy tail towards infinity that starting points do not depend on
_WIDTHS_OF_ANCHOR = 8.0  # the distance from every anchor, in widths, beyond which points belong to a tail


def missing_start_error(family: type[Distribution], fixed: dict[str, Any]) -> ParameterError:
    """The error for a family whose starting point cannot be guessed, given the fixed parameters."""
    if family is families.NormalMixture:
        return ParameterError(
            "expected the number of components of the NormalMixture, got none: pass components=, or a start"
        )
    counts = [name for name in count_parameters(family) if name not in fixed]
    if counts:
        return ParameterError(
            f"expected {' and '.join(counts)} of {family.__name__} to be given, because a count cannot be fitted: pass "
            f"{' and '.join(counts)} in fixed="
        )
    return ParameterError(
        f"expected a start for {family.__name__}, got none, and none can be guessed: pass start=, a member of the "
        "family"
    )


def univariate_starts(
    family: type[Distribution], target: Density, fixed: dict[str, Any], components: int | None
) -> list[Distribution]:
    """Members of a univariate family that are matched to the target as a whole and to intervals of it.

    Args:
        family: The class of the family.
        target: The density of the target.
        fixed: The parameters that are not fitted, by name.
        components: The number of components of a `NormalMixture`.

    Returns:
        At most 30 members; an empty list where no member can be guessed.

    Raises:
        SupportError: KL between the target and each member is `inf` in both directions.
    """
    if is_count_family(family) != target.discrete:
        discrete, continuous = ("the family", "the target") if is_count_family(family) else ("the target", "the family")
        raise SupportError(
            f"expected a target and a family that are both discrete or both continuous, got {family.__name__}: "
            f"{discrete} is discrete and {continuous} is continuous, so that KL is inf in both directions"
        )
    nodes = line_nodes(target, target)
    mass = np.exp(nodes.log_mass(target))
    order = np.argsort(nodes.x, kind="stable")
    x, mass = nodes.x[order], mass[order]
    low, high = shared_support(family)
    in_support = (mass > 0) & (x >= low) & (x <= high)
    if not in_support.any():
        raise SupportError(
            f"expected a target with mass within {family.__name__}'s support {(low, high)}, got a target with support "
            f"{target.support}: KL is inf in both directions"
        )
    in_support &= ~_is_in_tail(x, np.where(in_support, mass, 0.0), target)
    x, mass = x[in_support], mass[in_support] / mass[in_support].sum()
    boundaries = _interval_boundaries(x, mass, target)
    last = len(boundaries) - 1
    spans = sorted(
        combinations(range(len(boundaries)), 2), key=lambda span: (span[1] - span[0] != last, span[1] - span[0])
    )
    # A minimum may lie between two intervals of very different mass: give each interval the same mass.
    interval = np.searchsorted(boundaries[1:-1], x)
    equal_mass = mass / np.bincount(interval, mass)[interval]
    windows = [(boundaries[first], boundaries[end], mass) for first, end in spans]
    windows += [
        (location - reach * width, location + reach * width, mass)
        for reach in (1, 3)
        for location, width in target.anchors[:6]
    ]
    windows += [(boundaries[first], boundaries[end], equal_mass) for first, end in spans if end - first > 1]
    if family is families.NormalMixture:
        windows = windows[:3]  # the components are distributed over each window
    starts = []
    for low, high, weight in windows:
        inside = (x >= low) & (x <= high)
        if mass[inside].sum() < 1e-9 or len(starts) >= _MAX_STARTS:
            continue
        window_mass = weight[inside] / weight[inside].sum()
        member = approximate_member(family, x[inside], window_mass, fixed, components)
        if member is not None:
            starts.append(member)
    return starts


def widened_starts(starts: list[Distribution], target: Density, fixed: dict[str, Any]) -> list[Distribution]:
    """Starts of which each has a wider scale if KL(target || start) is infinite, because its tails are too light.

    A Gumbel has a finite KL from a Laplace only if its scale is larger. No descent leads from an infinite KL to a
    finite one: the sum over quadrature nodes, which end where the target is negligible, is then finite and huge.

    Args:
        starts: Members of a univariate family.
        target: The density of the target.
        fixed: The parameters that are not fitted, by name.

    Returns:
        The members. One without a free `scale`, or whose KL is infinite at each scale, is unchanged.
    """
    if not starts or "scale" in fixed or not hasattr(starts[0], "scale"):
        return starts
    nodes = line_nodes(target, target)
    log_p = nodes.log_mass(target)

    def is_finite(member: Distribution) -> bool:
        density = as_density(member)
        assert density is not None
        with np.errstate(all="ignore"):
            if terms(log_p, nodes.log_mass(density))[0].sum() < _LARGE_KL:
                return True
        return kl_integral(target, density).value < inf

    def wider(start: Any) -> list[Distribution]:
        return [start, *(replace(start, scale=factor * start.scale) for factor in _WIDER)]

    return [next(filter(is_finite, wider(start)), start) for start in starts]


def _is_in_tail(x: Array, mass: Array, target: Density) -> Array:
    """Whether sorted points lie far from every anchor, and in the last 0.1% of the mass towards an infinite end.

    The moments of a heavy tail need not exist. Its nodes reach distances of 1e300, where a member that is matched to
    their moments is far from every minimum.
    """
    cumulative = np.cumsum(mass)
    below, above = cumulative / cumulative[-1] < _TAIL_MASS, 1 - cumulative / cumulative[-1] < _TAIL_MASS
    in_tail = (below & (target.support[0] == -inf)) | (above & (target.support[1] == inf))
    for location, width in target.anchors:
        in_tail &= np.abs(x - location) > _WIDTHS_OF_ANCHOR * width
    return in_tail


def _interval_boundaries(x: Array, mass: Array, target: Density) -> list[float]:
    """The boundaries of intervals around the anchors of the target, or its quartiles where it has one anchor."""
    anchors = sorted({location for location, _ in target.anchors if x[0] < location < x[-1]})
    cumulative = np.cumsum(mass)
    if len(anchors) > 1:
        # The boundary between two anchors is the point of least density.
        inner = []
        for left, right in pairwise(anchors):
            between = np.flatnonzero((x >= left) & (x <= right))
            if between.size:
                log_density = target.log_density(x[between], np.zeros(between.size))
                inner.append(float(x[between[np.argmin(log_density)]]))
        inner = inner if len(inner) <= 5 else list(np.interp(np.linspace(0, 1, 7)[1:-1], cumulative, x))
    else:
        inner = [float(np.interp(probability, cumulative, x)) for probability in (0.25, 0.75)]
    return [float(x[0]), *dict.fromkeys(inner), float(x[-1])]


def approximate_member(
    family: type[Distribution], x: Array, mass: Array, fixed: dict[str, Any], components: int | None
) -> Distribution | None:
    """A member near weighted points: matched in moments if a closed form exists, else in quantiles.

    Args:
        family: The class of the family.
        x: The points, shape (n,).
        mass: Their weights, shape (n,), with sum 1.
        fixed: The parameters that are not fitted, by name.
        components: The number of components of a `NormalMixture`.

    Returns:
        The member, or None where no member can be guessed.
    """
    member = match_moments(family, lambda f: f(x) @ mass, fixed)
    if member is not None:
        return member
    # A member of which no parameter is fixed. Points that are all equal are spread, because it has no such member.
    spread = x * np.linspace(0.9, 1.1, x.size) if x.min() == x.max() and x.size > 1 else x
    free = match_moments(family, lambda f: f(spread) @ mass, {}) if fixed else None
    if free is not None:
        return replace(free, **fixed)  # pyright: ignore[reportArgumentType]
    try:
        with np.errstate(all="ignore"):
            return _match_quantiles(family, x, mass, fixed, components)
    except (KullbackError, ValueError, ArithmeticError):
        return None


def _match_quantiles(
    family: type[Distribution], x: Array, mass: Array, fixed: dict[str, Any], components: int | None
) -> Distribution | None:
    """A member whose location and width match the quartiles or the mean and variance of weighted points."""
    order = np.argsort(x, kind="stable")
    x, mass = x[order], mass[order]
    cumulative = np.cumsum(mass) - mass / 2

    def quantile(probability: float) -> float:
        return float(np.interp(probability, cumulative, x))

    low, median, high = quantile(0.25), quantile(0.5), quantile(0.75)
    width = (high - low) / 2 or (float(x[-1]) - float(x[0])) / 4 or max(abs(median), 1.0) * 1e-3
    mean = float(x @ mass)
    variance = float(((x - mean) ** 2) @ mass)
    values: dict[str, Any] = {"loc": median, "scale": width}
    if family is families.StudentT:
        values["df"] = 4.0
    elif family is families.VonMises:
        values = {"loc": mean, "concentration": 1 / max(variance, 1e-3)}
    elif family is families.Uniform:
        values = {"low": quantile(0.02), "high": quantile(0.98)}
    elif family is families.Kumaraswamy:
        total = mean * (1 - mean) / max(variance, 1e-12) - 1
        values = {"concentration1": max(mean * total, 0.1), "concentration0": max((1 - mean) * total, 0.1)}
    elif family is families.ContinuousBernoulli:
        values = {"probs": min(max(mean, 0.05), 0.95)}
    elif family is families.Pareto:
        values = {"scale": float(x[0]), "alpha": 1 / max(float(np.log(x / x[0]) @ mass), 1e-3)}
    elif family is families.F:
        values = {"df1": 5.0, "df2": 2 * mean / (mean - 1) if mean > 1.2 else 10.0}
    elif family is families.HalfCauchy:
        values = {"scale": median}
    elif family is families.Zipf:
        values = {"exponent": 1 + 1 / max(float(np.log(x + 0.5) @ mass), 0.05)}
    elif family is families.NegativeBinomial:
        count = mean * (mean / (variance - mean)) if variance > 1.001 * mean else 1e3 * max(mean, 1.0)
        values = {"total_count": count, "probs": mean / (mean + count)}
    elif family is families.Zipfian:
        values = {"exponent": 1.0}
    elif family is families.NormalMixture:
        if components is None:
            return None
        probabilities = (np.arange(components) + 0.5) / components
        values = {
            "weights": np.full(components, 1 / components),
            "locs": np.asarray([quantile(probability) for probability in probabilities]),
            "scales": np.full(components, max(variance**0.5 / components, 1e-12)),
        }
    values |= fixed
    is_required = {field.name: field.default is MISSING for field in fields(family)}  # pyright: ignore[reportArgumentType]
    is_complete = values.keys() <= is_required.keys() and all(
        name in values for name, required in is_required.items() if required
    )
    return family(**values) if is_complete else None
