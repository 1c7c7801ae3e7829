"""Options of a wrong type raise a KullbackError, which names the option and the value."""

import math

import pytest
import torch

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


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: kullback.grpo_loss(log_prob=None, advantages=t[0]), "log_prob to be a tensor, got NoneType"),
        (lambda t: kullback.grpo_loss(log_prob=t, advantages=[1.0]), "advantages to be a tensor, got list"),
        (lambda t: kullback.ppo_loss(log_prob=t, advantages=t, old_log_prob="x"), "old_log_prob to be a tensor"),
        (lambda t: kullback.ppo_loss(log_prob=t, advantages=t, mask=[[1, 1]]), "mask to be a tensor, got list"),
        (lambda t: kullback.MDP("x", [[0.0]]), "transitions: expected an array of numbers"),
        (lambda t: kullback.MDP([[1.0]], "y"), "rewards: expected an array of numbers"),
        (lambda t: kullback.soft_value_iteration(None, 1.0), "expected an MDP, got None"),
        (lambda t: kullback.kl_probs([math.inf, 1.0], [0.5, 0.5]), r"expected finite probabilities, but p\[0\] is inf"),
    ],
)
def test_arguments_of_a_wrong_kind_are_named(call, words):
    with pytest.raises(KullbackError, match=words) as found:
        call(torch.zeros(1, 2))
    assert "\n" not in str(found.value)
