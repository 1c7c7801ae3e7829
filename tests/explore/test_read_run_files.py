"""Browser tests of run files that the user opens or drops on the page, with valid, malformed and malicious content."""

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect, sync_playwright

from kullback.explore.downsample import MetricColumns
from kullback.explore.explorer import explorer_page
from kullback.runs.run_directory import RunDirectory

CHROMIUM = shutil.which("chromium")
HOSTILE = "</script><script>window.injected = true</script><img src=x onerror='window.injected = true'>"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")


@pytest.fixture(scope="module")
def runs_page(tmp_path_factory):
    """The page of training runs, opened as a file in an offline browser; any console message fails the test."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(explorer_page({}, live=False), encoding="utf-8")
    messages = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 400, "height": 900}, offline=True).new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(f"file://{path}#runs")
        yield page
        browser.close()
    assert messages == []


def write_run(path: Path, steps: int = 5) -> RunDirectory:
    run = RunDirectory(path)
    run.create({"budget": {"target": 0.05, "unit": "token"}, HOSTILE: HOSTILE})
    for step in range(1, steps + 1):
        run.add_metrics({"step": step, "kl_policy_ref_per_token": 0.01 * step, HOSTILE: step, "reward": None})
    run.add_evaluation({"step": 5, "kl_policy_ref_per_token": 0.0625, "kl_policy_ref_per_token_std_error": 0.004})
    run.add_samples(3, [{"prompt": HOSTILE, "completion": "during", "rewards": {HOSTILE: 1.0}}])
    run.set_samples("after", [{"prompt": HOSTILE, "completion": HOSTILE, "rewards": {HOSTILE: 1.0}}])
    return run


def test_a_run_directory_is_shown_and_its_text_is_not_markup(runs_page, tmp_path):
    run = write_run(tmp_path / "mine")
    (run.path / "pictures.json").write_text(json.dumps({"after": [{"title": HOSTILE, "images": ["QUJD", '"><b>']}]}))
    runs_page.set_input_files("#run-folder", run.path)
    runs_page.wait_for_selector("#runs >> text=Opened: mine.")
    chart = runs_page.locator("#runs .chart", has_text="KL(policy || reference)")
    last = chart.locator("[data-name=evaluation]")
    assert float(last.get_attribute("data-last-value") or "nan") == 0.0625
    assert chart.locator(".limit-label").inner_html() == "budget 0.05, ±20%"
    assert "±" in chart.locator("[role=slider]").get_attribute("aria-valuetext")
    assert runs_page.locator("#runs .completion").inner_text() == HOSTILE
    runs_page.get_by_label("Show").select_option("before training and step 3")
    assert runs_page.locator("#runs .completion").inner_text() == "during"
    expect(runs_page.locator("#runs .pictures img")).to_have_count(1)
    assert runs_page.evaluate("window.injected") is None
    assert runs_page.locator("#runs img[src=x]").count() == 0
    assert runs_page.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize(("name", "content"), [("truncated", "{"), ("numbers", "[7]")])
def test_damaged_completions_do_not_hide_the_charts(runs_page, tmp_path, name, content):
    # The page is shared by the tests. A name of its own keeps the test from seeing the message of an earlier test.
    run = write_run(tmp_path / name)
    (run.path / "samples.json").write_text(content)
    runs_page.set_input_files("#run-folder", run.path)
    runs_page.wait_for_selector(f"#runs >> text=Opened: {name}.")
    runs_page.locator("#chart-kl-token .series").first.wait_for()  # a chart is drawn after its figure is measured
    assert "samples.json: expected" in runs_page.locator("#runs .problem").inner_text()


def test_long_runs_are_downsampled_as_in_python(runs_page, tmp_path):
    rows = [{"step": step, "loss": (step * 7919 % 1000) / 1000} for step in range(1, 2001)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 2001, "lo')
    runs_page.set_input_files("#run-files", path)
    runs_page.wait_for_selector("#runs >> text=2,000 steps · 0 evaluations")
    runs_page.locator("#runs .fold > summary").click()
    runs_page.locator("#chart-other-loss .data summary").click()
    table = runs_page.locator("#chart-other-loss .data td")
    table.first.wait_for()  # the table is created when it is opened
    cells = table.all_inner_texts()
    view = MetricColumns(rows).view()
    means = np.frombuffer(base64.b64decode(view["columns"]["loss"]["mean"]))
    assert len(cells) == len(means) == 500
    assert [float(cell.split()[0]) for cell in cells] == pytest.approx(means.tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.jsonl", "", "found none"),
        ("metrics.jsonl", "not json\n[1]\n", "metrics.jsonl: line 1: expected JSON"),
        ("config.json", "[", "config.json: expected JSON"),
        ("notes.txt", "anything", "found none"),
    ],
)
def test_unreadable_files_give_an_error_message(runs_page, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    runs_page.set_input_files("#run-files", tmp_path / name)
    status = runs_page.locator("#runs [role=status]", has_text=message)
    status.wait_for(timeout=5_000)
    assert status.inner_text().startswith("Not opened: ")


def test_dropped_files_are_shown_and_nan_is_a_gap(runs_page):
    rows = '{"step": 1, "beta": NaN, "note": "NaN, 1"}\n{"step": 2, "beta": 0.5}\n'
    runs_page.evaluate(
        """(rows) => {
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([rows], "dropped.jsonl"));
          document.querySelector("#runs").dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
        }""",
        rows,
    )
    runs_page.wait_for_selector("#runs >> text=Opened: dropped.jsonl.")
    series = runs_page.locator("#chart-beta .series")
    assert series.get_attribute("data-count") == "1"
    assert series.get_attribute("data-bad") == "1"


def test_the_file_picker_is_reachable_by_keyboard(runs_page):
    summary = runs_page.locator(".opener > summary")
    summary.focus()
    if runs_page.locator(".opener").get_attribute("open") is None:
        runs_page.keyboard.press("Enter")
    runs_page.keyboard.press("Tab")
    assert runs_page.evaluate("document.activeElement.id") == "run-folder"
