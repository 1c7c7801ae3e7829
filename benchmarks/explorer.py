"""Measure the time between frames of the explorer while a handle is dragged, in headless Chromium.

    python benchmarks/explorer.py [--drags 16]

The page "directions" is opened from a file, and the handle of the normal q is dragged back and forth. At 60 frames a
second, the time between frames is 16.7 ms.
"""

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import results
from playwright.sync_api import Page, sync_playwright

from kullback.explore.explorer import explorer_page

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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drags", type=int, default=16)
    results.add_save_option(parser)
    options = parser.parse_args(arguments)
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("expected the command chromium; install Debian's package chromium")
    table = frames_table(*frame_times(chromium, options.drags))
    print(results.markdown(table))
    if not options.no_save:
        results.save("explorer", {"frames": table}, packages=("playwright",))


if __name__ == "__main__":
    main()
