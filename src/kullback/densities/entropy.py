"""The entropy of a univariate distribution, by quadrature or summation."""

import numpy as np

from kullback.densities.density import Density
from kullback.densities.nodes import line_nodes

__all__ = ["entropy_of"]


def entropy_of(density: Density) -> float:
    """H(p) of a univariate density or probability mass function.

    H(p) = -E_p[log p(x)]: the entropy of a discrete distribution, or the differential entropy of a continuous one.

    Args:
        density: The density or probability mass function.

    Returns:
        The entropy in nats, with a relative error of about 1e-12. A differential entropy may be negative. The sum of a
        heavy-tailed discrete distribution stops after 65 536 integers.

    Example:
        >>> from kullback.densities.from_families import as_density
        >>> from kullback.families import Normal
        >>> round(entropy_of(as_density(Normal(loc=3.0, scale=1.0))), 9)
        1.418938533
    """
    nodes = line_nodes(density, density)
    with np.errstate(all="ignore"):
        logs = density.log_density(nodes.origin, nodes.offset)
        mass = np.exp(logs + nodes.log_weight)
    positive = (mass > 0) & np.isfinite(logs)
    return -float(mass[positive] @ logs[positive])
