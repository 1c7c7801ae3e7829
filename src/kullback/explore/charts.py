"""Which charts a training run has: what `chart` of `chart.js` is given, made of plain lists and dictionaries."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kullback.explore.downsample import DownsampledSeries, finite
from kullback.explore.vae_charts import accuracy_by_nats, by_dimension, is_latent, latent_grids

__all__ = ["DIVERGENCES", "Divergence", "RunCharts", "budget_of", "held_key"]

Row = Mapping[str, Any]
Chart = dict[str, Any]

BUDGET_BAND = 0.2  # a budget counts as held within 20 %
FAR = 4  # a KL this many times the smallest budget flattens its band on a linear axis
_ACTIVE_NOTE = "Latent dimensions whose mean varies over images by more than 0.01."
_FORWARD = {
    "train_forward_kl_per_token": "training examples",
    "eval_forward_kl_per_token": "held-out examples",
}
_FLOOR = {
    "loss": "loss of the batch",
    "train_cross_entropy_per_token": "training examples",
    "eval_cross_entropy_per_token": "held-out examples",
    "train_entropy_floor_per_token": "the training examples' floor",
    "eval_entropy_floor_per_token": "the held-out examples' floor",
}
_FLOOR_NOTE = "No model comes below the floor: the entropy of these examples' tokens, given all that comes before."
UNLIKE = 6  # reward functions whose ranges differ by more than this get a chart each


class Divergence(NamedTuple):
    """A KL that runs measure: its chart's name, its title there and in a table, and what the nats are per."""

    name: str
    title: str
    short: str
    unit: str


_POLICY_REF = ("KL(policy || reference)", "KL(policy || ref)")

DIVERGENCES = {
    "kl_policy_ref_per_token": Divergence("kl-token", *_POLICY_REF, "token"),
    "kl_policy_ref_per_sequence": Divergence("kl-sequence", *_POLICY_REF, "sequence"),
    "kl_policy_ref_per_step": Divergence("kl-step", *_POLICY_REF, "step"),
    "kl_policy_ref_per_reference_step": Divergence("kl-reference-step", *_POLICY_REF, "step of the reference"),
    "kl_old_policy_per_step": Divergence("kl-old", "KL(old || policy) of an update", "KL(old || policy)", "step"),
    "train_forward_kl_per_token": Divergence("forward-kl", "KL(data || model)", "KL(data || model)", "token"),
    "kl_posterior_prior_per_image": Divergence("kl-latent", "KL(q(z | x) || p(z))", "KL(q(z | x) || p(z))", "image"),
}


def budget_of(config: Row) -> tuple[float, str] | None:
    """Read the budget of an arm.

    Args:
        config: The settings of a run.

    Returns:
        The target in nats and its unit; None when there is no budget.

    Example:
        >>> budget_of({"budget": {"target": 0.05, "unit": "token"}}), budget_of({"budget": None})
        ((0.05, 'token'), None)
    """
    budget = config.get("budget")
    if not isinstance(budget, Mapping):
        return None
    target = finite(budget.get("target"))
    return (target, str(budget.get("unit", "token"))) if target is not None and target > 0 else None


def held_key(config: Row) -> str | None:
    """The key of the KL that the budget of an arm is of; None when there is no budget.

    Example:
        >>> held_key({"budget": {"target": 0.01, "unit": "step", "of": "old"}})
        'kl_old_policy_per_step'
    """
    budget = budget_of(config)
    if budget is None:
        return None
    if budget[1] == "image":
        return "kl_posterior_prior_per_image"
    if config["budget"].get("over") == "reference":
        return "kl_policy_ref_per_reference_step"
    return f"kl_{'old_policy' if config['budget'].get('of') == 'old' else 'policy_ref'}_per_{budget[1]}"


class RunCharts:
    """The charts of runs side by side.

    Args:
        configs: The settings of each run.
        batches: Its training steps.
        evaluations: What was measured on a fixed set of prompts.
    """

    def __init__(
        self, configs: Sequence[Row], batches: Sequence[DownsampledSeries], evaluations: Sequence[DownsampledSeries]
    ):
        self.configs = configs
        self.batches = batches
        self.evaluations = evaluations

    def grids(self) -> list[dict[str, Any]]:
        """The steps that the curves lie on, which they share; a series names its own by index."""
        return [*(track.grid() for track in (*self.batches, *self.evaluations)), *latent_grids(self.evaluations)]

    def sections(self) -> list[dict[str, Any]]:
        """Every chart that has data, under three headings.

        Returns:
            {"title": heading, "charts": [what `chart` is given, with `grid` in the place of `x` and `spans`]}.
        """
        control = {"learning_rate_scale": "learning-rate factor", "displacement_scale": "pull towards the reference"}
        control_note = "1 leaves the step alone; below 1 the step is shortened, or the weights are drawn back."
        latent = is_latent(self.configs)
        acts = any(config.get("kind") == "ppo" for config in self.configs)
        learns = any(config.get("kind") == "sft" for config in self.configs)
        unit, undecided = ("step", "its next action") if acts else ("token", "the next token")
        entropy_note = f"How undecided the {'model' if learns else 'policy'} is about {undecided}."
        truncated_note = "Completions that were cut off at the length limit."
        repetition_note = "How much of a completion repeats itself."
        sections = {
            "Divergence" if latent or learns else "Reward and divergence": [
                *([] if latent or learns else self._rewards()),
                *self._divergences(),
                accuracy_by_nats(self.evaluations),
            ],
            "What held the budget": [
                self._beta(),
                self._chart(
                    "control", "Learning-rate factor and pull", "factor", control_note, control, min=0, max=1.03
                ),
            ],
            "What the policy does" if acts else "What the model says" if learns else "What the policy writes": [
                # The entropy of a density may be negative.
                self._chart("entropy", "Entropy", f"nats per {unit}", entropy_note, {"entropy": ""}, zero=not acts),
                self._chart("episode", "Episode length", "steps", "", {"episode_length": ""}, zero=True),
                self._chart("length", "Completion length", "tokens", "", {"completion_length": ""}, zero=True),
                self._chart("truncated", "Truncated", "fraction", truncated_note, {"truncated": ""}, zero=True),
                self._chart("repetition", "Repetition", "fraction", repetition_note, {"repetition": ""}, zero=True),
            ],
            "What the model learns": [
                self._chart("floor", "Cross-entropy and its floor", "nats per token", _FLOOR_NOTE, _FLOOR, zero=True)
                if learns
                else None,
                self._chart("distortion", "Distortion", "nats per image", "-log p(x | z).", {"distortion": ""}),
                self._chart(
                    "cross-entropy", "Cross-entropy of the classes", "nats per image", "", {"cross_entropy": ""}
                ),
                self._chart("accuracy", "Accuracy", "fraction", "", {"accuracy": ""}, max=1.0),
                self._chart("elbo", "Evidence bound", "nats per image", "log p(x) is above it.", {"elbo": ""}),
                self._chart(
                    "likelihood", "Log-likelihood", "nats per image", "By importance weights.", {"log_likelihood": ""}
                ),
                self._chart("active", "Active units", "dimensions", _ACTIVE_NOTE, {"active_units": ""}, zero=True),
                by_dimension(self.evaluations),
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
        keep: Callable[[int, str], bool] = lambda _arm, _key: True,
        **axis: object,
    ) -> Chart | None:
        """A chart of some keys (key -> its name on the chart) for every arm, or None when nothing was recorded.

        What was measured on the training batch is faint where evaluations of the same key stand over it.
        """
        series: list[dict[str, Any]] = []
        broken = 0
        for dash, (key, words) in enumerate(keys.items()):
            batches = [track.curve(key) if keep(i, key) else None for i, track in enumerate(self.batches)]
            evaluations = [track.curve(key) for track in self.evaluations]
            on_batch = ", ".join(filter(None, [words, "training batch" if any(evaluations) or not words else ""]))
            on_prompts = ", ".join(filter(None, [words, "evaluation"]))
            for i, (batch, evaluation) in enumerate(zip(batches, evaluations, strict=True)):
                if batch:
                    # Whiskers at every training step would bury the line: only the envelope of a long run is drawn.
                    bounds = () if self.batches[i].bucketed else ("low", "high")
                    look = {"name": on_batch, "mark": "line", "faint": bool(evaluation), "group": i, "dash": dash}
                    series.append({k: v for k, v in batch.items() if k not in bounds} | look | {"grid": i})
                    broken += self.batches[i].not_finite(key)
                if evaluation:
                    look = {"name": on_prompts, "mark": "points", "group": i, "dash": dash}
                    series.append(evaluation | look | {"grid": len(self.batches) + i})
                    broken += self.evaluations[i].not_finite(key)
        if not series:
            return None
        if broken:
            note += f" {broken:,} {'values are' if broken > 1 else 'value is'} not finite, and left as a gap."
        x = {"label": "step", "integer": True}
        words = {"id": name, "title": title, "note": note.strip()}
        return {**words, "x": x, "y": {"label": label, **axis}, "lines": list(lines), "series": series}

    def _names(self, key: str) -> list[str]:
        """The reward functions that the arms list under a key of their settings."""
        lists = [value for config in self.configs if isinstance(value := config.get(key), list | tuple)]
        return list(dict.fromkeys(str(name) for names in lists for name in names))

    def _rewards(self) -> list[Chart | None]:
        optimised, watched = self._names("rewards"), self._names("watched")
        rows = [row for track in (*self.batches, *self.evaluations) for row in track.rows]
        written = dict.fromkeys(
            key.removeprefix("rewards/") for row in rows for key in row if key.startswith("rewards/")
        )
        order = dict.fromkeys([*optimised, *watched, *written])
        found = [name for name in order if name in written and not name.endswith("_std_error")]
        if not found:
            return [self._chart("reward", "Reward", "mean reward", "", {"reward": "reward"})]
        pursued = set(optimised or found[:1])
        names = {f"rewards/{name}": name if name in pursued else f"{name} (watched)" for name in found}
        values = {key: [value for row in rows if (value := finite(row.get(key))) is not None] for key in names}
        ranges = [max(some) - min(some) for some in values.values() if some and max(some) > min(some)]
        if ranges and max(ranges) > UNLIKE * min(ranges):
            alone = enumerate(names.items())
            return [
                self._chart(f"reward-{i}", f"Reward: {name}", "mean reward", "", {key: ""}) for i, (key, name) in alone
            ]
        note = "The mean of each reward function."
        if any(name not in pursued for name in found):
            note = "The mean of each reward function. Those that are only watched do not train the policy."
        return [self._chart("reward", "Reward", "mean reward", note, names)]

    def _divergences(self) -> list[Chart | None]:
        """The KL that the budgets are of, a chart for each when they differ in it; the first measured without any."""
        held = [held_key(config) for config in self.configs]
        tracks = (*self.batches, *self.evaluations)
        measured = [key for key in DIVERGENCES if any(track.curve(key) for track in tracks)]
        shown = {key for key in held if key} or set(measured[:1])
        return [self._divergence(key, held) for key in DIVERGENCES if key in shown]

    def _divergence(self, key: str, held: Sequence[str | None]) -> Chart | None:
        name, title, _, unit = DIVERGENCES[key]
        targets: dict[float, int] = {}  # each target with the first arm that has it
        for i, config in enumerate(self.configs):
            if held[i] == key and (budget := budget_of(config)):
                targets.setdefault(budget[0], i)
        lines = [
            {
                "value": target,
                "low": target * (1 - BUDGET_BAND),
                "high": target * (1 + BUDGET_BAND),
                "label": f"budget {target:g}, ±{BUDGET_BAND:.0%}",
                "group": arm,
            }
            for target, arm in targets.items()
        ]
        where = "in the states that it visits" if unit == "step" else "on what it writes"
        note = f"How far the policy has moved, measured {where}."
        if key in _FORWARD:
            note = "What the model has yet to learn of these examples: cross-entropy less its floor."
        if unit == "image":
            note = "What the latent variables tell of an image, all dimensions together."
        if any(not t.bucketed and any(f"{key}_std_error" in row for row in t.rows) for t in self.evaluations):
            note += " Whiskers: ±2 standard errors."
        measured = [kl for t in (*self.batches, *self.evaluations) for row in t.rows if (kl := finite(row.get(key)))]
        lowest = min(targets, default=0.0)
        return self._chart(
            name,
            title,
            f"nats per {unit}",
            note,
            _FORWARD if key in _FORWARD else {key: "", "kl_filtered": "controller's estimate"},
            lines=lines,
            keep=lambda arm, drawn: drawn != "kl_filtered" or held[arm] == key,
            zero=True,
            toggle=True,
            log=bool(targets) and max(measured, default=0) > FAR * min(targets),
            logMin=lowest / 20 or None,
        )

    def _beta(self) -> Chart | None:
        def priced(arm: int, key: str) -> bool:
            return any((finite(row.get(key)) or 0) > 0 for row in self.batches[arm].rows)

        what = "distortion" if is_latent(self.configs) else "reward"
        note = f"What a nat of KL costs in {what}."
        return self._chart("beta", "Penalty weight β", f"{what} per nat", note, {"beta": "β"}, log=True, keep=priced)
