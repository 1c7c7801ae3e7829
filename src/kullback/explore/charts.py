"""The charts of a report, as plain lists and dictionaries that `chart` in `static/chart.js` draws."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kullback.explore.downsample import DownsampledSeries, finite
from kullback.explore.vae_charts import accuracy_by_kl, has_latent_variables, kl_by_dimension, latent_grids
from kullback.runs.metrics import constrained_kl

__all__ = ["DIVERGENCES", "Divergence", "RunCharts", "budget_of", "budgeted_kl"]

Row = Mapping[str, Any]
Chart = dict[str, Any]

BUDGET_BAND = 0.2  # relative half-width of the band around a budget
LOG_SCALE_RATIO = 4  # a KL this many times the smallest budget selects the logarithmic axis
SEPARATE_CHARTS_RATIO = 6  # reward functions whose ranges differ by more than this factor get separate charts

_ACTIVE_UNITS_NOTE = "Latent dimensions whose posterior mean has a variance above 0.01 over the images."
_FORWARD_KL = {
    "train_forward_kl_per_token": "training examples",
    "eval_forward_kl_per_token": "held-out examples",
}
_CROSS_ENTROPY = {
    "loss": "training loss",
    "train_cross_entropy_per_token": "cross-entropy, training examples",
    "eval_cross_entropy_per_token": "cross-entropy, held-out examples",
    "train_entropy_floor_per_token": "entropy floor, training examples",
    "eval_entropy_floor_per_token": "entropy floor, held-out examples",
}
_ENTROPY_FLOOR_NOTE = (
    "The entropy floor is the entropy of the next token in the data, given all preceding tokens. "
    "No model has a lower cross-entropy on these examples."
)


class Divergence(NamedTuple):
    """How the report presents a KL metric.

    Args:
        name: The identifier of the chart.
        title: The title of the chart.
        short: The name in a table.
        unit: The KL is in nats per this unit.
        note: The caption of the chart.
    """

    name: str
    title: str
    short: str
    unit: str
    note: str


_POLICY_REF = ("KL(policy || reference)", "KL(policy || ref)")
_OLD_POLICY = "KL(old policy || policy)"
_POSTERIOR_PRIOR = "KL(q(z | x) || p(z))"

DIVERGENCES = {
    "kl_policy_ref_per_token": Divergence(
        "kl-token", *_POLICY_REF, "token", "Mean KL per token of completions that are sampled from the policy."
    ),
    "kl_policy_ref_per_sequence": Divergence(
        "kl-sequence", *_POLICY_REF, "sequence", "Mean KL per completion that is sampled from the policy."
    ),
    "kl_policy_ref_per_step": Divergence(
        "kl-step", *_POLICY_REF, "step", "Mean KL over the states that the policy visits."
    ),
    "kl_policy_ref_per_reference_step": Divergence(
        "kl-reference-step",
        *_POLICY_REF,
        "step at reference states",
        "Mean KL over a fixed set of states that the reference policy visits.",
    ),
    "kl_old_policy_per_step": Divergence(
        "kl-old",
        _OLD_POLICY,
        _OLD_POLICY,
        "step",
        "Mean KL of an update over visited states; the old policy is the policy before the update.",
    ),
    "train_forward_kl_per_token": Divergence(
        "forward-kl", "KL(data || model)", "KL(data || model)", "token", "Cross-entropy minus the entropy floor."
    ),
    "kl_student_teacher_per_token": Divergence(
        "kl-student",
        "KL(student || teacher)",
        "KL(student || teacher)",
        "token",
        "Mean KL per token of the completions of the evaluation.",
    ),
    "kl_teacher_student_per_token": Divergence(
        "kl-teacher",
        "KL(teacher || student)",
        "KL(teacher || student)",
        "token",
        "Mean KL per token of the completions of the evaluation.",
    ),
    "kl_posterior_prior_per_image": Divergence(
        "kl-latent",
        _POSTERIOR_PRIOR,
        _POSTERIOR_PRIOR,
        "image",
        "Mean KL over images, summed over the latent dimensions.",
    ),
}


def budget_of(config: Row) -> tuple[float, str] | None:
    """Read the KL budget of a run.

    Args:
        config: The settings of a run.

    Returns:
        The target in nats and its unit, or None when the run has no budget.

    Example:
        >>> budget_of({"budget": {"target": 0.05, "unit": "token"}}), budget_of({"budget": None})
        ((0.05, 'token'), None)
    """
    budget = config.get("budget")
    if not isinstance(budget, Mapping):
        return None
    target = finite(budget.get("target"))
    return (target, str(budget.get("unit", "token"))) if target is not None and target > 0 else None


def budgeted_kl(config: Row) -> str | None:
    """Return the metric key of the KL that the budget of a run constrains, or None when the run has no budget.

    Example:
        >>> budgeted_kl({"budget": {"target": 0.01, "unit": "step", "constrain": "old-policy"}})
        'kl_old_policy_per_step'
    """
    return constrained_kl(config) if budget_of(config) else None


class RunCharts:
    """The charts of one run, or of several runs side by side.

    Args:
        configs: The settings of each run.
        batches: The metrics of the training steps of each run.
        evaluations: The metrics of the evaluations of each run.
    """

    def __init__(
        self, configs: Sequence[Row], batches: Sequence[DownsampledSeries], evaluations: Sequence[DownsampledSeries]
    ):
        self.configs = configs
        self.batches = batches
        self.evaluations = evaluations

    def grids(self) -> list[dict[str, Any]]:
        """Return the x coordinates of all curves.

        Curves share grids: a curve refers to its grid by the index `grid` in this list.
        """
        return [
            *(rows.grid() for rows in (*self.batches, *self.evaluations)),
            *latent_grids(self.evaluations),
            *({"x": [math.sqrt(row[self._constrained()]) for row in rows]} for rows in self._rows_with_kl()),
        ]

    def sections(self) -> list[dict[str, Any]]:
        """Return every chart that has data, grouped under headings.

        Returns:
            A list of {"title": heading, "charts": list of charts}. A chart is the argument of `chart` in `chart.js`,
            with the index `grid` in place of `x` and `spans`.
        """
        control = {"learning_rate_scale": "learning-rate scale", "displacement_scale": "displacement scale"}
        control_note = (
            "A scale of 1 has no effect. A learning-rate scale below 1 shortens the steps; "
            "a displacement scale below 1 moves the weights towards the reference weights."
        )
        latent = has_latent_variables(self.configs)
        is_ppo = any(config.get("kind") == "ppo" for config in self.configs)
        is_supervised = any(config.get("kind") == "sft" for config in self.configs)
        is_distilled = any(config.get("kind") == "distill" for config in self.configs)
        without_rewards = latent or is_supervised or is_distilled
        unit, outcome = ("step", "actions") if is_ppo else ("token", "the next token")
        subject = "model" if is_supervised else "student" if is_distilled else "policy"
        entropy_note = f"Mean entropy of the {subject}'s distribution over {outcome}."
        truncated_note = "Completions that were cut off at the length limit."
        repetition_note = "Pairs of adjacent tokens that repeat an earlier pair of the same completion."
        statistics = "Policy statistics" if is_ppo else "Model statistics" if is_supervised else "Completion statistics"
        sections = {
            "Divergence" if without_rewards else "Reward and divergence": [
                *([] if without_rewards else self._rewards()),
                *self._divergences(),
                *([] if without_rewards else self._rewards_by_kl()),
                accuracy_by_kl(self.evaluations),
            ],
            "KL control": [
                self._beta(),
                self._chart(
                    "control", "Learning-rate and displacement scale", "scale", control_note, control, min=0, max=1.03
                ),
            ],
            statistics: [
                # The differential entropy of continuous actions can be negative.
                self._chart("entropy", "Entropy", f"nats per {unit}", entropy_note, {"entropy": ""}, zero=not is_ppo),
                self._chart("episode", "Episode length", "steps", "", {"episode_length": ""}, zero=True),
                self._chart("length", "Completion length", "tokens", "", {"completion_length": ""}, zero=True),
                self._chart("truncated", "Truncated", "fraction", truncated_note, {"truncated": ""}, zero=True),
                self._chart("repetition", "Repetition", "fraction", repetition_note, {"repetition": ""}, zero=True),
            ],
            "Model fit": [
                self._chart(
                    "floor",
                    "Cross-entropy and entropy floor",
                    "nats per token",
                    _ENTROPY_FLOOR_NOTE,
                    _CROSS_ENTROPY,
                    zero=True,
                )
                if is_supervised
                else None,
                self._chart("distortion", "Distortion", "nats per image", "Mean of −log p(x | z).", {"distortion": ""}),
                self._chart(
                    "cross-entropy", "Cross-entropy of the classes", "nats per image", "", {"cross_entropy": ""}
                ),
                self._chart("accuracy", "Accuracy", "fraction", "", {"accuracy": ""}, max=1.0),
                self._chart(
                    "elbo", "Evidence lower bound (ELBO)", "nats per image", "A lower bound of log p(x).", {"elbo": ""}
                ),
                self._chart(
                    "likelihood",
                    "Log-likelihood",
                    "nats per image",
                    "Importance-sampling estimate of log p(x), before and after training.",
                    {"log_likelihood": ""},
                ),
                self._chart(
                    "active", "Active units", "dimensions", _ACTIVE_UNITS_NOTE, {"active_units": ""}, zero=True
                ),
                kl_by_dimension(self.evaluations),
            ],
        }
        drawn = {title: [chart for chart in charts if chart] for title, charts in sections.items()}
        return [{"title": title, "charts": charts} for title, charts in drawn.items() if charts]

    def _chart(
        self,
        name: str,
        title: str,
        label: str,
        note: str,
        keys: Mapping[str, str],
        *,
        lines: Sequence[dict[str, Any]] = (),
        keep: Callable[[int, str], bool] = lambda _run, _key: True,
        **axis: object,
    ) -> Chart | None:
        """Return a chart of some metrics for all runs, or None when no run recorded them.

        `keys` maps a metric to its name in the legend. `keep(run, key)` selects the training curves. The training curve
        of a metric is drawn faintly where the metric was also evaluated.
        """
        series: list[dict[str, Any]] = []
        not_finite = 0
        for dash, (key, words) in enumerate(keys.items()):
            batches = [rows.curve(key) if keep(i, key) else None for i, rows in enumerate(self.batches)]
            evaluations = [rows.curve(key) for rows in self.evaluations]
            batch_name = ", ".join(filter(None, [words, "training batch" if any(evaluations) or not words else ""]))
            evaluation_name = ", ".join(filter(None, [words, "evaluation"]))
            for i, (batch, evaluation) in enumerate(zip(batches, evaluations, strict=True)):
                if batch:
                    # Error bars at every training step would hide the line, so only bucketed runs keep their bounds.
                    bounds = () if self.batches[i].bucketed else ("low", "high")
                    style = {"name": batch_name, "mark": "line", "faint": bool(evaluation), "group": i, "dash": dash}
                    series.append({k: v for k, v in batch.items() if k not in bounds} | style | {"grid": i})
                    not_finite += self.batches[i].not_finite(key)
                if evaluation:
                    style = {"name": evaluation_name, "mark": "points", "group": i, "dash": dash}
                    series.append(evaluation | style | {"grid": len(self.batches) + i})
                    not_finite += self.evaluations[i].not_finite(key)
        if not series:
            return None
        if not_finite == 1:
            note += " 1 non-finite value is shown as a gap."
        elif not_finite:
            note += f" {not_finite:,} non-finite values are shown as gaps."
        x = {"label": "step", "integer": True}
        header = {"id": name, "title": title, "note": note.strip()}
        return {**header, "x": x, "y": {"label": label, **axis}, "lines": list(lines), "series": series}

    def _names(self, key: str) -> list[str]:
        """Return the reward functions that the runs list under a key of their settings, without repetition."""
        lists = [value for config in self.configs if isinstance(value := config.get(key), list | tuple)]
        return list(dict.fromkeys(str(name) for names in lists for name in names))

    def _reward_groups(self) -> list[tuple[str, str, dict[str, str]]]:
        """Return the reward functions by the chart that shows them.

        Returns:
            One entry for each chart: the end of its identifier, the end of its title, and the name in the legend of
            each metric. All reward functions share a chart unless their ranges differ much.
        """
        optimised, watched = self._names("rewards"), self._names("watched")
        rows = [row for series in (*self.batches, *self.evaluations) for row in series.rows]
        recorded = dict.fromkeys(
            key.removeprefix("rewards/") for row in rows for key in row if key.startswith("rewards/")
        )
        order = dict.fromkeys([*optimised, *watched, *recorded])
        found = [name for name in order if name in recorded and not name.endswith("_std_error")]
        objectives = set(optimised or found[:1])
        names = {f"rewards/{name}": name if name in objectives else f"{name} (watched)" for name in found}
        values = {key: [value for row in rows if (value := finite(row.get(key))) is not None] for key in names}
        ranges = [max(some) - min(some) for some in values.values() if some and max(some) > min(some)]
        if ranges and max(ranges) > SEPARATE_CHARTS_RATIO * min(ranges):
            return [(f"-{i}", f": {name}", {key: ""}) for i, (key, name) in enumerate(names.items())]
        return [("", "", names)] if names else []

    def _rewards(self) -> list[Chart | None]:
        """Return one chart of all reward functions, or one chart for each when their ranges differ much."""
        groups = self._reward_groups()
        if not groups:
            return [self._chart("reward", "Reward", "mean reward", "", {"reward": "reward"})]
        charts = []
        for end, title, names in groups:
            note = "" if end else "Mean of each reward function."
            if any(name.endswith(" (watched)") for name in names.values()):
                note += " A watched reward function is recorded but not optimised."
            charts.append(self._chart(f"reward{end}", f"Reward{title}", "mean reward", note, names))
        return charts

    def _rewards_by_kl(self) -> list[Chart | None]:
        """Return the charts of the evaluated rewards against the square root of the KL, with one trail for each run."""
        rows_by_run = self._rows_with_kl()
        if not any(len(rows) > 1 for rows in rows_by_run):
            return []
        divergence = DIVERGENCES[self._constrained()]
        first_grid = 3 * len(self.evaluations) + 1
        lines: list[dict[str, Any]] = []
        for i, config in enumerate(self.configs):
            if budgeted_kl(config) == self._constrained() and (budget := budget_of(config)):
                low, middle, high = (math.sqrt(budget[0] * r) for r in (1 - BUDGET_BAND, 1, 1 + BUDGET_BAND))
                line = {"value": middle, "low": low, "high": high, "label": f"budget {budget[0]:g}", "group": i}
                lines += [] if any(other["value"] == middle for other in lines) else [line]
        charts: list[Chart | None] = []
        for end, title, names in self._reward_groups():
            series = []
            for dash, (key, name) in enumerate(names.items()):
                for i, rows in enumerate(rows_by_run):
                    values = [finite(row.get(key)) for row in rows]
                    if not (drawn := [j for j, value in enumerate(values) if value is not None]):
                        continue
                    last = {"x": math.sqrt(rows[drawn[-1]][self._constrained()]), "value": values[drawn[-1]]}
                    style = {"name": name or "reward", "mark": "points", "group": i, "dash": dash}
                    series.append({**style, "grid": first_grid + i, "values": values, "last": last})
            if series:
                charts.append(
                    {
                        "id": f"reward-by-kl{end}",
                        "title": f"Reward{title} against the square root of KL",
                        "note": f"{divergence.title}. Each point is an evaluation; the points of a run are joined in "
                        "the order of the training steps. The KL of a small displacement of the weights is "
                        f"proportional to its square.{' Vertical line: the budget.' if lines else ''}",
                        "x": {"label": f"√KL, square root of nats per {divergence.unit}"},
                        "y": {"label": "mean reward"},
                        "lines": [],
                        "xLines": lines,
                        "series": series,
                    }
                )
        return charts

    def _constrained(self) -> str:
        """Return the KL of policy and reference that a budget constrains, or else the first that was evaluated."""
        keys = [key for key in DIVERGENCES if key.startswith("kl_policy_ref_")]
        budgeted = [key for config in self.configs if (key := budgeted_kl(config)) in keys]
        evaluated = [key for key in keys if any(key in row for series in self.evaluations for row in series.rows)]
        return next((key for key in (*budgeted, *evaluated) if key), keys[0])

    def _rows_with_kl(self) -> list[list[Row]]:
        """Return the evaluations of each run that measured the KL of `_constrained`, in the order of the steps."""
        key = self._constrained()
        return [
            [row for row in series.rows if (kl := finite(row.get(key))) is not None and kl >= 0]
            for series in self.evaluations
        ]

    def _divergences(self) -> list[Chart | None]:
        """Return a chart of each KL that has a budget, or of the first KL that was recorded when no run has one."""
        budgeted = [budgeted_kl(config) for config in self.configs]
        recorded = [key for key in DIVERGENCES if any(rows.curve(key) for rows in (*self.batches, *self.evaluations))]
        shown = {key for key in budgeted if key} or set(recorded[:1])
        return [self._divergence(key, budgeted) for key in DIVERGENCES if key in shown]

    def _divergence(self, key: str, budgeted: Sequence[str | None]) -> Chart | None:
        """Return the chart of one KL with the budgets that constrain it; `budgeted` has the KL of each run's budget."""
        divergence = DIVERGENCES[key]
        targets: dict[float, int] = {}  # each target with the first run that has it
        for i, config in enumerate(self.configs):
            if budgeted[i] == key and (budget := budget_of(config)):
                targets.setdefault(budget[0], i)
        lines = [
            {
                "value": target,
                "low": target * (1 - BUDGET_BAND),
                "high": target * (1 + BUDGET_BAND),
                "label": f"budget {target:g}, ±{BUDGET_BAND:.0%}",
                "group": run,
            }
            for target, run in targets.items()
        ]
        note = divergence.note
        if any(not t.bucketed and any(f"{key}_std_error" in row for row in t.rows) for t in self.evaluations):
            note += " Error bars: ±2 standard errors."
        measured = [kl for t in (*self.batches, *self.evaluations) for row in t.rows if (kl := finite(row.get(key)))]
        lowest = min(targets, default=0.0)
        return self._chart(
            divergence.name,
            divergence.title,
            f"nats per {divergence.unit}",
            note,
            _FORWARD_KL if key in _FORWARD_KL else {key: "", "kl_filtered": "filtered KL (controller)"},
            lines=lines,
            keep=lambda run, drawn: drawn != "kl_filtered" or budgeted[run] == key,
            zero=True,
            toggle=True,
            log=bool(targets) and max(measured, default=0) > LOG_SCALE_RATIO * min(targets),
            logMin=lowest / 20 or None,
        )

    def _beta(self) -> Chart | None:
        """Return the chart of the penalty weight for the runs in which it is positive at some step."""

        def is_positive(run: int, key: str) -> bool:
            return any((finite(row.get(key)) or 0) > 0 for row in self.batches[run].rows)

        latent = has_latent_variables(self.configs)
        objective, what = ("distortion + β KL", "distortion") if latent else ("reward − β KL", "reward")
        note = f"β is the weight of the KL penalty in the objective, {objective}."
        return self._chart(
            "beta", "Penalty weight β", f"{what} per nat", note, {"beta": "β"}, log=True, keep=is_positive
        )
