"""Positive definite matrices: checks, Cholesky factors, and the eigenvalues of one matrix relative to another."""

from typing import Any

import array_api_compat
import numpy as np

from kullback.errors import ParameterError, ShapeError
from kullback.families.base import values_of
from kullback.numerics.arrays import Array, holds, is_traced, untracked, with_gradient
from kullback.numerics.phi import log1p_residual, log_ratio, phi

__all__ = [
    "change_from_factors",
    "cholesky",
    "factor_of",
    "log_determinant_ratios",
    "require_lower",
    "require_square",
    "sum_factor_residuals",
    "sum_product_residuals",
    "sum_residuals",
    "whiten",
    "whitened_change",
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


def change_from_factors(xp: Any, factor_p: Array, factor_q: Array) -> Array:
    """L^-1 P L^-T - 1 for P and Q = L L^T with these lower factors, whose products are not formed."""
    step = whiten(xp, factor_q, factor_p - factor_q)
    return step + xp.matrix_transpose(step) + step @ xp.matrix_transpose(step)


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


def whitened_change(xp: Any, factor: Array, change: Array) -> Array:
    """factor^-1 change factor^-T for a symmetric matrix `change`."""
    half = xp.matrix_transpose(whiten(xp, factor, change))
    whole = whiten(xp, factor, half)
    return (whole + xp.matrix_transpose(whole)) / 2


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


def sum_residuals(xp: Any, change: Array, logs: Array) -> Array:
    """tr(E) - log det(1 + E) for a symmetric matrix E, as the sum of e_i - log(1 + e_i) over its eigenvalues e_i.

    Args:
        xp: The array namespace.
        change: E, shape (..., n, n), positive definite after 1 is added to the diagonal.
        logs: Numbers whose sum over the last axis is log det(1 + E), which are used where some |e_i| >= 1/2.

    Returns:
        The sums, shape (...). They are differentiated as a function of the matrix, to every order. The derivatives of
        the eigenvalues themselves are divided by differences of eigenvalues, which may be 0.
    """
    lead = np.broadcast_shapes(tuple(change.shape[:-2]), tuple(logs.shape[:-1]))
    change = xp.broadcast_to(change, (*lead, *change.shape[-2:]))
    logs = xp.broadcast_to(logs, (*lead, logs.shape[-1]))
    return _sum_residuals(xp, change, logs, _eigenvalues_or_inf(xp, untracked(change)))


def sum_product_residuals(xp: Any, rows: Array, columns: Array, logs: Array) -> Array:
    """`sum_residuals` of the matrix E with 1 + E = (1 + R) x (1 + C), the Kronecker product, which is not formed.

    Args:
        xp: The array namespace.
        rows: R, shape (..., m, m).
        columns: C, shape (..., n, n).
        logs: Numbers whose sum over the last axis is log det(1 + E).

    Returns:
        The sums, shape (...).
    """
    shapes = tuple(rows.shape[:-2]), tuple(columns.shape[:-2]), tuple(logs.shape[:-1])
    lead = np.broadcast_shapes(*shapes)
    rows, columns = (xp.broadcast_to(matrix, (*lead, *matrix.shape[-2:])) for matrix in (rows, columns))
    logs = xp.broadcast_to(logs, (*lead, logs.shape[-1]))
    r, c = (_eigenvalues_or_inf(xp, untracked(matrix)) for matrix in (rows, columns))
    table = r[..., :, None] + c[..., None, :] + r[..., :, None] * c[..., None, :]
    return _sum_product_residuals(xp, rows, columns, logs, xp.reshape(table, (*lead, -1)))


def _is_near(xp: Any, eigenvalues: Array) -> Array:
    return xp.all(abs(eigenvalues) < 0.5, axis=-1)


def _sum_of_eigenvalues(xp: Any, logs: Array, eigenvalues: Array) -> Array:
    near = _is_near(xp, eigenvalues)
    close = xp.sum(log1p_residual(xp.where(near[..., None], eigenvalues, 0.0)), axis=-1)
    return xp.where(near, close, xp.sum(eigenvalues, axis=-1) - xp.sum(logs, axis=-1))


def _by_matrix(xp: Any, gradient: Array, near: Array, matrix: Array, factor: Array | None) -> Array:
    """The gradient of the sum with respect to R: n (1 + R)^-1 (R + t (1 + R)), where C has n rows and the mean t.

    For one matrix E it is (1 + E)^-1 E. Where some |e_i| >= 1/2, the logarithms are other arguments, and only the trace
    contributes: n (1 + t).
    """
    eye = xp.eye(matrix.shape[-1], dtype=matrix.dtype, device=array_api_compat.device(matrix))
    safe = xp.where(near[..., None, None], matrix, 0.0)
    # The condition number of 1 + R is at most 3. PyTorch's `solve` is wrong under vmap in forward mode.
    inverse = xp.linalg.inv(eye + safe)
    if factor is None:
        by_matrix = inverse @ safe
        of_trace = eye
    else:
        count = factor.shape[-1]
        mean = (xp.linalg.trace(factor) / count)[..., None, None]
        by_matrix = count * (inverse @ (safe + mean * (eye + safe)))
        of_trace = count * (1 + mean) * eye
    return gradient[..., None, None] * xp.where(near[..., None, None], by_matrix, of_trace)


def _by_logs(xp: Any, gradient: Array, near: Array, logs: Array) -> Array:
    return xp.where(near, 0.0, -gradient)[..., None] * xp.ones_like(logs)


_sum_residuals = with_gradient(
    lambda xp, _change, logs, eigenvalues: _sum_of_eigenvalues(xp, logs, eigenvalues),
    lambda xp, gradient, _output, change, _logs, eigenvalues: _by_matrix(
        xp, gradient, _is_near(xp, eigenvalues), change, None
    ),
    lambda xp, gradient, _output, _change, logs, eigenvalues: _by_logs(xp, gradient, _is_near(xp, eigenvalues), logs),
    lambda xp, _gradient, _output, _change, _logs, eigenvalues: xp.zeros_like(eigenvalues),
)
_sum_product_residuals = with_gradient(
    lambda xp, _rows, _columns, logs, eigenvalues: _sum_of_eigenvalues(xp, logs, eigenvalues),
    lambda xp, gradient, _output, rows, columns, _logs, eigenvalues: _by_matrix(
        xp, gradient, _is_near(xp, eigenvalues), rows, columns
    ),
    lambda xp, gradient, _output, rows, columns, _logs, eigenvalues: _by_matrix(
        xp, gradient, _is_near(xp, eigenvalues), columns, rows
    ),
    lambda xp, gradient, _output, _rows, _columns, logs, eigenvalues: _by_logs(
        xp, gradient, _is_near(xp, eigenvalues), logs
    ),
    lambda xp, _gradient, _output, _rows, _columns, _logs, eigenvalues: xp.zeros_like(eigenvalues),
)
