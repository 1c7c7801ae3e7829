"""Where descents begin: members matched to pieces of the target, for every minimum lies near some piece."""

from dataclasses import MISSING, fields
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from kullback import families
from kullback.closed_forms.supports import is_count_family, shared_support
from kullback.densities.density import Density
from kullback.densities.nodes import line_nodes
from kullback.errors import KullbackError, ParameterError, SupportError
from kullback.families import Distribution
from kullback.fit.moment_matching import moments_of
from kullback.numerics.arrays import Array

__all__ = ["guess_of", "no_start", "starts_on_the_line"]

_MOST = 30  # starts


def no_start(kind: type[Distribution]) -> ParameterError:
    """What is wrong where no start can be guessed."""
    counts = [field.name for field in fields(kind) if field.name in ("total_count", "population", "draws")]  # pyright: ignore
    if kind is families.NormalMixture:
        return ParameterError("expected how many components a NormalMixture is to have: pass components=, or a start")
    more = f", and {', '.join(counts)} in fixed=" if counts else ""
    return ParameterError(f"expected a start for {kind.__name__}: pass start=, one of its records{more}")


def starts_on_the_line(
    kind: type[Distribution], target: Density, fixed: dict[str, Any], components: int | None
) -> list[Distribution]:
    """Members matched to the target, to its pieces between anchors and quantiles, and to pieces side by side.

    Raises:
        SupportError: KL between target and members is `inf` both ways.
    """
    if is_count_family(kind) != target.discrete:
        counts, continuum = ("the family", "the target") if is_count_family(kind) else ("the target", "the family")
        raise SupportError(
            f"expected a target and a family that are both of counts or both of a continuum, got {kind.__name__}: "
            f"{counts} is of counts and {continuum} is not, so that KL is inf both ways"
        )
    nodes = line_nodes(target, target)
    mass = np.exp(nodes.log_mass(target))
    order = np.argsort(nodes.x, kind="stable")
    x, mass = nodes.x[order], mass[order]
    low, high = shared_support(kind)
    seen = (mass > 0) & (x >= low) & (x <= high)
    if not seen.any():
        raise SupportError(
            f"expected a target with mass within {kind.__name__}'s support {(low, high)}, got one on {target.support}: "
            "KL is inf both ways"
        )
    x, mass = x[seen], mass[seen] / mass[seen].sum()
    edges = _edges(x, mass, target)
    spans = sorted(
        combinations(range(len(edges)), 2), key=lambda span: (span[1] - span[0] != len(edges) - 1, span[1] - span[0])
    )
    # A minimum may stand between two pieces of which one weighs far more than the other.
    level = mass / np.bincount(piece := np.searchsorted(edges[1:-1], x), mass)[piece]
    windows = [(edges[first], edges[last], mass) for first, last in spans]
    windows += [
        (place - reach * width, place + reach * width, mass) for reach in (1, 3) for place, width in target.anchors[:6]
    ]
    windows += [(edges[first], edges[last], level) for first, last in spans if last - first > 1]
    if kind is families.NormalMixture:
        windows = windows[:3]  # its components are spread over each
    found = []
    for low, high, weight in windows:
        inside = (x >= low) & (x <= high)
        if mass[inside].sum() < 1e-9 or len(found) >= _MOST:
            continue
        part = weight[inside] / weight[inside].sum()
        made = guess_of(kind, x[inside], part, fixed, components)
        if made is not None:
            found.append(made)
    return found


def _edges(x: Array, mass: Array, target: Density) -> list[float]:
    """Between neighbouring anchors; and quartiles, where there is but one."""
    places = sorted({place for place, _ in target.anchors if x[0] < place < x[-1]})
    cumulative = np.cumsum(mass)
    if len(places) > 1:
        # The density's lowest place between two anchors parts them.
        inner = []
        for left, right in pairwise(places):
            between = np.flatnonzero((x >= left) & (x <= right))
            if between.size:
                logs = target.log_density(x[between], np.zeros(between.size))
                inner.append(float(x[between[np.argmin(logs)]]))
        inner = inner if len(inner) <= 5 else list(np.interp(np.linspace(0, 1, 7)[1:-1], cumulative, x))
    else:
        inner = [float(np.interp(share, cumulative, x)) for share in (0.25, 0.75)]
    return [float(x[0]), *dict.fromkeys(inner), float(x[-1])]


def guess_of(
    kind: type[Distribution], x: Array, mass: Array, fixed: dict[str, Any], components: int | None
) -> Distribution | None:
    """A member near these weighted places: by its moments, or by the place and width alone."""
    made = moments_of(kind, lambda f: f(x) @ mass, fixed)
    if made is not None:
        return made
    try:
        with np.errstate(all="ignore"):
            return _rough(kind, x, mass, fixed, components)
    except (KullbackError, ValueError, ZeroDivisionError, FloatingPointError):
        return None


def _rough(
    kind: type[Distribution], x: Array, mass: Array, fixed: dict[str, Any], components: int | None
) -> Distribution | None:
    order = np.argsort(x, kind="stable")
    x, mass = x[order], mass[order]
    cumulative = np.cumsum(mass) - mass / 2

    def quantile(share: float) -> float:
        return float(np.interp(share, cumulative, x))

    low, middle, high = quantile(0.25), quantile(0.5), quantile(0.75)
    width = (high - low) / 2 or (float(x[-1]) - float(x[0])) / 4 or max(abs(middle), 1.0) * 1e-3
    mean = float(x @ mass)
    spread = float(((x - mean) ** 2) @ mass)
    values: dict[str, Any] = {"loc": middle, "scale": width}
    if kind is families.StudentT:
        values["df"] = 4.0
    elif kind is families.VonMises:
        values = {"loc": mean, "concentration": 1 / max(spread, 1e-3)}
    elif kind is families.Uniform:
        values = {"low": quantile(0.02), "high": quantile(0.98)}
    elif kind is families.Kumaraswamy:
        whole = mean * (1 - mean) / max(spread, 1e-12) - 1
        values = {"concentration1": max(mean * whole, 0.1), "concentration0": max((1 - mean) * whole, 0.1)}
    elif kind is families.ContinuousBernoulli:
        values = {"probs": min(max(mean, 0.05), 0.95)}
    elif kind is families.Pareto:
        values = {"scale": float(x[0]), "alpha": 1 / max(float(np.log(x / x[0]) @ mass), 1e-3)}
    elif kind is families.F:
        values = {"df1": 5.0, "df2": 2 * mean / (mean - 1) if mean > 1.2 else 10.0}
    elif kind is families.HalfCauchy:
        values = {"scale": middle}
    elif kind is families.Zipf:
        values = {"exponent": 1 + 1 / max(float(np.log(x + 0.5) @ mass), 0.05)}
    elif kind is families.NegativeBinomial:
        count = mean**2 / (spread - mean) if spread > 1.001 * mean else 1e3 * max(mean, 1.0)
        values = {"total_count": count, "probs": mean / (mean + count)}
    elif kind is families.Zipfian:
        values = {"exponent": 1.0}
    elif kind is families.NormalMixture:
        if components is None:
            return None
        shares = (np.arange(components) + 0.5) / components
        values = {
            "weights": np.full(components, 1 / components),
            "locs": np.asarray([quantile(share) for share in shares]),
            "scales": np.full(components, max(spread**0.5 / components, 1e-12)),
        }
    values |= fixed
    names = {field.name: field.default is MISSING for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    known = values.keys() <= names.keys() and all(name in values for name, needed in names.items() if needed)
    return kind(**values) if known else None
