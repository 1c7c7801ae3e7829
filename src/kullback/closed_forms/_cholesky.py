"""Positive definite matrices: checks, Cholesky factors, and the eigenvalues of one matrix relative to another."""

from typing import Any

import array_api_compat
import numpy as np

from kullback.errors import ParameterError, ShapeError
from kullback.families.base import values_of
from kullback.numerics.arrays import Array, holds, is_traced, untracked
from kullback.numerics.phi import log1p_residual, log_ratio, phi

__all__ = [
    "cholesky",
    "eigenvalues_from_factors",
    "factor_of",
    "log_determinant_ratios",
    "require_lower",
    "require_square",
    "sum_eigenvalue_residuals",
    "sum_factor_residuals",
    "whiten",
    "whitened_eigenvalues",
]


def require_square(name: str, matrix: Array, size: int) -> None:
    """Raise ShapeError unless the matrix has shape (..., size, size)."""
    if matrix.ndim < 2 or tuple(matrix.shape[-2:]) != (size, size):
        raise ShapeError(f"expected {name} of shape (..., {size}, {size}), got {tuple(matrix.shape)}")


def require_lower(xp: Any, name: str, matrix: Array) -> None:
    """Raise ParameterError unless the matrix is lower triangular with a positive diagonal."""
    if not is_traced(matrix):
        values = values_of(matrix)
        xp = array_api_compat.array_namespace(values)
        if xp.any(values != xp.tril(values)) or not xp.all(xp.linalg.diagonal(values) > 0):
            raise ParameterError(f"expected {name} to be lower triangular with a positive diagonal")


def cholesky(xp: Any, matrix: Array, name: str) -> Array:
    """The lower Cholesky factor of a symmetric positive definite matrix; ParameterError for another matrix."""
    traced = is_traced(matrix)
    if not traced:
        values = values_of(matrix)
        of_values = array_api_compat.array_namespace(values)
        skew = of_values.max(abs(values - of_values.matrix_transpose(values)), axis=(-2, -1))
        size = of_values.max(abs(values), axis=(-2, -1))
        if (skew > 1e3 * float(xp.finfo(matrix.dtype).eps) * size).any():
            raise ParameterError(f"expected {name} to be symmetric, but entries differ by {float(skew.max()):.3g}")
    try:
        factor = xp.linalg.cholesky(matrix)
    except (np.linalg.LinAlgError, RuntimeError) as error:
        raise _not_positive_definite(name, matrix) from error
    # JAX does not raise an error: it returns nan.
    if not traced and array_api_compat.is_jax_array(factor) and holds(~xp.all(xp.isfinite(factor))):
        raise _not_positive_definite(name, matrix)
    return factor


def _not_positive_definite(name: str, matrix: Array) -> ParameterError:
    """The error for a matrix that is not positive definite, with its smallest eigenvalue."""
    smallest = np.linalg.eigvalsh(np.asarray(untracked(matrix).tolist())).min()
    return ParameterError(
        f"expected {name} to be positive definite, but its smallest eigenvalue is {float(smallest):.3g}"
    )


def factor_of(xp: Any, matrix: Array | None, factor: Array | None, names: tuple[str, str]) -> Array:
    """The lower factor: `factor` as it is given, or else the Cholesky factor of `matrix`; `names` are for messages."""
    if factor is None:
        return cholesky(xp, matrix, names[0])
    require_lower(xp, names[1], factor)
    # Entries above the diagonal receive no gradient.
    return xp.tril(factor)


def eigenvalues_from_factors(xp: Any, factor_p: Array, factor_q: Array) -> Array:
    """The eigenvalues of Q^-1 P - 1 for P and Q with these lower factors, whose products are not formed."""
    step = whiten(xp, factor_q, factor_p - factor_q)
    square = step @ xp.matrix_transpose(step)
    return _eigenvalues_or_inf(xp, step + xp.matrix_transpose(step) + square)


def sum_factor_residuals(xp: Any, factor_p: Array, factor_q: Array) -> Array:
    """tr(M M^T) - n - log(det(M M^T)) for M = factor_q^-1 factor_p, as a sum of terms that are not negative.

    The terms are phi(2 log M_ii), where M_ii is the ratio of the diagonals, and M_ij^2 for i > j.
    """
    diagonals = phi(2 * log_ratio(xp, xp.linalg.diagonal(factor_p), xp.linalg.diagonal(factor_q)))
    # M - 1 has the entries of M below the diagonal, and does not cancel where the factors are nearly equal.
    below = xp.tril(whiten(xp, factor_q, factor_p - factor_q), k=-1)
    return xp.sum(diagonals, axis=-1) + xp.sum(below * below, axis=(-2, -1))


def whiten(xp: Any, factor: Array, matrix: Array) -> Array:
    """factor^-1 matrix for a lower triangular factor, with the batch axes broadcast."""
    lead = np.broadcast_shapes(tuple(factor.shape[:-2]), tuple(matrix.shape[:-2]))
    factor = xp.broadcast_to(factor, (*lead, *factor.shape[-2:]))
    matrix = xp.broadcast_to(matrix, (*lead, *matrix.shape[-2:]))
    if array_api_compat.is_torch_namespace(xp):
        return xp.linalg.solve_triangular(factor, matrix, upper=False)
    return xp.linalg.solve(factor, matrix)


def whitened_eigenvalues(xp: Any, factor: Array, change: Array) -> Array:
    """The eigenvalues of factor^-1 change factor^-T for a symmetric matrix `change`."""
    half = xp.matrix_transpose(whiten(xp, factor, change))
    whole = whiten(xp, factor, half)
    return _eigenvalues_or_inf(xp, (whole + xp.matrix_transpose(whole)) / 2)


def _eigenvalues_or_inf(xp: Any, matrix: Array) -> Array:
    """The eigenvalues of a symmetric matrix; `inf` where an entry overflows, and so does the largest eigenvalue."""
    fits = xp.all(xp.isfinite(untracked(matrix)), axis=(-2, -1))
    if holds(xp.all(fits)):
        return xp.linalg.eigvalsh(matrix)
    eigenvalues = xp.linalg.eigvalsh(xp.where(fits[..., None, None], matrix, 0.0))
    return xp.where(fits[..., None], eigenvalues, np.inf)


def log_determinant_ratios(xp: Any, factor_p: Array, factor_q: Array) -> Array:
    """Numbers whose sum is log(det P / det Q), from the diagonals of the Cholesky factors of P and Q."""
    return 2 * log_ratio(xp, xp.linalg.diagonal(factor_p), xp.linalg.diagonal(factor_q))


def sum_eigenvalue_residuals(xp: Any, eigenvalues: Array, log_determinants: Array) -> Array:
    """sum_i (e_i - log(1 + e_i)) for the eigenvalues e_i of Q^-1 P - 1.

    `log_determinants` are numbers whose sum is sum_i log(1 + e_i); they are used where some |e_i| >= 1/2.
    """
    near = xp.all(abs(eigenvalues) < 0.5, axis=-1)
    close = xp.sum(log1p_residual(xp.where(near[..., None], eigenvalues, 0.0)), axis=-1)
    return xp.where(near, close, xp.sum(eigenvalues, axis=-1) - xp.sum(log_determinants, axis=-1))
