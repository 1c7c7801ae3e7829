"""Browser tests of a live run: updates in place, the strip of its state, zoom, exports, and a cut network."""

import json
import math
import re
import shutil
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from kullback.explore.explorer import readable_runs
from kullback.explore.findings import BackgroundChecks
from kullback.explore.server import LiveRuns, make_server
from kullback.runs.lock import run_lock
from kullback.runs.run_directory import RunDirectory

pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")

CONFIG = {
    "kind": "grpo",
    "budget": {"kind": "KLBudget", "target": 0.05, "unit": "token", "price_min": 5e-4, "price_max": 0.5},
    "rewards": ["good"],
    "watched": ["true"],
    "steps": 1000,
}
KL = "#chart-kl-token"


def row(step: int, **values: float | None) -> dict:
    kl = 0.05 * (1 - math.exp(-step / 30)) if step > 1 else 0.0
    return {
        "step": step,
        "kl_policy_ref_per_token": kl,
        "kl_filtered": kl,
        "beta": 0.2,
        "rewards/good": 0.3 + 0.001 * (step % 7),
        "entropy": 2.0 + 0.01 * (step % 5),
        "seconds": 2.0 * step,
        **values,
    }


def create(path: Path, steps: int = 60, changed: dict[int, dict] | None = None) -> RunDirectory:
    """Write a run; `changed` has other values of its rows by step."""
    run = RunDirectory(path)
    run.create(CONFIG)
    for step in range(1, steps + 1):
        run.add_metrics(row(step, **(changed or {}).get(step, {})))
    run.add_evaluation({"step": 0, "kl_policy_ref_per_token": 0.0, "rewards/good": 0.1, "count": 8})
    return run


@pytest.fixture
def live(browser, monkeypatch) -> Iterator[Callable[..., Page]]:
    """Return a function that serves runs and opens their page; messages of the console fail the test."""
    closers, messages = [], []

    def open_page(
        *runs: RunDirectory, width: int = 1200, fragment: str = "#runs", expected: str = "", **options
    ) -> Page:
        logs, problems = readable_runs({run.path.name: run.path for run in runs})
        server, address = make_server(logs, problems=problems)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        context = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True, **options)
        page = context.new_page()
        page.on(
            "console", lambda message: None if expected and expected in message.text else messages.append(message.text)
        )
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(address + fragment)
        page.wait_for_selector("#runs .chart svg[viewBox]")
        closers.extend([context.close, server.shutdown, server.server_close])
        return page

    yield open_page
    for close in closers:
        close()
    assert messages == []


def readout(page: Page, chart: str, column: int = 0, line: int = 0) -> float:
    text = page.locator(f"{chart} .legend tbody tr").nth(line).locator("td").nth(column).get_attribute("data-value")
    return float(text or "nan")


def drag(page: Page, chart: str, start: float, end: float) -> None:
    """Drag over a part of a chart; the ends are shares of its width."""
    svg = page.locator(f"{chart} > svg")
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + start * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + (start + end) / 2 * box["width"], y)
    page.mouse.move(box["x"] + end * box["width"], y)
    page.mouse.up()


def part(page: Page, label: str, i: int = 0):
    return (
        page.locator(".status")
        .nth(i)
        .locator("dl > div", has=page.locator("dt", has_text=re.compile(f"^{label}$")))
        .locator("dd")
    )


@pytest.mark.slow
def test_an_update_keeps_zoom_scale_cursor_focus_scroll_and_what_was_opened(live, tmp_path):
    run = create(tmp_path / "mine")
    page = live(run)
    page.locator(f"{KL} button", has_text="log scale").click()
    page.locator("#chart-entropy .data summary").click()
    drag(page, KL, 0.3, 0.6)
    svg = page.locator(f"{KL} > svg")
    svg.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.evaluate("document.querySelector('#chart-kl-token > svg').marked = true")
    page.evaluate("window.scrollTo(0, 333)")

    def state() -> list:
        return page.evaluate(
            "(() => { const svg = document.querySelector('#chart-kl-token > svg');"
            "return [svg.marked, svg.ariaValueNow,"
            "document.activeElement === svg, window.scrollY, svg.parentNode.querySelector('button').ariaPressed,"
            "document.querySelector('#chart-entropy .data').open,"
            "document.querySelector('.toolbar [role=status]').textContent]; })()"
        )

    before = state()
    assert before[0] is True
    assert before[2] is True
    assert before[6].startswith("step ")
    run.add_metrics(row(61))
    run.add_evaluation({"step": 61, "kl_policy_ref_per_token": 0.049, "rewards/good": 0.4, "count": 8})
    page.wait_for_selector(".run-list >> text=61 steps · 2 evaluations", timeout=15_000)
    assert state() == before
    page.keyboard.press("Escape")
    assert page.locator(".toolbar [role=status]").text_content() == ""
    page.keyboard.press("End")
    assert svg.get_attribute("aria-valuenow") == "61"


def test_an_update_keeps_the_selections_of_completions(live, tmp_path):
    run = create(tmp_path / "mine")
    run.set_samples("before", [{"prompt": "a", "completion": "zero"}])
    for step in (20, 40):
        run.add_samples(step, [{"prompt": "a", "completion": f"at {step}"}])
    page = live(run)
    shown = page.locator(".completion")
    assert shown.all_inner_texts() == ["zero", "at 40"]
    select = page.get_by_label("Show")
    select.select_option("before training and step 20")
    select.focus()
    run.add_samples(60, [{"prompt": "a", "completion": "at 60"}])
    page.wait_for_selector("option >> text=before training and step 60", state="attached", timeout=15_000)
    assert select.input_value() == "before training and step 20"
    assert select.evaluate("(node) => node === document.activeElement")
    assert shown.all_inner_texts() == ["zero", "at 20"]
    select.select_option("first and last")
    assert shown.all_inner_texts() == ["zero", "at 60"]


@pytest.mark.slow
def test_one_row_of_a_long_run_is_found_by_zooming(live, tmp_path):
    run = create(tmp_path / "long", steps=1)
    with (run.path / "metrics.jsonl").open("a") as file:
        for step in range(2, 200_001):
            spike = 9.0 if step == 123_457 else 2.0
            file.write(
                f'{{"step": {step}, "kl_policy_ref_per_token": 0.05, "entropy": {spike}, "seconds": {2 * step}}}\n'
            )
    page = live(run)
    chart = "#chart-entropy"
    assert "200,000 steps" in page.locator(".run-list").inner_text()
    for _ in range(4):  # each drag shows a ninth of the axis around the spike
        axis = page.locator(f"{chart} > svg")
        low, high = (float(axis.get_attribute(f"aria-value{end}") or "nan") for end in ("min", "max"))
        width = axis.evaluate("svg => svg.viewBox.baseVal.width")
        left, right = axis.evaluate(
            "svg => ['x1', 'x2'].map((end) => svg.querySelector('.axes line')[end].baseVal.value)"
        )
        spike = (left + (123_457 - low) / (high - low) * (right - left)) / width
        with page.expect_response(re.compile(r"run=long")):
            drag(page, chart, max(spike - 0.05, left / width), min(spike + 0.05, right / width))
        page.wait_for_timeout(150)
    page.locator(f"{chart} > svg").focus()
    page.keyboard.press("Home")
    values = []
    for _ in range(400):
        where = page.locator(f"{chart} .position").inner_text()
        if where == "step 123,457":
            break
        page.keyboard.press("ArrowRight")
        values.append(readout(page, chart))
    assert page.locator(f"{chart} .position").inner_text() == "step 123,457"
    assert readout(page, chart) == 9.0
    page.locator(f"{chart} > svg").dblclick()
    assert page.locator(".toolbar [role=status]").text_content() == ""


@pytest.mark.slow
def test_a_poll_of_a_long_run_takes_at_most_50_ms_of_processor_time(tmp_path, monkeypatch):
    monkeypatch.setattr(BackgroundChecks, "latest", lambda *_: None)  # the doctor runs in a process of its own
    run = create(tmp_path / "long", steps=1)
    values = ", ".join(f'"metric_{i}": 0.{i + 1}5' for i in range(20))
    with (run.path / "metrics.jsonl").open("a") as file:
        file.writelines(
            f'{{"step": {step}, "kl_policy_ref_per_token": 0.05, {values}}}\n' for step in range(2, 200_001)
        )
    logs, _ = readable_runs({"long": run.path})
    served = LiveRuns(logs)
    since, times, answer = {}, [], b""
    for step in range(200_001, 200_031):
        with (run.path / "metrics.jsonl").open("a") as file:
            file.write(f'{{"step": {step}, "kl_policy_ref_per_token": 0.05, {values}}}\n')
        start = time.thread_time()
        answer = served.answer({"since": json.dumps(since)})
        times.append(time.thread_time() - start)
        (data,) = json.loads(answer)["runs"]
        assert data["metrics"]["rows"] == step
        since = {"long": data["token"]}
    assert len(answer) < 20_000
    assert sorted(times)[-3] < 0.05


@pytest.mark.parametrize(
    ("beta", "kl", "state"),
    [(0.01, 0.01, "not binding"), (0.2, 0.05, "held"), (10.0, 0.05, "saturated"), (0.2, 0.07, "above the budget")],
)
def test_the_strip_shows_the_state_of_the_budget(live, tmp_path, beta, kl, state):
    run = create(tmp_path / "mine", changed={60: {"beta": beta, "kl_filtered": kl}})
    with run_lock(run.path):
        page = live(run)
        assert part(page, "budget").inner_text() == f"{state}, running"
        meter = page.get_by_role("meter")
        assert float(meter.get_attribute("aria-valuenow") or "nan") == kl
        assert float(meter.get_attribute("aria-valuemax") or "nan") == 0.1
        assert meter.get_attribute("aria-valuetext") == f"{kl:g} of 0.05 nats per token"
        assert part(page, "step").inner_text() == "60 of 1,000"
        assert part(page, "steps per second").inner_text() == "0.5"
        assert part(page, "time left").inner_text() == "31 min"  # 940 steps of 2 s
        assert page.title() == f"{state} {kl:g}/0.05 · step 60 · mine"
        assert "svg" in (page.locator("link[rel=icon]").get_attribute("href") or "")
        page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        bar = page.locator("body > nav").bounding_box() or {}
        assert (page.locator(".strip").bounding_box() or {})["y"] == pytest.approx(bar["y"] + bar["height"], abs=1)


def test_the_title_shows_a_run_in_progress_before_one_that_is_finished(live, tmp_path):
    done = create(tmp_path / "done")
    done.model.mkdir()
    run = create(tmp_path / "running", changed={60: {"beta": 0.01, "kl_filtered": 0.01}})
    with run_lock(run.path):
        assert live(done, run).title() == "not binding 0.01/0.05 · step 60 · running"


@pytest.mark.parametrize(("kl", "state"), [(0.09, "held"), (0.11, "above the budget")])
def test_an_update_may_have_twice_a_budget_of_the_mean(live, tmp_path, kl, state):
    run = create(tmp_path / "mine", changed={60: {"kl_filtered": kl}})
    config = {**CONFIG, "budget": {**CONFIG["budget"], "mean_over_updates": True}}
    (run.path / "config.json").write_text(json.dumps(config))
    assert part(live(run), "budget").inner_text() == f"{state}, stopped"


def test_a_run_without_a_kl_has_no_state_of_its_budget(live, tmp_path):
    run = create(tmp_path / "mine")
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        rows = [json.loads(line) for line in (run.path / name).read_text().splitlines()]
        rows = [{key: value for key, value in row.items() if "kl_" not in key} for row in rows]
        (run.path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert part(live(run), "budget").inner_text() == "no KL yet, stopped"


@pytest.mark.slow
def test_a_run_that_died_is_red_and_a_cut_network_is_named(live, tmp_path):
    run = create(tmp_path / "mine")
    page = live(run, expected="ERR_INTERNET_DISCONNECTED")
    assert part(page, "budget").inner_text() == "held, stopped"
    assert "dead" in (part(page, "updated").get_attribute("class") or "")
    assert page.title().startswith("stopped ")
    page.context.set_offline(True)
    page.wait_for_selector("text=The server does not answer. The charts show the last data", timeout=15_000)
    assert "no answer from the server" in part(page, "updated").inner_text()
    assert page.title().startswith("no answer ")
    page.context.set_offline(False)
    run.add_metrics(row(61))
    page.wait_for_selector(".run-list >> text=61 steps", timeout=15_000)


@pytest.mark.slow
def test_nan_is_visible_in_chart_table_strip_and_title_and_findings_link_to_their_step(live, tmp_path):
    lost = {step: {"kl_policy_ref_per_token": math.nan} for step in (51, 52)}
    run = create(tmp_path / "mine", changed=lost)
    page = live(run)
    assert part(page, "not finite").inner_text() == "2 values, from step 51"
    assert page.locator(f"{KL} .series[data-name='training batch']").get_attribute("data-bad") == "2"
    assert (
        "2 values are not finite, marked × at the top (first: step 51)" in page.locator(f"{KL} figcaption").inner_text()
    )
    page.wait_for_selector(".findings li.error", timeout=30_000)  # the doctor runs in a process of its own
    finding = page.locator(".findings li", has_text="kl-not-finite")
    assert "error kl-not-finite" in finding.inner_text()
    assert "error" in part(page, "findings").inner_text()
    finding.get_by_role("link", name="step 51").click()
    page.wait_for_selector(f"{KL} .position:text-is('step 51')")  # the cursor moves in the next frame
    assert "not finite" in page.locator(f"{KL} .legend tbody tr").first.inner_text()
    page.locator(f"{KL} .data summary").click()
    page.locator(f"{KL} .data td").first.wait_for()
    cells = [line.locator("th, td").all_inner_texts() for line in page.locator(f"{KL} .data tbody tr").all()]
    assert [cell[1].strip() for cell in cells if cell[0] in ("51", "52")] == ["not finite", "not finite"]
    run.add_metrics(row(61, kl_policy_ref_per_token=math.nan))
    for _ in range(100):
        if page.title().startswith("KL not finite"):
            break
        page.wait_for_timeout(100)
    assert page.title().startswith("KL not finite")


@pytest.mark.slow
def test_a_damaged_line_is_named_and_the_runs_stay(live, tmp_path):
    runs = [create(tmp_path / name) for name in ("a", "b")]
    page = live(*runs)
    with (runs[0].path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "kl_pol{"step": 62}\n')
    notice = page.locator(".problem")
    notice.wait_for(timeout=15_000)
    assert (
        f"{runs[0].path / 'metrics.jsonl'}: line 61: expected an object, got a line that is not JSON"
        in notice.inner_text()
    )
    expect(page.locator(f"{KL} .series[data-name='training batch']")).to_have_count(2)
    runs[0].add_metrics(row(63))
    runs[1].add_metrics(row(61))
    page.wait_for_selector(".run-list li:nth-child(2) >> text=61 steps", timeout=15_000)
    assert "61 steps" in page.locator(".run-list li").first.inner_text()


def test_axis_smoothing_hidden_runs_and_zoom_are_restored_from_the_address(live, tmp_path):
    runs = [create(tmp_path / name) for name in ("a", "b")]
    page = live(*runs)
    page.select_option("#run-x", "seconds")
    page.locator(f"{KL} > svg").focus()
    page.keyboard.press("End")
    assert page.locator(f"{KL} .position").inner_text() == "time, s 120"
    page.locator("#run-smoothing").fill("0.9")
    page.locator(".run-list .toggle").nth(1).click()
    page.locator(f"{KL} > svg").focus()
    page.keyboard.press("+")
    expect(page.locator(f"{KL} .series[data-name='training batch']")).to_have_count(1)
    zoom = page.locator(".toolbar [role=status]").text_content()
    assert zoom
    assert zoom.startswith("time, s")
    page.wait_for_timeout(500)
    address = page.url
    assert "axis=seconds" in address
    assert "hide=1" in address
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_selector("#runs .chart svg[viewBox]")
    assert page.input_value("#run-x") == "seconds"
    assert page.input_value("#run-smoothing") == "0.9"
    expect(page.locator(f"{KL} .series[data-name='training batch']")).to_have_count(1)
    assert page.locator(".toolbar [role=status]").text_content() == zoom


def test_the_smoothed_line_is_the_exponential_moving_average(live, tmp_path):
    run = create(tmp_path / "mine")
    page = live(run)
    page.locator("#run-smoothing").fill("0.9")
    chart = page.locator("#chart-entropy")
    mean = total = 0.0
    for one in run.metrics():
        mean, total = 0.9 * mean + 0.1 * one["entropy"], 0.9 * total + 0.1
    ticks = chart.locator(".axes text[text-anchor=end]").evaluate_all(
        "all => all.map((t) => [Number(t.textContent), Number(t.getAttribute('y')) - 4]).filter((t) => t[0] >= 0)"
    )
    (low, y_low), (high, y_high) = ticks[0], ticks[-1]
    y = float((chart.locator(".smooth").get_attribute("d") or "").rsplit(",", 1)[1])
    assert low + (y - y_low) / (y_high - y_low) * (high - low) == pytest.approx(mean / total, abs=0.01)


def test_the_cursor_is_shared_by_all_charts(live, tmp_path):
    run = create(tmp_path / "mine")
    page = live(run)
    page.locator(f"{KL} > svg").focus()
    page.keyboard.press("Home")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    for chart, key in ((KL, "kl_policy_ref_per_token"), ("#chart-entropy", "entropy"), ("#chart-beta", "beta")):
        page.wait_for_selector(f"{chart} .position >> text=step 5")
        assert readout(page, chart) == pytest.approx(run.metrics()[4][key], rel=1e-6)


def test_a_chart_is_saved_as_svg_png_and_csv(live, tmp_path):
    run = create(tmp_path / "mine", changed={51: {"kl_policy_ref_per_token": math.nan}})
    page = live(run)
    page.locator(f"{KL} .data summary").click()

    def saved(label: str) -> bytes:
        with page.expect_download() as download:
            page.locator(f"{KL} .export").get_by_role("button", name=label, exact=True).click()
        assert download.value.suggested_filename == f"kl-token.{label.lower()}"
        return Path(download.value.path()).read_bytes()

    picture = ElementTree.fromstring(saved("SVG"))
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    strokes = {node.get("stroke") for node in picture.iter() if node.get("d")}
    assert any(stroke and stroke.startswith("rgb") for stroke in strokes)  # the styles are in the file
    assert saved("PNG").startswith(b"\x89PNG")
    lines = saved("CSV").decode().splitlines()
    assert lines[0].split(",")[0] == "step"
    cells = {line.split(",")[0]: line.split(",") for line in lines[1:]}
    assert float(cells["60"][1]) == run.metrics()[59]["kl_policy_ref_per_token"]
    assert cells["51"][1] == "not finite"


def test_six_runs_are_legible_at_390_pixels(live, tmp_path):
    page = live(*(create(tmp_path / f"run-{i}") for i in range(6)), width=390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    rows = page.locator(f"{KL} .legend tbody tr")
    expect(rows).to_have_count(6)  # one for each run
    assert [rows.nth(i).locator("bdi").inner_text() for i in range(6)] == [f"run-{i}" for i in range(6)]
    strip = page.locator(".strip").bounding_box() or {}
    assert strip["height"] <= 0.31 * 900


def test_a_run_that_has_not_taken_a_step_starts_on_the_open_page(live, tmp_path):
    run = RunDirectory(tmp_path / "new")
    run.create(CONFIG)
    other = create(tmp_path / "other")
    page = live(run, other)
    assert "new: no training step has been recorded." in page.locator(".notice").all_inner_texts()
    run.add_metrics(row(1))
    run.add_metrics(row(2))
    page.wait_for_selector(".run-list li:first-child >> text=2 steps", timeout=15_000)
    assert page.locator(f"{KL} .series[data-group='new']").first.get_attribute("data-count") == "2"


def test_the_values_stay_after_a_finger_has_left(live, tmp_path):
    run = create(tmp_path / "mine")
    page = live(run, width=390, has_touch=True)
    svg = page.locator(f"{KL} > svg")
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box() or {}
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    step = int(page.locator(f"{KL} .position").inner_text().removeprefix("step "))
    assert 20 < step < 40
    assert readout(page, KL) == pytest.approx(run.metrics()[step - 1]["kl_policy_ref_per_token"], rel=1e-6)
    page.wait_for_timeout(300)
    assert page.locator(f"{KL} .position").inner_text() == f"step {step}"
