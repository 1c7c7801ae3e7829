"""Runs opened from the page: picked or dropped, offline, hostile or broken; their numbers are those of the files."""

import json
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from kullback.explore.explorer import explorer_page
from kullback.runs.run_directory import RunDirectory

CHROMIUM = shutil.which("chromium")
HOSTILE = "</script><script>window.taken = true</script><img src=x onerror='window.taken = true'>"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """The last room of the page as a file, with no network; whatever the console says fails the test."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(explorer_page({}, live=False), encoding="utf-8")
    said = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 400, "height": 900}, offline=True).new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"file://{path}#runs")
        yield page
        browser.close()
    assert said == []


def written(path: Path, steps: int = 5) -> RunDirectory:
    run = RunDirectory(path)
    run.create({"budget": {"target": 0.05, "unit": "token"}, HOSTILE: HOSTILE})
    for step in range(1, steps + 1):
        run.add_metrics({"step": step, "kl_policy_ref_per_token": 0.01 * step, HOSTILE: step, "reward": None})
    run.add_evaluation({"step": 5, "kl_policy_ref_per_token": 0.0625, "kl_policy_ref_per_token_std_error": 0.004})
    run.set_samples("after", [{"prompt": HOSTILE, "completion": HOSTILE, "rewards": {HOSTILE: 1.0}}])
    return run


def test_a_directory_is_opened_and_its_text_stays_text(room, tmp_path):
    run = written(tmp_path / "mine")
    (run.path / "pictures.json").write_text(json.dumps({"after": [{"title": HOSTILE, "images": ["QUJD", '"><b>']}]}))
    room.set_input_files("#run-folder", run.path)
    room.wait_for_selector("#runs >> text=Opened: mine.")
    chart = room.locator("#runs .chart", has_text="KL(policy || reference)")
    last = chart.locator("[data-name=evaluation]")
    assert float(last.get_attribute("data-last-value") or "nan") == 0.0625
    assert chart.locator(".limit-label").inner_html() == "budget 0.05, ±20%"
    assert "±" in chart.locator("[role=slider]").get_attribute("aria-valuetext")
    assert room.locator("#runs .completion").inner_text() == HOSTILE
    assert room.locator("#runs .pictures img").count() == 1
    assert room.evaluate("window.taken") is None
    assert room.locator("#runs img[src=x]").count() == 0
    assert room.evaluate("document.documentElement.scrollWidth") <= 400


def test_long_runs_are_thinned_as_the_report_thins_them(room, tmp_path):
    from kullback.explore.downsample import DownsampledSeries

    rows = [{"step": step, "loss": (step * 7919 % 1000) / 1000} for step in range(1, 2001)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 2001, "lo')
    room.set_input_files("#run-files", path)
    room.wait_for_selector("#runs >> text=2000 steps · 0 evaluations")
    room.locator("#runs .chart summary").first.click()
    table = room.locator("#runs .chart .data td")
    table.first.wait_for()  # it is made once its chart is open
    cells = table.all_inner_texts()
    track = DownsampledSeries(rows)
    expected = track.curve("loss")
    assert expected is not None
    assert len(cells) == len(track.grid()["x"]) == 400
    assert [float(cell.split()[0]) for cell in cells] == pytest.approx(expected["values"], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("metrics.jsonl", "", "found none"),
        ("metrics.jsonl", '{"step": 1}\nnot json\n{"step": 2}\n', "metrics.jsonl, line 2: expected JSON"),
        ("config.json", "[", "config.json: expected JSON"),
        ("notes.txt", "anything", "found none"),
    ],
)
def test_what_cannot_be_read_is_said(room, tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    room.set_input_files("#run-files", tmp_path / name)
    told = room.locator("#runs [role=status]", has_text=words)
    told.wait_for(timeout=5_000)
    assert told.inner_text().startswith("Not opened: ")


def test_files_are_dropped_and_nan_is_a_gap(room):
    rows = '{"step": 1, "beta": NaN, "note": "NaN, 1"}\n{"step": 2, "beta": 0.5}\n'
    room.evaluate(
        """(rows) => {
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([rows], "dropped.jsonl"));
          document.querySelector("#runs").dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
        }""",
        rows,
    )
    room.wait_for_selector("#runs >> text=Opened: dropped.jsonl.")
    assert room.locator("#runs [data-name=training]").get_attribute("data-count") == "1"


def test_the_picker_is_reached_by_keys(room):
    room.locator("nav a").last.focus()
    room.keyboard.press("Tab")
    assert room.evaluate("document.activeElement.id") == "run-folder"
