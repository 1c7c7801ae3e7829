"""The charts of runs with latent variables that do not run along steps."""

from collections.abc import Mapping, Sequence
from typing import Any

from kullback.explore.downsample import DownsampledSeries, finite

__all__ = ["accuracy_by_nats", "by_dimension", "is_latent", "latent_grids"]

Chart = dict[str, Any]


def is_latent(configs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any of the runs is of a model with latent variables."""
    return any(config.get("kind") in ("vae", "bottleneck") for config in configs)


def latent_grids(evaluations: Sequence[DownsampledSeries]) -> list[dict[str, Any]]:
    """What these charts lie on: after two grids for each run, ranks of dimensions, and the nats of all."""
    ranks = [{"x": list(range(1, 1 + len(kls)))} for kls in _dimensions(evaluations)]
    return [*ranks, {"x": [nats for nats, _ in _outcomes(evaluations)]}]


def by_dimension(evaluations: Sequence[DownsampledSeries]) -> Chart | None:
    """The last KL of each latent dimension, by rank."""
    series = [
        _points(kls, {"x": len(kls), "value": kls[-1]}, group=i, grid=2 * len(evaluations) + i, name="KL")
        for i, kls in enumerate(_dimensions(evaluations))
        if kls
    ]
    note = "At the last evaluation, the largest first."
    x, y = {"label": "rank", "integer": True}, {"label": "nats per image", "zero": True}
    return _chart("latents", "KL by latent dimension", note, x, y, series) if series else None


def accuracy_by_nats(evaluations: Sequence[DownsampledSeries]) -> Chart | None:
    """What the nats of each run buy; None for a single run."""
    pairs = _outcomes(evaluations)
    if len(pairs) < 2:
        return None
    last = {"x": pairs[-1][0], "value": pairs[-1][1]}
    series = [_points([accuracy for _, accuracy in pairs], last, group=0, grid=3 * len(evaluations), name="accuracy")]
    note = "Each point is a run at its end, on held-out images."
    x, y = {"label": "nats per image"}, {"label": "accuracy", "max": 1.0}
    return _chart("accuracy-by-nats", "Accuracy against nats", note, x, y, series) | {"groups": ["all runs"]}


def _chart(name: str, title: str, note: str, x: Chart, y: Chart, series: list[Chart]) -> Chart:
    return {"id": name, "title": title, "note": note, "x": x, "y": y, "lines": [], "series": series}


def _points(values: list[float], last: Chart, *, group: int, grid: int, name: str) -> Chart:
    return {"name": name, "mark": "points", "group": group, "dash": 0, "grid": grid, "values": values, "last": last}


def _dimensions(evaluations: Sequence[DownsampledSeries]) -> list[list[float]]:
    """The last KL of each latent dimension, the largest first, for each run."""
    last = [track.rows[-1].get("kl_latents") if track.rows else None for track in evaluations]
    known = [[kl for one in kls or () if (kl := finite(one)) is not None] for kls in last]
    return [sorted(kls, reverse=True) for kls in known]


def _outcomes(evaluations: Sequence[DownsampledSeries]) -> list[tuple[float, float]]:
    """Nats and accuracy of each run at its end, by nats."""
    last = [track.rows[-1] for track in evaluations if track.rows]
    pairs = [(finite(row.get("kl_posterior_prior_per_image")), finite(row.get("accuracy"))) for row in last]
    return sorted((nats, accuracy) for nats, accuracy in pairs if nats is not None and accuracy is not None)
