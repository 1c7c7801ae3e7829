"""Run directories as a report and as a table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kullback.explore.charts import DIVERGENCES, held_key
from kullback.explore.report import ReportRun, Table, write_report
from kullback.runs.run_directory import RunDirectory

__all__ = ["closing_table", "report_runs", "report_runs_of"]


def report_runs(runs: Mapping[str, RunDirectory], path: Path, *, title: str, summary: str = "") -> Path:
    """Write the report of run directories, each under the name that it is given here."""
    arms = report_runs_of(runs)
    table = closing_table(runs) if all(arm.evaluations for arm in arms) else None
    return write_report(arms, path, title=title, summary=summary, table=table)


def report_runs_of(runs: Mapping[str, RunDirectory]) -> list[ReportRun]:
    """What a report is told of each run."""
    return [
        ReportRun(name, run.config(), run.metrics(), run.evaluations(), run.samples(), run.pictures())
        for name, run in runs.items()
    ]


def closing_table(runs: Mapping[str, RunDirectory]) -> Table:
    """The first and the last evaluation of each run, side by side."""
    columns = ["measure", *runs]
    told = [_told(run) for run in runs.values()]
    names = list(dict.fromkeys(name for arm in told for name in arm))
    return {"columns": columns, "rows": [[name, *(arm.get(name, "-") for arm in told)] for name in names]}


def _told(run: RunDirectory) -> dict[str, str]:
    config, evaluations, metrics = run.config(), run.evaluations(), run.metrics()
    first, last = evaluations[0], evaluations[-1]

    def change(key: str) -> str:
        return f"{_number(first.get(key))} → {_number(last.get(key))}"

    told = {f"reward {name} (optimised)": change(f"rewards/{name}") for name in config["rewards"]}
    told |= {f"reward {name} (watched)": change(f"rewards/{name}") for name in config["watched"]}
    for key, divergence in DIVERGENCES.items():
        if key in last:
            told[f"{divergence.short}, nats per {divergence.unit}"] = _kl(last, key, config)
    unit = "step" if config.get("kind") == "ppo" else "token"
    measures = {
        f"entropy, nats per {unit}": "entropy",
        "repeated pairs of tokens": "repetition",
        "completion length, tokens": "completion_length",
        "episode length, steps": "episode_length",
        "cross-entropy, nats per token": "train_cross_entropy_per_token",
        "its floor, nats per token": "train_entropy_floor_per_token",
        "held-out cross-entropy, nats per token": "eval_cross_entropy_per_token",
        "distortion, nats per image": "distortion",
        "evidence bound, nats per image": "elbo",
        "log-likelihood, nats per image": "log_likelihood",
        "cross-entropy, nats per image": "cross_entropy",
        "accuracy": "accuracy",
        "active units": "active_units",
    }
    told |= {words: change(key) for words, key in measures.items() if key in last}
    told |= {
        "steps": str(metrics[-1]["step"]) if metrics else "0",
        "time, s": f"{metrics[-1]['seconds']:.0f}" if metrics else "-",
    }
    return told


def _kl(row: Mapping[str, Any], key: str, config: Mapping[str, Any]) -> str:
    value = f"{_number(row.get(key))} ± {_number(row.get(f'{key}_std_error'), 2)}"
    return f"{value} (budget {config['budget']['target']:g})" if held_key(config) == key else value


def _number(value: Any, digits: int = 3) -> str:
    return "-" if not isinstance(value, (int, float)) else f"{value:.{digits}g}" if value else "0"
