"""The distributions that `kl` and `measure` accept: one class for each family, each a frozen record of parameters.

Parameters are passed by keyword and stored as given: numbers, lists, or arrays of NumPy, PyTorch, JAX or another array
API library. The shapes of the parameters broadcast to the batch shape. A parameter that violates its constraint raises
ParameterError.
"""

from kullback.families.base import Distribution
from kullback.families.bounded import Beta, ContinuousBernoulli, Kumaraswamy, Uniform, VonMises
from kullback.families.composite import Independent, NormalMixture, TanhNormal, Transformed
from kullback.families.counts import (
    Bernoulli,
    Binomial,
    Categorical,
    Geometric,
    Hypergeometric,
    Multinomial,
    NegativeBinomial,
    OneHotCategorical,
    Poisson,
    Zipf,
    Zipfian,
)
from kullback.families.multivariate import (
    Dirichlet,
    InverseWishart,
    LowRankMultivariateNormal,
    MatrixNormal,
    MultivariateNormal,
    VonMisesFisher,
    Wishart,
)
from kullback.families.positive import (
    ChiSquared,
    Exponential,
    F,
    Gamma,
    HalfCauchy,
    HalfNormal,
    InverseGamma,
    InverseGaussian,
    LogNormal,
    Maxwell,
    Pareto,
    Rayleigh,
    Weibull,
)
from kullback.families.real_line import Cauchy, Gumbel, Laplace, Logistic, Normal, StudentT

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "Cauchy",
    "ChiSquared",
    "ContinuousBernoulli",
    "Dirichlet",
    "Distribution",
    "Exponential",
    "F",
    "Gamma",
    "Geometric",
    "Gumbel",
    "HalfCauchy",
    "HalfNormal",
    "Hypergeometric",
    "Independent",
    "InverseGamma",
    "InverseGaussian",
    "InverseWishart",
    "Kumaraswamy",
    "Laplace",
    "LogNormal",
    "Logistic",
    "LowRankMultivariateNormal",
    "MatrixNormal",
    "Maxwell",
    "Multinomial",
    "MultivariateNormal",
    "NegativeBinomial",
    "Normal",
    "NormalMixture",
    "OneHotCategorical",
    "Pareto",
    "Poisson",
    "Rayleigh",
    "StudentT",
    "TanhNormal",
    "Transformed",
    "Uniform",
    "VonMises",
    "VonMisesFisher",
    "Weibull",
    "Wishart",
    "Zipf",
    "Zipfian",
]
