"""The results of a comparison of language models, and their text: a table, sentences, and a block for a model card."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kullback.compare.data_frame import estimates_as_frame
from kullback.compare.statistics import (
    DocumentSums,
    ModelStatistics,
    ModelSummary,
    PairedDifference,
    paired_difference,
    perplexity,
    root_mean_square,
)
from kullback.errors import InputError
from kullback.result import Estimate
from kullback.runs.atomic_write import write_atomically
from kullback.runs.printable import one_line

if TYPE_CHECKING:
    from kullback.compare.token_values import DocumentTokens

__all__ = [
    "FORMAT",
    "Comparison",
    "FreeRunning",
    "ModelResult",
    "ModuleShares",
    "Trajectories",
    "card_text",
    "format_estimate",
    "free_running_caption",
    "free_running_table",
    "group_table",
    "module_table",
    "report_text",
    "sentences",
    "summary_table",
]

FORMAT = 1
"""The format of result.json."""

_ROWS = {
    "kl": ("KL(base || model)", "nats/token", 1.0),
    "reverse_kl": ("KL(model || base)", "nats/token", 1.0),
    "js": ("Jensen-Shannon", "nats/token", 1.0),
    "js_bits": ("Jensen-Shannon", "bits/token", 1.0),
    "perplexity_base": ("perplexity of the base", "", 1.0),
    "perplexity": ("perplexity of the model", "", 1.0),
    "perplexity_ratio": ("perplexity ratio", "", 1.0),
    "top1_agreement": ("top-1 agreement", "%", 100.0),
    "expected_acceptance": ("expected acceptance", "%", 100.0),
    "delta_p": ("mean delta-p", "%", 100.0),
    "rms_delta_p": ("RMS delta-p", "%", 100.0),
}
_QUANTILES = ("1%", "50%", "90%", "99%", "99.9%", "max")
_SHOWN_WORST = 5
_GROUP_ORDER = ("base confidence", "token class", "role", "tokens of context")


@dataclass(frozen=True)
class ModuleShares:
    """The KL of the base from the base with one module of a model, in nats per token.

    Args:
        kl: For each module, KL(base || base with this module of the model).
        remainder: KL(base || model) minus the sum of `kl`: the part that does not add up. It is positive where errors
            of modules amplify each other, and contains the effect of the dtype of the model.

    Example:
        >>> import kullback
        >>> comparison = kullback.compare("base", "int8", text="corpus", by_module="layer")  # doctest: +SKIP
        >>> shares = comparison["int8"].modules.kl  # doctest: +SKIP
        >>> max(shares, key=lambda name: shares[name].value)  # doctest: +SKIP
        'layers.17'
    """

    kl: Mapping[str, Estimate]
    remainder: PairedDifference

    def to_dict(self) -> dict[str, Any]:
        """All values as a dictionary that JSON can store.

        Returns:
            The KL of each module, their sum, and the remainder.
        """
        return {
            "kl": {name: estimate.to_dict() for name, estimate in self.kl.items()},
            "sum": self.remainder.second.to_dict(),
            "remainder": self.remainder.difference.to_dict(),
        }


@dataclass(frozen=True)
class Trajectories:
    """The exact KL of the next token along sampled continuations; intervals are clustered by document.

    Args:
        per_token: The mean over the tokens of the continuations, in nats per token.
        per_continuation: The mean of the sum over a continuation, in nats per continuation: an unbiased estimate of the
            KL of whole continuations.
        tokens: The mean number of tokens of a continuation.
        ended: The share of continuations that end with an end token, before the largest number of tokens.
        positions: For each range of positions such as "5-16", the number of tokens and the mean KL.
        examples: The continuations of the largest KL with their prompts.

    Example:
        >>> import kullback
        >>> comparison = kullback.compare("base", "int8", text="corpus", generate=64)  # doctest: +SKIP
        >>> found = comparison["int8"].free_running.base_samples  # doctest: +SKIP
        >>> {label: f"{mean.value:.4f}" for label, (_, mean) in found.positions.items()}  # doctest: +SKIP
        {'1': '0.0013', '2-4': '0.0016', '5-16': '0.0021', '17-64': '0.0034'}
    """

    per_token: Estimate
    per_continuation: Estimate
    tokens: Estimate
    ended: Estimate
    positions: Mapping[str, tuple[int, Estimate]]
    examples: tuple[Mapping[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """All values as a dictionary that JSON can store.

        Returns:
            The values by name.
        """
        return {
            **{name: getattr(self, name).to_dict() for name in ("per_token", "per_continuation", "tokens", "ended")},
            "positions": {
                label: {"tokens": count, "mean": mean.to_dict()} for label, (count, mean) in self.positions.items()
            },
            "examples": [dict(example) for example in self.examples],
        }


@dataclass(frozen=True)
class FreeRunning:
    """The KL along continuations that the base and a model sample.

    Args:
        base_samples: KL(base || model) along continuations of the base.
        model_samples: KL(model || base) along continuations of the model.

    Example:
        >>> import kullback
        >>> comparison = kullback.compare("base", "int8", text="corpus", generate=64)  # doctest: +SKIP
        >>> comparison["int8"].free_running.base_samples.per_continuation  # doctest: +SKIP
        Estimate(value=0.21, std_error=0.03, count=256, unit='nats per continuation', ..., status='estimated')
    """

    base_samples: Trajectories
    model_samples: Trajectories

    def to_dict(self) -> dict[str, Any]:
        """All values as a dictionary that JSON can store.

        Returns:
            The values of both kinds of continuations.
        """
        return {"base_samples": self.base_samples.to_dict(), "model_samples": self.model_samples.to_dict()}


@dataclass(frozen=True)
class ModelResult:
    """The results of one model.

    Args:
        name: The name of the model.
        statistics: The statistics of its tokens.
        worst: The tokens with the largest KL(base || model), with their context and the most probable tokens.
        modules: The KL of each module in the base; None: it was not measured.
        free_running: The KL along sampled continuations; None: it was not measured.
    """

    name: str
    statistics: ModelStatistics
    worst: tuple[dict[str, Any], ...]
    modules: ModuleShares | None = None
    free_running: FreeRunning | None = None

    @cached_property
    def summary(self) -> ModelSummary:
        """The means, the quantiles and the groups of tokens."""
        return self.statistics.summary()

    @cached_property
    def metrics(self) -> dict[str, Estimate]:
        """All metrics, each with a 95% interval that is clustered by document.

        `kl` is KL(base || model) and `reverse_kl` KL(model || base); `js_bits` is the Jensen-Shannon divergence in
        bits. `perplexity_ratio` is the perplexity of the model divided by the perplexity of the base.
        `top1_agreement`, `expected_acceptance`, `delta_p` (the mean change of the probability of the token that
        follows) and `rms_delta_p` are probabilities.
        """
        means, sums = self.summary.means, self.statistics.sums
        return {
            "kl": means["kl"],
            "reverse_kl": means["reverse_kl"],
            "js": means["js"],
            "js_bits": _scaled(means["js"], 1 / log(2), "bits per token"),
            "entropy_base": means["entropy_base"],
            "entropy": means["entropy"],
            "perplexity_base": perplexity(means["nll_base"]),
            "perplexity": perplexity(means["nll"]),
            "perplexity_ratio": perplexity(paired_difference(sums, sums, "nll", "nll_base").difference),
            "top1_agreement": means["top1_agreement"],
            "expected_acceptance": means["expected_acceptance"],
            "delta_p": means["delta_p"],
            "rms_delta_p": root_mean_square(means["squared_delta_p"]),
        }


@dataclass(frozen=True)
class Comparison:
    """The comparison of models with a base over a corpus.

    Args:
        base: The name of the base.
        models: The results of each model.
        floors: The results of the base in another dtype, batch size or attention kernel, which are noise floors.
        config: What the comparison was computed from: hashes of text, tokens and weights, and settings.
        warnings: Sentences that describe limitations.
        earlier: The KL of the models of an earlier result for the same tokens, by name.
        documents: The documents of the largest KL with the values of their tokens, for `write_comparison_page`.

    Example:
        >>> import kullback
        >>> comparison = kullback.compare("base", "quantised", text="corpus")  # doctest: +SKIP
        >>> comparison["quantised"].metrics["kl"].interval  # doctest: +SKIP
        (0.0017, 0.0021)
    """

    base: str
    models: tuple[ModelResult, ...]
    floors: tuple[ModelResult, ...]
    config: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    earlier: Mapping[str, DocumentSums] | None = None
    documents: tuple["DocumentTokens", ...] = ()

    def __getitem__(self, name: str) -> ModelResult:
        """The results of a model.

        Args:
            name: The name of the model: the path or the name that was passed.

        Returns:
            The results.

        Raises:
            InputError: The comparison does not have the model.
        """
        for model in self.models:
            if model.name == name:
                return model
        raise InputError(f"expected one of {', '.join(model.name for model in self.models)}, got {name!r}")

    def __repr__(self) -> str:
        found = ", ".join(f"{model.name}: {model.metrics['kl'].value:.4g} nats per token" for model in self.models)
        return f"Comparison(base={self.base!r}, {found})"

    def __str__(self) -> str:
        return report_text(self)

    def paired(self) -> dict[tuple[str, str], PairedDifference]:
        """The differences of KL(base || model) of all pairs of models, and of models and earlier models.

        Returns:
            The differences, first minus second, by the names of the models.
        """
        sums = {model.name: model.statistics.sums for model in self.models}
        pairs = {(a, b): paired_difference(sums[a], sums[b], "kl") for a, b in combinations(sums, 2)}
        for name, former in (self.earlier or {}).items():
            label = f"{name} (earlier)"
            pairs |= {(model, label): paired_difference(own, former, "kl") for model, own in sums.items()}
        return pairs

    def above_floor(self) -> dict[tuple[str, str], PairedDifference]:
        """KL(base || model) minus each noise floor.

        Returns:
            The differences by the names of the model and the floor; empty if no floor was measured.
        """
        return {
            (model.name, floor.name): paired_difference(model.statistics.sums, floor.statistics.sums, "kl")
            for model in self.models
            for floor in self.floors
        }

    def to_frame(self) -> Any:
        """All metrics as a pandas DataFrame.

        Returns:
            A row for each model and metric, with the columns model, metric, value, low, high, std_error, unit and
            status; `low` and `high` are the 95% interval, nan where it is not determined.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        return estimates_as_frame(
            ({"model": model.name, "metric": name}, estimate)
            for model in (*self.models, *self.floors)
            for name, estimate in model.metrics.items()
        )

    def to_dict(self) -> dict[str, Any]:
        """All results as a dictionary that JSON can store, the content of result.json.

        Returns:
            The results. Infinities and nan are the strings "inf", "-inf" and "nan".
        """
        return {
            "format": FORMAT,
            "config": dict(self.config),
            "models": [_model_to_dict(model) for model in self.models],
            "floors": [_model_to_dict(floor) for floor in self.floors],
            "paired": [
                {"first": a, "second": b, "difference": pair.difference.to_dict(), "text": pair.describe(a, b)}
                for (a, b), pair in self.paired().items()
            ],
            "above_floor": [
                {
                    "model": name,
                    "floor": floor,
                    "difference": pair.difference.to_dict(),
                    "text": pair.describe_floor(name, floor),
                }
                for (name, floor), pair in self.above_floor().items()
            ],
            "warnings": list(self.warnings),
        }

    def save(self, path: str | Path) -> None:
        """Write the results to a JSON file, for `against` of a later comparison.

        Args:
            path: The file.

        Raises:
            OSError: The file cannot be written.
        """
        write_atomically(Path(path), json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")


def _model_to_dict(model: ModelResult) -> dict[str, Any]:
    summary = model.summary.to_dict()
    return {
        "name": model.name,
        "metrics": {name: estimate.to_dict() for name, estimate in model.metrics.items()},
        **{key: summary[key] for key in ("documents", "tokens", "independent_means", "quantiles", "groups")},
        "worst": [{**token, "kl": _finite(token["kl"])} for token in model.worst],
        "kl_by_document": model.statistics.sums.select("kl").state(),
        "modules": None if model.modules is None else model.modules.to_dict(),
        "free_running": None if model.free_running is None else model.free_running.to_dict(),
    }


def _finite(number: float) -> float | str:
    return number if abs(number) < float("inf") else str(number)


def _scaled(estimate: Estimate, factor: float, unit: str) -> Estimate:
    """An estimate in another unit."""
    interval = estimate.interval and (factor * estimate.interval[0], factor * estimate.interval[1])
    return replace(
        estimate, value=factor * estimate.value, std_error=factor * estimate.std_error, unit=unit, interval=interval
    )


# The text of results


def format_estimate(estimate: Estimate, factor: float = 1.0) -> str:
    """A value with its 95% interval.

    Args:
        estimate: The estimate.
        factor: The factor of the numbers, such as 100 for percent.

    Returns:
        The text; the value alone if the estimate has no interval.

    Example:
        >>> format_estimate(Estimate(0.0123456, interval=(0.0112, 0.0135)))
        '0.01235 [0.0112, 0.0135]'
    """
    value = f"{factor * estimate.value:.4g}"
    if estimate.interval is None:
        return value
    low, high = estimate.interval
    return f"{value} [{factor * low:.4g}, {factor * high:.4g}]"


def report_text(comparison: Comparison) -> str:
    """All results of a comparison as text.

    Args:
        comparison: The comparison.

    Returns:
        The lines: what was compared, a table of metrics, the comparison with the noise floor and of the models with
        each other, groups of tokens, and the tokens of the largest KL.
    """
    text, settings = comparison.config["text"], comparison.config["settings"]
    skipped = f", {text['skipped_documents']} shorter skipped" if text["skipped_documents"] else ""
    lines = [
        f"base  {one_line(comparison.base)}",
        f"text  {one_line(text['source'])}: {text['documents']} documents{skipped}, {text['counted_tokens']} tokens, "
        f"context {settings['context']}",
        "",
        _table(*summary_table(comparison)),
        "",
        "[...] are 95% intervals, clustered by document.",
        *sentences(comparison),
    ]
    for model in comparison.models:
        lines += ["", f"{one_line(model.name)}: where the KL is", _table(*group_table(model))]
        if model.modules is not None:
            lines += ["", f"{one_line(model.name)}: modules in the base", _table(*module_table(model.modules))]
        lines += ["", *_worst(model)]
    for model in (*comparison.models, *comparison.floors):
        if model.free_running is not None:
            lines += [
                "",
                f"{one_line(model.name)}: {free_running_caption(comparison)}",
                _table(*free_running_table(model)),
            ]
    return "\n".join(lines)


def summary_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The metrics and the percentiles of all models, and of the floor.

    Args:
        comparison: The comparison.

    Returns:
        The header, whose first two cells are empty, and the rows: a name, a unit and a text for each model.
    """
    columns = [*comparison.models, *comparison.floors]
    metrics = [
        [label, unit, *(format_estimate(model.metrics[name], factor) for model in columns)]
        for name, (label, unit, factor) in _ROWS.items()
    ]
    quantiles = [
        [f"KL {name}", "nats", *(f"{model.summary.quantiles['kl'][name]:.4g}" for model in columns)]
        for name in _QUANTILES
    ]
    return ["", "", *(model.name for model in columns)], metrics + quantiles


def sentences(comparison: Comparison) -> list[str]:
    """The comparisons with the floor and between models, and all warnings.

    Args:
        comparison: The comparison.

    Returns:
        The sentences, each on one line.
    """
    lines = [pair.describe_floor(*names) + "." for names, pair in comparison.above_floor().items()]
    lines += [pair.describe(a, b) + "." for (a, b), pair in comparison.paired().items()]
    warnings = dict.fromkeys(
        [*comparison.warnings, *(w for model in comparison.models for w in model.metrics["kl"].warnings)]
    )
    return [one_line(line) for line in (*lines, *(f"Warning: {warning}" for warning in warnings))]


def group_table(model: ModelResult) -> tuple[list[str], list[list[str]]]:
    """The mean KL of groups of tokens, and their parts of the total KL.

    Args:
        model: The model.

    Returns:
        The header and the rows: the grouping, the label of the group, tokens, KL and percent of the KL.
    """
    total = model.summary.means["kl"].value * model.summary.tokens
    rows = []
    for grouping in sorted(model.summary.groups, key=_GROUP_ORDER.index):
        labels = model.summary.groups[grouping]
        for label in sorted(labels, key=_first_number):
            count, mean = labels[label]
            rows.append([grouping, label, str(count), format_estimate(mean), _percent(count * mean.value, total)])
    return ["group", "", "tokens", "KL(base || model)", "% of KL"], rows


def module_table(modules: ModuleShares) -> tuple[list[str], list[list[str]]]:
    """The KL of the base from itself with each module of a model.

    Args:
        modules: The modules.

    Returns:
        The header and the rows: the module, its KL, and its percentage of the KL of the model. The last rows are the
        sum, the remainder and the KL of the model.
    """
    total, part = modules.remainder.first, modules.remainder.second
    rows = [
        [name, format_estimate(estimate), _percent(estimate.value, total.value)]
        for name, estimate in (
            *modules.kl.items(),
            ("sum of the modules", part),
            ("remainder", modules.remainder.difference),
            ("KL(base || model)", total),
        )
    ]
    return ["module", "KL(base || base with it)", "% of KL"], rows


def free_running_caption(comparison: Comparison) -> str:
    """What was sampled, for the caption of `free_running_table`.

    Args:
        comparison: A comparison with free running.

    Returns:
        The text.
    """
    settings, prompts = comparison.config["settings"], comparison.config["prompts"]
    count = settings["continuations"]
    what = f"{count} continuations" if count > 1 else "a continuation"
    return f"free running, {what} of at most {settings['generate']} tokens for each of {prompts} prompts"


def free_running_table(model: ModelResult) -> tuple[list[str], list[list[str]]]:
    """The KL along sampled continuations, and on the text for comparison.

    Args:
        model: A model with free running.

    Returns:
        The header and the rows: a name and the values for continuations of the base and of the model.
    """
    assert model.free_running is not None
    both = (model.free_running.base_samples, model.free_running.model_samples)
    labels = sorted({label for one in both for label in one.positions}, key=_first_number)
    rows = [
        ["nats per token", *(format_estimate(one.per_token) for one in both)],
        ["  on the text", *(format_estimate(model.metrics[name]) for name in ("kl", "reverse_kl"))],
        ["nats per continuation", *(format_estimate(one.per_continuation) for one in both)],
        ["  standard error", *(f"{one.per_continuation.std_error:.2g}" for one in both)],
        ["tokens of a continuation", *(format_estimate(one.tokens) for one in both)],
        ["ended, %", *(format_estimate(one.ended, 100) for one in both)],
    ]
    for label in labels:
        found = [one.positions.get(label) for one in both]
        rows.append([f"token {label}", *("-" if one is None else format_estimate(one[1]) for one in found)])
    return ["", "base samples: KL(base || model)", "model samples: KL(model || base)"], rows


def _percent(part: float, total: float) -> str:
    """A part of a finite total in percent."""
    return f"{100 * part / total:.1f}" if 0 < total < float("inf") else "-"


def _first_number(label: str) -> tuple[float, str]:
    """The order of labels: ranges by their first number, other labels by name."""
    start = label.split("-")[0]
    return (float(start) if start.replace(".", "", 1).isdigit() else 0.0), label


def _worst(model: ModelResult) -> list[str]:
    """The tokens of the largest KL."""
    lines = [f"{one_line(model.name)}: tokens of the largest KL"]
    for token in model.worst[:_SHOWN_WORST]:
        lines += [
            one_line(f"  {token['kl']:.4g} nats  {token['name']}, token {token['position']}"),
            one_line(f"    {token['before'][-60:]}[{token['token']}]{token['after'][:20]}"),
            one_line(f"    base {_alternatives(token['top_base'])}"),
            one_line(f"    model {_alternatives(token['top'])}"),
        ]
    return lines if model.worst else [f"{one_line(model.name)}: no token has a KL above 0"]


def _alternatives(entries: Sequence[Sequence[Any]]) -> str:
    return "  ".join(f"{token!r} {prob:.3g}" for token, prob in entries[:3])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with left-aligned columns."""
    cells = [[one_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def card_text(comparison: Comparison) -> str:
    """A Markdown block for the card of a model, with what is needed to repeat the comparison.

    Args:
        comparison: The comparison.

    Returns:
        The block.
    """
    config = comparison.config
    shown = ("kl", "reverse_kl", "js", "perplexity_ratio", "top1_agreement", "expected_acceptance")
    text, settings = config["text"], config["settings"]
    lines = [
        f"### Distance from {_escaped(comparison.base)}",
        "",
        "| | " + " | ".join(_escaped(model.name) for model in comparison.models) + " |",
        "| --- |" + " --- |" * len(comparison.models),
    ]
    for name in shown:
        label, unit, factor = _ROWS[name]
        values = " | ".join(format_estimate(model.metrics[name], factor) for model in comparison.models)
        lines.append(f"| {_escaped(label)}{f', {unit}' if unit else ''} | {values} |")
    lines += [
        "",
        f"Exact over the vocabulary of {config['tokenizer']['vocabulary']} tokens; 95% intervals clustered by "
        f"document. Text: {_escaped(text['source'])}, {text['documents']} documents, {text['counted_tokens']} tokens, "
        f"context {settings['context']}; SHA-256 of the tokens `{text['tokens_sha256'][:16]}`, of the base "
        f"`{config['models'][comparison.base]['sha256'][:16]}`. kullback {config['versions']['kullback']}.",
        *(_escaped(pair.describe_floor(*names)) + "." for names, pair in comparison.above_floor().items()),
    ]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """A text as one line of Markdown in a cell of a table, without HTML."""
    escaped = one_line(text).replace("&", "&amp;").replace("<", "&lt;")
    return escaped.replace("\\", "\\\\").replace("|", "\\|").replace("`", "\\`")
