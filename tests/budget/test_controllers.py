"""The published rules, against their sources' own words and as laws."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kullback.budget.controllers import (
    CONTROLLERS,
    PPO2017,
    FixedBeta,
    RLlibController,
    Ziegler2019,
    controller_from_dict,
    controller_to_dict,
)
from kullback.budget.kl_budget import KLBudget
from kullback.errors import BudgetError

RULES = [FixedBeta(0.5), PPO2017(0.01), RLlibController(0.01), Ziegler2019(0.01), KLBudget(0.01, unit="step")]
kls = st.floats(min_value=0.0, max_value=1e3, allow_subnormal=False)


@pytest.mark.parametrize(
    ("kl", "beta"),
    [(0.0, 0.5), (0.0066, 0.5), (0.00667, 1.0), (0.01, 1.0), (0.0149, 1.0), (0.0151, 2.0), (9.0, 2.0)],
)
def test_ppo2017_halves_and_doubles_at_one_and_a_half(kl: float, beta: float) -> None:
    assert PPO2017(0.01).update(kl).beta == beta


@pytest.mark.parametrize(("kl", "beta"), [(0.0, 0.1), (0.0049, 0.1), (0.0051, 0.2), (0.0199, 0.2), (0.0201, 0.3)])
def test_rllib_halves_below_half_and_grows_above_two(kl: float, beta: float) -> None:
    assert RLlibController().update(kl).beta == pytest.approx(beta, rel=1e-15)


@pytest.mark.parametrize(("kl", "error"), [(0.0, -0.2), (4.8, -0.2), (5.4, -0.1), (6.0, 0.0), (6.6, 0.1), (60.0, 0.2)])
def test_ziegler2019_is_proportional_and_clipped(kl: float, error: float) -> None:
    assert Ziegler2019(6.0, beta=0.15).update(kl).beta == pytest.approx(0.15 * (1 + 0.1 * error), rel=1e-14)


def test_ziegler2019_takes_542_updates_to_double_at_64_of_10000_samples() -> None:
    rule, updates = Ziegler2019(6.0, beta=1.0, gain=64 / 10_000), 0
    while rule.beta < 2:
        rule, updates = rule.update(1e6), updates + 1
    assert updates == math.ceil(math.log(2) / math.log1p(0.2 * 64 / 10_000)) == 542


@pytest.mark.parametrize(
    "rule", [PPO2017(0.01), RLlibController(0.01), Ziegler2019(0.01, gain=4.0)], ids=lambda r: type(r).__name__
)
def test_a_run_as_long_as_may_be_leaves_a_beta_that_comes_back(rule) -> None:
    for kl, back in ((0.0, 1.0), (1.0, 0.0)):
        last = rule
        for _ in range(3000):
            last = last.update(kl)
        assert 0 < np.float32(last.beta) < np.inf
        assert last.beta != last.update(back).beta
        assert controller_from_dict(json.loads(json.dumps(controller_to_dict(last), allow_nan=False))) == last


@given(st.lists(kls, max_size=30))
def test_beta_stays_positive_and_the_state_survives_a_trip(seen: list[float]) -> None:
    for rule in RULES:
        for kl in seen:
            rule = rule.update(kl, std_error=kl / 10, count=16)
        assert rule.beta > 0
        assert controller_from_dict(controller_to_dict(rule)) == rule


@pytest.mark.parametrize(
    "rule", [PPO2017(0.01), RLlibController(0.01), Ziegler2019(0.01)], ids=lambda rule: type(rule).__name__
)
@given(kl=kls, other=kls)
def test_more_kl_never_lowers_the_price(rule, kl: float, other: float) -> None:
    low, high = sorted((kl, other))
    assert rule.update(low).beta <= rule.update(high).beta


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("kl", [-1e-9, math.nan, math.inf])
def test_what_is_no_kl_is_refused(rule, kl: float) -> None:
    with pytest.raises(BudgetError, match="observed_kl"):
        rule.update(kl)


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        (FixedBeta, {"beta": -1.0}, "beta=-1.0"),
        (FixedBeta, {"beta": math.nan}, "beta=nan"),
        (FixedBeta, {"beta": math.inf}, "beta=inf"),
        (PPO2017, {"beta": math.inf}, "beta=inf"),
        (PPO2017, {"target": 0.0}, "target=0.0"),
        (PPO2017, {"beta": 0.0}, "beta=0.0"),
        (RLlibController, {"target": math.inf}, "target=inf"),
        (Ziegler2019, {"gain": 0.0}, "gain=0.0"),
    ],
)
def test_numbers_without_sense_are_refused(kind, fields: dict, said: str) -> None:
    with pytest.raises(BudgetError, match=said):
        kind(**fields)


def test_only_known_controllers_are_stored_and_made() -> None:
    class Mine(FixedBeta):
        pass

    with pytest.raises(BudgetError, match="only these can be saved"):
        controller_to_dict(Mine(1.0))
    with pytest.raises(BudgetError, match="got kind 'Mine'"):
        controller_from_dict({"kind": "Mine", "beta": 1.0})
    with pytest.raises(BudgetError, match="'price'"):
        controller_from_dict({"kind": "PPO2017", "price": 1.0})
    with pytest.raises(BudgetError, match="'pull_exponent'"):
        controller_from_dict({"kind": "KLBudget", "target": 1.0})
    assert set(CONTROLLERS) == {type(rule).__name__ for rule in RULES}


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.int64(1), torch.tensor(0.5)])
def test_scalars_of_other_libraries_are_stored_as_numbers(number) -> None:
    for rule in (FixedBeta(number), PPO2017(number), RLlibController(beta=number), Ziegler2019(gain=number)):
        state = json.loads(json.dumps(controller_to_dict(rule)))
        assert controller_from_dict(state) == rule
        assert all(type(value) is float for value in vars(rule).values())
