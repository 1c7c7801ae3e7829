"""The controller alone: its laws, and closed loops with plants whose truth is known."""

import json
import math
import re
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kullback import KLBudget
from kullback.budget.controllers import RLlibController, controller_from_dict
from kullback.budget.kl_filter import KLFilter
from kullback.errors import BudgetError

kls = st.floats(min_value=0.0, max_value=1e6, allow_subnormal=False)


class Policy:
    """KL = stiffness |x|^2 / 2, the reward grows along the first axis, the optimiser's step has a fixed length.

    Like Adam's, the step is normalised: a larger beta turns it, and does not shrink it.
    """

    def __init__(self, *, rate: float, reward: float, noise: float, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.x = np.zeros(50)
        self.rate, self.reward, self.noise = rate, reward, noise

    @property
    def kl(self) -> float:
        return float(self.x @ self.x) / 2

    def measured(self) -> float:
        return self.kl * float(self.rng.lognormal(-(self.noise**2) / 2, self.noise))

    def step(self, beta: float, scale: float) -> None:
        gradient = -beta * self.x + self.rng.normal(0, 0.3 * self.reward / math.sqrt(50), 50)
        gradient[0] += self.reward
        self.x = self.x + self.rate * scale * gradient / np.linalg.norm(gradient)


def pull_and_brake(budget: KLBudget, policy: Policy, steps: int) -> tuple[KLBudget, list[float]]:
    """The closed loop as a trainer runs it; the true KL after each step."""
    truth = []
    for _ in range(steps):
        budget = budget.update(policy.measured(), std_error=policy.noise * policy.kl, count=16)
        before = policy.kl
        policy.step(budget.beta, budget.learning_rate_scale)
        pull = budget.displacement_scale
        policy.x *= pull
        budget = budget.after_step(before, policy.kl, displacement_scale=pull)
        if (brake := budget.brake) < 1:
            before = policy.kl
            policy.x *= brake
            budget = budget.after_brake(before, policy.kl)
        truth.append(policy.kl)
    return budget, truth


@pytest.mark.parametrize("target", [0.01, 0.05, 0.5])
@pytest.mark.parametrize("rate", [0.005, 0.05, 0.3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_holds_a_binding_budget_whatever_the_step(target: float, rate: float, seed: int) -> None:
    policy = Policy(rate=rate, reward=1.0, noise=0.2, seed=seed)
    _, truth = pull_and_brake(KLBudget(target), policy, 600)
    settled = np.array(truth[300:]) / target
    assert abs(settled.mean() - 1) < 0.05
    assert settled.max() < 1.2
    assert settled.min() > 0.8


def test_beta_finds_the_multiplier() -> None:
    # At the optimum reward = beta |x| along the first axis and |x| = sqrt(2 target): beta = reward / sqrt(2 target).
    policy = Policy(rate=0.02, reward=1.0, noise=0.05, seed=0)
    betas = []
    budget = KLBudget(0.5)
    for _ in range(40):
        budget, _ = pull_and_brake(budget, policy, 50)
        betas.append(budget.beta)
    assert 0.6 < np.median(betas[20:]) < 1.7
    assert policy.x[0] > 0.95  # of 1.0: the budget is spent on reward, not on noise


def test_beta_rests_at_its_floor_where_the_budget_does_not_bind() -> None:
    class Content(Policy):
        def step(self, beta: float, scale: float) -> None:
            self.x[0] += 0.05 * scale * (0.1 - self.x[0])  # wants KL 0.005 and no more

    budget, truth = pull_and_brake(KLBudget(1.0), Content(rate=0.0, reward=0.0, noise=0.2, seed=0), 400)
    assert budget.price == budget.price_min
    assert budget.status == "not binding"
    assert truth[-1] == pytest.approx(0.005, rel=1e-3)  # nothing pushed it outward


def test_a_budget_that_stops_binding_lets_go() -> None:
    policy = Policy(rate=0.05, reward=1.0, noise=0.1, seed=0)
    budget, _ = pull_and_brake(KLBudget(0.1), policy, 300)
    assert budget.status == "held"
    policy.reward = 0.0
    policy.x *= 0.1
    policy.step = lambda beta, scale: None  # type: ignore[method-assign]
    budget, truth = pull_and_brake(replace(budget, kl_filter=replace(budget.kl_filter, value=policy.kl)), policy, 300)
    assert budget.status == "not binding"
    assert truth[-1] == truth[0]


def test_one_wild_step_is_taken_back_at_once() -> None:
    budget = replace(KLBudget(0.05), kl_filter=KLFilter(value=0.05, rel_std_error=0.05, spread=0.5))
    after = budget.after_step(0.05, 0.2, displacement_scale=1.0)
    assert after.filtered_kl == pytest.approx(0.2)
    assert after.brake == pytest.approx(0.5)  # KL goes with the square of the displacement
    assert after.after_brake(0.2, 0.05).brake == 1.0
    assert after.learning_rate_scale < budget.learning_rate_scale


def test_the_pull_takes_the_level_to_the_target_and_outward_only_trims() -> None:
    budget = replace(KLBudget(0.05), kl_filter=KLFilter(value=0.055), mean_log_kl_step=0.0)
    assert budget.displacement_scale == pytest.approx(math.sqrt(0.05 / 0.055))
    assert replace(budget, mean_log_kl_step=0.1).displacement_scale == pytest.approx(
        math.sqrt(0.05 / (0.055 * math.exp(0.1)))
    )
    assert replace(budget, kl_filter=replace(budget.kl_filter, drift=0.02)).displacement_scale == pytest.approx(
        math.sqrt(0.05 / (0.055 * math.exp(0.02)))
    )
    assert replace(budget, kl_filter=replace(budget.kl_filter, value=0.0495)).displacement_scale == pytest.approx(
        math.sqrt(0.05 / 0.0495)
    )
    assert replace(budget, kl_filter=replace(budget.kl_filter, value=0.045)).displacement_scale == pytest.approx(
        math.sqrt(1.04)
    )
    assert (
        replace(budget, kl_filter=replace(budget.kl_filter, value=0.03)).displacement_scale == 1.0
    )  # too far below: reward is to spend the budget
    assert (
        replace(budget, kl_filter=replace(budget.kl_filter, value=0.045), price=budget.price_min).displacement_scale
        == 1.0
    )  # it does not bind


@pytest.mark.parametrize("power", [1.3, 2.0, 5.0, 12.0])
def test_the_power_of_the_displacement_is_learned_and_steps_go_on(power: float) -> None:
    # Far from the reference KL is not quadratic in the displacement. Taken for the steps' own doing, what pulls do
    # beyond the square cut the steps to nothing: on CartPole to 1e-33 of the learning rate.
    rng = np.random.default_rng(0)
    budget, kl, kls, scales = KLBudget(0.004, unit="step"), 1e-3, [], []
    for _ in range(1500):
        budget = budget.update(kl, std_error=0.0, count=64)
        before, pull = kl, budget.displacement_scale
        kl *= math.exp(budget.learning_rate_scale * rng.normal(0.02, 0.1)) * pull**power
        budget = budget.after_step(before, kl, displacement_scale=pull)
        while (brake := budget.brake) < 1:
            before, kl = kl, kl * brake**power
            budget = budget.after_brake(before, kl)
        kls.append(kl)
        scales.append(budget.learning_rate_scale)
    assert budget.pull_exponent.value == pytest.approx(power, rel=0.2)
    # A step at the full rate moves the KL by 10%, and may move it by 2%.
    assert 0.1 < np.mean(scales[300:]) < 0.3
    assert np.abs(np.array(kls[300:]) / 0.004 - 1).max() < 0.1


def test_what_another_did_to_the_kl_teaches_no_power() -> None:
    budget = KLBudget(0.05).update(0.1, std_error=0.0, count=16)
    assert budget.brake < 1
    updated = budget.after_brake(0.1, 0.05, factor=1.0)
    assert updated.pull_exponent == budget.pull_exponent
    assert updated.filtered_kl == pytest.approx(0.05)
    own = budget.after_brake(0.1, 0.1 * 0.9**6, factor=0.9)
    assert own.pull_exponent.value == pytest.approx(6, rel=1e-3)
    with pytest.raises(BudgetError, match=r"factor > 0, got 0\.0"):
        budget.after_brake(0.1, 0.05, factor=0.0)


def test_a_brake_tells_the_power() -> None:
    budget = replace(KLBudget(0.05), kl_filter=KLFilter(value=0.1, has_step_update=True))
    updated = budget.after_brake(0.1, 0.1 * budget.brake**6)
    assert updated.pull_exponent.value == pytest.approx(6, rel=1e-4)
    assert updated.filtered_kl == pytest.approx(0.1 * budget.brake**6)


def test_what_held_out_positions_miss_is_learned() -> None:
    # The true KL stays, while the held-out positions lose half a percent in each step.
    rng = np.random.default_rng(0)
    budget, levels, drifts = KLBudget(0.05), [], []
    for _ in range(3000):
        seen = 0.05 * rng.lognormal(-0.005, 0.1)
        budget = budget.update(seen, std_error=0.005, count=16).after_step(0.05, 0.05 * 0.995, displacement_scale=1.0)
        levels.append(budget.filtered_kl)
        drifts.append(budget.kl_filter.drift)
    assert float(np.mean(levels[500:])) == pytest.approx(0.05, rel=0.01)
    assert float(np.mean(drifts[500:])) == pytest.approx(-math.log(0.995), rel=0.1)


def test_judgements_learn_what_held_out_positions_miss_sooner() -> None:
    # The same where batches say little: a judgement every 20 steps knows what became of 20 steps' worth of it.
    rng = np.random.default_rng(1)
    misses = {}
    for judges in (False, True):
        budget, missed = KLBudget(0.05), []
        for step in range(1, 401):
            seen = 0.05 * rng.lognormal(-0.125, 0.5)
            budget = budget.update(seen, std_error=0.025, count=16)
            budget = budget.after_step(0.05, 0.05 * 0.995, displacement_scale=1.0, std_error=0.003)
            if judges and step % 20 == 0:
                budget = budget.update_evaluation(0.05 * rng.lognormal(0, 0.01), std_error=0.0005)
            missed.append(abs(budget.kl_filter.drift + math.log(0.995)))
        misses[judges] = np.mean(missed[100:])
    assert misses[True] < 0.001
    assert misses[True] < 0.6 * misses[False]


def test_steps_that_positions_differ_about_are_made_smaller_near_the_target() -> None:
    def scale_at(level: float, std_error: float) -> float:
        """Where a step at the full rate moves no mean, but the rows by so much."""
        budget = replace(KLBudget(0.05), kl_filter=KLFilter(value=level, rel_std_error=0.02, spread=0.5))
        for _ in range(200):
            budget = replace(budget, kl_filter=replace(budget.kl_filter, value=level))
            budget = budget.after_step(
                level, level, displacement_scale=1.0, std_error=std_error * budget.learning_rate_scale
            )
        return budget.learning_rate_scale

    assert scale_at(0.05, 0.03) == pytest.approx(0.1, rel=0.01)
    assert scale_at(0.05, 0.3) == pytest.approx(0.01, rel=0.01)
    assert scale_at(0.05, 0.002) == 1.0
    assert scale_at(0.025, 0.03) == 1.0  # on the way there nobody minds
    updated = replace(KLBudget(0.05), kl_filter=KLFilter(value=0.05, rel_std_error=0.01, spread=0.5))
    uncertain, certain = (
        updated.after_step(0.05, 0.05, displacement_scale=1.0, std_error=error) for error in (0.05, 0.0)
    )
    assert uncertain.kl_filter.rel_std_error == pytest.approx(math.hypot(0.1, 0.01), rel=1e-2)
    assert certain.kl_filter.rel_std_error == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("share", [0.93, 1.0, 1.08])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_kl_on_the_judged_set_is_what_is_held(share: float, seed: int) -> None:
    # A set of prompts whose KL is the population's times `share`, whatever the policy.
    policy = Policy(rate=0.05, reward=1.0, noise=0.2, seed=seed)
    budget, judged = KLBudget(0.05), []
    for _ in range(30):
        budget, _ = pull_and_brake(budget, policy, 20)
        judged.append(share * policy.kl * float(policy.rng.lognormal(0, 0.01)))
        budget = budget.update_evaluation(judged[-1], std_error=0.035 * judged[-1])
    settled = np.array(judged[4:]) / 0.05
    assert abs(settled.mean() - 1) < 0.03
    assert abs(settled - 1).max() < 0.2
    assert budget.kl_filter.offset == pytest.approx(math.log(share), abs=0.04)
    assert budget.kl_filter.offset_std_error < 0.03


def test_a_judgement_corrects_a_doubtful_level_more_than_a_sure_one() -> None:
    sure = replace(KLBudget(0.05), kl_filter=KLFilter(value=0.05, rel_std_error=0.01))
    doubtful = replace(sure, kl_filter=replace(sure.kl_filter, rel_std_error=0.2))
    updated = [budget.update_evaluation(0.052, std_error=0.0018) for budget in (sure, doubtful)]
    assert updated[0].filtered_kl < 1.01 * 0.05
    assert updated[0].kl_filter.offset > 0.02
    assert updated[1].filtered_kl > 1.03 * 0.05
    assert updated[1].kl_filter.offset < 0.01
    assert updated[1].kl_filter.rel_std_error < 0.2


def test_more_than_the_errors_can_say_is_the_levels() -> None:
    updated = replace(KLBudget(0.05), kl_filter=KLFilter(value=0.05, rel_std_error=0.03)).update_evaluation(
        0.075, std_error=0.002
    )
    assert updated.filtered_kl == pytest.approx(0.075, rel=0.02)
    assert updated.kl_filter.offset < 0.01


def test_a_judged_set_of_another_kind_moves_the_aim_by_15_percent_at_most() -> None:
    assert replace(KLBudget(0.05), kl_filter=KLFilter(offset=1.0)).effective_target == pytest.approx(
        0.05 * math.exp(-0.15)
    )
    assert replace(KLBudget(0.05), kl_filter=KLFilter(offset=-1.0)).effective_target == pytest.approx(
        0.05 * math.exp(0.15)
    )


def test_a_judgement_without_an_error_or_on_the_way_to_the_budget_teaches_nothing() -> None:
    budget = replace(KLBudget(0.05), kl_filter=KLFilter(value=0.04, rel_std_error=0.1))
    assert budget.update_evaluation(0.06, std_error=math.nan) == budget
    assert budget.update_evaluation(0.0, std_error=0.0) == budget
    assert KLBudget(0.05).update_evaluation(0.06, std_error=0.01) == KLBudget(0.05)
    rising = replace(budget, kl_filter=replace(budget.kl_filter, value=0.03))
    assert rising.update_evaluation(0.02, std_error=0.001) == rising
    with pytest.raises(BudgetError, match="expected observed_kl to be a finite KL"):
        budget.update_evaluation(math.inf, std_error=0.1)


def test_noise_is_weighed_by_the_running_spread_and_not_by_the_batch() -> None:
    # Skewed noise: low batches report small errors. The estimate must not sink for it.
    rng = np.random.default_rng(0)
    budget, levels = KLBudget(0.05), []
    for _ in range(3000):
        draws = 0.05 * rng.lognormal(-0.5, 1.0, 16)
        error = draws.std(ddof=1) / 4
        budget = budget.update(float(draws.mean()), std_error=float(error), count=16).after_step(
            0.05, 0.05, displacement_scale=1.0
        )
        levels.append(budget.filtered_kl)
    mean = float(np.mean(levels[500:]))
    assert mean == pytest.approx(0.05, rel=0.02)


def test_without_moved_it_still_steers_by_the_level_alone() -> None:
    budget = KLBudget(0.05)
    for _ in range(30):
        budget = budget.update(0.2, std_error=0.02, count=16)
    assert budget.beta > 0.4
    assert budget.filtered_kl == pytest.approx(0.2, rel=1e-6)
    for _ in range(200):
        budget = budget.update(0.001, std_error=1e-4, count=16)
    assert budget.price == budget.price_min


@given(st.lists(st.tuples(kls, kls, st.floats(0.5, 1.02)), max_size=30))
def test_state_stays_in_bounds_whatever_it_is_told(updated: list[tuple[float, float, float]]) -> None:
    budget = KLBudget(0.05)
    for kl, after, pull in updated:
        budget = budget.update(kl, std_error=kl / 5, count=16).after_step(kl, after, displacement_scale=pull)
        assert budget.price_min <= budget.price <= budget.price_max
        assert 0 < budget.learning_rate_scale <= 1
        assert 0 < budget.brake <= 1
        assert 0 < budget.displacement_scale**budget.pull_exponent.value <= 1.04 + 1e-12
        assert all(math.isfinite(v) for v in budget.to_dict().values() if isinstance(v, float))


@given(st.lists(st.tuples(kls, kls), max_size=10))
def test_the_state_survives_json(updated: list[tuple[float, float]]) -> None:
    budget = KLBudget(0.05, unit="sequence")
    for kl, after in updated:
        budget = budget.update(kl, std_error=kl / 5, count=16).after_step(kl, after, displacement_scale=1.0)
    assert KLBudget.from_dict(json.loads(json.dumps(budget.to_dict()))) == budget


def test_it_is_frozen_and_updates_leave_the_old_state_alone() -> None:
    budget = KLBudget(0.05)
    before = budget.to_dict()
    budget.update(0.1).after_step(0.1, 0.2, displacement_scale=1.0)
    assert budget.to_dict() == before
    with pytest.raises(AttributeError):
        budget.price = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"target": 0.0}, "> 0, got 0.0"),
        ({"target": -1.0}, "> 0, got -1.0"),
        ({"target": math.nan}, "got nan"),
        ({"target": math.inf}, "got inf"),
        ({"target": 1.0, "unit": "word"}, "'word'"),
        ({"target": 1.0, "price": 100.0}, "price=100.0"),
        ({"target": 1.0, "price_min": 0.0}, "price_min=0.0"),
        ({"target": 1.0, "gain": 0.0}, "gain=0.0"),
        ({"target": 1.0, "learning_rate_scale": 1.5}, "learning_rate_scale=1.5"),
    ],
)
def test_nonsense_is_refused(arguments: dict, said: str) -> None:
    with pytest.raises(BudgetError, match=said.replace(".", r"\.")):
        KLBudget(**arguments)


@pytest.mark.parametrize("price", [None, "x", [0.1], math.nan])
def test_a_price_that_is_no_number_is_refused(price: Any) -> None:
    with pytest.raises(BudgetError, match="expected a price that is a number in units of reward"):
        KLBudget(0.1).with_price(price)


@pytest.mark.parametrize("kl", [-1e-9, math.nan, math.inf])
def test_a_kl_that_is_none_is_refused(kl: float) -> None:
    budget = KLBudget(0.05)
    with pytest.raises(BudgetError, match="observed_kl"):
        budget.update(kl)
    with pytest.raises(BudgetError, match="after"):
        budget.after_step(0.1, kl, displacement_scale=1.0)
    with pytest.raises(BudgetError, match="displacement_scale"):
        budget.after_step(0.1, 0.1, displacement_scale=0.0)
    with pytest.raises(BudgetError, match=r"std_error >= 0 or nan, got 1\.0 and -0\.1"):
        budget.after_step(0.1, 0.1, displacement_scale=1.0, std_error=-0.1)
    for error, count in ((-0.1, 16), (0.1, 0), (0.1, -3)):
        with pytest.raises(BudgetError, match=f"got {error} and {count}"):
            budget.update(0.1, std_error=error, count=count)


def test_a_kl_of_exactly_zero_is_believed() -> None:
    budget = KLBudget(0.05)
    for _ in range(30):
        budget = budget.update(0.05, std_error=0.01, count=16)
    price = budget.price
    for _ in range(60):
        budget = budget.update(0.0, std_error=0.0, count=16)
    assert budget.filtered_kl < 1e-3 * 0.05
    assert budget.price < price


def test_a_level_that_grows_without_end_stays_a_number() -> None:
    budget = KLBudget(0.05).update(1e299)
    for _ in range(20):
        budget = budget.after_step(0.1, 0.9, displacement_scale=1.0).after_brake(0.1, 0.9)
    assert json.dumps(budget.to_dict(), allow_nan=False)
    assert budget.displacement_scale > 0


@pytest.mark.parametrize("kl", [5e-324, 1e-300, 1e-12, 1e12, 1e300, 1.7e308])
def test_one_absurd_measurement_leaves_a_state_that_can_act(kl: float) -> None:
    budget = KLBudget(0.05).update(0.05, std_error=0.01, count=16).after_step(0.05, 0.05, displacement_scale=1.0)
    for updated in (
        budget.update_evaluation(kl, std_error=0.01),
        budget.update_evaluation(kl, std_error=0.0).update_evaluation(0.05, std_error=1e300),
        budget.update(kl),
        budget.after_step(0.05, kl, displacement_scale=1.0).update(kl, std_error=kl, count=16),
    ):
        assert 0 < updated.displacement_scale**updated.pull_exponent.value <= 1.04 + 1e-12
        assert 0 < updated.brake <= 1
        assert all(
            math.isfinite(value)
            for value in (updated.beta, updated.learning_rate_scale, *vars(updated.kl_filter).values())
        )
        updated.after_step(kl, 0.05, displacement_scale=updated.displacement_scale)


def test_budgets_of_any_size_start_and_end_alike() -> None:
    for target in (1e-4, 0.05, 6.0):
        budget = KLBudget(target)
        assert budget.beta * target == pytest.approx(5e-3)
        higher, lower = budget, budget
        for _ in range(300):
            higher, lower = higher.update(3 * target), lower.update(target / 9)
        assert higher.beta * target == pytest.approx(0.5)
        assert higher.status == "saturated"
        assert lower.beta * target == pytest.approx(5e-4)


def test_every_field_is_explained() -> None:
    assert all(f"{field.name}:" in (KLBudget.__doc__ or "") for field in fields(KLBudget))


def test_a_state_that_was_saved_under_former_names_is_read() -> None:
    state = {
        "target": 0.05, "unit": "token", "price": 0.0052563554818801205, "price_min": 0.0005, "price_max": 0.5,
        "gain": 0.05, "step_limit": 0.02, "step_scale": 0.05, "push": 0.036, "bustle": 0.4, "blur": 0.06,
        "power": {"value": 2.1, "push": 0.17, "doubt": 0.9, "push_doubt": 0.07, "both": -0.01},
        "seen": {
            "value": 0.06, "doubt": 0.06, "drift": 0.001, "drift_doubt": 0.0029, "both": 1e-05, "spread": 0.4,
            "offset": 0.02, "offset_doubt": 0.01, "followed": True,
        },
    }  # fmt: skip
    budget = KLBudget.from_dict(state)
    assert (budget.learning_rate_scale, budget.mean_log_kl_step, budget.rms_kl_step) == (0.05, 0.036, 0.4)
    assert (budget.pull_exponent.std_error, budget.pull_exponent.mean_log_kl_step_std_error) == (0.9, 0.07)
    assert (budget.kl_filter.rel_std_error, budget.kl_filter.covariance) == (0.06, 1e-05)
    assert budget.kl_filter.has_step_update
    assert controller_from_dict({"kind": "KLBudget", **state}) == budget
    assert KLBudget.from_dict({**state, "unit": "latent"}).unit == "image"
    assert controller_from_dict({"kind": "RLlib", "target": 0.01, "beta": 0.3}) == RLlibController(0.01, 0.3)


def test_the_price_changes_by_the_logarithm_of_a_measured_kl() -> None:
    budget = KLBudget(0.1, price=0.01, gain=0.05)
    for kl, steps, exponent in (
        (0.2, 1, 0.05 * math.log(2)),
        (0.05, 2, -0.1 * math.log(2)),
        (0.2, 100, 0.12 * math.log(2)),
        (1e9, 1, 0.05),
        (0.0, 1, -0.05),
        (-0.1, 1, -0.05),
    ):
        got = budget.update_price(kl, set_point=0.1, steps=steps)
        assert got.price == pytest.approx(0.01 * math.exp(exponent), rel=1e-12)
        assert replace(got, price=0.01) == budget
    assert budget.update_price(0.1, set_point=0.1) == budget
    for _ in range(100):
        budget = budget.update_price(1.0, set_point=0.1, steps=10)
    assert budget.price == budget.price_max


def test_the_learning_rate_limits_the_measured_change_of_the_kl_in_a_step() -> None:
    # Steps that change the KL by 10% of the target at the full learning rate, near the target.
    budget = KLBudget(0.1, step_limit=0.02, learning_rate_scale=1.0)
    for _ in range(100):
        change = 0.1 * 0.1 * budget.learning_rate_scale * math.sqrt(4)
        budget = budget.update_learning_rate_scale(0.1, 0.1 + change, steps=4)
    assert budget.learning_rate_scale == pytest.approx(0.2, rel=1e-6)
    # Below the target, the limit is larger by a factor of up to 5: at a KL of 0.02 times the scale s, the limit is
    # 0.02 (1 + 4 (1 - 0.2 s)), and 0.1 s is equal to it at s = 1 / 1.16.
    for _ in range(100):
        change = 0.1 * 0.1 * budget.learning_rate_scale * math.sqrt(4)
        budget = budget.update_learning_rate_scale(0.0, change, steps=4)
    assert budget.learning_rate_scale == pytest.approx(1 / 1.16, rel=1e-6)
    assert KLBudget(0.1).update_learning_rate_scale(0.1, 0.1, steps=2).learning_rate_scale == pytest.approx(0.144)


def test_scalars_of_numpy_become_numbers_that_json_can_store() -> None:
    budget = KLBudget(np.float32(0.05), gain=np.float64(0.1), price=np.float32(0.01))
    assert {type(value) for value in (budget.target, budget.gain, budget.price)} == {float}
    error = np.float32(0.01)
    budget = budget.update(np.float32(0.06), std_error=error, count=np.float32(8))
    budget = budget.after_step(np.float32(0.06), np.array(0.055), displacement_scale=np.float32(0.99), std_error=error)
    budget = budget.after_brake(np.float32(0.06), np.float32(0.05), factor=np.float32(0.9))
    budget = budget.update_evaluation(np.float32(0.05), std_error=error)
    assert KLBudget.from_dict(json.loads(json.dumps(budget.to_dict()))) == budget


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        *[(None, name, ..., f"without '{name}'") for name in ("price", "kl_filter", "learning_rate_scale")],
        ("kl_filter", "covariance", ..., "without 'kl_filter.covariance'"),
        ("pull_exponent", "value", ..., "without 'pull_exponent.value'"),
        *[("kl_filter", "value", bad, "kl_filter.value to be a finite number >= 0") for bad in (math.nan, -1.0, None)],
        ("kl_filter", "drift", math.inf, "kl_filter.drift to be a finite number, got inf"),
        ("kl_filter", "has_step_update", 1, "has_step_update to be true or false"),
        ("pull_exponent", "std_error", "1", "pull_exponent.std_error to be a finite number >= 0"),
        (None, "rms_kl_step", math.nan, "rms_kl_step=nan"),
        (None, "rms_change_error", -1.0, "rms_change_error=-1.0"),
        (None, "mean_log_kl_step", math.inf, "mean_log_kl_step=inf"),
    ],
)
def test_a_damaged_state_is_refused(part: str | None, key: str, value: object, said: str) -> None:
    state = KLBudget(0.05).update(0.04, std_error=0.004, count=16).to_dict()
    damaged = state if part is None else state[part]
    if value is ...:
        del damaged[key]
    else:
        damaged[key] = value
    with pytest.raises(BudgetError, match=re.escape(said)):
        KLBudget.from_dict(state)


@pytest.mark.parametrize(
    ("kl", "share"), [(0.01, 0.5), (0.05, 0.5), (0.079, 0.5), (0.081, 1.0), (0.1, 1.0), (0.2, 1.0)]
)
def test_the_price_decreases_slowly_while_the_kl_is_far_below_its_target(kl: float, share: float) -> None:
    budget = replace(KLBudget(0.1, price=0.01), kl_filter=KLFilter(value=kl))
    after = budget.update(kl, std_error=0.0, count=64)
    error = max(-1.0, min(1.0, math.log(after.filtered_kl / 0.1)))
    assert after.price == pytest.approx(0.01 * math.exp(share * 0.05 * error), rel=1e-12)
