"""Parameters without the axes of an event, integers beyond 64 bits, and dtypes of parameters without axes."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from kullback import families as f
from kullback import kl
from kullback.errors import ArrayTypeError, ShapeError


@pytest.mark.parametrize(
    ("family", "parameters", "name", "shape"),
    [
        (f.Dirichlet, {"concentration": 1.0}, "concentration", r"\(\.\.\., n\)"),
        (f.Dirichlet, {"concentration": torch.tensor(1.0)}, "concentration", r"\(\.\.\., n\)"),
        (f.MultivariateNormal, {"loc": [0.0], "scale_tril": 1.0}, "scale_tril", r"\(\.\.\., n, n\)"),
        (f.MultivariateNormal, {"loc": [0.0], "covariance_matrix": [1.0]}, "covariance_matrix", "1 axis"),
        (f.MultivariateNormal, {"loc": [0.0], "precision_matrix": np.float64(1)}, "precision_matrix", "without axes"),
        (f.Wishart, {"df": 3.0, "covariance_matrix": 1.0}, "covariance_matrix", r"\(\.\.\., n, n\)"),
        (f.InverseWishart, {"df": 3.0, "scale_matrix": [1.0]}, "scale_matrix", r"\(\.\.\., n, n\)"),
        (
            f.MatrixNormal,
            {"loc": [[0.0]], "row_covariance": 1.0, "column_covariance": [[1.0]]},
            "row_covariance",
            r"\(\.\.\., m, m\)",
        ),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_parameter_without_the_axes_of_an_event(
    family: Any, parameters: dict[str, Any], name: str, shape: str
) -> None:
    with pytest.raises(ShapeError, match=f"{family.__name__}'s {name} to have shape .*{shape}|{shape}"):
        family(**parameters)


def test_integers_beyond_64_bits() -> None:
    p, q = f.Normal(loc=2**70, scale=1.0), f.Normal(loc=0, scale=1)
    assert float(kl(p, q)) == 2.0**139
    with pytest.raises(ArrayTypeError, match="Normal's loc: expected numbers within the range of float64"):
        f.Normal(loc=10**400, scale=1.0)


@pytest.mark.parametrize(
    ("p", "q"), list(product([torch.float16, torch.bfloat16, torch.float32, torch.float64], repeat=2)), ids=str
)
def test_the_dtype_does_not_depend_on_the_order_or_the_axes(p: torch.dtype, q: torch.dtype) -> None:
    def normal(dtype: torch.dtype, shape: tuple[int, ...]) -> f.Normal:
        return f.Normal(loc=torch.zeros(shape, dtype=dtype), scale=torch.ones(shape, dtype=dtype))

    for shape_p, shape_q in product([(), (1,)], repeat=2):
        assert kl(normal(p, shape_p), normal(q, shape_q)).dtype == torch.promote_types(p, q)
