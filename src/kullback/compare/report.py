"""The results of a comparison as text: a table, sentences, and a block for the card of a model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kullback.result import Estimate
from kullback.runs.printable import one_line

if TYPE_CHECKING:
    from kullback.compare.comparison import Comparison, ModelResult

__all__ = ["card_text", "format_estimate", "group_table", "report_text", "sentences", "summary_table"]

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


def report_text(comparison: "Comparison") -> str:
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
        lines += ["", f"{one_line(model.name)}: where the KL is", _table(*group_table(model)), "", *_worst(model)]
    return "\n".join(lines)


def summary_table(comparison: "Comparison") -> tuple[list[str], list[list[str]]]:
    """The metrics and the percentiles of all models, and of the floor.

    Args:
        comparison: The comparison.

    Returns:
        The header, whose first two cells are empty, and the rows: a name, a unit and a text for each model.
    """
    columns = [*comparison.models, *([comparison.floor] if comparison.floor else [])]
    metrics = [
        [label, unit, *(format_estimate(model.metrics[name], factor) for model in columns)]
        for name, (label, unit, factor) in _ROWS.items()
    ]
    quantiles = [
        [f"KL {name}", "nats", *(f"{model.summary.quantiles['kl'][name]:.4g}" for model in columns)]
        for name in _QUANTILES
    ]
    return ["", "", *(model.name for model in columns)], metrics + quantiles


def sentences(comparison: "Comparison") -> list[str]:
    """The comparisons with the floor and between models, and all warnings.

    Args:
        comparison: The comparison.

    Returns:
        The sentences, each on one line.
    """
    lines = [pair.describe_floor(name) + "." for name, pair in comparison.above_floor().items()]
    lines += [pair.describe(a, b) + "." for (a, b), pair in comparison.paired().items()]
    warnings = dict.fromkeys(
        [*comparison.warnings, *(w for model in comparison.models for w in model.metrics["kl"].warnings)]
    )
    return [one_line(line) for line in (*lines, *(f"Warning: {warning}" for warning in warnings))]


def group_table(model: "ModelResult") -> tuple[list[str], list[list[str]]]:
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
            share = f"{100 * count * mean.value / total:.1f}" if 0 < total < float("inf") else "-"
            rows.append([grouping, label, str(count), format_estimate(mean), share])
    return ["group", "", "tokens", "KL(base || model)", "% of KL"], rows


def _first_number(label: str) -> tuple[float, str]:
    """The order of labels: ranges by their first number, other labels by name."""
    start = label.split("-")[0]
    return (float(start) if start.replace(".", "", 1).isdigit() else 0.0), label


def _worst(model: "ModelResult") -> list[str]:
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


def card_text(comparison: "Comparison") -> str:
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
        *(_escaped(pair.describe_floor(name)) + "." for name, pair in comparison.above_floor().items()),
    ]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """A text as one line of Markdown in a cell of a table, without HTML."""
    escaped = one_line(text).replace("&", "&amp;").replace("<", "&lt;")
    return escaped.replace("\\", "\\\\").replace("|", "\\|").replace("`", "\\`")
