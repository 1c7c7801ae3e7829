"""Measure the time between frames of the explorer, and the processor time of the server that follows a long run.

    python benchmarks/explorer.py [--drags 16] [--rows 200000]

The page "directions" is opened from a file, and the handle of the normal q is dragged back and forth. At 60 frames a
second, the time between frames is 16.7 ms.

The server follows a run directory of 200 000 rows with 20 metrics, to which 5 rows are added before each of 50 polls.
The processor time is of the thread that answers, without the checks of the doctor, which run in a process of their own.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import results
from playwright.sync_api import Page, sync_playwright

from kullback.explore.explorer import explorer_page
from kullback.explore.findings import BackgroundChecks
from kullback.explore.run_logs import RunLog
from kullback.explore.server import LiveRuns
from kullback.runs.run_directory import RunDirectory

RECORD_FRAMES = """() => {
  window.frameTimes = [];
  let last = performance.now();
  const record = (now) => { window.frameTimes.push(now - last); last = now; requestAnimationFrame(record); };
  requestAnimationFrame(record);
}"""


def drag(page: Page, handle: str, dx: float, dy: float) -> None:
    """Drag a handle of the page by (dx, dy) pixels in six steps."""
    box = page.locator(f"[data-handle='{handle}']").bounding_box()
    if box is None:
        raise SystemExit(f"expected a visible handle {handle!r} on the page; the explorer may have changed")
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx / 2, y + dy / 2, steps=3)
    page.mouse.move(x + dx, y + dy, steps=3)
    page.mouse.up()


def frame_times(chromium: str, drags: int) -> tuple[str, list[float]]:
    """Return the version of Chromium and the milliseconds between successive frames during the drags."""
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        path = Path(directory) / "page.html"
        path.write_text(explorer_page({}, live=False), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 1100, "height": 900}, offline=True).new_page()
        page.goto(f"{path.as_uri()}#directions")
        page.wait_for_selector(".minima li")
        page.evaluate(RECORD_FRAMES)
        for number in range(drags):
            sign = -1 if number % 2 else 1
            drag(page, "q", sign * 60, sign * 5)
        times = page.evaluate("window.frameTimes")
        version = browser.version
        browser.close()
    return version, times


def frames_table(version: str, times: Sequence[float]) -> results.Table:
    """Return the median and the 90th percentile of the times between frames."""
    middle, high = np.percentile(times, [50, 90])
    columns = ["browser", "frames", "median, ms", "90th percentile, ms"]
    return columns, [[f"headless Chromium {version}", str(len(times)), f"{middle:.1f}", f"{high:.1f}"]]


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
    parser.add_argument("--drags", type=int, default=16)
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
        tables["frames"] = frames_table(*frame_times(chromium, options.drags))
    for table in tables.values():
        print(results.markdown(table))
    if not options.no_save:
        results.save("explorer", tables, packages=("playwright",))


if __name__ == "__main__":
    main()
