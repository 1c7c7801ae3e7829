"""Options of a wrong type raise a KullbackError, which names the option and the value."""

import pytest

import kullback
from kullback.errors import KullbackError
from kullback.families import Normal

NORMAL = Normal(loc=0.0, scale=1.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: kullback.KLBudget("x"),
        lambda: kullback.KLBudget(None),
        lambda: kullback.frontier([0.5, 0.5], [0.0, 1.0], points="x"),
        lambda: kullback.frontier([0.5, 0.5], [0.0, 1.0], points=2.5),
        lambda: kullback.measure(NORMAL, NORMAL, method="Monte Carlo", confidence="x"),
        lambda: kullback.measure(NORMAL, NORMAL, error="x"),
        lambda: kullback.preset([]),
        lambda: kullback.register_kl(3, 4),
    ],
)
def test_options_of_a_wrong_type_are_refused(call):
    with pytest.raises(KullbackError, match=r"expected .*got"):
        call()
