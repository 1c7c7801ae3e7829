"""The doctor on what a run left: a run directory of ours, a TRL output directory, or a file of settings."""

import json
from collections.abc import Mapping
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from kullback.doctor.budget_and_rewards import check_budget, check_reward_hacking
from kullback.doctor.finding import Finding
from kullback.doctor.logged_kl import check_learning, check_logged_kl
from kullback.doctor.settings import check_ppo_settings, check_settings
from kullback.errors import InputError, MissingDependencyError
from kullback.runs.run_directory import RunDirectory

__all__ = ["doctor_path"]

Row = dict[str, Any]

_FROM_TRL = {"grad_norm": "gradient_norm", "completions/mean_length": "completion_length"}


def doctor_path(path: Path) -> list[Finding]:
    """What is wrong with a run, from its files alone; errors first.

    Args:
        path: A run directory of `kullback train`; a directory that TRL wrote checkpoints to, or one checkpoint; or a
            JSON or YAML file of TRL's settings.

    Raises:
        InputError: It is none of these, or what it holds cannot be read.
    """
    if path.is_file():
        found = _of_settings(_table(path))
    elif not path.is_dir():
        raise InputError(f"{path}: no such file or directory; name a run, or a JSON or YAML file of settings")
    elif (state := _newest_state(path)) is not None:
        found = _of_history(state)
    else:
        found = _of_run(RunDirectory(path))
    return sorted(found, key=lambda one: one.severity != "error")


def _of_run(run: RunDirectory) -> list[Finding]:
    config = run.config()
    if not isinstance(config, dict) or config.get("kind") not in ("grpo", "ppo"):
        raise InputError(f"{run.path}: expected a run of kullback train grpo or ppo, and its config.json is another's")
    try:
        metrics, evaluations = run.metrics(), run.evaluations()
    except json.JSONDecodeError as error:
        raise InputError(f"{run.path}: metrics.jsonl or evaluations.jsonl holds a line that is not JSON") from error
    if not metrics:
        raise InputError(f"{run.path}: no step was taken yet, nothing to judge by")
    is_grpo = config["kind"] == "grpo"
    # PPO measures after its epochs over the rollout, so that its first row has moved.
    found = check_logged_kl(metrics, evaluations, first_is_reference=is_grpo)
    found = [_named_dropout(one, config) if one.name == "kl-at-start" else one for one in found]
    found += check_learning(metrics)
    held = None
    if (budget := config.get("budget")) and "target" in budget:
        held = _held_key(budget), float(budget["target"])
        # What is published beside KLBudget has no bounds.
        price = (float(budget.get("price_min", 0.0)), float(budget.get("price_max", inf)))
        # The KL of one update is judged by all updates: an evaluation sees a single one.
        judged = [] if budget.get("of") == "old" else evaluations
        found += check_budget(metrics, judged, target=held[1], unit=budget["unit"], price=price, name=held[0])
    found += check_reward_hacking(
        evaluations, proxies=config.get("rewards", ()), watched=config.get("watched", ()), budget=held
    )
    known = {one.name for one in found}
    return found + [one for one in _of_settings(config) if one.name not in known]


def _held_key(budget: Mapping[str, Any]) -> str:
    if budget.get("over") == "reference":
        return "kl_policy_ref_per_reference_step"
    sides = "old_policy" if budget.get("of") == "old" else "policy_ref"
    return f"kl_{sides}_per_{budget['unit']}"


def _named_dropout(found: Finding, config: Mapping[str, Any]) -> Finding:
    """A KL at the start, where the model's config has dropout, has that cause first."""
    try:
        told = json.loads((Path(str(config.get("model"))) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return found
    on = {key: value for key, value in told.items() if ("dropout" in key or "pdrop" in key) and value}
    if not on or (config.get("settings") or {}).get("disable_dropout"):
        return found
    cause = "dropout is on while the policy is compared with its reference: two passes differ with equal weights"
    remedy = "--set disable_dropout=true, or 0 in the model's config"
    return replace(found, name="dropout", cause=cause, remedy=remedy, evidence={**found.evidence, **on})


def _newest_state(path: Path) -> Path | None:
    """The trainer's state where TRL wrote it, in the directory itself or in its newest checkpoint."""
    if (path / "metrics.jsonl").is_file():
        return None
    if (path / "trainer_state.json").is_file():
        return path / "trainer_state.json"
    found = [one for one in path.glob("checkpoint-*/trainer_state.json") if one.parent.name[11:].isdigit()]
    return max(found, key=lambda one: int(one.parent.name[11:]), default=None)


def _of_history(path: Path) -> list[Finding]:
    state = _table(path)
    history = state.get("log_history")
    if not isinstance(history, list) or not any("reward" in row or "kl" in row for row in history):
        raise InputError(f"{path}: expected the log of a policy's training, with a reward or a kl in its rows")
    metrics: list[Row] = [
        {str(_FROM_TRL.get(key, key)): value for key, value in row.items()} for row in history if "reward" in row
    ]
    # Without steps in between, the first row is the reference's own.
    return check_logged_kl(metrics, []) + check_learning(metrics)


def _of_settings(content: Row) -> list[Finding]:
    """Of a run's own config.json, or of TRL's settings alone."""
    if content.get("kind") == "ppo":
        return check_ppo_settings(content)
    return check_settings(content.get("settings") or {} if "kind" in content else content)


def _table(path: Path) -> Row:
    try:
        text = path.read_text(encoding="utf-8")
        content = _yaml(text) if path.suffix in (".yaml", ".yml") else json.loads(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}; a YAML file is told by its name, .yaml") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object of settings, got {type(content).__name__}")
    return content


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise MissingDependencyError("PyYAML is missing: pip install pyyaml") from error
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"not YAML: {' '.join(str(error).split())}") from error
    # YAML 1.1 takes 1e-5 for a word.
    return {key: _number(value) for key, value in content.items()} if isinstance(content, dict) else content


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
