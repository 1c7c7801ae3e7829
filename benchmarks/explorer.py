"""Measure how smoothly the explorer follows the pointer and the keys, and the server that follows a long run.

    python benchmarks/explorer.py [--drags 8] [--rows 200000]

The page is opened from a file in headless Chromium. Handles are dragged back and forth, and sliders are moved by keys.
At 60 frames a second, the time between frames is 16.7 ms. The longest task is the longest time for which the page did
not react.

The server follows a run directory of 200 000 rows with 20 metrics, to which 5 rows are added before each of 50 polls.
The processor time is of the thread that answers, without the checks of the doctor, which run in a process of their own.
"""

import argparse
import gzip
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import results
from playwright.sync_api import CDPSession, Page, sync_playwright

from kullback.explore.explorer import explorer_page
from kullback.explore.findings import BackgroundChecks
from kullback.explore.run_logs import RunLog
from kullback.explore.server import LiveRuns
from kullback.runs.run_directory import RunDirectory

RECORD_FRAMES = """() => {
  window.frameTimes = [];
  window.longTasks = [];
  let last = performance.now();
  const record = (now) => { window.frameTimes.push(now - last); last = now; requestAnimationFrame(record); };
  requestAnimationFrame(record);
  new PerformanceObserver((list) => window.longTasks.push(...list.getEntries().map(({ duration }) => duration)))
    .observe({ type: "longtask" });
}"""
CENTER = """(handle) => {
  const box = document.querySelector(`[data-handle='${handle}'] circle:last-child`).getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
}"""
HANDLES = {
    "q": "Q in the densities",
    "mode-0": "a mode of P",
    "map-q-reverse": "Q on a map",
    "token-4": "a token of Q",
    "guess": "the guess",
}
SLIDERS = {"temperature": "temperature of Q", "budget": "KL budget", "grid-budget": "budget of the gridworld"}


def drag(page: Page, handle: str, dx: float, dy: float) -> None:
    """Drag a handle of the page by (dx, dy) pixels in twelve steps."""
    x, y = page.evaluate(CENTER, handle)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx / 2, y + dy / 2, steps=6)
    page.mouse.move(x + dx, y + dy, steps=6)
    page.mouse.up()


def drag_repeatedly(page: Page, handle: str, drags: int) -> None:
    page.locator("figure", has=page.locator(f"[data-handle='{handle}']")).scroll_into_view_if_needed()
    for number in range(drags):
        sign = -1 if number % 2 else 1
        drag(page, handle, sign * 60, sign * 8)


def press_repeatedly(page: Page, slider: str, drags: int) -> None:
    page.focus(f"#{slider}")
    for number in range(12 * drags):
        page.keyboard.press("ArrowLeft" if number // 6 % 2 else "ArrowRight")


class Measured(NamedTuple):
    """The milliseconds between frames, the longest task above 50 ms or 0, and the processor time per frame."""

    frames: list[float]
    longest: float
    processor: float


def measured(page: Page, client: CDPSession, action: Callable[[], None]) -> Measured:
    """Measure the page during an action."""

    def processor_time() -> float:
        metrics = {one["name"]: one["value"] for one in client.send("Performance.getMetrics")["metrics"]}
        return 1000 * metrics["TaskDuration"]

    page.wait_for_timeout(400)
    page.evaluate("window.frameTimes.length = window.longTasks.length = 0")
    before = processor_time()
    action()
    page.wait_for_timeout(50)
    after, frames = processor_time(), page.evaluate("window.frameTimes")
    page.wait_for_timeout(400)
    tasks = page.evaluate("window.longTasks")
    return Measured(frames, max(tasks, default=0.0), (after - before) / len(frames))


def frame_times(chromium: str, drags: int) -> tuple[str, dict[str, Measured], float]:
    """Return the version of Chromium, the frames and the longest task of each action, and the first paint in ms."""
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        path = Path(directory) / "page.html"
        path.write_text(explorer_page({}, live=False), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True).new_page()
        client = page.context.new_cdp_session(page)
        client.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready]")
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        page.evaluate(RECORD_FRAMES)
        found = {}
        for handle, label in HANDLES.items():
            found[label] = measured(page, client, lambda handle=handle: drag_repeatedly(page, handle, drags))
        for slider, label in SLIDERS.items():
            found[label] = measured(page, client, lambda slider=slider: press_repeatedly(page, slider, drags))
        version = browser.version
        browser.close()
    return version, found, paint


def frames_table(version: str, found: dict[str, Measured]) -> results.Table:
    """Return the times between frames, the longest task and the processor time of each action."""
    columns = ["browser", "what is moved", "frames", "median, ms", "95th percentile, ms", "longest task, ms"]
    columns.append("processor time per frame, ms")
    rows = []
    for label, (times, longest, processor) in found.items():
        middle, high = np.percentile(times, [50, 95])
        task = f"{longest:.0f}" if longest else "below 50"
        rows.append(
            [f"Chromium {version}", label, str(len(times)), f"{middle:.1f}", f"{high:.1f}", task, f"{processor:.1f}"]
        )
    return columns, rows


def page_table(paint: float) -> results.Table:
    """Return the size of the page and the time of its first paint."""
    page = explorer_page({}, live=False).encode()
    columns = ["page", "kB", "kB with gzip", "first paint, ms"]
    return columns, [
        ["without runs", f"{len(page) / 1000:.0f}", f"{len(gzip.compress(page, 9)) / 1000:.1f}", f"{paint:.0f}"]
    ]


def growing_table(rows: int, polls: int = 50) -> results.Table:
    """Return the processor time of the server for a run that grows: reading it, a poll, and a part of its axis."""
    BackgroundChecks.latest = lambda *_: None  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as directory:
        run = RunDirectory(Path(directory) / "run")
        run.create({"kind": "grpo", "budget": {"target": 0.05, "unit": "token"}, "steps": 2 * rows})
        metrics = {f"metric_{i}": 0.123456789 * (i + 1) for i in range(18)}
        path = run.path / "metrics.jsonl"

        def add(first: int, count: int) -> None:
            with path.open("a", encoding="utf-8") as file:
                for step in range(first, first + count):
                    file.write(json.dumps({"step": step, "kl_policy_ref_per_token": 0.05, **metrics}) + "\n")

        add(1, rows)
        start = time.thread_time()
        log = RunLog(run.path)
        log.refresh()
        load = time.thread_time() - start
        server = LiveRuns({"run": log})
        since, times, size = {}, [], 0
        for number in range(polls + 1):
            start = time.thread_time()
            answer = server.answer({"since": json.dumps(since)})
            times.append(time.thread_time() - start)
            since, size = {"run": json.loads(answer)["runs"][0]["token"]}, len(answer)
            add(rows + 5 * number + 1, 5)
        start = time.thread_time()
        server.answer({"run": "run", "from": str(rows // 2), "to": str(rows // 2 + 500)})
        part = time.thread_time() - start
    first, *later = (1e3 * seconds for seconds in times)
    columns = [
        "rows",
        "read once, s",
        "first answer, ms",
        "poll, median, ms",
        "poll, largest, ms",
        "poll, bytes",
        "zoom, ms",
    ]
    figures = [f"{first:.0f}", f"{np.median(later):.1f}", f"{max(later):.1f}", f"{size:,}", f"{1e3 * part:.1f}"]
    return columns, [[f"{rows:,}", f"{load:.1f}", *figures]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drags", type=int, default=8)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--only", choices=["frames", "growing"], help="measure one table (default: both)")
    results.add_save_option(parser)
    options = parser.parse_args(arguments)
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("expected the command chromium; install Debian's package chromium")
    tables = {}
    if options.only != "frames":
        tables["growing"] = growing_table(options.rows)
    if options.only != "growing":
        version, found, paint = frame_times(chromium, options.drags)
        tables |= {"frames": frames_table(version, found), "page": page_table(paint)}
    for table in tables.values():
        print(results.markdown(table))
    if not options.no_save:
        results.save("explorer", tables, packages=("playwright",))


if __name__ == "__main__":
    main()
