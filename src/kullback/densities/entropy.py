"""The entropy of a univariate distribution, by quadrature or summation."""

import numpy as np

from kullback.densities.density import Density
from kullback.densities.nodes import line_nodes
from kullback.errors import SupportError

__all__ = ["entropy_of"]

_MAX_MISSING_MASS = 1e-9


def entropy_of(density: Density) -> float:
    """H(p) of a univariate density or probability mass function.

    H(p) = -E_p[log p(x)]: the entropy of a discrete distribution, or the differential entropy of a continuous one.

    Args:
        density: The density or probability mass function.

    Returns:
        The entropy in nats, with an error of about 1e-12 for a continuous distribution and 1e-9 for a discrete one,
        relative where the entropy is above 1. A differential entropy may be negative.

    Raises:
        SupportError: A part of the mass lies beyond the range of float64, as for Pareto(scale=1, alpha=0.001), or the
            density cannot be resolved by float64.

    Example:
        >>> from kullback.densities.from_families import as_density
        >>> from kullback.families import Normal
        >>> round(entropy_of(as_density(Normal(loc=3.0, scale=1.0))), 9)
        1.418938533
    """
    nodes = line_nodes(density, density)
    log_mass = nodes.log_mass(density)
    mass = np.exp(log_mass)
    positive = (mass > 0) & np.isfinite(log_mass)
    total = float(mass[positive].sum())
    if not abs(total - 1) < _MAX_MISSING_MASS:
        raise SupportError(
            f"expected a density whose mass lies within the range of float64, but the mass within it is {total:.9g}: "
            "its tails are too heavy, or it is not normalised"
        )
    return -float(mass[positive] @ (log_mass[positive] - nodes.log_weight[positive]))
