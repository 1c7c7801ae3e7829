"""Distributions of vectors and matrices: the event's axes are the parameters' last ones."""

from kullback.families.base import (
    Distribution,
    Nonnegative,
    Positive,
    Real,
    record,
    require_one_of,
    require_unit_length,
)

__all__ = [
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
    """Normal vectors of mean loc (..., n), and of covariance_matrix, precision_matrix or scale_tril (..., n, n).

    scale_tril is the lower Cholesky factor of the covariance. Give one of the three.
    """

    loc: Real
    covariance_matrix: Real = None
    precision_matrix: Real = None
    scale_tril: Real = None

    def _check(self) -> None:
        require_one_of(self, "covariance_matrix", "precision_matrix", "scale_tril")


@record
class LowRankMultivariateNormal(Distribution):
    """Normal vectors of mean loc (..., n) and covariance cov_factor cov_factor^T + diag(cov_diag).

    cov_factor has shape (..., n, rank) and cov_diag shape (..., n).
    """

    loc: Real
    cov_factor: Real
    cov_diag: Positive


@record
class Dirichlet(Distribution):
    """Density proportional to prod_i x_i^(concentration_i - 1) on the simplex; concentration has shape (..., n)."""

    concentration: Positive


@record
class Wishart(Distribution):
    """Density proportional to |X|^((df - n - 1) / 2) exp(-tr(V^-1 X) / 2), V = covariance_matrix (..., n, n).

    df > n - 1; the mean is df V.
    """

    df: Positive
    covariance_matrix: Real


@record
class InverseWishart(Distribution):
    """Density proportional to |X|^(-(df + n + 1) / 2) exp(-tr(V X^-1) / 2), V = scale_matrix (..., n, n).

    df > n - 1; X^-1 is Wishart(df, V^-1).
    """

    df: Positive
    scale_matrix: Real


@record
class MatrixNormal(Distribution):
    """Normal matrices of mean loc (..., m, n): the covariance of entries (i, k) and (j, l) is row[i, j] column[k, l].

    row_covariance has shape (..., m, m), and column_covariance shape (..., n, n).
    """

    loc: Real
    row_covariance: Real
    column_covariance: Real


@record
class VonMisesFisher(Distribution):
    """Density proportional to exp(concentration mean_direction . x) on the unit sphere of n dimensions, n >= 2.

    mean_direction (..., n) has length 1.
    """

    mean_direction: Real
    concentration: Nonnegative

    def _check(self) -> None:
        require_unit_length(self, "mean_direction")
