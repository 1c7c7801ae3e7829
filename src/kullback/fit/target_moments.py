"""The member of a family with the moments of a target, which minimises KL(target || member) in closed form."""

from dataclasses import fields
from math import inf
from typing import Any, NamedTuple

import numpy as np

from kullback.densities.density import Density
from kullback.densities.from_families import as_density
from kullback.densities.nodes import line_nodes, mean_of
from kullback.errors import SupportError
from kullback.families import Distribution
from kullback.fit.moment_matching import match_moments
from kullback.fit.result import Fit
from kullback.fit.solver.multistart import minimise_from_starts
from kullback.fit.solver.objectives import univariate_objective
from kullback.fit.solver.parametrisation import parametrise
from kullback.measure import measure
from kullback.numerics.arrays import as_numpy
from kullback.result import Estimate

__all__ = ["LARGEST_MISSING_KL", "MatchedMoments", "finite_kl", "fit_by_measure", "match_moments_of_target"]

LARGEST_MISSING_KL = 1e-7  # nats, relative above 1, by which the value of an objective may differ from the KL
_MOMENT_ROUNDS = 8  # of quadratures by which the moments of a target are computed, at most
_NEGLIGIBLE_KL, _NEGLIGIBLE_MASS = 1e-8, 1e-9  # nats and mass beyond the nodes of a quadrature


class MatchedMoments(NamedTuple):
    """The member with the moments of a target, and whether the quadrature resolves them in the tails."""

    member: Distribution
    is_resolved: bool


def match_moments_of_target(
    family: type[Distribution], density: Density, fixed: dict[str, Any]
) -> MatchedMoments | None:
    """The member with the moments of a target, also where these depend on tails of negligible mass.

    The integrand of KL contains the sufficient statistics of the member, so that its nodes resolve them in the tails of
    the target. The quadrature is repeated until the member does not change.

    Args:
        family: The class of the family.
        density: The density of the target.
        fixed: The parameters that are not fitted, by name.

    Returns:
        The member; None where no closed form exists, or where the target has no such moments.
    """
    nodes, former, first = line_nodes(density, density), None, None
    for _ in range(_MOMENT_ROUNDS):
        member = match_moments(family, mean_of(density, nodes), fixed)
        q = None if member is None else as_density(member)
        if member is None or q is None:  # a moment may overflow in the tail
            break
        if former is not None and _are_close(former, member):
            missing = abs(1 - float(np.exp(nodes.log_mass(density)).sum()))
            return MatchedMoments(member, nodes.kl_beyond < _NEGLIGIBLE_KL and missing < _NEGLIGIBLE_MASS)
        first = member if first is None else first
        try:
            former, nodes = member, line_nodes(density, q)
        except SupportError:  # the target has no mean, so that the mean of its nodes is a count beyond 2**53
            return None
    # Moments that grow from round to round are wrong from the first one on, and the first one is a start for a descent.
    return None if first is None else MatchedMoments(first, is_resolved=False)


def _are_close(a: Any, b: Any) -> bool:
    """Whether the parameters of two members of a family are equal up to rounding."""
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in fields(a)]
    return all(np.allclose(as_numpy(x), as_numpy(y), rtol=1e-12, atol=0) for x, y in pairs if x is not None)


def fit_by_measure(start: Distribution, density: Density, target: Any, fixed: dict[str, Any]) -> Fit:
    """The fit by a descent on KL as `measure` computes it, which includes the parts of the tails beyond float64.

    Raises:
        SupportError: KL(target || start) is infinite, or not known.
    """
    finite_kl(target, start)
    parametrisation = parametrise(type(start), start, fixed)

    def divergence(member: Distribution) -> float:
        estimate = measure(target, member, error=1e-12)
        return estimate.value if estimate.error < LARGEST_MISSING_KL * max(1.0, estimate.value) else inf

    objective = univariate_objective(parametrisation, density, alpha=1.0, divergence=divergence)
    found = minimise_from_starts(parametrisation, objective, [start], lower_bound=0.0)
    if not found.minima:
        raise SupportError(
            f"expected a target whose tails float64 resolves for a fit of {type(start).__name__}, but a part of the "
            "expectations is beyond float64 or near an end of the support; fit the distribution of log x, or of the "
            "distance to the end"
        )
    best = found.minima[0].distribution
    estimate = finite_kl(target, best)
    return Fit(best, estimate.value, estimate, found.path, found.minima, found.converged, {"method": "Newton"})


def finite_kl(target: Any, member: Distribution) -> Estimate:
    """KL(target || member); SupportError where it is `inf`."""
    estimate = measure(target, member)
    if estimate.value == inf:
        raise SupportError(
            f"expected a target whose KL to some {type(member).__name__} is finite, but {'; '.join(estimate.warnings)}"
        )
    return estimate
