"""The doctor for the files of a run: a run directory, an output directory of TRL, or a file of settings."""

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
from kullback.runs.metrics import constrained_kl
from kullback.runs.run_directory import RunDirectory

__all__ = ["doctor_path"]

Row = dict[str, Any]

_TRL_KEYS = {"grad_norm": "gradient_norm", "completions/mean_length": "completion_length"}


def doctor_path(path: Path) -> list[Finding]:
    """Check a run by its files.

    Args:
        path: A run directory of `kullback train grpo` or `kullback train ppo`; a directory with checkpoints of TRL,
            or one such checkpoint; or a JSON or YAML file of TRL's settings.

    Returns:
        Findings, errors first; an empty list if nothing is wrong.

    Raises:
        InputError: The path is none of these, or its content cannot be read.
        MissingDependencyError: The file is YAML, and PyYAML is not installed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "settings.json"
        >>> _ = path.write_text('{"beta": -0.04}')
        >>> [finding.name for finding in doctor_path(path)]
        ['kl-sign']
    """
    if path.is_file():
        findings = _check_settings(_read_mapping(path))
    elif not path.is_dir():
        raise InputError(
            f"{path}: no such file or directory; expected a run directory, or a JSON or YAML file of settings"
        )
    elif (state := _trl_state_file(path)) is not None:
        findings = _check_trl_history(state)
    else:
        findings = _check_run(RunDirectory(path))
    return sorted(findings, key=lambda finding: finding.severity != "error")


def _check_run(run: RunDirectory) -> list[Finding]:
    config = run.config()
    if not isinstance(config, dict) or config.get("kind") not in ("grpo", "ppo"):
        raise InputError(f"{run.path}: expected a run of kullback train grpo or ppo, got a config.json of another kind")
    try:
        metrics, evaluations = run.metrics(), run.evaluations()
    except json.JSONDecodeError as error:
        raise InputError(
            f"{run.path}: metrics.jsonl or evaluations.jsonl has a line that is not JSON; remove this line"
        ) from error
    if not metrics:
        raise InputError(f"{run.path}: expected at least one row in metrics.jsonl, got none: no step was taken yet")
    # PPO measures the KL after the epochs on a rollout, so its first row is of a changed policy.
    findings = check_logged_kl(metrics, evaluations, first_is_reference=config["kind"] == "grpo")
    findings = [
        _attribute_to_dropout(finding, config) if finding.name == "kl-at-start" else finding for finding in findings
    ]
    findings += check_learning(metrics)
    constraint = None
    if (key := constrained_kl(config)) is not None:
        budget = config["budget"]
        target = float(budget["target"])
        constraint = key, target
        # The controllers other than KLBudget do not bound beta.
        price = (float(budget.get("price_min", 0.0)), float(budget.get("price_max", inf)))
        # An evaluation has the KL of a single update, so the KL to the old policy is checked by the metrics only.
        rows = [] if budget.get("constrain") == "old-policy" else evaluations
        findings += check_budget(metrics, rows, target=target, unit=budget["unit"], price=price, name=key)
    findings += check_reward_hacking(
        evaluations, proxies=config.get("rewards", ()), watched=config.get("watched", ()), budget=constraint
    )
    names = {finding.name for finding in findings}
    return findings + [finding for finding in _check_settings(config) if finding.name not in names]


def _attribute_to_dropout(finding: Finding, config: Mapping[str, Any]) -> Finding:
    """Replace `kl-at-start` by `dropout` if the config of the model has dropout and the run did not disable it."""
    try:
        model_config = json.loads((Path(str(config.get("model"))) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return finding
    dropout = {key: value for key, value in model_config.items() if ("dropout" in key or "pdrop" in key) and value}
    if not dropout or (config.get("settings") or {}).get("disable_dropout"):
        return finding
    cause = (
        "dropout is on while the policy is compared with its reference: two forward passes with equal weights differ"
    )
    remedy = "pass --set disable_dropout=true, or set dropout to 0 in the model's config"
    return replace(finding, name="dropout", cause=cause, remedy=remedy, evidence={**finding.evidence, **dropout})


def _trl_state_file(path: Path) -> Path | None:
    """The trainer_state.json of TRL in a directory or in its newest checkpoint; None for a run directory."""
    if (path / "metrics.jsonl").is_file():
        return None
    if (path / "trainer_state.json").is_file():
        return path / "trainer_state.json"
    prefix = "checkpoint-"
    steps = {
        file: int(step)
        for file in path.glob(f"{prefix}*/trainer_state.json")
        if (step := file.parent.name.removeprefix(prefix)).isdigit()
    }
    return max(steps, key=lambda file: steps[file], default=None)


def _check_trl_history(path: Path) -> list[Finding]:
    history = _read_mapping(path).get("log_history")
    if not isinstance(history, list) or not any("reward" in row or "kl" in row for row in history):
        raise InputError(f"{path}: expected the log of a policy's training, with a reward or a kl in its rows")
    metrics: list[Row] = [
        {str(_TRL_KEYS.get(key, key)): value for key, value in row.items()} for row in history if "reward" in row
    ]
    return check_logged_kl(metrics, []) + check_learning(metrics)


def _check_settings(content: Row) -> list[Finding]:
    """Check the config.json of a run, or settings of TRL."""
    if content.get("kind") == "ppo":
        return check_ppo_settings(content)
    return check_settings(content.get("settings") or {} if "kind" in content else content)


def _read_mapping(path: Path) -> Row:
    """The content of a JSON or YAML file, which must be a mapping."""
    is_yaml = path.suffix in (".yaml", ".yml")
    try:
        text = path.read_text(encoding="utf-8")
        content = _parse_yaml(text) if is_yaml else json.loads(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        hint = "" if is_yaml else "; the name of a YAML file must end in .yaml or .yml"
        raise InputError(f"{path}: not {'YAML' if is_yaml else 'JSON'}: {error}{hint}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object of settings, got {type(content).__name__}")
    return content


def _parse_yaml(text: str) -> Any:
    """The content of a YAML document; ValueError if it is not YAML."""
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise MissingDependencyError("PyYAML is missing: pip install pyyaml") from error
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    # YAML 1.1 parses 1e-5 as a string.
    return {key: _as_number(value) for key, value in content.items()} if isinstance(content, dict) else content


def _as_number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
