"""KL between multivariate normal distributions and between matrix normal distributions."""

from itertools import product
from typing import Any

from array_api_compat import device

from kullback import families as f
from kullback.closed_forms._cholesky import (
    change_from_factors,
    cholesky,
    factor_of,
    log_determinant_ratios,
    require_square,
    sum_factor_residuals,
    sum_product_residuals,
    sum_residuals,
    whiten,
    whitened_change,
)
from kullback.closed_forms.registry import closed_form
from kullback.errors import ShapeError
from kullback.numerics.arrays import Array

__all__ = ["covariance_of"]

_NORMALS: tuple[type, ...] = (f.MultivariateNormal, f.LowRankMultivariateNormal)


@closed_form(*product(_NORMALS, _NORMALS))
def kl_multivariate_normal_multivariate_normal(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = MultivariateNormal(loc1, S1) and Q = MultivariateNormal(loc2, S2), with covariance matrices S.

    sum_i (e_i - log(1 + e_i))/2 + |L^-1 (loc1 - loc2)|^2/2, where e_i are the eigenvalues of S2^-1 (S1 - S2) and L is
    the Cholesky factor of S2 = L L^T. Each term of the sum is phi(log(1 + e_i)) with phi(d) = e^d - 1 - d. If a factor
    is given, the first sum is sum_i phi(2 log(K_ii/L_ii))/2 + sum_(i>j) M_ij^2/2 with S1 = K K^T and M = L^-1 K.

    The same formula holds for LowRankMultivariateNormal distributions, whose n x n covariance matrix is formed. Two
    precision matrices are used directly, and so is each Cholesky factor that is given: the product of a factor with its
    transpose is never formed. In float32 the relative error is about 1e-7 times the condition number of a covariance
    matrix, and 1e-7 times the condition number of a factor, which is its square root.
    """
    size = _event_size(p, q)
    shift = (p.loc - q.loc)[..., None]
    matrices = [_named_matrix(xp, d) for d in (p, q)]
    for (name, matrix), side in zip(matrices, "pq", strict=True):
        require_square(f"{side}'s {name}", matrix, size)
    (name_p, matrix_p), (name_q, matrix_q) = matrices
    if name_p == name_q == "precision_matrix":
        # With the precision matrices A, S2^-1 S1 = A2 A1^-1 has the eigenvalues of A1^-1 A2.
        factor_p, factor_q = (
            cholesky(xp, matrix_p, "p's precision_matrix"),
            cholesky(xp, matrix_q, "q's precision_matrix"),
        )
        change = whitened_change(xp, factor_p, matrix_q - matrix_p)
        logs = log_determinant_ratios(xp, factor_q, factor_p)
        distance = xp.matrix_transpose(factor_q) @ shift
    elif "scale_tril" in (name_p, name_q):
        # A factor is not squared: its product is rounded, and may then not be positive definite.
        factor_p, factor_q = (
            _factor(xp, side, name, matrix) for side, name, matrix in (("p", name_p, matrix_p), ("q", name_q, matrix_q))
        )
        distance = whiten(xp, factor_q, shift)
        residuals = sum_factor_residuals(xp, factor_p, factor_q)
        return (residuals + xp.sum(distance * distance, axis=(-2, -1))) / 2
    else:
        for name, matrix, side in ((name_p, matrix_p, "p"), (name_q, matrix_q, "q")):
            if name == "precision_matrix":  # an error about its inverse would name a parameter that was not given
                cholesky(xp, matrix, f"{side}'s {name}")
        matrix_p, matrix_q = _covariance(xp, name_p, matrix_p), _covariance(xp, name_q, matrix_q)
        factor_p, factor_q = (
            cholesky(xp, matrix_p, "p's covariance_matrix"),
            cholesky(xp, matrix_q, "q's covariance_matrix"),
        )
        change = whitened_change(xp, factor_q, matrix_p - matrix_q)
        logs = log_determinant_ratios(xp, factor_p, factor_q)
        distance = whiten(xp, factor_q, shift)
    return (sum_residuals(xp, change, logs) + xp.sum(distance * distance, axis=(-2, -1))) / 2


def _event_size(p: Any, q: Any) -> int:
    """The common number of components of p and q."""
    sizes = [d.loc.shape[-1] if d.loc.ndim else 0 for d in (p, q)]
    if sizes[0] != sizes[1] or sizes[0] == 0:
        raise ShapeError(
            "expected loc of p and q to be vectors of equal length, got shapes "
            f"{tuple(p.loc.shape)} and {tuple(q.loc.shape)}"
        )
    return sizes[0]


def covariance_of(xp: Any, d: Any) -> Array:
    """The covariance matrix of a MultivariateNormal or LowRankMultivariateNormal distribution, shape (..., n, n)."""
    return _covariance(xp, *_named_matrix(xp, d))


def _named_matrix(xp: Any, d: Any) -> tuple[str, Array]:
    """The name and the value of the matrix parameter; for a low-rank distribution, its covariance matrix."""
    if isinstance(d, f.LowRankMultivariateNormal):
        diagonal = d.cov_diag[..., None] * xp.eye(d.cov_diag.shape[-1], dtype=d.loc.dtype, device=device(d.loc))
        return "covariance_matrix", d.cov_factor @ xp.matrix_transpose(d.cov_factor) + diagonal
    names = ("covariance_matrix", "precision_matrix", "scale_tril")
    return next((name, getattr(d, name)) for name in names if getattr(d, name) is not None)


def _factor(xp: Any, side: str, name: str, matrix: Array) -> Array:
    """The lower Cholesky factor of the covariance matrix from the matrix parameter with this name."""
    name_of_side = f"{side}'s {name}"
    if name == "scale_tril":
        return factor_of(xp, None, matrix, (name_of_side, name_of_side))
    if name == "covariance_matrix":
        return cholesky(xp, matrix, name_of_side)
    # The factor of the precision matrix with rows and columns in reverse order, reversed, is upper triangular: U with
    # precision U U^T, so that the inverse of U^T is the lower factor of the covariance matrix.
    upper = xp.flip(cholesky(xp, xp.flip(matrix, axis=(-2, -1)), name_of_side), axis=(-2, -1))
    eye = xp.eye(matrix.shape[-1], dtype=matrix.dtype, device=device(matrix))
    return xp.tril(whiten(xp, xp.matrix_transpose(upper), eye))


def _covariance(xp: Any, name: str, matrix: Array) -> Array:
    """The covariance matrix from the matrix parameter with this name."""
    if name == "precision_matrix":
        return xp.linalg.inv(matrix)
    if name == "scale_tril":
        matrix = xp.tril(matrix)
        return matrix @ xp.matrix_transpose(matrix)
    return matrix


@closed_form((f.MatrixNormal, f.MatrixNormal))
def kl_matrix_normal_matrix_normal(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = MatrixNormal(loc1, U1, V1) and Q = MatrixNormal(loc2, U2, V2).

    U is row_covariance and V is column_covariance; their lower factors are used if they are given.

    sum_ij (e_ij - log(1 + e_ij))/2 + |A^-1 (loc1 - loc2) B^-T|^2/2 with 1 + e_ij = (1 + r_i) (1 + c_j), where r_i are
    the eigenvalues of U2^-1 (U1 - U2), c_j are the eigenvalues of V2^-1 (V1 - V2), and A and B are the Cholesky factors
    of U2 = A A^T and V2 = B B^T. Each term of the sum is phi(log(1 + e_ij)) with phi(d) = e^d - 1 - d.
    """
    if p.loc.ndim < 2 or p.loc.shape[-2:] != q.loc.shape[-2:]:
        raise ShapeError(
            f"expected loc of p and q to be matrices of equal shape, got {tuple(p.loc.shape)} and {tuple(q.loc.shape)}"
        )
    rows, columns = p.loc.shape[-2:]
    factors, changes, logs = [], [], []
    for axis, size in (("row", rows), ("column", columns)):
        names = f"{axis}_covariance", f"{axis}_scale_tril"
        pair = [tuple(getattr(d, name) for name in names) for d in (p, q)]
        for side, (matrix, factor) in zip("pq", pair, strict=True):
            name, given = (names[0], matrix) if factor is None else (names[1], factor)
            require_square(f"{side}'s {name}", given, size)
        factor_p, factor_q = (
            factor_of(xp, matrix, factor, (f"{side}'s {names[0]}", f"{side}'s {names[1]}"))
            for side, (matrix, factor) in zip("pq", pair, strict=True)
        )
        factors.append(factor_q)
        if any(factor is not None for _, factor in pair):
            changes.append(change_from_factors(xp, factor_p, factor_q))
        else:
            changes.append(whitened_change(xp, factor_q, pair[0][0] - pair[1][0]))
        logs.append(log_determinant_ratios(xp, factor_p, factor_q))

    (change_of_rows, change_of_columns), (logs_of_rows, logs_of_columns) = changes, logs
    table = logs_of_rows[..., :, None] + logs_of_columns[..., None, :]
    table = xp.reshape(table, (*table.shape[:-2], rows * columns))
    residuals = sum_product_residuals(xp, change_of_rows, change_of_columns, table)
    half = xp.matrix_transpose(whiten(xp, factors[0], p.loc - q.loc))
    distance = whiten(xp, factors[1], half)
    return (residuals + xp.sum(distance * distance, axis=(-2, -1))) / 2
