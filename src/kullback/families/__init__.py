"""Frozen records of parameters, one for each family of distributions: what `kl` and `measure` are told.

Each takes its parameters by keyword, and keeps them as they are: numbers, lists, or arrays of any library; their shapes
broadcast. A parameter outside its set raises ParameterError.
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
