"""KL between Wishart distributions and between inverse-Wishart distributions."""

from typing import Any

import numpy as np
from array_api_compat import device

from kullback import families as f
from kullback.closed_forms._cholesky import (
    change_from_factors,
    factor_of,
    log_determinant_ratios,
    require_square,
    sum_residuals,
    whitened_change,
)
from kullback.closed_forms.registry import closed_form
from kullback.errors import ParameterError, ShapeError
from kullback.families.base import values_of
from kullback.numerics.arrays import Array, is_traced
from kullback.numerics.log_gamma import gamma_kl_equal_mean
from kullback.numerics.phi import log1p_residual, log_ratio

__all__: list[str] = []


@closed_form((f.Wishart, f.Wishart))
def kl_wishart_wishart(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Wishart(df1, V1) and Q = Wishart(df2, V2), with n x n covariance matrices V.

    df2/2 sum_j phi(log(l_j df1/df2)) + sum_i (D(a - e_i, b - e_i) + c_i log(c_i/(a - e_i)) - b log(b/a)), where l_j are
    the eigenvalues of V2^-1 V1, a = df1/2, b = df2/2, e_i = i/2 for i = 0, ..., n - 1, c_i = b - e_i,
    phi(d) = e^d - 1 - d, and D(a, b) = lgamma(b) - lgamma(a) - (b - a) digamma(a) - b phi(log(a/b)).

    It equals sum_j (df1 (l_j - 1) - df2 log(l_j))/2 + sum_i R((df1 - i)/2, (df2 - df1)/2) with
    R(a, h) = lgamma(a + h) - lgamma(a) - h digamma(a); Stirling's leading terms, which cancel, are removed.
    """
    factors = p.scale_tril, q.scale_tril
    return _kl_wishart(xp, p.df, q.df, "covariance_matrix", p.covariance_matrix, q.covariance_matrix, factors)


@closed_form((f.InverseWishart, f.InverseWishart))
def kl_inverse_wishart_inverse_wishart(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = InverseWishart(df1, V1) and Q = InverseWishart(df2, V2), with n x n scale matrices V.

    KL(Wishart(df1, V1^-1) || Wishart(df2, V2^-1)), because inverting a matrix does not change KL. It is computed as
    df2/2 sum_j phi(log(l_j df1/df2)) + sum_i (D(a - e_i, b - e_i) + c_i log(c_i/(a - e_i)) - b log(b/a)), where l_j are
    the eigenvalues of V1^-1 V2, a = df1/2, b = df2/2, e_i = i/2 for i = 0, ..., n - 1, c_i = b - e_i,
    phi(d) = e^d - 1 - d, and D(a, b) = lgamma(b) - lgamma(a) - (b - a) digamma(a) - b phi(log(a/b)).
    """
    return _kl_wishart(xp, p.df, q.df, "scale_matrix", q.scale_matrix, p.scale_matrix)


def _kl_wishart(
    xp: Any,
    df_p: Array,
    df_q: Array,
    name: str,
    matrix_p: Array | None,
    matrix_q: Array | None,
    factors: tuple[Array | None, Array | None] = (None, None),
) -> Array:
    """KL(Wishart(df_p, matrix_p) || Wishart(df_q, matrix_q)); messages call the matrices `name`.

    A lower factor in `factors` takes the place of its matrix.
    """
    given = [matrix if factor is None else factor for matrix, factor in zip((matrix_p, matrix_q), factors, strict=True)]
    shapes = [tuple(array.shape) for array in given]  # pyright: ignore[reportOptionalMemberAccess]
    if len(shapes[0]) < 2 or shapes[0][-2:] != shapes[1][-2:]:
        raise ShapeError(f"expected {name} of p and q to have equal size, got {shapes[0]} and {shapes[1]}")
    size = shapes[0][-1]
    require_square(name, given[0], size)
    for df in (df_p, df_q):
        require_degrees(df, size)
    factor_p = factor_of(xp, matrix_p, factors[0], (f"p's {name}", "p's scale_tril"))
    factor_q = factor_of(xp, matrix_q, factors[1], (f"q's {name}", "q's scale_tril"))
    if matrix_p is None or matrix_q is None:
        change = change_from_factors(xp, factor_p, factor_q)
    else:
        change = whitened_change(xp, factor_q, matrix_p - matrix_q)
    logs = log_determinant_ratios(xp, factor_p, factor_q)
    # The ratio of the means df V is (1 + E) (1 + x) with x = (df_p - df_q)/df_q, for the ratio 1 + E of the matrices V.
    x, log_x = ((df_p - df_q) / df_q)[..., None], log_ratio(xp, df_p, df_q)[..., None]
    eye = xp.eye(size, dtype=change.dtype, device=device(change))
    means = df_q / 2 * sum_residuals(xp, change + x[..., None] * (eye + change), logs + log_x)
    half = xp.asarray(np.arange(size) / 2, dtype=change.dtype, device=device(change))
    a, b, h = (df_p / 2)[..., None], (df_q / 2)[..., None], ((df_q - df_p) / 2)[..., None]
    return means + xp.sum(gamma_kl_equal_mean(xp, a - half, b - half, h) + _stirling_shift(xp, a, b, h, half), axis=-1)


def require_degrees(df: Array, size: int) -> None:
    """Raise ParameterError unless the degrees of freedom exceed the number of rows minus 1."""
    if is_traced(df) or 0 in df.shape:
        return
    if (smallest := float(values_of(df).min())) <= size - 1:
        raise ParameterError(f"expected df > {size - 1} for {size} x {size} matrices, got {smallest!r}")


def _stirling_shift(xp: Any, a: Array, b: Array, h: Array, e: Array) -> Array:
    """c log(c/(a - e)) - b log(b/a) >= 0 with c = b - e, h = b - a: the effect of a shift by e on Stirling's terms."""
    c, ratio = b - e, h / a
    z = e * h / ((a - e) * b)
    near = (abs(ratio) < 0.5) & (abs(z) < 0.5)
    safe_ratio, safe_z = xp.where(near, ratio, 0.0), xp.where(near, z, 0.0)
    close = e * log1p_residual(safe_ratio) + e * z * (h / a) - c * log1p_residual(safe_z)
    return xp.where(near, close, c * xp.log1p(z) - e * log_ratio(xp, b, a))
