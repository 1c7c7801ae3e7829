"""Positive definite matrices: their Cholesky factors, and one seen by another."""

from typing import Any

import array_api_compat
import numpy as np

from kullback.errors import ParameterError, ShapeError
from kullback.families.base import is_traced
from kullback.numerics.arrays import Array, untracked
from kullback.numerics.phi import log1p_residual, log_ratio

__all__ = [
    "cholesky",
    "log_ratios",
    "relative_change",
    "require_lower",
    "require_square",
    "sum_log_residuals",
    "whiten",
]


def require_square(name: str, matrix: Array, size: int) -> None:
    if matrix.ndim < 2 or tuple(matrix.shape[-2:]) != (size, size):
        raise ShapeError(f"expected {name} of shape (..., {size}, {size}), got {tuple(matrix.shape)}")


def require_lower(xp: Any, name: str, matrix: Array) -> None:
    if not is_traced(matrix):
        seen = untracked(matrix)
        if xp.any(seen != xp.tril(seen)) or not xp.all(xp.linalg.diagonal(seen) > 0):
            raise ParameterError(f"expected {name} to be lower triangular with a positive diagonal")


def cholesky(xp: Any, matrix: Array, name: str) -> Array:
    """The lower factor; a matrix that is not symmetric and positive definite raises ParameterError."""
    traced = is_traced(matrix)
    if not traced:
        seen = untracked(matrix)
        skew = xp.max(abs(seen - xp.matrix_transpose(seen)), axis=(-2, -1))
        size = xp.max(abs(seen), axis=(-2, -1))
        if xp.any(skew > 1e3 * float(xp.finfo(matrix.dtype).eps) * size):
            raise ParameterError(f"expected {name} to be symmetric, but entries differ by {float(xp.max(skew)):.3g}")
    try:
        factor = xp.linalg.cholesky(matrix)
    except (np.linalg.LinAlgError, RuntimeError) as error:
        raise _not_positive(name, matrix) from error
    # JAX says so in nans.
    if not traced and array_api_compat.is_jax_array(factor) and not xp.all(xp.isfinite(factor)):
        raise _not_positive(name, matrix)
    return factor


def _not_positive(name: str, matrix: Array) -> ParameterError:
    least = np.linalg.eigvalsh(np.asarray(untracked(matrix).tolist())).min()
    return ParameterError(f"expected {name} to be positive definite, but its least eigenvalue is {float(least):.3g}")


def whiten(xp: Any, factor: Array, matrix: Array) -> Array:
    """factor^-1 matrix."""
    lead = np.broadcast_shapes(tuple(factor.shape[:-2]), tuple(matrix.shape[:-2]))
    factor = xp.broadcast_to(factor, (*lead, *factor.shape[-2:]))
    return xp.linalg.solve(factor, xp.broadcast_to(matrix, (*lead, *matrix.shape[-2:])))


def relative_change(xp: Any, factor: Array, change: Array) -> Array:
    """The eigenvalues of factor^-1 change factor^-T, `change` being symmetric."""
    half = xp.matrix_transpose(whiten(xp, factor, change))
    whole = whiten(xp, factor, half)
    return xp.linalg.eigvalsh((whole + xp.matrix_transpose(whole)) / 2)


def log_ratios(xp: Any, factor_p: Array, factor_q: Array) -> Array:
    """Logs that sum to log |P| - log |Q|, from the diagonals of the factors."""
    return 2 * log_ratio(xp, xp.linalg.diagonal(factor_p), xp.linalg.diagonal(factor_q))


def sum_log_residuals(xp: Any, changes: Array, log_determinants: Array) -> Array:
    """sum (e - log(1 + e)) over the eigenvalues e of Q^-1 P - 1, with the determinants' logs where some e is large."""
    near = xp.all(abs(changes) < 0.5, axis=-1)
    close = xp.sum(log1p_residual(xp.where(near[..., None], changes, 0.0)), axis=-1)
    return xp.where(near, close, xp.sum(changes, axis=-1) - xp.sum(log_determinants, axis=-1))
