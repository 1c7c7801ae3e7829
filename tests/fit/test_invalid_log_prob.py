"""`fit_reverse` refuses a log_prob that is no log-density with a sentence, and never with an IndexError."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kullback import fit_reverse
from kullback.errors import KullbackError, SupportError
from kullback.families import Gamma, Geometric, Normal, Poisson

NOT_INTEGRABLE: dict[str, Callable[[Any], Any]] = {
    "square": lambda x: x**2,
    "exponential": np.exp,
    "constant": lambda x: 0 * x,
    "absolute value": np.abs,
    "infinite": lambda x: np.full(x.shape, np.inf),
}


@pytest.mark.parametrize("name", NOT_INTEGRABLE)
@pytest.mark.parametrize("family", [Normal, Gamma])
def test_a_function_without_a_finite_integral(name: str, family: Any) -> None:
    with np.errstate(all="ignore"), pytest.raises(SupportError, match="a finite integral"):
        fit_reverse(family, log_prob=NOT_INTEGRABLE[name])


@pytest.mark.parametrize(
    ("log_prob", "message"),
    [
        (3, "expected log_prob to be a function, got 3"),
        ("normal", "expected log_prob to be a function, got 'normal'"),
        (lambda x: ["a"] * len(x), "expected log_prob to return numbers, got list"),
        (lambda x: "a", "expected log_prob to return numbers, got str"),
        (lambda x: -1j * x, "expected log_prob to return real numbers"),
        (lambda x: None, "shape"),
    ],
)
def test_a_function_of_another_kind(log_prob: Any, message: str) -> None:
    with pytest.raises(KullbackError, match=message):
        fit_reverse(Normal, log_prob=log_prob)


@pytest.mark.parametrize("family", [Poisson, Geometric])
def test_a_discrete_family_requires_a_target(family: Any) -> None:
    with pytest.raises(SupportError, match=f"the discrete family {family.__name__}; pass a distribution"):
        fit_reverse(family, log_prob=lambda x: -x)
