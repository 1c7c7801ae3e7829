"""Wishart matrices and their inverses."""

from typing import Any

import numpy as np
from array_api_compat import device

from kullback import families as f
from kullback.closed_forms._cholesky import cholesky, log_ratios, relative_change, require_square, sum_log_residuals
from kullback.closed_forms.registry import closed_form
from kullback.errors import ParameterError, ShapeError
from kullback.families.base import is_traced
from kullback.numerics.arrays import Array, untracked
from kullback.numerics.log_gamma import gamma_kl_equal_mean
from kullback.numerics.phi import log1p_residual, log_ratio

__all__: list[str] = []


@closed_form((f.Wishart, f.Wishart))
def wishart(xp: Any, p: Any, q: Any) -> Array:
    """sum_j (n1 (l_j - 1) - n2 log(l_j))/2 + sum_i R((n1 - i)/2, (n2 - n1)/2), i = 0, ..., dim - 1,

    l being the eigenvalues of V2^-1 V1; with Stirling's leading terms taken out of R, n2/2 sum_j phi(log(l_j n1/n2)).
    """
    return _wishart(xp, p.df, q.df, "covariance_matrix", p.covariance_matrix, q.covariance_matrix)


@closed_form((f.InverseWishart, f.InverseWishart))
def inverse_wishart(xp: Any, p: Any, q: Any) -> Array:
    """That of the inverses, whose covariances are the inverse scales: V2^-1 V1 becomes U2 U1^-1."""
    return _wishart(xp, p.df, q.df, "scale_matrix", q.scale_matrix, p.scale_matrix)


def _wishart(xp: Any, df_p: Array, df_q: Array, name: str, matrix_p: Array, matrix_q: Array) -> Array:
    if matrix_p.ndim < 2 or matrix_p.shape[-2:] != matrix_q.shape[-2:]:
        raise ShapeError(
            f"expected {name} of as many dimensions, got shapes {tuple(matrix_p.shape)} and {tuple(matrix_q.shape)}"
        )
    size = matrix_p.shape[-1]
    require_square(name, matrix_p, size)
    for df in (df_p, df_q):
        if not is_traced(df) and xp.any(untracked(df) <= size - 1):
            least = float(xp.min(untracked(df)))
            raise ParameterError(f"expected df > {size - 1}, matrices being {size} x {size}, but it is {least!r}")
    factor_p, factor_q = cholesky(xp, matrix_p, f"p's {name}"), cholesky(xp, matrix_q, f"q's {name}")
    changes, logs = relative_change(xp, factor_q, matrix_p - matrix_q), log_ratios(xp, factor_p, factor_q)
    # The means df V compare as mu - 1 = e + x + x e, x being (n1 - n2)/n2.
    x, log_x = ((df_p - df_q) / df_q)[..., None], log_ratio(xp, df_p, df_q)[..., None]
    means = df_q / 2 * sum_log_residuals(xp, changes + x + x * changes, logs + log_x)
    half = xp.asarray(np.arange(size) / 2, dtype=changes.dtype, device=device(changes))
    a, b, h = (df_p / 2)[..., None], (df_q / 2)[..., None], ((df_q - df_p) / 2)[..., None]
    return means + xp.sum(gamma_kl_equal_mean(xp, a - half, b - half, h) + _leading(xp, a, b, h, half), axis=-1)


def _leading(xp: Any, a: Array, b: Array, h: Array, e: Array) -> Array:
    """c log(c/(a - e)) - b log(b/a) >= 0 with c = b - e: what a shift by e adds to Stirling's leading terms."""
    c, ratio = b - e, h / a
    z = e * h / ((a - e) * b)
    near = (abs(ratio) < 0.5) & (abs(z) < 0.5)
    safe_ratio, safe_z = xp.where(near, ratio, 0.0), xp.where(near, z, 0.0)
    close = e * log1p_residual(safe_ratio) + e * z * (h / a) - c * log1p_residual(safe_z)
    return xp.where(near, close, c * xp.log1p(z) - e * log_ratio(xp, b, a))
