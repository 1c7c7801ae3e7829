"""Distributions of vectors and matrices; the event axes are the last axes of the parameters."""

import numpy as np

from kullback.errors import ParameterError
from kullback.families.base import (
    Count,
    Distribution,
    Nonnegative,
    Positive,
    Real,
    axes,
    record,
    require_axes,
    require_one_of,
    require_unit_length,
)
from kullback.numerics.arrays import is_traced

__all__ = [
    "LKJ",
    "Dirichlet",
    "InverseWishart",
    "LowRankMultivariateNormal",
    "MatrixNormal",
    "MultivariateNormal",
    "VonMisesFisher",
    "Wishart",
]


@record
class MultivariateNormal(Distribution):
    """Multivariate normal distribution of vectors of n components.

    Density: exp(-(x - loc)^T S^-1 (x - loc) / 2) / sqrt((2 pi)^n |S|) with the covariance matrix S. Pass exactly one of
    `covariance_matrix`, `precision_matrix` and `scale_tril`. The matrices are checked when KL is computed.

    Args:
        loc: The mean, shape (..., n); finite.
        covariance_matrix: S, shape (..., n, n); symmetric and positive definite.
        precision_matrix: S^-1, shape (..., n, n); symmetric and positive definite.
        scale_tril: The lower Cholesky factor L with S = L L^T, shape (..., n, n); lower triangular with a positive
            diagonal.

    Raises:
        ParameterError: An entry is not finite, or not exactly one of the three matrices is passed.
        ShapeError: The matrix has fewer than 2 axes.

    Example:
        >>> from kullback import kl
        >>> covariance = [[2.0, 0.5], [0.5, 1.0]]
        >>> p, q = (MultivariateNormal(loc=loc, covariance_matrix=covariance) for loc in ([0.0, 0.0], [1.0, 0.0]))
        >>> round(float(kl(p, q)), 6)
        0.285714
    """

    event_axes = axes(loc="n", covariance_matrix="n, n", precision_matrix="n, n", scale_tril="n, n")

    loc: Real
    covariance_matrix: Real = None
    precision_matrix: Real = None
    scale_tril: Real = None

    def _check(self) -> None:
        require_one_of(self, "covariance_matrix", "precision_matrix", "scale_tril")
        for name in ("covariance_matrix", "precision_matrix", "scale_tril"):
            require_axes(self, name, self.event_axes[name])


@record
class LowRankMultivariateNormal(Distribution):
    """Multivariate normal distribution whose covariance matrix is a low-rank matrix plus a diagonal matrix.

    Density: exp(-(x - loc)^T S^-1 (x - loc) / 2) / sqrt((2 pi)^n |S|) with S = W W^T + diag(d), where W = cov_factor
    and d = cov_diag.

    Args:
        loc: The mean, shape (..., n); finite.
        cov_factor: W, shape (..., n, rank); finite.
        cov_diag: d, shape (..., n); > 0 and finite.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.
        ShapeError: `cov_factor` has fewer than 2 axes, or `cov_diag` has none.

    Example:
        >>> from kullback import kl
        >>> p, q = (
        ...     LowRankMultivariateNormal(loc=loc, cov_factor=[[1.0], [0.5]], cov_diag=[1.0, 1.0])
        ...     for loc in ([0.0, 0.0], [1.0, 0.0])
        ... )
        >>> round(float(kl(p, q)), 6)
        0.277778
    """

    event_axes = axes(loc="n", cov_factor="n, rank", cov_diag="n")

    loc: Real
    cov_factor: Real
    cov_diag: Positive

    def _check(self) -> None:
        require_axes(self, "cov_factor", "n, rank")
        require_axes(self, "cov_diag", "n")


@record
class Dirichlet(Distribution):
    """Dirichlet distribution on the simplex of vectors with n non-negative components that sum to 1.

    Density: Gamma(sum_i concentration_i) prod_i x_i^(concentration_i - 1) / Gamma(concentration_i).

    Args:
        concentration: The parameter, shape (..., n); > 0 and finite.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.
        ShapeError: `concentration` has no axis.

    Example:
        >>> from kullback import kl
        >>> p, q = Dirichlet(concentration=[1.0, 2.0, 3.0]), Dirichlet(concentration=[1.0, 1.0, 1.0])
        >>> round(float(kl(p, q)), 6)
        0.551197
    """

    event_axes = axes(concentration="n")

    concentration: Positive

    def _check(self) -> None:
        require_axes(self, "concentration", "n")


@record
class LKJ(Distribution):
    """LKJ distribution of correlation matrices, of Lewandowski, Kurowicka and Joe.

    Density: proportional to |X|^(concentration - 1). The Cholesky factor of X has the same KL, because it is an
    invertible function of X.

    Args:
        dim: The number of rows; an integer >= 1.
        concentration: The parameter, shape (...); > 0 and finite. At 1, all correlation matrices are equally probable.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    References:
        Lewandowski, Kurowicka and Joe (2009), "Generating random correlation matrices based on vines and extended onion
        method", section 3.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(LKJ(dim=3, concentration=2.0), LKJ(dim=3, concentration=1.0))), 6)
        0.261202
    """

    dim: Count
    concentration: Positive

    def _check(self) -> None:
        if is_traced(self.dim) or np.ndim(self.dim) or self.dim < 1:
            raise ParameterError(f"expected LKJ's dim to be an integer >= 1, got {self.dim!r}")


@record
class Wishart(Distribution):
    """Wishart distribution on symmetric positive definite n x n matrices.

    Density: |X|^((df - n - 1) / 2) exp(-tr(V^-1 X) / 2) / (2^(df n / 2) |V|^(df / 2) Gamma_n(df / 2)), where
    V = covariance_matrix and Gamma_n is the multivariate gamma function. The mean is df V. Pass exactly one of
    `covariance_matrix` and `scale_tril`.

    Args:
        df: The degrees of freedom; > n - 1 and finite, shape (...). The bound is checked when KL is computed.
        covariance_matrix: V, shape (..., n, n); symmetric and positive definite, checked when KL is computed.
        scale_tril: The lower Cholesky factor L with V = L L^T, shape (..., n, n); lower triangular with a positive
            diagonal, checked when KL is computed.

    Raises:
        ParameterError: df is not positive and finite, an entry of the matrix is not finite, or not exactly one of the
            two matrices is passed.

    Example:
        >>> from kullback import kl
        >>> p, q = (Wishart(df=df, covariance_matrix=[[1.0, 0.0], [0.0, 1.0]]) for df in (4.0, 5.0))
        >>> round(float(kl(p, q)), 6)
        0.175828
    """

    event_axes = axes(covariance_matrix="n, n", scale_tril="n, n")

    df: Positive
    covariance_matrix: Real = None
    scale_tril: Real = None

    def _check(self) -> None:
        require_one_of(self, "covariance_matrix", "scale_tril")
        require_axes(self, "covariance_matrix", "n, n")
        require_axes(self, "scale_tril", "n, n")


@record
class InverseWishart(Distribution):
    """Inverse-Wishart distribution on symmetric positive definite n x n matrices.

    X has this distribution if X^-1 has the Wishart distribution with the same df and the covariance matrix V^-1.

    Density: |V|^(df / 2) |X|^(-(df + n + 1) / 2) exp(-tr(V X^-1) / 2) / (2^(df n / 2) Gamma_n(df / 2)), where
    V = scale_matrix and Gamma_n is the multivariate gamma function.

    Args:
        df: The degrees of freedom; > n - 1 and finite, shape (...). The bound is checked when KL is computed.
        scale_matrix: V, shape (..., n, n); symmetric and positive definite, checked when KL is computed.

    Raises:
        ParameterError: df is not positive and finite, or an entry of the matrix is not finite.
        ShapeError: The matrix has fewer than 2 axes.

    Example:
        >>> from kullback import kl
        >>> p, q = (InverseWishart(df=df, scale_matrix=[[1.0, 0.0], [0.0, 1.0]]) for df in (4.0, 5.0))
        >>> round(float(kl(p, q)), 6)
        0.175828
    """

    event_axes = axes(scale_matrix="n, n")

    df: Positive
    scale_matrix: Real

    def _check(self) -> None:
        require_axes(self, "scale_matrix", "n, n")


@record
class MatrixNormal(Distribution):
    """Matrix normal distribution of m x n matrices: the covariance of x_ik and x_jl is U_ij V_kl.

    Density: exp(-tr(V^-1 (X - loc)^T U^-1 (X - loc)) / 2) / ((2 pi)^(m n / 2) |V|^(m / 2) |U|^(n / 2)), where
    U = row_covariance and V = column_covariance. The matrices are checked when KL is computed. Pass exactly one of
    `row_covariance` and `row_scale_tril`, and one of `column_covariance` and `column_scale_tril`.

    Args:
        loc: The mean, shape (..., m, n); finite.
        row_covariance: U, shape (..., m, m); symmetric and positive definite.
        column_covariance: V, shape (..., n, n); symmetric and positive definite.
        row_scale_tril: The lower Cholesky factor of U, shape (..., m, m); with a positive diagonal.
        column_scale_tril: The lower Cholesky factor of V, shape (..., n, n); with a positive diagonal.

    Raises:
        ParameterError: An entry of a parameter is not finite, or a covariance and its factor are both passed or both
            absent.

    Example:
        >>> from kullback import kl
        >>> p, q = (
        ...     MatrixNormal(loc=[[loc, 0.0]], row_covariance=[[2.0]], column_covariance=[[1.0, 0.0], [0.0, 1.0]])
        ...     for loc in (0.0, 1.0)
        ... )
        >>> round(float(kl(p, q)), 6)
        0.25
    """

    event_axes = axes(
        loc="m, n", row_covariance="m, m", column_covariance="n, n", row_scale_tril="m, m", column_scale_tril="n, n"
    )

    loc: Real
    row_covariance: Real = None
    column_covariance: Real = None
    row_scale_tril: Real = None
    column_scale_tril: Real = None

    def _check(self) -> None:
        require_one_of(self, "row_covariance", "row_scale_tril")
        require_one_of(self, "column_covariance", "column_scale_tril")
        for name in ("row_covariance", "row_scale_tril"):
            require_axes(self, name, "m, m")
        for name in ("column_covariance", "column_scale_tril"):
            require_axes(self, name, "n, n")


@record
class VonMisesFisher(Distribution):
    """Von Mises-Fisher distribution on the unit sphere in n dimensions, n >= 2.

    Density: C exp(concentration mean_direction . x) with
    C = concentration^(n/2 - 1) / ((2 pi)^(n/2) I_(n/2 - 1)(concentration)) and the modified Bessel function I.

    Args:
        mean_direction: The mean direction, shape (..., n); a vector of Euclidean norm 1.
        concentration: The concentration; >= 0 and finite, shape (...). 0 gives the uniform distribution.

    Raises:
        ParameterError: An entry violates its constraint, or a mean direction does not have norm 1.
        ShapeError: `mean_direction` is a number.

    Example:
        >>> from kullback import kl
        >>> p, q = (VonMisesFisher(mean_direction=mean, concentration=2.0) for mean in ([1.0, 0.0], [0.0, 1.0]))
        >>> round(float(kl(p, q)), 6)
        1.395549
    """

    event_axes = axes(mean_direction="n")

    mean_direction: Real
    concentration: Nonnegative

    def _check(self) -> None:
        require_unit_length(self, "mean_direction")
