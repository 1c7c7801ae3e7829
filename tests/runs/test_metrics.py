"""The schema of metrics: complete, unique, in step with docs/metrics.md, and former names are read."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from kullback.runs.metrics import METRICS, constrained_kl, metrics_of, metrics_tables
from kullback.runs.run_directory import RunDirectory

ROOT = Path(__file__).parents[2]


def test_each_trainer_defines_a_key_once() -> None:
    counts = Counter((metric.trainer, metric.key) for metric in METRICS)
    assert max(counts.values()) == 1


def test_the_page_is_generated_from_the_schema() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == metrics_tables()


def test_each_kl_names_its_divergence_and_the_unit_of_its_budget() -> None:
    divergences = [metric for metric in METRICS if re.search(r"(^|_)kl_.*per_", metric.key)]
    assert len(divergences) == 11
    assert divergences == [metric for metric in METRICS if metric.symbol]
    assert all(metric.key.endswith(f"per_{metric.per}") for metric in divergences if metric.per)


@pytest.mark.parametrize(
    ("budget", "key"),
    [
        ({"target": 0.1, "unit": "token"}, "kl_policy_ref_per_token"),
        ({"target": 0.1, "unit": "sequence"}, "kl_policy_ref_per_sequence"),
        ({"target": 0.1, "unit": "step", "constrain": "reference", "states": "visited"}, "kl_policy_ref_per_step"),
        (
            {"target": 0.1, "unit": "step", "constrain": "reference", "states": "reference"},
            "kl_policy_ref_per_reference_step",
        ),
        ({"target": 0.1, "unit": "step", "constrain": "old-policy", "states": "visited"}, "kl_old_policy_per_step"),
        ({"target": 5.0, "unit": "image"}, "kl_posterior_prior_per_image"),
        ({"kind": "FixedBeta", "beta": 0.1, "unit": "token"}, None),
        (None, None),
    ],
)
def test_the_constrained_kl_is_a_metric(budget: dict[str, object] | None, key: str | None) -> None:
    assert constrained_kl({"budget": budget}) == key
    assert key is None or any(metric.key == key for metric in METRICS)


def test_standard_errors_have_keys_of_their_own() -> None:
    assert metrics_of("ppo")["kl_old_policy_per_step_std_error"].key == "kl_old_policy_per_step"
    assert "beta_std_error" not in metrics_of("ppo")


def test_a_run_that_was_written_under_former_names_is_read(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    budget = {"kind": "RLlib", "target": 0.01, "unit": "step", "of": "old", "over": "visited"}
    (tmp_path / "config.json").write_text(json.dumps({"kind": "ppo", "budget": budget}))
    row = {"step": 1, "kl_level": 0.01, "pull": 0.9, "step_scale": 0.5, "informed_units": 3}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n" + '{"step": 2, "kl_le')
    assert run.config()["budget"] == {
        "kind": "RLlibController", "target": 0.01, "unit": "step", "constrain": "old-policy", "states": "visited"
    }  # fmt: skip
    present = {"step": 1, "kl_filtered": 0.01, "displacement_scale": 0.9, "learning_rate_scale": 0.5}
    assert run.metrics() == [{**present, "active_units_by_kl": 3}]
    vae = {"budget": {"target": 5.0, "unit": "latent"}}
    (tmp_path / "config.json").write_text(json.dumps(vae))
    assert constrained_kl(run.config()) == "kl_posterior_prior_per_image"
    (tmp_path / "config.json").write_text(json.dumps({"kind": "sft", "judged": 512, "budget": None}))
    assert run.config() == {"kind": "sft", "max_examples": 512, "budget": None}
