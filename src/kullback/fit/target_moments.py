"""The member of a family with the moments of a target, which minimises KL(target || member) in closed form."""

from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

from kullback.densities.density import Density
from kullback.densities.from_families import as_density
from kullback.densities.nodes import line_nodes, mean_of
from kullback.families import Distribution
from kullback.fit.moment_matching import match_moments
from kullback.numerics.arrays import as_numpy

__all__ = ["MatchedMoments", "match_moments_of_target"]

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
        former, nodes = member, line_nodes(density, q)
    # Moments that grow from round to round are wrong from the first one on, and the first one is a start for a descent.
    return None if first is None else MatchedMoments(first, is_resolved=False)


def _are_close(a: Any, b: Any) -> bool:
    """Whether the parameters of two members of a family are equal up to rounding."""
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in fields(a)]
    return all(np.allclose(as_numpy(x), as_numpy(y), rtol=1e-12, atol=0) for x, y in pairs if x is not None)
