"""The doctor on simulated runs: no error in correct runs with skewed KLs and few prompts, and the faults are found."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from kullback.doctor.budget_and_rewards import check_budget, check_reward_hacking
from kullback.doctor.finding import Finding
from kullback.doctor.logged_kl import check_finite_training, check_learning, check_logged_kl
from kullback.doctor.sampling_error import mean_log_ratio_differs, student_quantile, upper_bound_of_mean

TARGET = 0.05
Row = dict[str, Any]

# The KL of one prompt divided by its expectation.
LAWS = {
    "exponential": lambda rng, size: rng.exponential(size=size),
    "lognormal 1": lambda rng, size: np.exp(rng.normal(size=size) - 0.5),
    "lognormal 2": lambda rng, size: np.exp(2 * rng.normal(size=size) - 2),
    "lognormal 2.5": lambda rng, size: np.exp(2.5 * rng.normal(size=size) - 3.125),
    "gamma 0.5": lambda rng, size: 2 * rng.gamma(0.5, size=size),
    "gamma 0.1": lambda rng, size: 10 * rng.gamma(0.1, size=size),
    "2% of the prompts": lambda rng, size: np.where(rng.random(size) < 0.02, 50.0, 0) * rng.exponential(size=size),
}


def level(step: float, steps: int) -> float:
    """The expected KL after a number of steps, which reaches the budget."""
    return TARGET * -math.expm1(-6 * step / steps)


def mean_and_std_error(values: np.ndarray) -> tuple[float, float | None]:
    error = float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else None
    return float(values.mean()), error


def simulate(
    rng: np.random.Generator,
    law: str,
    *,
    prompts: int,
    steps: int = 60,
    every: int = 5,
    count: int = 128,
    rewards: str = "noisy",
    replaced: int | None = None,
    k1: bool = False,
    factor: float = 1.0,
) -> tuple[list[Row], list[Row]]:
    """The rows of metrics and evaluations of a run; `replaced` is a step at which the policy becomes the reference."""

    def kl(step: int, size: int) -> np.ndarray:
        return np.maximum(level(step, steps) * LAWS[law](rng, size), 1e-12 if step else 0.0)

    def reward(size: int) -> float:
        return {"noisy": float(rng.normal(size=size).mean()), "zero": 0.0, "constant": 1.0}[rewards]

    metrics, evaluations = [], []
    for step in range(1, steps + 1):
        values = kl(step - 1 - (replaced if replaced and step > replaced else 0), prompts)
        if k1:
            values = rng.normal(values, np.sqrt(2 * values))
        value, error = mean_and_std_error(factor * values)
        length = float(rng.integers(3, 50))
        row = {
            "step": step,
            "kl_policy_ref_per_token": value,
            "kl_policy_ref_per_token_std_error": error,
            "kl_policy_ref_per_sequence": value * length,
            "completion_length": length,
            "beta": 0.3 * math.exp(0.1 * rng.normal()),
            "loss": 0.0,
            "gradient_norm": 1.0,
            "reward": reward(4 * prompts),
            "reward_std": float(rewards == "noisy"),
            "rewards/proxy": reward(4 * prompts),
            "rewards/true": reward(4 * prompts),
        }
        metrics.append(row)
    for step in range(0, steps + 1, every):
        value, error = mean_and_std_error(kl(step, count))
        row = {"step": step, "count": count, "rewards/proxy": reward(count), "rewards/true": reward(count)}
        evaluations.append(row | {"kl_policy_ref_per_token": value, "kl_policy_ref_per_token_std_error": error})
    return metrics, evaluations


def check(metrics: list[Row], evaluations: list[Row], *, prompts: int, target: float = TARGET) -> list[Finding]:
    return (
        check_logged_kl(metrics, evaluations)
        + check_learning(metrics)
        + check_finite_training(metrics)
        + check_budget(metrics, evaluations, target=target, unit="token", price=(1e-2 * target, 25 * target))
        + check_reward_hacking(
            evaluations, proxies=["proxy"], watched=["true"], metrics=metrics, completions=4 * prompts
        )
    )


@pytest.mark.parametrize("law", LAWS)
def test_correct_runs_give_no_error(law: str) -> None:
    rng = np.random.default_rng(sorted(LAWS).index(law))
    found: Counter[str] = Counter()
    for run in range(100):
        prompts = int(rng.choice([1, 1, 2, 3, 4, 8, 16, 64]))
        sizes = {"steps": (12, 30, 60, 200), "every": (1, 3, 10, 20), "count": (16, 40, 128)}
        plan = {name: int(rng.choice(values)) for name, values in sizes.items()}
        rewards = ("noisy", "zero", "constant")[run % 3]
        rows = simulate(rng, law, prompts=prompts, rewards=rewards, **plan)
        found.update(finding.name for finding in check(*rows, prompts=prompts) if finding.severity == "error")
    assert not found


@pytest.mark.parametrize("prompts", [1, 4, 64])
def test_a_correct_sign_of_k1_gives_no_error(prompts: int) -> None:
    rng = np.random.default_rng(prompts)
    for _ in range(100):
        rows = simulate(rng, "exponential", prompts=prompts, k1=True, steps=40)
        severities = {finding.name: finding.severity for finding in check_logged_kl(*rows)}
        assert severities.get("negative-kl", "warning") == "warning"
        assert "error" not in severities.values()


@pytest.mark.parametrize(
    ("fault", "target", "prompts", "name", "share"),
    [
        ({"factor": 2.5}, TARGET, 16, "logged-kl-differs-from-evaluation", 0.9),
        ({"factor": 0.4}, TARGET, 16, "logged-kl-differs-from-evaluation", 0.9),
        ({"factor": -1.0}, TARGET, 16, "negative-kl", 1.0),
        ({"factor": -1.0}, TARGET, 1, "negative-kl", 1.0),
        ({"replaced": 40}, TARGET, 16, "reference-moved", 0.8),
        ({}, TARGET / 2.5, 16, "over-budget", 1.0),
        ({}, TARGET / 2.5, 1, "over-budget", 0.9),
        ({"every": 1000, "steps": 200}, 50 * TARGET, 1, "budget-not-reached", 0.5),
    ],
)
def test_faults_are_found(fault: dict[str, Any], target: float, prompts: int, name: str, share: float) -> None:
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(30):
        rows = simulate(rng, "lognormal 1", prompts=prompts, **fault)
        found += name in [finding.name for finding in check(*rows, prompts=prompts, target=target)]
    assert found >= share * 30


def test_the_median_of_skewed_ratios_is_no_evidence() -> None:
    ratios = [0.01, 0.1, 0.2, 0.3, 0.02, 7.0]  # of expectation near 1, with a median of 0.15
    assert not mean_log_ratio_differs(ratios, 0.1)
    assert mean_log_ratio_differs([0.50, 0.51, 0.49, 0.5], 0.05)
    assert not mean_log_ratio_differs([0.50, 0.51, 0.49, 0.5], 0.2)  # the evaluations may be too high by as much


def test_quantiles_and_bounds_against_scipy() -> None:
    from scipy.stats import t

    assert student_quantile(7) == pytest.approx(t.isf(1e-6, 7), rel=1e-9)
    assert student_quantile(0) == math.inf
    rng = np.random.default_rng(0)
    samples = np.exp(1.5 * rng.normal(size=(300, 20)) - 1.125)  # of expectation 1
    assert all(upper_bound_of_mean(row.tolist()) > 1 for row in samples)


# -- rewards --


def test_noise_of_a_reward_of_expectation_zero_is_no_reward_hacking() -> None:
    rng = np.random.default_rng(3)
    for _ in range(100):
        means = [float(rng.choice([-1.0, 1.0], size=128).mean()) for _ in range(6)]
        rows = [{"step": i, "rewards/t": v, "rewards/p": 0.1 * i, "count": 128} for i, v in enumerate(means)]
        steps = [
            {"step": i, "rewards/t": float(rng.choice([-1.0, 1.0], 16).mean()), "rewards/p": 0.01 * i}
            for i in range(50)
        ]
        assert not check_reward_hacking(rows, proxies=["p"], watched=["t"], metrics=steps, completions=16)


def learning_rows(count: int = 8, **values: Any) -> list[Row]:
    return [{"step": step, "kl_policy_ref_per_token": 0.0, **values} for step in range(1, count + 1)]


@pytest.mark.parametrize(
    ("values", "severity", "text"),
    [
        ({"gradient_norm": 0.0, "reward": None, "reward_std": None}, "warning", "returned None"),
        ({"gradient_norm": 0.0, "reward": math.nan, "reward_std": 0.0}, "warning", "returned None"),
        ({"gradient_norm": 0.0, "reward": 0.0, "reward_std": 0.0, "rewards/r": None}, "warning", "returned None"),
        ({"gradient_norm": 0.0, "reward": 1.0, "reward_std": 0.0, "rewards/r": 1.0}, "warning", "equal rewards"),
        ({"gradient_norm": 0.0, "reward": 1.0, "reward_std": 0.5, "rewards/r": 1.0}, "error", "frozen"),
        ({"gradient_norm": 0.0}, "error", "frozen"),
        ({"gradient_norm": 1.0}, "error", "both are one model"),
    ],
)
def test_the_rewards_identify_why_nothing_trains(values: Row, severity: str, text: str) -> None:
    [found] = check_learning(learning_rows(**values))
    assert (found.name, found.severity) == ("nothing-trains", severity)
    assert text in found.cause


# -- values that are not finite --


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
@pytest.mark.parametrize("key", ["loss", "policy_loss", "distortion", "cross_entropy", "gradient_norm"])
def test_a_run_that_ends_with_a_loss_that_is_not_finite(key: str, bad: float | None) -> None:
    rows = [{"step": 1, key: 0.1}, {"step": 2, key: 0.2}, {"step": 3, key: bad}]
    [found] = check_finite_training(rows)
    assert (found.name, found.severity, found.evidence["first step"]) == ("training-not-finite", "error", 3)


def test_gradients_that_a_loss_scaler_skips_are_no_fault() -> None:
    rows = [{"step": step, "loss": 0.1, "gradient_norm": math.inf if step < 3 else 1.0} for step in range(1, 9)]
    assert check_finite_training(rows) == []


def test_a_kl_of_a_step_in_which_all_completions_are_truncated() -> None:
    row = {"step": 2, "kl_policy_ref_per_token": None}
    assert check_logged_kl([row | {"truncated": 1.0}], []) == []
    assert [finding.name for finding in check_logged_kl([row], [])] == ["kl-not-finite"]


# -- single rows --


def test_rounding_of_bfloat16_at_the_start_is_a_warning() -> None:
    severities = [
        [f.severity for f in check_logged_kl([{"step": 1, "kl_policy_ref_per_token": kl}], [])]
        for kl in (0.0, 1e-7, 2e-4, 0.02)
    ]
    assert severities == [[], [], ["warning"], ["error"]]


def test_one_negative_row_is_no_evidence_of_a_wrong_sign() -> None:
    [found] = check_logged_kl([{"step": 5, "kl": -0.01}], [])
    assert (found.name, found.severity) == ("negative-kl", "warning")


def test_lengths_of_more_completions_than_the_kl_are_no_mismatch() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for step in range(1, 60):
        length = float(rng.integers(5, 20))
        logged = length * math.exp(0.2 * rng.normal())  # of the whole generation batch
        kl = {"kl_policy_ref_per_token": 0.05, "kl_policy_ref_per_sequence": 0.05 * length}
        rows.append({"step": step, "completion_length": logged, **kl})
    assert "mask-mismatch" not in [finding.name for finding in check_logged_kl(rows, [])]


def test_a_controller_that_starts_at_zero_does_not_diverge() -> None:
    betas = [0.0, *[0.01 * step for step in range(1, 40)]]
    rows = [{"step": i, "kl_policy_ref_per_token": TARGET, "beta": beta} for i, beta in enumerate(betas)]
    assert check_budget(rows, [], target=TARGET, unit="token") == []
    risen = [1e-7 * 10 ** min(i, 6) for i in range(40)]
    rows = [{"step": i, "kl_policy_ref_per_token": TARGET, "beta": beta} for i, beta in enumerate(risen)]
    assert check_budget(rows, [], target=TARGET, unit="token") == []


@pytest.mark.parametrize("value", ["nan", [], {}, True, 10**400])
def test_values_that_are_not_numbers_raise_nothing(value: Any) -> None:
    keys = ("kl_policy_ref_per_token", "beta", "loss", "gradient_norm", "reward", "reward_std", "completion_length")
    rows = [{"step": step, **dict.fromkeys((*keys, "kl_policy_ref_per_sequence"), value)} for step in range(1, 9)]
    found = check(rows, rows, prompts=1)
    assert {finding.name for finding in found} <= {"kl-not-finite", "training-not-finite"}
