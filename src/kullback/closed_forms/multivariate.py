"""Multivariate and matrix normals."""

from itertools import product
from typing import Any

from array_api_compat import device

from kullback import families as f
from kullback.closed_forms._cholesky import (
    cholesky,
    log_ratios,
    relative_change,
    require_lower,
    require_square,
    sum_log_residuals,
    whiten,
)
from kullback.closed_forms.registry import closed_form
from kullback.errors import ShapeError
from kullback.numerics.arrays import Array

__all__ = ["covariance_of"]

_NORMALS: tuple[type, ...] = (f.MultivariateNormal, f.LowRankMultivariateNormal)


@closed_form(*product(_NORMALS, _NORMALS))
def multivariate_normal(xp: Any, p: Any, q: Any) -> Array:
    """sum phi(log(1 + e))/2 + |L^-1 (m1 - m2)|^2/2, e the eigenvalues of S2^-1 S1 - 1 = S2^-1 (S1 - S2), L L^T = S2.

    A low-rank covariance is written out: n^2 numbers for n dimensions.
    """
    size = _size(p, q)
    shift = (p.loc - q.loc)[..., None]
    given = [_given(xp, d) for d in (p, q)]
    for (name, matrix), side in zip(given, "pq", strict=True):
        require_square(f"{side}'s {name}", matrix, size)
    (kind_p, matrix_p), (kind_q, matrix_q) = given
    if kind_p == kind_q == "precision_matrix":
        # The eigenvalues are those of P1^-1 P2, whichever is inverted.
        factor_p, factor_q = (
            cholesky(xp, matrix_p, "p's precision_matrix"),
            cholesky(xp, matrix_q, "q's precision_matrix"),
        )
        changes, logs = relative_change(xp, factor_p, matrix_q - matrix_p), log_ratios(xp, factor_q, factor_p)
        distance = xp.matrix_transpose(factor_q) @ shift
    elif kind_p == kind_q == "scale_tril":
        for side, matrix in (("p", matrix_p), ("q", matrix_q)):
            require_lower(xp, f"{side}'s scale_tril", matrix)
        # What is 0 by its place has no gradient.
        matrix_p, matrix_q = xp.tril(matrix_p), xp.tril(matrix_q)
        step = whiten(xp, matrix_q, matrix_p - matrix_q)
        square = step @ xp.matrix_transpose(step)
        changes = xp.linalg.eigvalsh(step + xp.matrix_transpose(step) + square)
        logs, distance = log_ratios(xp, matrix_p, matrix_q), whiten(xp, matrix_q, shift)
    else:
        matrix_p, matrix_q = _covariance(xp, kind_p, matrix_p), _covariance(xp, kind_q, matrix_q)
        factor_p, factor_q = (
            cholesky(xp, matrix_p, "p's covariance_matrix"),
            cholesky(xp, matrix_q, "q's covariance_matrix"),
        )
        changes, logs = relative_change(xp, factor_q, matrix_p - matrix_q), log_ratios(xp, factor_p, factor_q)
        distance = whiten(xp, factor_q, shift)
    return (sum_log_residuals(xp, changes, logs) + xp.sum(distance * distance, axis=(-2, -1))) / 2


def _size(p: Any, q: Any) -> int:
    sizes = [d.loc.shape[-1] if d.loc.ndim else 0 for d in (p, q)]
    if sizes[0] != sizes[1] or sizes[0] == 0:
        raise ShapeError(
            f"expected vectors loc of as many dimensions, got shapes {tuple(p.loc.shape)} and {tuple(q.loc.shape)}"
        )
    return sizes[0]


def covariance_of(xp: Any, d: Any) -> Array:
    """The covariance matrix of either kind of normal vectors, however it was given."""
    return _covariance(xp, *_given(xp, d))


def _given(xp: Any, d: Any) -> tuple[str, Array]:
    if isinstance(d, f.LowRankMultivariateNormal):
        diagonal = d.cov_diag[..., None] * xp.eye(d.cov_diag.shape[-1], dtype=d.loc.dtype, device=device(d.loc))
        return "covariance_matrix", d.cov_factor @ xp.matrix_transpose(d.cov_factor) + diagonal
    names = ("covariance_matrix", "precision_matrix", "scale_tril")
    return next((name, getattr(d, name)) for name in names if getattr(d, name) is not None)


def _covariance(xp: Any, kind: str, matrix: Array) -> Array:
    if kind == "precision_matrix":
        return xp.linalg.inv(matrix)
    if kind == "scale_tril":
        matrix = xp.tril(matrix)
        return matrix @ xp.matrix_transpose(matrix)
    return matrix


@closed_form((f.MatrixNormal, f.MatrixNormal))
def matrix_normal(xp: Any, p: Any, q: Any) -> Array:
    """That of normals with Kronecker covariances: 1 + e = (1 + r_i) (1 + c_j) over rows and columns."""
    if p.loc.ndim < 2 or p.loc.shape[-2:] != q.loc.shape[-2:]:
        raise ShapeError(
            f"expected matrices loc of one shape, got shapes {tuple(p.loc.shape)} and {tuple(q.loc.shape)}"
        )
    rows, columns = p.loc.shape[-2:]
    factors, changes, logs = [], [], []
    for name, size in (("row_covariance", rows), ("column_covariance", columns)):
        pair = [getattr(d, name) for d in (p, q)]
        for side, matrix in zip("pq", pair, strict=True):
            require_square(f"{side}'s {name}", matrix, size)
        factor_p, factor_q = (cholesky(xp, matrix, f"{s}'s {name}") for s, matrix in zip("pq", pair, strict=True))
        factors.append(factor_q)
        changes.append(relative_change(xp, factor_q, pair[0] - pair[1]))
        logs.append(log_ratios(xp, factor_p, factor_q))

    def both(r: Array, c: Array) -> Array:
        table = r[..., :, None] + c[..., None, :]
        return xp.reshape(table, (*table.shape[:-2], rows * columns))

    product_of_changes = changes[0][..., :, None] * changes[1][..., None, :]
    whole = both(*changes) + xp.reshape(product_of_changes, (*product_of_changes.shape[:-2], rows * columns))
    half = xp.matrix_transpose(whiten(xp, factors[0], p.loc - q.loc))
    distance = whiten(xp, factors[1], half)
    return (sum_log_residuals(xp, whole, both(*logs)) + xp.sum(distance * distance, axis=(-2, -1))) / 2
