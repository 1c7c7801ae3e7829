"""The doctor for the files of a run: a run directory, an output directory of TRL, or a file of settings."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from math import inf, isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

from kullback.doctor.budget_and_rewards import check_budget, check_reward_hacking
from kullback.doctor.files import check_checkpoints, check_model_files
from kullback.doctor.finding import Finding
from kullback.doctor.logged_kl import check_finite_training, check_learning, check_logged_kl, finite_values, second_half
from kullback.doctor.settings import check_ppo_settings, check_settings
from kullback.errors import InputError, MissingDependencyError
from kullback.numerics.arguments import is_number
from kullback.runs.checksums import find_model_damage
from kullback.runs.lock import is_locked
from kullback.runs.metrics import constrained_kl
from kullback.runs.run_directory import RunDirectory, checkpoint_step, missing_steps

__all__ = ["check_finished", "check_missing_rows", "check_order", "doctor_path", "doctor_runs", "find_runs"]

Row = dict[str, Any]

_TRL_KEYS = {"grad_norm": "gradient_norm", "completions/mean_length": "completion_length"}
_POLICIES = ("grpo", "rloo", "ppo")
_OTHER_KINDS = ("sft", "distill", "vae", "bottleneck")  # runs without a KL between a policy and a reference
_MAX_DEPTH = 3  # of a run below a directory of runs

_NUMERIC_SETTINGS = ("beta", "learning_rate", "min_p", "repetition_penalty", "top_k", "top_p")
_FLAGS = ("sync_ref_model", "use_bias_correction_kl", "use_vllm", "vllm_importance_sampling_correction")
# Fields by which a file of settings of TRL is recognised.
_SETTINGS = {
    *(*_NUMERIC_SETTINGS, *_FLAGS, "clip", "epsilon", "max_completion_length", "max_prompt_length", "max_steps"),
    *("num_generations", "num_iterations", "num_train_epochs", "per_device_train_batch_size", "steps_per_generation"),
    *("gradient_accumulation_steps", "loss_type", "scale_rewards", "temperature", "ref_model_sync_steps", "bf16"),
    *("ref_model_mixup_alpha", "reward_weights", "lr_scheduler_type", "logging_steps", "save_steps", "output_dir"),
    *("disable_dropout", "mask_truncated_completions", "generation_batch_size", "max_grad_norm", "warmup_ratio"),
    "generation_kwargs",
}


def doctor_path(path: Path) -> list[Finding]:
    """Check a run by its files.

    Args:
        path: A run directory of `kullback train grpo`, `rloo` or `ppo`; a directory with checkpoints of TRL,
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
        findings = _check_file(path)
    elif not path.is_dir():
        found = "not a file or a directory" if path.exists() else "no such file or directory"
        raise InputError(f"{path}: {found}; expected a run directory, or a JSON or YAML file of settings")
    elif (state := _trl_state_file(path)) is not None:
        findings = _check_trl_history(state, _read_mapping(state))
        findings += check_checkpoints(path, is_written=False)
    elif not (path / "config.json").is_file():
        raise InputError(f"{path}: expected a run directory, found no config.json in it{_other_content(path)}")
    else:
        findings = _check_run(RunDirectory(path))
    return sorted(findings, key=lambda finding: finding.severity != "error")


def doctor_runs(path: Path) -> dict[Path, list[Finding]]:
    """Check a run, or all runs in a directory of runs.

    Args:
        path: A path that `doctor_path` takes, or a directory of such directories.

    Returns:
        The findings by run. A run of a directory of runs whose files cannot be read has the finding `unreadable`, and
        the other runs are checked nevertheless.

    Raises:
        InputError: `path` is neither a run nor a directory of runs, or is a run whose files cannot be read.

    Example:
        >>> import tempfile
        >>> directory = Path(tempfile.mkdtemp())
        >>> RunDirectory(directory / "started").create({"kind": "grpo"})
        >>> [[finding.name for finding in findings] for findings in doctor_runs(directory).values()]
        [['unreadable']]
    """
    runs = find_runs(path)
    return {path: doctor_path(path)} if runs == [path] else {run: check_one_of_several_runs(run) for run in runs}


def check_one_of_several_runs(run: Path) -> list[Finding]:
    """Check a run beside others, which are checked although its files cannot be read.

    Args:
        run: A run directory, or an output directory of TRL.

    Returns:
        The findings; `unreadable` if a file is damaged or missing, or if the run has not taken a step.
    """
    try:
        return doctor_path(run)
    except InputError as error:
        remedy = "repair or delete the file that the message names; the other runs do not depend on it"
        return [Finding("unreadable", "warning", str(error), remedy, {"run": str(run)})]


def find_runs(path: Path) -> list[Path]:
    """Return the runs in a directory of runs.

    Args:
        path: A path that a user passes to the doctor.

    Returns:
        The run directories and TRL's output directories below `path`, sorted by name, where `path` is a directory
        that is not a run itself; otherwise `path` alone.

    Raises:
        InputError: A directory cannot be read.

    Example:
        >>> import tempfile
        >>> directory = Path(tempfile.mkdtemp())
        >>> for name in ("b", "a"):
        ...     RunDirectory(directory / name).create({"kind": "grpo"})
        >>> [run.name for run in find_runs(directory)]
        ['a', 'b']
    """
    try:
        if not path.is_dir() or _is_run(path) or (path / "config.json").is_file():
            return [path]
        directories = [path]
        runs: list[Path] = []
        for _ in range(_MAX_DEPTH):
            inner = [child for parent in directories for child in sorted(parent.iterdir()) if child.is_dir()]
            runs += [child for child in inner if _is_run(child)]
            directories = [child for child in inner if not _is_run(child)]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    return sorted(runs) or [path]


def _is_run(path: Path) -> bool:
    """Whether a directory has the files of a run of kullback or the checkpoints of TRL."""
    if _trl_state_file(path) is not None:
        return True
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        config = None
    if isinstance(config, dict) and isinstance(config.get("kind", ""), str):
        return config.get("kind") in (*_POLICIES, *_OTHER_KINDS)
    return (path / "metrics.jsonl").is_file()  # a run with a damaged config.json


def _other_content(path: Path) -> str:
    """The end of the message for a directory that is not a run: what it contains instead."""
    try:
        names = sorted(child.name for child in path.iterdir())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not names:
        return ": the directory is empty"
    if "adapter_config.json" in names:
        return ": it is an adapter of PEFT; pass the run directory that it was trained in"
    if any("tfevents" in name for name in names):
        return ": it has logs of TensorBoard; pass the output directory of TRL, which has checkpoints"
    if any(name.endswith((".safetensors", ".bin", ".pt", ".zip")) for name in names):
        return ": it has weights; pass the run directory that they were trained in"
    return f", nor in the directories below it; it has {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def _check_file(path: Path) -> list[Finding]:
    """Check a file of settings, the config.json of a run, or the trainer_state.json of a checkpoint."""
    if "tfevents" in path.name:
        raise InputError(f"{path}: expected a run directory or a file of settings, got logs of TensorBoard")
    if path.suffix in (".jsonl", ".html", ".csv"):
        raise InputError(
            f"{path}: expected a run directory or a JSON or YAML file of settings, got a file {path.suffix}; pass the "
            "run directory"
        )
    content = _read_mapping(path)
    if "log_history" in content:
        return _check_trl_history(path, content)
    is_config = "kind" in content and content["kind"] in _POLICIES
    if not is_config and not _SETTINGS & content.keys():
        raise InputError(
            f"{path}: expected settings of TRL such as beta or learning_rate, or the config.json of a run of kullback "
            f"train grpo, rloo or ppo; got {_keys_as_text(content)}"
        )
    return _check_settings(path, content)


def _keys_as_text(content: Row) -> str:
    if not content:
        return "an empty object"
    names = [str(key)[:40] for key in content]
    return f"an object with the keys {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"


def _check_run(run: RunDirectory) -> list[Finding]:
    config = run.config()
    kind = config.get("kind") if isinstance(config, dict) else None
    if kind not in (*_POLICIES, *_OTHER_KINDS):
        got = f"kind {kind!r}" if kind is not None else _keys_as_text(config) if isinstance(config, dict) else config
        is_model = isinstance(config, dict) and bool({"model_type", "architectures"} & config.keys())
        raise InputError(
            f"{run.path}: expected a run of kullback train, got a config.json of another kind: "
            f"{'the configuration of a model; pass the run directory' if is_model else got}"
        )
    metrics, evaluations = run.metrics(), run.evaluations()
    if not metrics:
        raise InputError(f"{run.path}: expected at least one row in metrics.jsonl, got none: {_why_no_rows(run)}")
    findings = check_order(metrics, evaluations)
    is_ordered = not findings
    findings += check_finite_training(metrics)
    if is_ordered:
        findings += check_missing_rows(metrics, _last_saved_step(run))
    _require_budget_mapping(config, run.path / "config.json")
    if not (run.model.is_dir() or is_locked(run.path)):
        findings += check_finished(metrics, config.get("steps"))
    findings += check_checkpoints(run.checkpoints, is_written=is_locked(run.path), model_step=_intact_model_step(run))
    for directory in (run.model, run.path / "reference"):
        findings += check_model_files(directory)
    if kind in _POLICIES and is_ordered:  # the rows of two processes are no series
        findings += _check_policy_run(run.path, config, metrics, evaluations)
    if kind in _POLICIES:
        names = {finding.name for finding in findings}
        settings = _check_settings(run.path / "config.json", config)
        findings += [finding for finding in settings if finding.name not in names]
    return findings


def _why_no_rows(run: RunDirectory) -> str:
    path = run.path / "metrics.jsonl"
    if path.is_file() and path.stat().st_size:
        return "the file has no complete line"
    if run.evaluations() and run.evaluations()[-1]["step"] > 0:
        return f"the file is {'empty' if path.is_file() else 'missing'}, but the run was evaluated after step 1"
    return "no step was taken yet"


def _check_policy_run(path: Path, config: Row, metrics: list[Row], evaluations: list[Row]) -> list[Finding]:
    """Check the KL, the budget and the rewards of a run, whose rows are in the order of the steps."""
    # PPO measures the KL after the epochs on a rollout, so its first row is of a changed policy.
    findings = check_logged_kl(metrics, evaluations, first_is_reference=config["kind"] != "ppo")
    findings = [
        _attribute_to_dropout(finding, config) if finding.name == "kl-at-start" else finding for finding in findings
    ]
    settings = config.get("settings") or {}
    if not isinstance(settings, dict):
        raise InputError(f"{path / 'config.json'}: expected an object of settings, got {settings!r}")
    if settings.get("mask_truncated_completions"):  # TRL's lengths then include completions that the KL excludes
        findings = [finding for finding in findings if finding.name != "mask-mismatch"]
    findings += check_learning(metrics)
    constraint = None
    if (key := constrained_kl(config)) is not None:
        budget = config["budget"]
        target, lower, upper = (
            _number_of_budget(path, budget, name, default)
            for name, default in (("target", None), ("price_min", 0.0), ("price_max", inf))
        )
        if not 0 <= lower <= upper:
            config_file = path / "config.json"
            raise InputError(f"{config_file}: expected 0 <= price_min <= price_max, got {lower!r} and {upper!r}")
        constraint = key, target
        # The controllers other than KLBudget do not bound beta. An evaluation has the KL of a single update, so the KL
        # to the old policy is checked by the metrics only.
        rows = [] if budget.get("constrain") == "old-policy" else evaluations
        unit = str(budget.get("unit", "token"))
        # With a decay, the KL of each update is compared with its own budget; if the mean over the updates is held, the
        # mean KL of the updates is compared with the mean of their budgets.
        compared = metrics
        if budget.get("decay"):
            late = [own for _, own in second_half(finite_values(metrics, "kl_budget"))]
            own = fmean(late) if late and budget.get("mean_over_updates") else None
            compared = [_relative_to_budget(row, key, target, own) for row in metrics]
        findings += check_budget(compared, rows, target=target, unit=unit, price=(lower, upper), name=key)
    per_device = settings.get("per_device_train_batch_size")
    findings += check_reward_hacking(
        evaluations,
        proxies=_names(config.get("rewards")),
        watched=_names(config.get("watched")),
        budget=constraint,
        metrics=metrics,
        completions=per_device if isinstance(per_device, int) and per_device > 0 else None,
    )
    return findings


def _relative_to_budget(row: Row, key: str, target: float, mean: float | None) -> Row:
    """A row whose KL, and its standard error, are scaled as if its budget were the target.

    Its budget is `mean`, or, if that is None, the budget of the update.
    """
    own: Any = row.get("kl_budget") if mean is None else mean
    if not (is_number(own) and own > 0):
        return row
    return row | {name: row[name] * target / own for name in (key, f"{key}_std_error") if is_number(row.get(name))}


def _number_of_budget(path: Path, budget: Row, name: str, default: float | None) -> float:
    value = budget.get(name, default)
    if value is None and default is not None:
        return default
    if not isinstance(value, (int, float)) or (name == "target" and not (value > 0 and isfinite(value))):
        raise InputError(f"{path / 'config.json'}: expected a number above 0 as {name} of the budget, got {value!r}")
    return float(value)


def _names(value: Any) -> list[str]:
    """The names in a list of rewards."""
    return [name for name in value if isinstance(name, str)] if isinstance(value, (list, tuple)) else []


def _last_saved_step(run: RunDirectory) -> int:
    """The largest step of a checkpoint or of the model; 0 if there is none, or where a file is damaged."""
    names = run.checkpoints.glob("checkpoint-*")
    steps = [checkpoint_step(path) for path in names if path.name.rpartition("-")[2].isdecimal()]
    with suppress(InputError):  # check_model_files reports a damaged file
        steps.append(run.model_step() or 0)
    return max(steps, default=0)


def _intact_model_step(run: RunDirectory) -> int | None:
    """The number of steps of the trained model; None if there is none, or where a file is damaged."""
    with suppress(InputError):
        return None if find_model_damage(run.model) else run.model_step()
    return None


def check_order(metrics: Sequence[Row], evaluations: Sequence[Row]) -> list[Finding]:
    """Check that the steps of the rows increase.

    Criterion: the step of each row is above the step of the row before, in both files. A resumed run removes the rows
    of the steps that it takes again, so that only a second process leaves such rows.

    Args:
        metrics: The rows of metrics.jsonl, in the order of the file.
        evaluations: The rows of evaluations.jsonl.

    Returns:
        `rows-out-of-order` (error), or nothing.

    Example:
        >>> check_order([{"step": 1}, {"step": 2}, {"step": 2}], [])[0].evidence
        {'file': 'metrics.jsonl', 'rows': 1, 'first row': 3, 'its step': 2, 'the step before': 2}
    """
    for name, rows in (("metrics.jsonl", metrics), ("evaluations.jsonl", evaluations)):
        pairs = enumerate(pairwise(row["step"] for row in rows), 2)
        affected = [(number, before, step) for number, (before, step) in pairs if step <= before]
        if not affected:
            continue
        number, before, step = affected[0]
        cause = (
            "the steps of the rows do not increase: two processes wrote to the run directory, or files of two runs "
            "were joined, so that no series of values can be checked"
        )
        remedy = "train again in a new directory; start only one process for each run directory"
        evidence = {
            "file": name,
            "rows": len(affected),
            "first row": number,
            "its step": step,
            "the step before": before,
        }
        return [Finding("rows-out-of-order", "error", cause, remedy, evidence)]
    return []


def check_missing_rows(metrics: Sequence[Row], last: float) -> list[Finding]:
    """Check that there is a row for each step up to the last one that was saved.

    Criterion: no gap between the steps of two rows is larger than the smallest one. Every step is logged.

    Args:
        metrics: The rows of metrics.jsonl, with ascending steps.
        last: The largest step of a checkpoint or of the model; 0 for none.

    Returns:
        `missing-rows` (warning), or nothing.

    Example:
        >>> check_missing_rows([{"step": 1}, {"step": 2}, {"step": 5}], 5)[0].evidence
        {'ranges': 1, 'first missing step': 3, 'last of the range': 4}
    """
    missing = missing_steps([row["step"] for row in metrics], last)
    if not missing:
        return []
    first, end = missing[0]
    cause = "metrics.jsonl lacks rows of steps that were taken: the file was damaged, cut or edited"
    remedy = "copy the file again; averages, charts and the other checks use the remaining rows"
    evidence = {"ranges": len(missing), "first missing step": first, "last of the range": end}
    return [Finding("missing-rows", "warning", cause, remedy, evidence)]


def check_finished(metrics: Sequence[Row], steps: Any) -> list[Finding]:
    """Report a run without a saved model, which was stopped before its last step or before the model was saved.

    Args:
        metrics: The rows of metrics.jsonl.
        steps: The number of steps in config.json; anything but a number is not checked.

    Returns:
        `unfinished` (warning), or nothing if the number of steps is not known.

    Example:
        >>> check_finished([{"step": 1}, {"step": 2}], 60)[0].evidence
        {'last step': 2, 'steps': 60}
    """
    last = max(row["step"] for row in metrics)
    if not isinstance(steps, (int, float)):
        return []
    if last >= steps:
        cause = (
            f"the run took all {steps} steps, but it has no trained model: it was stopped before the model was saved, "
            "or the model was removed"
        )
        remedy = "continue with --resume, which saves the model of the last checkpoint"
    else:
        cause = (
            f"the run ended after step {last} of {steps} without a trained model: it was stopped, or it failed, for "
            "example by a loss that is not finite"
        )
        remedy = "read the last line that the training command printed, and continue with --resume"
    return [Finding("unfinished", "warning", cause, remedy, {"last step": last, "steps": steps})]


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


def _check_trl_history(path: Path, content: Row) -> list[Finding]:
    history = content.get("log_history")
    rows = [row for row in history if isinstance(row, dict)] if isinstance(history, list) else []
    if not any("reward" in row or "kl" in row for row in rows):
        raise InputError(
            f"{path}: expected the log of a policy's training, with a reward or a kl in its rows; for a checkpoint of "
            "kullback, pass the run directory"
        )
    metrics: list[Row] = [
        {str(_TRL_KEYS.get(key, key)): value for key, value in row.items()} for row in rows if "reward" in row
    ]
    return check_finite_training(metrics) + check_logged_kl(metrics, []) + check_learning(metrics)


def _check_settings(path: Path, content: Row) -> list[Finding]:
    """Check the config.json of a run, or settings of TRL."""
    is_config = "kind" in content
    settings = (content.get("settings") or {}) if is_config else content
    if not isinstance(settings, dict):
        raise InputError(f"{path}: expected an object of settings, got {settings!r}")
    settings = {key: _as_number(value) if key in _NUMERIC_SETTINGS else value for key, value in settings.items()}
    for key in _NUMERIC_SETTINGS:
        value = settings.get(key)
        if value is not None and not (is_number(value) and isfinite(value)):
            raise InputError(f"{path}: expected a finite number as {key}, got {value!r}")
    if content.get("kind") == "ppo":
        _require_budget_mapping(content, path)
        return check_ppo_settings({**content, "settings": settings})
    return check_settings(settings)


def _require_budget_mapping(config: Row, path: Path) -> None:
    """Check that the budget of a configuration is a mapping or missing."""
    budget = config.get("budget")
    if not isinstance(budget, dict | None):
        raise InputError(f"{path}: expected an object or null as budget, got {budget!r}")


def _read_mapping(path: Path) -> Row:
    """The content of a JSON or YAML file, which must be a mapping."""
    is_yaml = path.suffix in (".yaml", ".yml")
    try:
        text = path.read_text(encoding="utf-8")
        content = _parse_yaml(text) if is_yaml else json.loads(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
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
