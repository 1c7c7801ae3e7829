"""KL of multivariate normal distributions with low-rank covariances, without forming the n x n matrices.

The covariance matrix is S = W W^T + D with a matrix W of r columns and a diagonal matrix D. With C = I + W^T D^-1 W,
S^-1 = D^-1 - D^-1 W C^-1 W^T D^-1 and |S| = |D| |C|. The time is proportional to n r^2. The terms cancel where the two
covariance matrices are nearly equal, or nearly singular, and `low_rank_kl` then returns None.
"""

from collections.abc import Sequence

import numpy as np

from kullback.numerics.phi import ratio_residual

__all__ = ["low_rank_gradients", "low_rank_kl"]


def low_rank_kl(arrays: Sequence[np.ndarray], tolerance: float) -> np.ndarray | None:
    """KL of pairs of distributions from loc, cov_factor and cov_diag of p and of q, in float64.

    With X = D2^-1/2 X scaled by the diagonal matrix of q, the lower factor L of C2 and Y = L^-1 W2^T, twice the KL is

        sum phi(log(D1/D2)) + |W1|^2 - |Y D1^1/2|^2 - |Y W1|^2 - log|C1| + log|C2| + |loc1 - loc2|^2
        - |Y (loc1 - loc2)|^2.

    Args:
        arrays: The six parameters, whose batch axes broadcast.
        tolerance: The largest relative error.

    Returns:
        The KL of the pairs, or None if a bound on the rounding error of one of them is above the tolerance.
    """
    loc1, w1, d1, loc2, w2, d2 = arrays
    root, ratio = np.sqrt(d2), d1 / d2
    u, v, shift = w2 / root[..., None], w1 / root[..., None], (loc1 - loc2) / root
    try:
        factor1, factor2 = _capacitance_factor(w1, d1), _capacitance_factor(w2, d2)
    except np.linalg.LinAlgError:
        return None
    y = np.linalg.solve(factor2, u.swapaxes(-1, -2))
    diagonals = [np.diagonal(factor, axis1=-2, axis2=-1) for factor in (factor1, factor2)]
    logs = [2 * np.log(diagonal).sum(-1) for diagonal in diagonals]
    positive = [
        ratio_residual(np, d1, d2).sum(-1),
        (v * v).sum((-2, -1)),
        logs[1],
        (shift * shift).sum(-1),
    ]
    negative = [
        (y * y * ratio[..., None, :]).sum((-2, -1)),
        ((y @ v) ** 2).sum((-2, -1)),
        logs[0],
        ((y @ shift[..., None]) ** 2).sum((-2, -1)),
    ]
    twice, size = sum(positive) - sum(negative), sum(positive) + sum(negative)
    condition = max((float((d.max(-1) / d.min(-1)).max()) for d in diagonals if d.size), default=1.0)
    if not (16 * np.finfo(np.float64).eps * condition * size <= tolerance * twice).all():
        return None
    return np.asarray(twice / 2)


def _capacitance_factor(w: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The lower Cholesky factor of C = I + W^T D^-1 W."""
    return np.linalg.cholesky(np.eye(w.shape[-1]) + w.swapaxes(-1, -2) @ (w / d[..., None]))


class _Inverse:
    """S^-1 for S = W W^T + D, as D^-1 - P P^T with P = D^-1 W L^-T."""

    def __init__(self, w: np.ndarray, d: np.ndarray) -> None:
        factor = _capacitance_factor(w, d)
        self.d = d
        self.p = np.linalg.solve(factor, (w / d[..., None]).swapaxes(-1, -2)).swapaxes(-1, -2)
        # S^-1 W = D^-1 W C^-1 = P L^-1
        self.times_w = np.linalg.solve(factor.swapaxes(-1, -2), self.p.swapaxes(-1, -2)).swapaxes(-1, -2)
        self.diagonal = 1 / d - (self.p * self.p).sum(-1)

    def times(self, x: np.ndarray) -> np.ndarray:
        """S^-1 x for a matrix x of n rows."""
        return x / self.d[..., None] - self.p @ (self.p.swapaxes(-1, -2) @ x)


def low_rank_gradients(arrays: Sequence[np.ndarray], upstream: np.ndarray) -> list[np.ndarray]:
    """`upstream` times the derivatives of KL with respect to the six parameters.

    The derivatives with respect to the covariance matrices are (S2^-1 - S1^-1)/2 and
    (S2^-1 - S2^-1 S1 S2^-1 - m m^T)/2 with m = S2^-1 (loc1 - loc2).
    """
    loc1, w1, d1, loc2, w2, d2 = arrays
    p, q = _Inverse(w1, d1), _Inverse(w2, d2)
    m = q.times((loc1 - loc2)[..., None])
    w1_by_q = q.times(w1)
    of_q = q.times_w
    through = q.times(d1[..., None] * of_q + w1 @ (w1.swapaxes(-1, -2) @ of_q))
    # The diagonal of S2^-1 D1 S2^-1.
    squares = (q.p @ (q.p.swapaxes(-1, -2) @ (d1[..., None] * q.p)) * q.p).sum(-1)
    of_diagonal = d1 * (1 / d2 - 2 * (q.p * q.p).sum(-1)) / d2 + squares
    sandwich = of_diagonal + (w1_by_q * w1_by_q).sum(-1)
    vector, matrix = upstream[..., None], upstream[..., None, None]
    mean = vector * m[..., 0]
    return [
        mean,
        matrix * (w1_by_q - p.times_w),
        vector * (q.diagonal - p.diagonal) / 2,
        -mean,
        matrix * (of_q - through - m @ (m.swapaxes(-1, -2) @ w2)),
        vector * (q.diagonal - sandwich - m[..., 0] ** 2) / 2,
    ]
