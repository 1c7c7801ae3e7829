"""Draw the stored results of `frontier.py`: reward against KL with the exact frontier, and the share of its reward.

    .venv/bin/python benchmarks/frontier_figure.py

Each mark is the mean over the seeds of one row of results/frontier.json.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import results
import torch
from frontier_task import Gradient, Task, make_reference

MARKS = {  # a colour of the reports and a shape for each trainer
    "budget": ("#0b62b0", '<circle r="4.5"/>'),
    "k3 in the loss (TRL)": ("#e0600c", '<rect x="-4" y="-4" width="8" height="8"/>'),
    "k1 in the reward": ("#009a5c", '<path d="M0-5 5 4H-5Z"/>'),
    "exact in the loss": ("#b0527f", '<path d="M0-5.5 5.5 0 0 5.5-5.5 0Z"/>'),
    "exact with KL-to-go": ("#5f470c", '<path d="M0 5 5-4H-5Z"/>'),
    "PPO, k1 in the reward": (
        "#5a5f66",
        '<path d="M-4-4 4 4M-4 4 4-4" fill="none" stroke="#5a5f66" stroke-width="2"/>',
    ),
}
BIASED: tuple[tuple[Gradient, str], ...] = (("token", "exact in the loss"), ("k3", "k3 in the loss (TRL)"))
WIDTH, HEIGHT, LEFT, TOP, GAP = 400, 300, 60, 44, 76
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1c1e21}.q{fill:#5a5f66}.r{stroke:#dddcd6}.f{fill:none;stroke:#1c1e21}"
)

FIGURE = Path(__file__).parents[1] / "docs" / "images" / "frontier.svg"
SHARE = "share of the frontier's reward"
TABLES = ("trainers", "budgets")
SEEDS = (0, 1, 2)

Point = tuple[float, float]


class Panel:
    """A pair of axes, linear in sqrt(KL) and in the value: reward grows as sqrt(KL) near the reference."""

    def __init__(self, left: float, kl_max: float, low: float, high: float) -> None:
        self.left, self.kl_max, self.low, self.high = left, kl_max, low, high

    def at(self, kl: float, value: float) -> Point:
        y = TOP + HEIGHT * (self.high - value) / (self.high - self.low)
        return self.left + WIDTH * (kl / self.kl_max) ** 0.5, y

    def line(self, points: Iterable[Point], attributes: str) -> str:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))
        return f'<polyline class="f" points="{path}" {attributes}/>'

    def mark(self, kind: str, kl: float, value: float) -> str:
        color, shape = MARKS[kind]
        x, y = self.at(kl, max(self.low, value))
        return f'<g transform="translate({x:.1f} {y:.1f})" fill="{color}" fill-opacity=".8">{shape}</g>'

    def axes(self, title: str, ticks: Iterable[float], tick_format: str) -> list[str]:
        parts = [f'<text x="{self.left}" y="{TOP - 16}" font-weight="600">{title}</text>']
        for value in ticks:
            x, y = self.at(0.0, value)
            parts.append(f'<path class="r" d="M{x} {y:.1f}h{WIDTH}"/>')
            parts.append(
                f'<text class="q" x="{x - 8}" y="{y + 4:.1f}" text-anchor="end">{format(value, tick_format)}</text>'
            )
        for kl in (0, 0.25, 1, 2, 4, 8, 12):
            if kl <= self.kl_max:
                x, y = self.at(kl, self.low)
                parts.append(f'<text class="q" x="{x:.1f}" y="{y + 20:.1f}" text-anchor="middle">{kl:g}</text>')
        middle = self.left + WIDTH / 2
        bottom = TOP + HEIGHT + 42
        return [
            *parts,
            f'<text class="q" x="{middle}" y="{bottom}" text-anchor="middle">KL, nats per completion</text>',
        ]


def svg_figure(tasks: Mapping[int, Task], rows: Sequence[Mapping[str, str]]) -> str:
    """Return an SVG of the rows of the tables, with the frontier of each task."""
    points = [
        (row["trainer"], float(row["KL"]), float(row["reward"]), float(row[SHARE].rstrip("%")) / 100) for row in rows
    ]
    kl_max = 1.1 * max(kl for _, kl, _, _ in points)
    frontiers = {
        seed: [(kl, float(task.frontier.reward_at(kl))) for kl in kl_max * np.linspace(0, 1, 81) ** 2]
        for seed, task in tasks.items()
    }
    high = max(value for line in frontiers.values() for _, value in line)
    left, right = Panel(LEFT, kl_max, 0.0, high), Panel(LEFT + WIDTH + GAP, kl_max, 0.8, 1.0)
    parts = [*left.axes("Expected reward", np.arange(0.0, high, 0.2), ".1f")]
    parts += right.axes("Share of the frontier's reward at the same KL", [0.8, 0.85, 0.9, 0.95, 1.0], ".0%")
    parts += [left.line(line, 'stroke-width="1.5"') for line in frontiers.values()]
    parts.append(right.line([(0.0, 1.0), (kl_max, 1.0)], 'stroke-width="1.5"'))
    for gradient, kind in BIASED:
        line = [
            point
            for beta in np.geomspace(1.0, 0.04, 50)
            if (point := _stationary_point(tasks, beta, gradient))[0] < kl_max
        ]
        parts.append(right.line(line, f'style="stroke:{MARKS[kind][0]}" stroke-width="1.5" stroke-dasharray="2 4"'))
    for kind, kl, reward, share in points:
        parts += [left.mark(kind, kl, reward), right.mark(kind, kl, share)]
    kinds = [kind for kind in MARKS if any(kind == of_point for of_point, *_ in points)]
    for index, kind in enumerate(kinds):
        x, y = LEFT + 300 * (index % 3), TOP + HEIGHT + 72 + 22 * (index // 3)
        color, shape = MARKS[kind]
        parts.append(
            f'<g transform="translate({x} {y - 4})" fill="{color}">{shape}</g><text x="{x + 12}" y="{y}">{kind}</text>'
        )
    note = (
        "Marks: means over seeds. Lines: the frontier of each reference. Dotted: the stationary point of the gradient "
        "of that colour."
    )
    width, height = LEFT + 2 * WIDTH + GAP + 20, TOP + HEIGHT + 140
    parts.append(f'<text class="q" x="{LEFT - 5}" y="{height - 18}">{note}</text>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            "<title>Trained policies and the exact reward-KL frontier</title>",
            f"<style>{STYLE}</style>",
            '<rect width="100%" height="100%" fill="#fcfcfa"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _stationary_point(tasks: Mapping[int, Task], beta: float, gradient: Gradient) -> Point:
    """The mean KL of the stationary points, and their mean share of the frontier's reward."""
    points = [(task, *task.stationary_point(beta, gradient)) for task in tasks.values()]
    shares = [reward / float(task.frontier.reward_at(kl)) for task, kl, reward in points]
    return fmean(kl for _, kl, _ in points), fmean(shares)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FIGURE)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    stored = json.loads((results.RESULTS / "frontier.json").read_text(encoding="utf-8"))
    rows = [dict(zip(stored[name]["columns"], row, strict=True)) for name in TABLES for row in stored[name]["rows"]]
    tasks = {seed: Task(make_reference(seed)) for seed in SEEDS}
    options.output.write_text(svg_figure(tasks, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
