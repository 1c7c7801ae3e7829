"""The figure of `frontier.py`: the frontier with every run on it, and each run's share of what the frontier earns."""

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

import numpy as np
from frontier_task import Gradient, Task

__all__ = ["drawn"]

MARKS = {  # the colours of the reports, and a shape that says the same
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
RESTS: tuple[tuple[Gradient, str], ...] = (("token", "exact in the loss"), ("k3", "k3 in the loss (TRL)"))
WIDTH, HEIGHT, LEFT, TOP, GAP = 400, 300, 60, 44, 76
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1c1e21}.q{fill:#5a5f66}.r{stroke:#dddcd6}.f{fill:none;stroke:#1c1e21}"
)

Point = tuple[float, float]


class Panel:
    """A pair of axes; KL along the root, since reward begins as it."""

    def __init__(self, left: float, most: float, low: float, high: float) -> None:
        self.left, self.most, self.low, self.high = left, most, low, high

    def at(self, kl: float, value: float) -> Point:
        y = TOP + HEIGHT * (self.high - value) / (self.high - self.low)
        return self.left + WIDTH * (kl / self.most) ** 0.5, y

    def line(self, points: Iterable[Point], look: str) -> str:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))
        return f'<polyline class="f" points="{path}" {look}/>'

    def mark(self, kind: str, kl: float, value: float) -> str:
        color, shape = MARKS[kind]
        x, y = self.at(kl, max(self.low, value))
        return f'<g transform="translate({x:.1f} {y:.1f})" fill="{color}" fill-opacity=".8">{shape}</g>'

    def axes(self, title: str, ticks: Iterable[float], say: str) -> list[str]:
        said = [f'<text x="{self.left}" y="{TOP - 16}" font-weight="600">{title}</text>']
        for value in ticks:
            x, y = self.at(0.0, value)
            said.append(f'<path class="r" d="M{x} {y:.1f}h{WIDTH}"/>')
            said.append(f'<text class="q" x="{x - 8}" y="{y + 4:.1f}" text-anchor="end">{format(value, say)}</text>')
        for kl in (0, 0.25, 1, 2, 4, 8, 12):
            if kl <= self.most:
                x, y = self.at(kl, self.low)
                said.append(f'<text class="q" x="{x:.1f}" y="{y + 20:.1f}" text-anchor="middle">{kl:g}</text>')
        middle = self.left + WIDTH / 2
        bottom = TOP + HEIGHT + 42
        return [*said, f'<text class="q" x="{middle}" y="{bottom}" text-anchor="middle">KL, nats a completion</text>']


def drawn(tasks: Mapping[int, Task], results: Iterable[tuple[Any, Point]]) -> str:
    """An SVG of runs, each with `kind` and `seed`, and where they stand, (KL, reward)."""
    results = list(results)
    most = 1.1 * max(kl for _, (kl, _) in results)
    frontiers = {
        seed: [(kl, float(task.frontier.reward_at(kl))) for kl in most * np.linspace(0, 1, 81) ** 2]
        for seed, task in tasks.items()
    }
    high = max(value for line in frontiers.values() for _, value in line)
    left, right = Panel(LEFT, most, 0.0, high), Panel(LEFT + WIDTH + GAP, most, 0.8, 1.0)
    said = [*left.axes("Expected reward", np.arange(0.0, high, 0.2), ".1f")]
    said += right.axes("Share of the frontier's reward at the same KL", [0.8, 0.85, 0.9, 0.95, 1.0], ".0%")
    said += [left.line(line, 'stroke-width="1.5"') for line in frontiers.values()]
    said.append(right.line([(0.0, 1.0), (most, 1.0)], 'stroke-width="1.5"'))
    for gradient, kind in RESTS:
        line = [point for beta in np.geomspace(1.0, 0.04, 50) if (point := _rest(tasks, beta, gradient))[0] < most]
        said.append(right.line(line, f'style="stroke:{MARKS[kind][0]}" stroke-width="1.5" stroke-dasharray="2 4"'))
    for run, (kl, earned) in results:
        best = float(tasks[run.seed].frontier.reward_at(kl))
        said += [left.mark(run.kind, kl, earned), right.mark(run.kind, kl, earned / best)]
    kinds = [kind for kind in MARKS if any(run.kind == kind for run, _ in results)]
    for index, kind in enumerate(kinds):
        x, y = LEFT + 300 * (index % 3), TOP + HEIGHT + 72 + 22 * (index // 3)
        color, shape = MARKS[kind]
        said.append(
            f'<g transform="translate({x} {y - 4})" fill="{color}">{shape}</g><text x="{x + 12}" y="{y}">{kind}</text>'
        )
    note = (
        "Lines: the exact frontier of each reference. Dotted: where the gradient of that colour comes to rest, exactly."
    )
    width, height = LEFT + 2 * WIDTH + GAP + 20, TOP + HEIGHT + 140
    said.append(f'<text class="q" x="{LEFT - 5}" y="{height - 18}">{note}</text>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            "<title>Trained policies and the exact reward-KL frontier</title>",
            f"<style>{STYLE}</style>",
            '<rect width="100%" height="100%" fill="#fcfcfa"/>',
            *said,
            "</svg>\n",
        ]
    )


def _rest(tasks: Mapping[int, Task], beta: float, gradient: Gradient) -> Point:
    """Mean KL, and mean share of the frontier's reward there."""
    ends = [(task, *task.rest(beta, gradient)) for task in tasks.values()]
    return fmean(kl for _, kl, _ in ends), fmean(value / float(task.frontier.reward_at(kl)) for task, kl, value in ends)
