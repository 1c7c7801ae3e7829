"""The entropy of a distribution on the line, by quadrature or summation."""

import numpy as np

from kullback.densities.density import Density
from kullback.densities.nodes import line_nodes

__all__ = ["entropy_of"]


def entropy_of(density: Density) -> float:
    """H(p) = -E_p[log p(x)] in nats: the differential entropy of a density, which may be negative.

    Args:
        density: A density with its support, or the probabilities of whole numbers.

    Returns:
        Nats, to about 1e-12 of its size. For whole numbers with a slow tail, of the first 65 536 of them.

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
    seen = (mass > 0) & np.isfinite(logs)
    return -float(mass[seen] @ logs[seen])
