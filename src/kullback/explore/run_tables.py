"""Reports and tables that are made from run directories."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kullback.errors import InputError, KullbackError
from kullback.explore.divergences import DIVERGENCES, budgeted_kl
from kullback.explore.findings import check_run
from kullback.explore.report import ReportRun, Table, write_report
from kullback.runs.metrics import may_be_missing
from kullback.runs.run_directory import RunDirectory

__all__ = ["damage_as_input_error", "load_report_runs", "outcome_table", "write_run_report"]


@contextmanager
def damage_as_input_error(*runs: RunDirectory) -> Iterator[None]:
    """Within the context, the exceptions that values of wrong types in the files of runs lead to become `InputError`.

    Args:
        *runs: The run directories that are read.

    Raises:
        InputError: A file of a run has values that cannot be shown.
    """
    try:
        yield
    except KullbackError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        paths = ", ".join(str(run.path) for run in runs)
        raise InputError(
            f"{paths}: expected the files of a run, got values that cannot be shown ({type(error).__name__}: {error}); "
            f"run kullback doctor {paths}"
        ) from error


def write_run_report(runs: Mapping[str, RunDirectory], path: Path, *, title: str, summary: str = "") -> Path:
    """Write the report of run directories as an HTML file.

    Args:
        runs: Run directories by the names under which they are shown.
        path: The file to write, in a directory that exists.
        title: The heading of the page.
        summary: A sentence below the heading.

    Returns:
        The path of the file.

    Raises:
        InputError: A directory does not contain a run or has damaged files, there are more than 6, or the directory of
            `path` does not exist.
    """
    loaded = load_report_runs(runs)
    with damage_as_input_error(*runs.values()):
        return write_report(loaded, path, title=title, summary=summary)


def load_report_runs(runs: Mapping[str, RunDirectory]) -> list[ReportRun]:
    """Read run directories into the input of `write_report`, in the same order.

    Lines of metrics that cannot be read are omitted, and named in the problems of the run.

    Raises:
        InputError: A directory does not contain a run, or its config.json is damaged.
    """
    return [_load(name, run) for name, run in runs.items()]


def _load(name: str, run: RunDirectory) -> ReportRun:
    config, problems = run.config(), []
    contents: dict[str, Any] = {}
    readers: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "metrics": (run.metrics, lambda: run.readable_rows("metrics")),
        "evaluations": (run.evaluations, lambda: run.readable_rows("evaluations")),
        "samples": (run.samples, dict),
        "pictures": (run.pictures, dict),
    }
    for key, (read, read_rest) in readers.items():
        try:
            contents[key] = read()
        except InputError as error:
            problems.append(str(error))
            contents[key] = read_rest()
    return ReportRun(name, config, **contents, findings=check_run(run.path), problems=problems)


def outcome_table(runs: Mapping[str, RunDirectory]) -> Table:
    """Return a table with the first and the last evaluation of each run, one column per run.

    Args:
        runs: Run directories by the names of their columns.

    Raises:
        InputError: A file of a run is damaged.
    """
    results = []
    for run in runs.values():
        with damage_as_input_error(run):
            results.append(_results(run))
    metrics = list(dict.fromkeys(metric for result in results for metric in result))
    rows = [[metric, *(result.get(metric, "-") for result in results)] for metric in metrics]
    return {"columns": ["metric (± one standard error)", *runs], "rows": rows}


def _results(run: RunDirectory) -> dict[str, str]:
    """Return the formatted results of a run by their label, in the order of the table."""
    config, evaluations, metrics = run.config(), run.evaluations(), run.metrics()
    last = evaluations[-1] if evaluations else {}
    steps = metrics[-1]["step"] if metrics else 0
    # The last evaluation is older than the last step if the process was killed or the evaluation was interrupted.
    as_of = f" (as of step {last['step']})" if evaluations and last["step"] != steps else ""
    # The evaluation before training is absent if the file has been damaged.
    first = evaluations[0] if evaluations and evaluations[0]["step"] == 0 else {}

    def change(key: str) -> str:
        if (as_of and last is first) or (first and key not in first):  # it was measured once
            return f"{_value(last, key)}{as_of}"
        return f"{_number(first.get(key))} → {_value(last, key)}{as_of}"

    results = {f"reward {name} (optimised)": change(f"rewards/{name}") for name in config.get("rewards") or ()}
    results |= {f"reward {name} (watched)": change(f"rewards/{name}") for name in config.get("watched") or ()}
    for key, divergence in DIVERGENCES.items():
        if key in last:
            results[f"{divergence.short}, nats per {divergence.unit}"] = _kl(last, key, config) + as_of
    unit = "step" if config.get("kind") == "ppo" else "token"
    labels = {
        "divergence of the loss, nats per token": "divergence_per_token",
        f"entropy, nats per {unit}": "entropy",
        "repeated token pairs": "repetition",
        "completion length, tokens": "completion_length",
        "episode length, steps": "episode_length",
        "cross-entropy, nats per token": "train_cross_entropy_per_token",
        "entropy floor, nats per token": "train_entropy_floor_per_token",
        "held-out cross-entropy, nats per token": "eval_cross_entropy_per_token",
        "distortion, nats per image": "distortion",
        "ELBO, nats per image": "elbo",
        "log-likelihood, nats per image": "log_likelihood",
        "cross-entropy, nats per image": "cross_entropy",
        "accuracy": "accuracy",
        "active units": "active_units",
    }
    results |= {label: change(key) for label, key in labels.items() if key in last}
    results |= {
        "steps": str(steps),
        "time, s": f"{run.elapsed_seconds():.0f}" if metrics else "-",
    }
    return results


def _kl(row: Mapping[str, Any], key: str, config: Mapping[str, Any]) -> str:
    """Format a KL with its standard error, and with the budget where the budget constrains this KL."""
    value = f"{_value(row, key)} ± {_number(row.get(f'{key}_std_error'), 2)}"
    if budgeted_kl(config) != key:
        return value
    budget = config["budget"]
    is_mean = budget.get("mean_over_updates") or budget.get("decay")
    return f"{value} ({'mean budget' if is_mean else 'budget'} {budget['target']:g})"


def _value(row: Mapping[str, Any], key: str) -> str:
    """Format a metric of a row, where a null that stands for nan or infinity is "not finite"."""
    value = row.get(key)
    is_lost = key in row and value is None and not may_be_missing(key)
    return "not finite" if is_lost or (isinstance(value, float) and not math.isfinite(value)) else _number(value)


def _number(value: Any, digits: int = 3) -> str:
    return "-" if not isinstance(value, (int, float)) else f"{value:.{digits}g}" if value else "0"
