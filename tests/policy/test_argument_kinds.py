"""Losses refuse arguments of a wrong kind in one sentence, with an exception of this package."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from kullback import KLBudget
from kullback.errors import KullbackError
from kullback.policy.aggregation import aggregate_tokens
from kullback.policy.dpo import dpo_loss
from kullback.policy.losses import grpo_loss, ppo_loss

NO_NUMBERS = ["x", None, [0.1], {}, True, math.nan, -0.1, math.inf, Ellipsis, np.zeros(3), torch.zeros(3), 1j]


def pair(batch: int = 2) -> dict[str, Any]:
    names = ("chosen_log_prob", "rejected_log_prob", "ref_chosen_log_prob", "ref_rejected_log_prob")
    return {name: -torch.rand(batch, 3, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(names)}


def test_dpo_loss_equals_the_formula() -> None:
    given, beta = {name: values.double() for name, values in pair().items()}, 0.3
    masks = {"chosen_mask": torch.tensor([[1, 1, 0], [1, 0, 1]]), "rejected_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}
    expected = 0.0
    for row in range(2):
        reward = {}
        for side in ("chosen", "rejected"):
            difference = given[f"{side}_log_prob"][row] - given[f"ref_{side}_log_prob"][row]
            reward[side] = beta * sum(
                float(d) for d, m in zip(difference, masks[f"{side}_mask"][row], strict=True) if m
            )
        expected += math.log1p(math.exp(reward["rejected"] - reward["chosen"])) / 2
    assert float(dpo_loss(**given, **masks, beta=beta)) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("beta", [*NO_NUMBERS, 0.0], ids=repr)
def test_dpo_loss_requires_a_positive_beta(beta: Any) -> None:
    with pytest.raises(KullbackError, match="beta"):
        dpo_loss(**pair(), beta=beta)


@pytest.mark.parametrize("name", pair())
@pytest.mark.parametrize("value", ["x", None, [[-1.0] * 3] * 2, np.zeros((2, 3)), 0.5], ids=repr)
def test_dpo_loss_requires_tensors(name: str, value: Any) -> None:
    with pytest.raises(KullbackError, match="tensor"):
        dpo_loss(**{**pair(), name: value})


def test_dpo_loss_of_no_pairs_is_refused() -> None:
    with pytest.raises(KullbackError, match="empty batch"):
        dpo_loss(**pair(0))


@pytest.mark.parametrize("loss", [grpo_loss, ppo_loss])
@pytest.mark.parametrize(
    ("name", "value"),
    # A clip of None or infinity disables clipping; a beta may be a tensor.
    [("clip", value) for value in NO_NUMBERS if value is not None and not (isinstance(value, float) and value > 1)]
    + [("beta", value) for value in NO_NUMBERS if not isinstance(value, torch.Tensor)],
    ids=repr,
)
def test_coefficients_are_numbers(loss: Any, name: str, value: Any) -> None:
    log_prob = -torch.rand(3, 4)
    with pytest.raises(KullbackError, match=name):
        loss(log_prob=log_prob, advantages=torch.ones(3), ref_log_prob=log_prob - 0.1, **{"beta": 0.1, name: value})


@pytest.mark.parametrize("value", ["x", [1], {}, True, Ellipsis], ids=repr)
def test_a_normalizer_is_a_number(value: Any) -> None:
    with pytest.raises(KullbackError, match="normalizer"):
        aggregate_tokens(torch.ones(2, 3), normalizer=value)


@pytest.mark.parametrize("value", [True, "x", None, math.nan, 0, [0.1]], ids=repr)
def test_a_budget_is_a_number(value: Any) -> None:
    with pytest.raises(KullbackError, match="finite number of nats > 0"):
        KLBudget(value)
