"""Mixtures of multivariate normals: density, sampler, and bounds of KL(p || q) between two mixtures."""

from typing import Any, NamedTuple

import numpy as np
from scipy import special

from kullback.closed_forms import FORMS
from kullback.closed_forms.multivariate import covariance_of
from kullback.densities.integrand import terms
from kullback.errors import ShapeError
from kullback.families import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal
from kullback.numerics.arrays import Array, as_numpy
from kullback.samples.monte_carlo import Sampler

__all__ = [
    "Components",
    "MixtureBounds",
    "components",
    "components_of_family",
    "log_density_of_components",
    "mixture_bounds",
    "sampler_of_components",
]


class Components(NamedTuple):
    """A mixture of k multivariate normals in d dimensions.

    Args:
        weights: The probabilities of the components, shape (k,), positive, with sum 1.
        locs: The means, shape (k, d).
        covariances: The covariance matrices, shape (k, d, d).
    """

    weights: Array
    locs: Array
    covariances: Array


class MixtureBounds(NamedTuple):
    """An approximation and an upper bound of KL(p || q) between Gaussian mixtures, in nats.

    Args:
        variational: The variational approximation, which is not a bound and may be negative.
        upper: The variational upper bound.
    """

    variational: float
    upper: float


def components(weights: Array, locs: Array, covariances: Array) -> Components:
    """A mixture of multivariate normals, which `kullback.measure` accepts as a distribution.

    Args:
        weights: The probabilities of the components, shape (k,). They are divided by their sum, and components of
            weight 0 are dropped.
        locs: The means, shape (k, d).
        covariances: The covariance matrices, shape (k, d, d).

    Returns:
        The mixture, with float64 NumPy arrays.

    Raises:
        ShapeError: The shapes are inconsistent.

    Example:
        >>> components([0.25, 0.75], [[0.0, 0.0], [1.0, 1.0]], [[[1.0, 0.0], [0.0, 1.0]]] * 2).weights
        array([0.25, 0.75])
    """
    weights, locs, covariances = (as_numpy(value, np.float64) for value in (weights, locs, covariances))
    count, size = weights.size, locs.shape[-1]
    if weights.shape != (count,) or locs.shape != (count, size) or covariances.shape != (count, size, size):
        raise ShapeError(
            "expected k weights, (k, d) locs and (k, d, d) covariances, got shapes "
            f"{weights.shape}, {locs.shape}, {covariances.shape}"
        )
    positive = weights > 0
    return Components(weights[positive] / weights.sum(), locs[positive], covariances[positive])


def components_of_family(record: Distribution) -> Components | None:
    """A multivariate normal, or an Independent of normals, as one component; None for other families and batches."""
    if isinstance(record, Independent) and isinstance(record.base, Normal) and record.event_dims == 1:
        loc, scale = np.broadcast_arrays(*(as_numpy(side, np.float64) for side in (record.base.loc, record.base.scale)))
        covariance = scale[..., None] ** 2 * np.eye(scale.shape[-1] if scale.ndim else 1)
    elif isinstance(record, MultivariateNormal | LowRankMultivariateNormal):
        plain = type(record)(
            **{name: None if v is None else as_numpy(v, np.float64) for name, v in vars(record).items()}
        )
        loc, covariance = plain.loc, covariance_of(np, plain)
    else:
        return None
    if loc.ndim != 1 or covariance.ndim != 2:
        return None
    return components(np.ones(1), loc[None], covariance[None])


def mixture_bounds(p: Components, q: Components) -> MixtureBounds:
    """The variational approximation and the variational upper bound of KL(p || q) between Gaussian mixtures.

    With the closed-form KL(a || b) of components a and b,

        variational = sum_a p_a log(sum_a' p_a' exp(-KL(a || a')) / sum_b q_b exp(-KL(a || b)))
        upper = min over f, g of sum_ab f_ab (log(f_ab / g_ab) + KL(a || b)), sum_b f_ab = p_a, sum_a g_ab = q_b

    Args:
        p: A mixture of multivariate normals.
        q: A mixture of multivariate normals of the same dimension.

    Returns:
        The approximation and the bound, in nats.

    References:
        Hershey and Olsen (2007), eqs. 18 and 21-24.
    """
    within, across = _pairwise(p, p), _pairwise(p, q)
    log_p, log_q = np.log(p.weights), np.log(q.weights)
    nearness = _log_sum(log_p - within, 1) - _log_sum(log_q - across, 1)
    variational = float(p.weights @ nearness)
    log_f = log_p[:, None] + log_q
    upper = bound = np.inf
    for _ in range(500):
        # Coordinate descent: g is minimised for fixed f, then f for fixed g. Each iterate gives an upper bound.
        log_g = log_q + log_f - _log_sum(log_f, 0)
        log_f = log_g - across
        log_f += (log_p - _log_sum(log_f, 1))[:, None]
        # Both f and g have sum 1, so that sum f log(f/g) is the sum of the non-negative terms f phi(log(g/f)).
        cost = np.where(log_f > -np.inf, np.exp(log_f) * across, 0.0)
        bound = float((terms(log_f, log_g)[0] + cost).sum())
        if bound > upper - 1e-12 * max(1.0, bound):
            break
        upper = bound
    return MixtureBounds(variational, min(upper, bound))


def sampler_of_components(mixture: Components) -> Sampler:
    """The sampler of a mixture: draws of shape (count, d) and log-densities of shape (count,)."""
    roots, log_weights = np.linalg.cholesky(mixture.covariances), np.log(mixture.weights)

    def sample(count: int, rng: Any) -> Array:
        which = rng.choice(mixture.weights.size, count, p=mixture.weights)
        noise = rng.standard_normal((count, mixture.locs.shape[1]))
        return mixture.locs[which] + np.einsum("nij,nj->ni", roots[which], noise)

    return Sampler(sample, lambda x: log_density_of_components(log_weights, mixture.locs, roots, x))


def log_density_of_components(log_weights: Array, locs: Array, roots: Array, x: Array) -> Array:
    """The log-density of a Gaussian mixture: log sum_k weights_k N(x; locs_k, roots_k roots_k^T).

    Args:
        log_weights: The logarithms of the weights, shape (k,).
        locs: The means, shape (k, d).
        roots: The lower Cholesky factors of the covariances, shape (k, d, d).
        x: The points, shape (n, d).

    Returns:
        The log-densities, shape (n,).
    """
    logs = []
    for log_weight, loc, root in zip(log_weights, locs, roots, strict=True):
        z = _solve_triangular(root, (x - loc).T)
        constant = np.log(np.diag(root)).sum() + 0.5 * loc.size * np.log(2 * np.pi)
        logs.append(log_weight - constant - 0.5 * (z * z).sum(axis=0))
    return logs[0] if len(logs) == 1 else _log_sum(np.asarray(logs), 0)


def _solve_triangular(root: Array, residual: Array) -> Array:
    """root^-1 residual by forward substitution, which is faster than LAPACK for few dimensions and many points."""
    z = np.empty(residual.shape)
    for i in range(len(residual)):
        z[i] = (residual[i] - root[i, :i] @ z[:i]) / root[i, i]
    return z


def _log_sum(logs: Array, axis: int) -> Array:
    return np.asarray(special.logsumexp(logs, axis=axis))


def _pairwise(p: Components, q: Components) -> Array:
    """KL(a || b) of every component a of p and every component b of q, shape (components of p, components of q)."""
    form = FORMS[MultivariateNormal, MultivariateNormal]
    left = MultivariateNormal(loc=p.locs[:, None], covariance_matrix=p.covariances[:, None])
    return np.asarray(form(left, MultivariateNormal(loc=q.locs, covariance_matrix=q.covariances)))
