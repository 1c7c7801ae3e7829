"""Shapes of parameters that do not broadcast are refused when a distribution is created."""

import inspect

import numpy as np
import pytest
import torch

from kullback import families
from kullback.errors import ParameterError, ShapeError
from kullback.families import Distribution, Independent, LowRankMultivariateNormal, MatrixNormal, Normal

# One member of each family with several parameters.
MEMBERS = {
    "Beta": {"concentration1": 1.0, "concentration0": 2.0},
    "Binomial": {"total_count": 4, "probs": 0.5},
    "Cauchy": {"loc": 0.0, "scale": 1.0},
    "F": {"df1": 2.0, "df2": 3.0},
    "Gamma": {"concentration": 1.0, "rate": 2.0},
    "Gumbel": {"loc": 0.0, "scale": 1.0},
    "Hypergeometric": {"population": 9, "successes": 4, "draws": 3},
    "InverseGamma": {"concentration": 1.0, "rate": 2.0},
    "InverseGaussian": {"mean": 1.0, "shape": 2.0},
    "Kumaraswamy": {"concentration1": 1.0, "concentration0": 2.0},
    "Laplace": {"loc": 0.0, "scale": 1.0},
    "LogNormal": {"loc": 0.0, "scale": 1.0},
    "Logistic": {"loc": 0.0, "scale": 1.0},
    "NegativeBinomial": {"total_count": 4.0, "logits": 0.5},
    "Normal": {"loc": 0.0, "log_scale": 0.0},
    "Pareto": {"scale": 1.0, "alpha": 2.0},
    "StudentT": {"df": 3.0, "loc": 0.0, "scale": 1.0},
    "TanhNormal": {"loc": 0.0, "scale": 1.0},
    "TruncatedNormal": {"loc": 0.0, "scale": 1.0, "low": -1.0, "high": 2.0},
    "Uniform": {"low": 0.0, "high": 1.0},
    "VonMises": {"loc": 0.0, "concentration": 1.0},
    "Weibull": {"scale": 1.0, "concentration": 2.0},
    "Zipfian": {"exponent": 1.0, "total_count": 4},
    "MultivariateNormal": {"loc": np.zeros((1, 2)), "covariance_matrix": np.eye(2)[None]},
    "LowRankMultivariateNormal": {
        "loc": np.zeros((1, 2)),
        "cov_factor": np.ones((1, 2, 1)),
        "cov_diag": np.ones((1, 2)),
    },
    "Multinomial": {"total_count": np.array([4]), "probs": np.full((1, 2), 0.5)},
    "NormalMixture": {"weights": np.full((1, 2), 0.5), "locs": np.zeros((1, 2)), "scales": np.ones((1, 2))},
    "Wishart": {"df": np.array([4.0]), "scale_tril": np.eye(2)[None]},
    "InverseWishart": {"df": np.array([4.0]), "scale_matrix": np.eye(2)[None]},
    "VonMisesFisher": {"mean_direction": np.array([[1.0, 0.0]]), "concentration": np.array([1.0])},
    "MatrixNormal": {
        "loc": np.zeros((1, 2, 3)),
        "row_covariance": np.eye(2)[None],
        "column_scale_tril": np.eye(3)[None],
    },
}
ONE_PARAMETER = {
    *(
        "Bernoulli",
        "Categorical",
        "ChiSquared",
        "ContinuousBernoulli",
        "Dirichlet",
        "Exponential",
        "Geometric",
        "HalfCauchy",
    ),
    *("HalfNormal", "LKJ", "Maxwell", "OneHotCategorical", "Poisson", "Rayleigh", "Zipf", "Independent", "Transformed"),
}


def test_every_family_is_here():
    found = {name for name, one in inspect.getmembers(families, inspect.isclass) if issubclass(one, Distribution)}
    assert found - ONE_PARAMETER - {"Distribution"} == set(MEMBERS)


@pytest.mark.parametrize("family", list(MEMBERS))
def test_batch_shapes_that_do_not_broadcast(family):
    given = MEMBERS[family]
    for first in given:
        for second in given:
            if first == second:
                continue
            shapes = {first: 3, second: 2}
            repeated = {
                name: np.repeat(np.atleast_1d(value), shapes.get(name, 1), axis=0) for name, value in given.items()
            }
            with pytest.raises(ShapeError, match=f"{family}'s parameters to have shapes that broadcast, got"):
                getattr(families, family)(**repeated)
            getattr(families, family)(
                **{name: value[:1] if name == second else value for name, value in repeated.items()}
            )


@pytest.mark.parametrize(
    ("family", "given"),
    [
        (families.MultivariateNormal, {"loc": np.zeros(3), "scale_tril": np.eye(2)}),
        (families.MultivariateNormal, {"loc": np.zeros(2), "covariance_matrix": np.ones((2, 3))}),
        (LowRankMultivariateNormal, {"loc": np.zeros(2), "cov_factor": np.ones((3, 1)), "cov_diag": np.ones(3)}),
        (MatrixNormal, {"loc": np.zeros((2, 3)), "row_covariance": np.eye(3), "column_covariance": np.eye(2)}),
        (families.NormalMixture, {"weights": [0.5, 0.5], "locs": [0.0, 1.0, 2.0], "scales": 1.0}),
    ],
)
def test_axes_of_an_event_of_different_lengths(family, given):
    with pytest.raises(ShapeError, match="shapes that broadcast"):
        family(**given)


def test_a_log_scale_whose_exponential_underflows_in_its_dtype_is_named():
    for log_scale in (np.float32(-300), torch.tensor(-300.0)):
        with pytest.raises(ParameterError, match=r"Normal's log_scale to be the logarithm .* but it is -300"):
            Normal(loc=0.0, log_scale=log_scale)
    assert Normal(loc=0.0, log_scale=-300.0).scale == pytest.approx(np.exp(-300.0))


@pytest.mark.parametrize("event_dims", [-1, 1.5, "1", True, None])
def test_a_number_of_axes_that_is_none(event_dims):
    with pytest.raises(ParameterError, match="Independent's event_dims"):
        Independent(base=Normal(loc=[0.0, 1.0], scale=1.0), event_dims=event_dims)
