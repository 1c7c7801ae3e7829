"""KL(p || q) of two univariate distributions by the method of their kind: quadrature or summation."""

from kullback.densities.density import Density
from kullback.densities.quadrature import kl_quadrature
from kullback.densities.summation import kl_summation
from kullback.result import Estimate

__all__ = ["kl_integral"]


def kl_integral(p: Density, q: Density, *, error: float = 1e-10) -> Estimate:
    """KL(p || q) of two densities by quadrature, or of two probability mass functions by summation.

    Args:
        p: The density or the probability mass function of p.
        q: The density or the probability mass function of q; of the same kind as p.
        error: The acceptable error bound: in nats where KL is below 1, relative above 1.

    Returns:
        The estimate of `kl_summation` if p is discrete, and of `kl_quadrature` otherwise, in nats; `inf` as there.

    Raises:
        SupportError: A log-density or a log-probability is not a number, or adjacent counts are equal in float64.

    Example:
        >>> from kullback.densities.from_families import as_density
        >>> from kullback.families import Geometric, Poisson
        >>> p, q = Poisson(rate=2.0), Geometric(probs=0.3)
        >>> round(kl_integral(as_density(p), as_density(q)).value, 10)
        0.2124400483
    """
    return (kl_summation if p.discrete else kl_quadrature)(p, q, error=error)
