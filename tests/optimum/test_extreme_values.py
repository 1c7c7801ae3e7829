"""Optima for subnormal probabilities of the reference, rewards at the ends of float64, and infinite counts."""

import math

import mpmath
import numpy as np
import pytest

from kullback import MDP, best_of_n_policy, soft_value_iteration, tilt, tilt_to_budget
from kullback.errors import SupportError
from kullback.optimum.trajectory_kl import policy_objective


def expected_kl(ref: list[float], reward: list[float], beta: float) -> tuple[list[float], float]:
    """The tilted policy and its KL in 50 digits."""
    with mpmath.workdps(50):
        weights = [mpmath.mpf(p) * mpmath.exp(mpmath.mpf(r) / beta) for p, r in zip(ref, reward, strict=True)]
        policy = [w / mpmath.fsum(weights) for w in weights]
        total = mpmath.fsum(ref)
        kl = mpmath.fsum(p * mpmath.log(p * total / q) for p, q in zip(policy, ref, strict=True) if p)
        return [float(p) for p in policy], float(kl)


@pytest.mark.parametrize("small", [1e-300, 1e-310, 1e-315, 5e-324])
@pytest.mark.parametrize("beta", [1e-3, 1.35e-3, 1.4e-3, 2e-3])
def test_tilt_of_a_subnormal_probability(small: float, beta: float) -> None:
    found = tilt([1.0, small], [0.0, 1.0], beta)
    policy, kl = expected_kl([1.0, small], [0.0, 1.0], beta)
    np.testing.assert_allclose(found.policy, policy, rtol=1e-11, atol=1e-300)
    assert float(found.kl) == pytest.approx(kl, rel=1e-11)


@pytest.mark.parametrize("small", [1e-310, 5e-324])
@pytest.mark.parametrize("budget", [1.0, 100.0, 600.0])
def test_a_budget_with_a_subnormal_probability_is_met(small: float, budget: float) -> None:
    found = tilt_to_budget([1.0, small], [0.0, 1.0], budget)
    assert float(found.kl) == pytest.approx(budget, rel=1e-11)
    assert found.policy.sum() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize(("options", "rewards"), [({"discount": 0.9}, [0.0, 1e308]), ({"horizon": 3}, [-1e308, 1e308])])
def test_values_beyond_float64_are_refused(options: dict, rewards: list[float]) -> None:
    mdp = MDP([[[1.0], [1.0]]], [rewards], **options)
    for call in (soft_value_iteration, lambda mdp, beta: policy_objective(mdp, [0.5, 0.5], beta)):
        with pytest.raises(SupportError, match="rewards whose sum over a trajectory fits into float64"):
            call(mdp, 1.0)


def test_an_infinite_number_of_samples_is_refused() -> None:
    with pytest.raises(SupportError, match="expected a finite n"):
        best_of_n_policy([0.5, 0.5], [0.0, 1.0], math.inf)
