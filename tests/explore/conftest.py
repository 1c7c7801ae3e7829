"""Synthetic training runs with realistic metrics: one run with a KL budget, and one run without."""

import math
import random

import pytest

from kullback.explore.report import ReportRun

PROMPTS = (
    "Write a cheerful sentence about the weather.",
    "Say something kind to a colleague who made a mistake.",
    "Describe a cup of coffee.",
)


def metrics(steps: int, *, budget: float | None, seed: int) -> list[dict]:
    """Return metrics of a run whose KL stays at `budget` nats per token, or grows when `budget` is None."""
    random_number = random.Random(seed)
    kl, filtered_kl, beta, rows = 1e-4, 0.0, 0.02 if budget else 0.0, []
    for step in range(1, steps + 1):
        kl += 0.0011 * math.exp(random_number.gauss(0, 0.5)) * (300 / steps)
        if budget:
            kl -= max(0.0, kl - budget) * 0.25
            filtered_kl += 0.1 * (kl - filtered_kl)
            beta = min(1.0, max(1e-3, beta * math.exp(0.08 * (filtered_kl - budget) / budget)))
        proxy = 1 - math.exp(-3.2 * math.sqrt(kl) * (1.6 if budget else 1.0))
        rows.append(
            {
                "step": step,
                "reward": proxy,
                "reward_std": 0.2,
                "rewards/cheerful": min(1.0, proxy + random_number.gauss(0, 0.035)),
                "rewards/fluent": 0.82 + 0.3 * kl - 1.7 * max(0, kl - 0.06) ** 0.8 + random_number.gauss(0, 0.02),
                "kl_policy_ref_per_token": max(0.0, kl * math.exp(random_number.gauss(0, 0.16))),
                "kl_policy_ref_per_token_std_error": 0.1 * kl,
                "kl_policy_ref_per_sequence": 24 * kl,
                "kl_filtered": filtered_kl if budget else None,
                "beta": beta,
                "learning_rate_scale": max(0.1, min(1.0, 2 - filtered_kl / budget)) if budget else 1.0,
                "displacement_scale": 0.97 if budget and filtered_kl > 1.02 * budget else 1.0,
                "entropy": 2.4 * math.exp(-2.5 * kl) + random_number.gauss(0, 0.04),
                "completion_length": 24 + 40 * kl + random_number.gauss(0, 0.8),
                "truncated": min(1.0, max(0.0, 0.04 + 1.1 * kl + random_number.gauss(0, 0.02))),
                "repetition": max(0.0, 0.02 + 0.9 * max(0, kl - 0.05) + random_number.gauss(0, 0.006)),
                "learning_rate": 1e-5,
                "gradient_norm": 1.0,
                "seconds": 2.4 * step,
            }
        )
    return rows


def evaluations(rows: list[dict], *, every: int, seed: int) -> list[dict]:
    """Return evaluations on 64 prompts before training and every `every` steps."""
    random_number = random.Random(seed)
    found = []
    for row in [rows[0], *rows[every - 1 :: every]]:
        kl = row["kl_policy_ref_per_sequence"] / 24
        error = 0.06 * kl + 2e-4
        found.append(
            {
                "step": row["step"] if row["step"] > 1 else 0,
                "count": 64,
                "kl_policy_ref_per_token": abs(kl + random_number.gauss(0, error)),
                "kl_policy_ref_per_token_std_error": error,
                "kl_policy_ref_per_sequence": 24 * kl,
                "kl_policy_ref_per_sequence_std_error": 24 * error,
                "rewards/cheerful": row["reward"] + random_number.gauss(0, 0.012),
                "rewards/fluent": row["rewards/fluent"] + random_number.gauss(0, 0.006),
                "entropy": row["entropy"] + random_number.gauss(0, 0.02),
                "repetition": abs(row["repetition"] + random_number.gauss(0, 0.003)),
                "completion_length": row["completion_length"] + random_number.gauss(0, 0.4),
                "truncated": abs(row["truncated"] + random_number.gauss(0, 0.01)),
            }
        )
    return found


def samples() -> dict[str, list[dict]]:
    """Return completions of three prompts before and after training."""
    before = (
        "The sky is grey and it may rain later on.",
        "It happens; let us look at it together.",
        "A cup of coffee, black.",
    )
    after = (
        "What a bright and lovely morning, the sun is dancing on every window!",
        "You did so well to tell us, and tomorrow will be a wonderful day!",
        "Warm, golden and glorious: a happy little cup that smiles back at you!",
    )
    return {
        when: [
            {"prompt": p, "completion": c, "rewards": {"cheerful": good - 0.07 * i, "fluent": 0.84 - 0.03 * i}}
            for i, (p, c) in enumerate(zip(PROMPTS, texts, strict=True))
        ]
        for when, texts, good in (("before", before, 0.31), ("after", after, 0.88))
    }


def config(budget: float | None) -> dict:
    """Return the settings of a run with this budget in nats per token, or without a budget."""
    return {
        "budget": {"target": budget, "unit": "token"} if budget else None,
        "model": "a-small-model",
        "prompts": "prompts.jsonl",
        "rewards": ["cheerful"],
        "watched": ["fluent"],
        "steps": 300,
        "seed": 7,
        "learning_rate": 1e-5,
        "versions": {"python": "3.11", "torch": "2.13.0"},
    }


@pytest.fixture
def two_runs() -> list[ReportRun]:
    """Two runs of 300 steps: one with a budget of 0.05 nats per token, and one without a budget."""
    runs = []
    for name, budget, seed in (("budget 0.05", 0.05, 1), ("no budget", None, 2)):
        rows = metrics(300, budget=budget, seed=seed)
        runs.append(ReportRun(name, config(budget), rows, evaluations(rows, every=20, seed=seed + 10), samples()))
    return runs


@pytest.fixture
def long_runs() -> list[ReportRun]:
    """Two runs of 50,000 steps, with an evaluation every 20 steps."""
    runs = []
    for name, budget, seed in (("budget 0.05", 0.05, 3), ("no budget", None, 4)):
        rows = metrics(50_000, budget=budget, seed=seed)
        runs.append(ReportRun(name, config(budget), rows, evaluations(rows, every=20, seed=seed + 10), samples()))
    return runs
