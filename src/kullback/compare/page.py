"""The page of a comparison of language models: one HTML file with all of its data, which works offline.

`static/comparison.js` builds the page from the data.
"""

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kullback.compare.results import (
    Comparison,
    ModelResult,
    free_running_caption,
    free_running_table,
    group_table,
    module_table,
    sentences,
    summary_table,
)
from kullback.compare.token_values import NLL_LEVELS, DocumentTokens
from kullback.errors import InputError
from kullback.explore.html import self_contained_page
from kullback.result import Estimate
from kullback.runs.atomic_write import write_atomically

__all__ = ["comparison_data", "write_comparison_page"]


def write_comparison_page(comparison: Comparison, path: str | os.PathLike[str]) -> Path:
    """Write the page of a comparison as a single HTML file.

    The page has the summary with intervals, the percentiles of the KL of tokens, the KL of modules and along sampled
    continuations where they were measured, groups of tokens, the tokens of the largest KL, and the text of the
    documents of the largest KL, coloured by the KL of each token. The file is written atomically: an error leaves an
    existing file at `path` unchanged.

    Args:
        comparison: The comparison.
        path: The file to write, in a directory that exists.

    Returns:
        The path of the file.

    Raises:
        InputError: The directory of `path` does not exist.

    Example:
        >>> import kullback
        >>> comparison = kullback.compare("base", "quantised", text="corpus")  # doctest: +SKIP
        >>> write_comparison_page(comparison, "compare.html")  # doctest: +SKIP
        PosixPath('compare.html')
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: expected a file in an existing directory, but {path.parent} does not exist")
    text, settings = comparison.config["text"], comparison.config["settings"]
    words = {
        "title": f"KL divergence from {comparison.base}",
        "summary": f"{text['documents']:,} documents and {text['counted_tokens']:,} tokens of {text['source']}, "
        f"in windows of {settings['context']:,} tokens.",
    }
    page = self_contained_page("comparison.html", comparison_data(comparison), words, more=("comparison.js",))
    write_atomically(path, page)
    return path


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """Everything that the page shows, as plain data for `comparison` in `comparison.js`.

    Args:
        comparison: The comparison.

    Returns:
        The data. Infinities are the string "Infinity".
    """
    header, rows = summary_table(comparison)
    shown = sum(len(document.tokens) - document.first for document in comparison.documents)
    return {
        "summary": {
            "caption": "Metrics with 95% intervals, clustered by document",
            "columns": ["", *header[2:]],
            "rows": [[f"{label}, {unit}" if unit else label, *cells] for label, unit, *cells in rows],
        },
        "sentences": sentences(comparison),
        "percentiles": [_percentiles(model) for model in (*comparison.models, *comparison.floors)],
        "models": [_model(model) for model in comparison.models],
        "modules": _modules(comparison),
        "running": _free_running(comparison),
        "levels": [float(f"{level:.3g}") for level in NLL_LEVELS],
        "shown": shown,
        "counted": comparison.config["text"]["counted_tokens"],
        "documents_total": comparison.config["text"]["documents"],
        "documents": [_document(document) for document in comparison.documents],
    }


def _percentiles(model: ModelResult) -> dict[str, Any]:
    named = {name: value for name, value in model.summary.quantiles["kl"].items() if name.endswith("%")}
    return {
        "name": model.name,
        "x": [float(name[:-1]) for name in named],
        "values": [value if 0 < value < float("inf") else None for value in named.values()],
    }


def _model(model: ModelResult) -> dict[str, Any]:
    columns, rows = group_table(model)
    quantiles = model.summary.quantiles["kl"]
    return {
        "name": model.name,
        "groups": {
            "caption": f"{model.name}: where the KL is",
            "columns": ["group", *columns[2:]],
            "rows": [[f"{grouping}: {label}", *cells] for grouping, label, *cells in rows],
        },
        "bounds": [[name, _number(quantiles[name])] for name in ("50%", "75%", "90%", "95%", "99%", "99.9%")],
        "worst": [_worst(token) for token in model.worst],
    }


def _modules(comparison: Comparison) -> dict[str, Any] | None:
    """The tables of modules, and the KL of the layers that are swapped as a whole."""
    models = [model for model in comparison.models if model.modules is not None]
    if not models:
        return None
    series = []
    for model in models:
        assert model.modules is not None
        kl = {name.rpartition(".")[2]: value for name, value in model.modules.kl.items() if "." in name}
        layers = [(float(number), value) for number, value in kl.items() if number.isdecimal()]
        series.append({"x": [number for number, _ in layers], **_curve([value for _, value in layers])})
    return {
        "names": [model.name for model in models],
        "series": [curve for curve in series if curve["x"]],
        "tables": [
            _captioned(f"{model.name}: modules in the base", *module_table(model.modules))
            for model in models
            if model.modules is not None
        ],
    }


def _free_running(comparison: Comparison) -> dict[str, Any] | None:
    """The tables of continuations, the KL by position, and the continuations of the largest KL."""
    models = [model for model in (*comparison.models, *comparison.floors) if model.free_running is not None]
    if not models:
        return None
    curves, examples = [], []
    for group, model in enumerate(models):
        assert model.free_running is not None
        for dash, (name, one) in enumerate(
            (("base samples", model.free_running.base_samples), ("model samples", model.free_running.model_samples))
        ):
            first = {float(label.split("-")[0]): mean for label, (_, mean) in one.positions.items()}
            x = sorted(first)
            curves.append(
                {"name": name, "group": group, "dash": dash, "x": x, **_curve([first[number] for number in x])}
            )
            examples += [
                {
                    "label": f"{model.name}, {name}",
                    **{key: example[key] for key in ("name", "prompt", "text", "tokens")},
                    "kl": _number(float(example["kl"])),
                }
                for example in one.examples
            ]
    caption = free_running_caption(comparison)
    return {
        "names": [model.name for model in models],
        "series": curves,
        "tables": [_captioned(f"{model.name}: {caption}", *free_running_table(model)) for model in models],
        "examples": examples,
    }


def _captioned(caption: str, columns: list[str], rows: list[list[str]]) -> dict[str, Any]:
    return {"caption": caption, "columns": columns, "rows": rows}


def _curve(estimates: list[Estimate]) -> dict[str, list[float | None]]:
    """Values and intervals for a chart; numbers that are not finite are gaps."""
    nothing = (float("nan"), float("nan"))
    columns = [(e.value, *(e.interval or nothing)) for e in estimates]
    finite = [[number if abs(number) < float("inf") else None for number in column] for column in columns]
    return {name: [column[i] for column in finite] for i, name in enumerate(("values", "low", "high"))}


def _worst(token: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: token[key] for key in ("name", "document", "position", "before", "token", "after")}
    numbers = {key: _number(token[key]) for key in ("kl", "prob_base", "prob")}
    return {**kept, **numbers, "top_base": list(map(list, token["top_base"])), "top": list(map(list, token["top"]))}


def _document(document: DocumentTokens) -> dict[str, Any]:
    return {
        "name": document.name,
        "length": document.length,
        "first": document.first,
        "tokens": list(document.tokens),
        "values": [
            None
            if values is None
            else [_base64(values.kl.astype("<u2")), _base64(values.nll_base), _base64(values.nll)]
            for values in document.values
        ],
    }


def _base64(codes: Any) -> str:
    return base64.b64encode(codes.tobytes()).decode("ascii")


def _number(value: float) -> float | str:
    """A number >= 0 for JSON, from which JavaScript converts it back."""
    return value if abs(value) < float("inf") else "Infinity"
