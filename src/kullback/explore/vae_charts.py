"""Charts of runs with latent variables whose horizontal axis is not the training step."""

from collections.abc import Mapping, Sequence
from typing import Any

from kullback.explore.downsample import DownsampledSeries, finite

__all__ = ["accuracy_by_kl", "has_latent_variables", "kl_by_dimension", "latent_grids"]

Chart = dict[str, Any]


def has_latent_variables(configs: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether any of the runs trains a model with latent variables."""
    return any(config.get("kind") in ("vae", "bottleneck") for config in configs)


def latent_grids(evaluations: Sequence[DownsampledSeries]) -> list[dict[str, Any]]:
    """Return the x coordinates of the charts in this file.

    They follow two grids per run (training steps, evaluations): the ranks of the latent dimensions of each run, then
    the final KL of all runs.
    """
    ranks = [{"x": list(range(1, 1 + len(kls)))} for kls in _sorted_dimension_kls(evaluations)]
    return [*ranks, {"x": [kl for kl, _ in _final_kl_and_accuracy(evaluations)]}]


def kl_by_dimension(evaluations: Sequence[DownsampledSeries]) -> Chart | None:
    """Return the chart of the final KL of each latent dimension in decreasing order, or None without such data."""
    series = [
        _points(kls, {"x": len(kls), "value": kls[-1]}, group=i, grid=2 * len(evaluations) + i, name="KL")
        for i, kls in enumerate(_sorted_dimension_kls(evaluations))
        if kls
    ]
    note = "KL of each dimension at the last evaluation, in decreasing order."
    x, y = {"label": "rank", "integer": True}, {"label": "nats per image", "zero": True}
    return _chart("latents", "KL by latent dimension", note, x, y, series) if series else None


def accuracy_by_kl(evaluations: Sequence[DownsampledSeries]) -> Chart | None:
    """Return the chart of final accuracy against final KL, or None for fewer than two runs."""
    pairs = _final_kl_and_accuracy(evaluations)
    if len(pairs) < 2:
        return None
    last = {"x": pairs[-1][0], "value": pairs[-1][1]}
    series = [_points([accuracy for _, accuracy in pairs], last, group=0, grid=3 * len(evaluations), name="accuracy")]
    note = "Each point is the last evaluation of a run, on held-out images."
    x, y = {"label": "KL, nats per image"}, {"label": "accuracy", "max": 1.0}
    return _chart("accuracy-by-kl", "Accuracy against KL", note, x, y, series) | {"groups": ["all runs"]}


def _chart(name: str, title: str, note: str, x: Chart, y: Chart, series: list[Chart]) -> Chart:
    return {"id": name, "title": title, "note": note, "x": x, "y": y, "lines": [], "series": series}


def _points(values: list[float], last: Chart, *, group: int, grid: int, name: str) -> Chart:
    return {"name": name, "mark": "points", "group": group, "dash": 0, "grid": grid, "values": values, "last": last}


def _sorted_dimension_kls(evaluations: Sequence[DownsampledSeries]) -> list[list[float]]:
    """Return the KL of each latent dimension at the last evaluation, in decreasing order, for each run."""
    last = [series.rows[-1].get("kl_latents") if series.rows else None for series in evaluations]
    finite_kls = [[kl for value in kls or () if (kl := finite(value)) is not None] for kls in last]
    return [sorted(kls, reverse=True) for kls in finite_kls]


def _final_kl_and_accuracy(evaluations: Sequence[DownsampledSeries]) -> list[tuple[float, float]]:
    """Return KL and accuracy at the last evaluation of each run, in increasing order of KL."""
    last = [series.rows[-1] for series in evaluations if series.rows]
    pairs = [(finite(row.get("kl_posterior_prior_per_image")), finite(row.get("accuracy"))) for row in last]
    return sorted((kl, accuracy) for kl, accuracy in pairs if kl is not None and accuracy is not None)
