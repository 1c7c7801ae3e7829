"""Browser tests of the report, opened from disk in an offline browser: values, axes, layout, security, edge cases."""

import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from kullback.errors import InputError
from kullback.explore import html as pages
from kullback.explore.report import ReportRun, Table, write_report
from kullback.explore.run_tables import load_report_runs, outcome_table
from kullback.runs.run_directory import RunDirectory

CHROMIUM = shutil.which("chromium")
NODE = shutil.which("node")
IN_CI = "CI" in os.environ
IMAGES = Path(__file__).parents[2] / "docs" / "images"
HOSTILE = (
    "</script><script>window.hacked = 1</script><!-- <img src=x onerror='window.hacked = 2'> --> \"quoted\" 'single' "
    "&amp; {{data}} $& \u2028\u2029 \u202eabc\u202c \u05d0\u05d1 \ud800 \x00 ]]> ${window.hacked = 3}"
)

needs_chromium = pytest.mark.skipif(CHROMIUM is None and not IN_CI, reason="Chromium is not installed")


@dataclass
class Opened:
    """An opened page with its requests and its console messages."""

    page: Page
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def violations(self) -> list[str]:
        return self.page.evaluate("window.violations")

    def assert_sound(self) -> None:
        """Check that there is no further request, no error, no policy violation and no NaN or undefined value."""
        assert self.messages == []
        assert self.violations() == []
        assert len(self.requests) == 1
        assert self.requests[0].startswith("file:")
        attributes = self.page.evaluate(
            "[...document.querySelectorAll('svg, svg *')].flatMap((n) => [...n.attributes].map((a) => a.value))"
            ".filter((v) => /NaN|Infinity|undefined/.test(v))"
        )
        assert attributes == []
        for text in ("NaN", "undefined", "[object"):
            assert text not in self.page.locator("main").inner_text()


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """Return a function that writes a report and opens it."""
    contexts = []

    def open_report(runs: list[ReportRun], width: int = 1200, scheme: Any = "light", **texts: Any) -> Opened:
        path = write_report(runs, tmp_path / "report.html", **{"title": "A run", **texts})
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        context.set_offline(True)
        opened = Opened(context.new_page())
        opened.page.add_init_script(
            "window.violations = [];"
            "addEventListener('securitypolicyviolation', (e) => window.violations.push(e.violatedDirective), true);"
        )
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.on("pageerror", lambda error: opened.messages.append(str(error)))
        opened.page.on("console", lambda message: opened.messages.append(message.text))
        opened.page.goto(path.as_uri())
        # A chart is drawn when the browser has measured its figure. (The policy of the page blocks wait_for_function.)
        opened.page.wait_for_selector("svg[role=slider]:not([viewBox])", state="detached")
        return opened

    yield open_report
    for context in contexts:
        context.close()


def last_value(page: Page, chart: str, group: str, name: str) -> tuple[float, float]:
    node = page.locator(f"#chart-{chart} .series[data-group='{group}'][data-name='{name}']")
    return float(node.get_attribute("data-last-x") or "nan"), float(node.get_attribute("data-last-value") or "nan")


def readout(page: Page, chart: str, name: str, column: int) -> float:
    """Return the value at the cursor in the row of the legend with this name."""
    row = page.locator(f"#chart-{chart} .legend tbody tr").filter(
        has=page.get_by_role("rowheader", name=name, exact=True)
    )
    return float(row.locator("td").nth(column).get_attribute("data-value") or "nan")


def tick_heights(page: Page, chart: str) -> list[tuple[float, float]]:
    """Return the tick labels of the vertical axis with their pixel positions."""
    return page.locator(f"#chart-{chart} .axes text[text-anchor=end]").evaluate_all(
        "all => all.map((t) => [Number(t.textContent), Number(t.getAttribute('y')) - 4]).filter((t) => t[0] >= 0)"
    )


# ---- the page ----


@needs_chromium
def test_report_opens_from_disk_offline(show, two_runs):
    opened = show(
        two_runs,
        summary="The budget is met.",
        table=Table(columns=["run", "KL"], rows=[["budget 0.05", "0.00 → 0.05"]]),
    )
    opened.assert_sound()
    page = opened.page
    charts = page.locator("figure.chart").evaluate_all("all => all.map((f) => f.id.replace('chart-', ''))")
    statistics = ["entropy", "length", "truncated", "repetition"]  # the other metrics are in a closed section
    assert charts == ["reward", "kl-token", "reward-by-kl", "beta", "control", *statistics]
    assert page.title() == "A run"
    assert page.locator(".summary").inner_text() == "The budget is met."
    assert page.locator(".outcome tbody td").inner_text() == "0.00 → 0.05"
    for title, description in page.locator("svg[role=slider]").evaluate_all(
        "all => all.map((s) => [s.querySelector('title').textContent, s.querySelector('desc').textContent])"
    ):
        assert len(title) > 5
        assert "budget 0.05" in description
    assert "no budget · 300 steps · 16 evaluations · 12 min" in page.locator(".run-list").inner_text()


@needs_chromium
def test_last_values_equal_the_data(show, two_runs):
    page = show(two_runs).page
    for run in two_runs:
        for chart, key in (("kl-token", "kl_policy_ref_per_token"), ("entropy", "entropy"), ("truncated", "truncated")):
            for name, rows in (("training batch", run.metrics), ("evaluation", run.evaluations)):
                step, value = last_value(page, chart, run.name, name)
                assert step == rows[-1]["step"]
                assert value == pytest.approx(rows[-1][key], abs=1e-9)
        assert last_value(page, "reward", run.name, "fluent (watched), evaluation")[1] == pytest.approx(
            run.evaluations[-1]["rewards/fluent"], abs=1e-9
        )
    # A run whose beta is always zero has no curve on the logarithmic axis.
    assert page.locator("#chart-beta .series").count() == 1


@needs_chromium
def test_arrow_keys_move_the_cursor(show, two_runs):
    page = show(two_runs).page
    svg = page.locator("#chart-kl-token > svg")
    svg.focus()
    page.keyboard.press("Home")
    assert svg.get_attribute("aria-valuenow") == "0"  # the evaluation before the first step
    for _ in range(7):
        page.keyboard.press("ArrowRight")
    assert svg.get_attribute("aria-valuenow") == "7"
    for column, run in enumerate(two_runs):
        expected = run.metrics[6]["kl_policy_ref_per_token"]
        assert readout(page, "kl-token", "training batch", column) == pytest.approx(expected, abs=1e-6)
        assert f"{run.name}, training batch {float(f'{expected:.4g}'):g}" in (svg.get_attribute("aria-valuetext") or "")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#chart-kl-token .position").inner_text() == "step 299"
    page.keyboard.press("End")
    evaluation = two_runs[1].evaluations[-1]
    assert readout(page, "kl-token", "evaluation", 1) == pytest.approx(evaluation["kl_policy_ref_per_token"], abs=1e-6)
    error = evaluation["kl_policy_ref_per_token_std_error"]
    assert f"± {error:.2g}" in (svg.get_attribute("aria-valuetext") or "")


@needs_chromium
def test_the_pointer_moves_the_cursor(show, two_runs):
    page = show(two_runs).page
    page.locator("#chart-entropy > svg").hover()  # at its centre
    step = int(page.locator("#chart-entropy > svg").get_attribute("aria-valuenow") or 0)
    assert 120 < step < 180
    assert readout(page, "entropy", "training batch", 0) == pytest.approx(
        two_runs[0].metrics[step - 1]["entropy"], abs=1e-6
    )
    assert page.locator("#chart-entropy .cursor").is_visible()
    page.mouse.move(0, 0)
    assert page.locator("#chart-entropy > svg").get_attribute("aria-valuenow") == "300"


@needs_chromium
def test_curves_agree_with_the_axis(show, two_runs):
    """The pixel position of the last entropy, converted with the tick positions, is the last entropy."""
    page = show(two_runs).page
    ticks = tick_heights(page, "entropy")
    (low, y_low), (high, y_high) = ticks[0], ticks[-1]
    path = page.locator("#chart-entropy .series[data-group='no budget'][data-name='training batch'] .line")
    y = float((path.get_attribute("d") or "").rsplit(",", 1)[1])
    value = low + (y - y_low) / (y_high - y_low) * (high - low)
    assert value == pytest.approx(two_runs[1].metrics[-1]["entropy"], abs=0.01)


@needs_chromium
def test_the_budget_is_a_line_with_a_band(show, two_runs):
    page = show(two_runs).page
    chart = page.locator("#chart-kl-token")
    assert chart.locator(".limit-label").text_content() == "budget 0.05, ±20%"
    toggle = chart.get_by_role("button", name="log scale")
    assert toggle.get_attribute("aria-pressed") == "true"  # one run exceeds the budget
    log_height = float(chart.locator(".limit .band").get_attribute("height") or 0)
    toggle.click()
    assert toggle.get_attribute("aria-pressed") == "false"
    band = chart.locator(".limit .band")
    y, height = (float(band.get_attribute(name) or "nan") for name in ("y", "height"))
    assert log_height > 1.5 * height
    assert y + height / 2 == pytest.approx(float(chart.locator(".limit line").get_attribute("y1") or "nan"), abs=0.01)
    heights = tick_heights(page, "kl-token")
    pixels = (heights[0][1] - heights[-1][1]) / (heights[-1][0] - heights[0][0])  # pixels per nat
    assert height == pytest.approx(2 * 0.2 * 0.05 * pixels, rel=1e-3)


@needs_chromium
def test_the_data_table_opens(show, two_runs):
    page = show(two_runs).page
    data = page.locator("#chart-kl-token .data")
    assert data.locator("tr").count() == 0
    data.locator("summary").click()
    data.locator("tbody tr").last.wait_for()
    assert data.locator("tbody tr").count() == 301  # 300 steps and the evaluation at step 0
    assert data.locator("tbody tr").last.locator("th").inner_text() == "300"
    expected = two_runs[0].metrics[-1]["kl_policy_ref_per_token"]
    assert float(data.locator("tbody tr").last.locator("td").first.inner_text()) == pytest.approx(expected, rel=1e-4)


# ---- widths, themes, printing ----


@needs_chromium
@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("light", 1200, "light"), ("dark", 1200, "dark"), ("narrow", 400, "light")]
)
def test_layout_and_colours(show, two_runs, tmp_path, name, width, scheme):
    """No horizontal scrolling, and sufficient contrast. KULLBACK_UPDATE_IMAGES=1 updates docs/images."""
    table = Table(
        columns=["", "KL, nats per token", "cheerful", "fluent (watched)", "repetition"],
        rows=[
            ["budget 0.05", "0.000 → 0.052", "0.22 → 0.70", "0.83 → 0.83", "0.02 → 0.02"],
            ["no budget", "0.003 → 0.339", "0.18 → 0.86", "0.83 → 0.28", "0.01 → 0.31"],
        ],
    )
    title = "Cheerful completions under a KL budget"
    summary = (
        "With a budget of 0.05 nats per token, the reward rose from 0.22 to 0.70 and fluency stayed at 0.83; "
        "without a budget, fluency fell from 0.83 to 0.28."
    )
    opened = show(two_runs, width, scheme, title=title, summary=summary, table=table)
    opened.assert_sound()
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") == width
    background, *colours = page.evaluate(
        """() => {
          const probe = document.body.appendChild(document.createElement("i"));
          const colour = (name) => { probe.className = name; return getComputedStyle(probe).color; };
          const all = ["c0", "c1", "c2", "c3", "c4", "c5", "aside"].map(colour);
          probe.remove();
          return [getComputedStyle(document.body).backgroundColor, ...all];
        }"""
    )
    assert (luminance(background) < 0.05) == (scheme == "dark")
    assert len(set(colours)) == 7
    assert min(contrast(background, colour) for colour in colours[:6]) > 3
    assert contrast(background, colours[6]) > 4.5  # muted text needs the contrast of text
    folder = IMAGES if os.environ.get("KULLBACK_UPDATE_IMAGES") else tmp_path
    image = folder / f"report-{name}.png"
    page.screenshot(path=image, full_page=True, clip={"x": 0, "y": 0, "width": width, "height": 1600})
    assert 10_000 < image.stat().st_size < 300_000


def luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@needs_chromium
def test_printing_uses_the_light_theme(show, two_runs):
    page = show(two_runs, scheme="dark").page
    page.emulate_media(media="print")
    assert luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) > 0.9
    assert not page.locator("button").first.is_visible()
    assert len(page.pdf(format="A4", print_background=True)) > 20_000


@needs_chromium
def test_printed_completions_and_tables_stay_within_their_column(show, two_runs):
    """Two runs have three columns of completions; neither they nor the tables of charts are cut off."""
    long = ReportRun("a run with-a-name-of-many-characters-0.01", two_runs[1].config, two_runs[1].metrics)
    page = show([two_runs[0], long], width=700).page
    page.emulate_media(media="print")
    beyond = page.evaluate(
        """[...document.querySelectorAll(".chart, .cells section, .status dd, .legend")].filter((node) => {
          const room = node.closest(".chart") ?? document.documentElement;
          return node.getBoundingClientRect().right > room.getBoundingClientRect().right + 1;
        }).map((node) => node.outerHTML.slice(0, 80))"""
    )
    assert beyond == []
    for node in page.locator(".cells").all():
        assert node.evaluate("(node) => node.scrollWidth <= node.clientWidth")


@needs_chromium
def test_a_pressed_button_can_be_read_in_forced_colours(show, two_runs):
    page = show(two_runs).page
    page.emulate_media(forced_colors="active")
    pressed = page.locator(".chart button[aria-pressed=true]").first
    colours = pressed.evaluate(
        "(node) => ((s) => [s.color, s.backgroundColor, s.forcedColorAdjust])(getComputedStyle(node))"
    )
    assert contrast(*colours[:2]) > 4.5
    assert colours[2] == "none"  # the browser would draw its own box behind the text


# ---- what the files of runs contain ----


def create_run(path: Path, *lost: int) -> RunDirectory:
    """Write a run of 60 steps, in which the KL of some steps is nan."""
    run = RunDirectory(path)
    run.create({"kind": "grpo", "budget": {"target": 0.05, "unit": "token"}, "rewards": ["good"], "watched": []})
    for step in range(1, 61):
        kl = math.nan if step in lost else 0.05 * (step > 1)
        run.add_metrics({"step": step, "kl_policy_ref_per_token": kl, "rewards/good": 0.5, "seconds": step})
    for step, kl in ((0, 0.0), (60, math.nan if lost else 0.0492)):
        values = {"kl_policy_ref_per_token": kl, "kl_policy_ref_per_token_std_error": 0.0029, "rewards/good": 0.5}
        run.add_evaluation({"step": step, **values, "count": 8})
    return run


@needs_chromium
def test_nan_and_the_findings_of_the_doctor_are_shown(show, tmp_path):
    run = create_run(tmp_path / "mine", 51, 52)
    page = show(load_report_runs({"mine": run})).page
    kl = page.locator("#chart-kl-token")
    assert (
        "3 values are not finite, marked × at the top (first: step 51; step 60)"
        in kl.locator("figcaption").inner_text()
    )
    assert kl.locator(".series[data-name='training batch']").get_attribute("data-bad") == "2"
    cells = {
        row.locator("th").inner_text(): row.locator("td").inner_text()
        for row in page.locator(".outcome tbody tr").all()
    }
    assert cells["KL(policy || ref), nats per token"] == "not finite ± 0.0029 (budget 0.05)"
    assert "not finite" in dict(outcome_table({"mine": run})["rows"])["KL(policy || ref), nats per token"]
    finding = page.locator(".findings li", has_text="error kl-not-finite")
    finding.get_by_role("link", name="step 51").click()
    assert kl.locator(".position").inner_text() == "step 51"


@needs_chromium
def test_every_uncertainty_is_one_standard_error_and_is_named(show, tmp_path):
    run = create_run(tmp_path / "mine")
    evaluations = run.evaluations()
    evaluations[-1]["log_likelihood"] = -19.34  # it is measured after training only
    (run.path / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evaluations))
    table = outcome_table({"mine": run})
    page = show(load_report_runs({"mine": run})).page
    assert dict(table["rows"])["log-likelihood, nats per image"] == "-19.3"
    assert table["columns"][0] == "metric (± one standard error)"
    assert dict(table["rows"])["KL(policy || ref), nats per token"] == "0.0492 ± 0.0029 (budget 0.05)"
    columns = page.locator(".outcome thead th").all_inner_texts()
    rows = [row.locator("th, td").all_inner_texts() for row in page.locator(".outcome tbody tr").all()]
    assert (columns, rows) == (table["columns"], table["rows"])  # the page and the terminal have the same table
    kl = page.locator("#chart-kl-token")
    legend = kl.locator(".legend tbody tr").filter(has=page.get_by_role("rowheader", name="evaluation", exact=True))
    assert legend.locator("td").inner_text() == "0.0492 ± 0.0029"
    assert "Error bars and ±: one standard error." in kl.locator("figcaption").inner_text()


@needs_chromium
def test_a_damaged_line_is_named_and_the_other_rows_and_runs_stay(show, tmp_path):
    runs = {name: create_run(tmp_path / name) for name in ("damaged", "intact")}
    with (runs["damaged"].path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "kl_pol{"step": 62}\n')
    page = show(load_report_runs(runs)).page
    place = f"{tmp_path / 'damaged' / 'metrics.jsonl'}: line 61: expected an object, got a line that is not JSON"
    assert place in page.locator(".problem").inner_text()
    assert page.locator(".run-list li").all_inner_texts()[1].count("60 steps")
    assert page.locator("#chart-kl-token .series[data-name='training batch']").count() == 2


# ---- untrusted text ----


@needs_chromium
def test_markup_in_the_data_is_shown_as_text(show):
    rewards = {f"rewards/{HOSTILE}": 0.5, "reward": 0.1}
    sample = {"prompt": HOSTILE, "completion": HOSTILE + "x" * 500, "rewards": {HOSTILE: 0.25}}
    config = {
        "rewards": [HOSTILE],
        HOSTILE: HOSTILE,
        "nested": {HOSTILE: [HOSTILE]},
        "budget": {"target": 0.1, "unit": "token"},
    }
    rows = [{"step": step, "kl_policy_ref_per_token": 0.1, **rewards} for step in (1, 2)]
    runs = [ReportRun(HOSTILE, config, rows, [], {"before": [sample], "after": [sample]}), ReportRun("plain", {}, rows)]
    table = Table(columns=["run", HOSTILE], rows=[[HOSTILE, HOSTILE]])
    opened = show(runs, width=400, title=HOSTILE, summary=HOSTILE, table=table)
    opened.assert_sound()
    page = opened.page
    page.locator("details").evaluate_all("all => all.forEach((details) => { details.open = true; })")
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 2
    assert page.locator("img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    exact = json.dumps(HOSTILE)  # compared inside the page, because a lone surrogate cannot be returned from it
    for selector in (
        ".prompt",
        ".rewards dt",
        ".outcome tbody th",
        ".outcome tbody td",
        ".run-list bdi",
        ".settings dd code",
    ):
        assert page.evaluate(
            f"[...document.querySelectorAll({json.dumps(selector)})].some((n) => n.textContent === {exact})"
        ), selector
    assert page.evaluate(f"document.querySelector('.completion').textContent === {exact} + 'x'.repeat(500)")
    # The heading is part of the markup: UTF-8 cannot encode a lone surrogate, and HTML removes a null character.
    assert page.locator("h1").text_content() == HOSTILE.replace("\ud800", "?").replace("\x00", "")


@needs_chromium
def test_the_content_security_policy_blocks_other_actions(show):
    """Each blocked action is also recorded in the list that assert_sound checks."""
    opened = show([ReportRun("a")])
    attempts = {
        "img-src": "Object.assign(new Image(), {src: 'https://example.invalid/image.png'})",
        "connect-src": "fetch('https://example.invalid/').catch(() => 0)",
        "style-src-attr": "document.body.setAttribute('style', 'color: red')",
        "style-src-elem": "document.head.append(Object.assign(document.createElement('style'), {textContent: 'p {}'}))",
        "require-trusted-types-for": "document.body.innerHTML = '<p>markup</p>'",
    }
    for directive, attempt in attempts.items():
        before = len(opened.violations())
        opened.page.evaluate(f"() => {{ try {{ {attempt} }} catch {{}} }}")
        for _ in range(250):
            if len(opened.violations()) > before:
                break
            opened.page.wait_for_timeout(20)
        assert directive in opened.violations()[before:]


def test_no_data_can_close_a_script_element(tmp_path):
    run = ReportRun(HOSTILE, {HOSTILE: HOSTILE}, [{"step": 1, "reward": 1.0}])
    text = write_report([run], tmp_path / "report.html", title="A run").read_text("utf-8")
    assert text.count("</script") == 2
    data = text.split('id="page">')[1].split("</script>")[0]
    assert not set(data) & set("<>&\u2028\u2029")
    assert json.loads(data)["runs"][0]["name"] == HOSTILE
    for name in (*pages.MODULES, "style.css"):
        asset = (files("kullback.explore") / "static" / name).read_text("utf-8")
        assert not re.search(r"</s|<!--|innerHTML|\beval\b", asset), name


# ---- runs that are short, incomplete, long or many ----


@needs_chromium
def test_a_run_without_steps_has_a_notice(show, two_runs):
    opened = show([ReportRun("a", two_runs[0].config)])
    opened.assert_sound()
    assert opened.page.locator(".notice").all_inner_texts() == ["a: no training step has been recorded."]
    assert opened.page.locator("figure").count() == 0
    opened.page.locator(".settings summary").click()
    assert "target 0.05, unit token" in opened.page.locator(".settings").inner_text()


@needs_chromium
def test_a_run_of_one_step_is_drawn(show, two_runs):
    run = ReportRun("a", two_runs[0].config, two_runs[0].metrics[:1])
    opened = show([run], width=400)
    opened.assert_sound()
    assert opened.page.locator(".notice").all_inner_texts() == ["a: only one training step has been recorded."]
    assert opened.page.locator("#chart-entropy .series .marker").count() == 1
    assert last_value(opened.page, "kl-token", "a", "training batch")[1] == run.metrics[0]["kl_policy_ref_per_token"]
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 400


@needs_chromium
def test_missing_values_are_gaps(show):
    rows: list[dict] = [{"step": step, "entropy": 2.0, "kl_policy_ref_per_token": 0.1} for step in range(1, 11)]
    rows[3]["entropy"] = float("nan")
    rows[5]["entropy"] = None
    del rows[7]["entropy"]
    rows[9]["kl_policy_ref_per_token"] = float("inf")
    rows.append({"entropy": 3.0})
    opened = show([ReportRun("a", {}, rows, [{"step": 5}], {"before": [{}]})])
    opened.assert_sound()
    page = opened.page
    series = page.locator("#chart-entropy .series")
    assert (series.locator(".line").get_attribute("d") or "").count("M") == 4
    assert series.get_attribute("data-count") == "7"
    assert (
        "2 values are not finite, marked × at the top (first: step 4)"
        in page.locator("#chart-entropy figcaption").inner_text()
    )
    assert last_value(page, "kl-token", "a", "training batch") == (9, 0.1)
    assert page.locator(".notice").all_inner_texts() == ["a: 1 row without a step number is omitted."]
    page.locator("#chart-entropy > svg").focus()
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert math.isnan(readout(page, "entropy", "training batch", 0))


@needs_chromium
def test_long_runs_are_downsampled_with_a_notice(show, long_runs):
    long_runs[1].metrics[31_234]["entropy"] = 9.0
    opened = show(long_runs)
    opened.assert_sound()
    page = opened.page
    assert Path(page.url.removeprefix("file://")).stat().st_size < 4_000_000
    notice = page.locator(".notice").first.inner_text()
    assert notice.startswith(
        "budget 0.05, no budget: 50,000 steps are drawn as the means of 782 blocks of 64; the shading spans"
    )
    last = long_runs[0].metrics[-1]["kl_policy_ref_per_token"]
    assert last_value(page, "kl-token", "budget 0.05", "training batch") == (50_000, pytest.approx(last, abs=1e-9))
    page.locator("#chart-entropy > svg").focus()
    page.keyboard.press("Home")
    assert page.locator("#chart-entropy .position").inner_text() == "steps 1–64"
    # The outlier is within the shading, so the axis includes it.
    labels = page.locator("#chart-entropy .axes text[text-anchor=end]").all_text_contents()
    assert "8" in labels


@needs_chromium
def test_six_runs_with_budgets_in_two_units(show, two_runs):
    units = ["token", "sequence", "token", "token", "sequence", "token"]
    runs = [
        ReportRun(
            f"run {i}", {**two_runs[0].config, "budget": {"target": 0.05 + i, "unit": unit}}, two_runs[i % 2].metrics
        )
        for i, unit in enumerate(units)
    ]
    opened = show(runs, width=400)
    opened.assert_sound()
    page = opened.page
    assert page.locator("#chart-kl-token .limit").count() == 4
    assert page.locator("#chart-kl-sequence .limit").count() == 2
    assert page.locator("#chart-kl-token .series[data-name='training batch']").count() == 6
    assert page.evaluate("document.documentElement.scrollWidth") == 400


@needs_chromium
def test_rewards_with_different_ranges_have_separate_charts(show):
    rows = [{"step": step, "rewards/small": step / 10, "rewards/large": step * 10.0} for step in (1, 2, 3)]
    opened = show([ReportRun("a", {"rewards": ["small"], "watched": ["large"]}, rows)])
    opened.assert_sound()
    titles = opened.page.locator("figure h3").all_inner_texts()
    assert titles == ["Reward: small", "Reward: large (watched)"]


@needs_chromium
def test_samples_are_side_by_side(show, two_runs):
    page = show(two_runs).page
    assert page.locator(".samples").count() == 1
    first = page.locator(".samples li").first
    # Both runs have the same completions before training, which are shown once.
    headings = ["Before training", "budget 0.05, after training", "no budget, after training"]
    assert first.locator(".cells h3").all_text_contents() == headings
    cells = first.locator("section").all()
    tops = {(cell.bounding_box() or {})["y"] for cell in cells}
    assert len(tops) == 1
    assert cells[0].locator(".completion").inner_text() == two_runs[0].samples["before"][0]["completion"]
    for cell, run in zip(cells[1:], two_runs, strict=True):
        expected = run.samples["after"][0]["rewards"]["cheerful"]
        assert float(cell.locator("dd").first.get_attribute("data-value") or 0) == expected


def completion(prompt: str, text: str, true: float, *kls: float) -> dict:
    tokens = [[word, kl] for word, kl in zip(re.findall(r"\S+\s*", text), kls, strict=False)]
    return {"prompt": prompt, "completion": text, "rewards": {"proxy": 1.0, "true": true}, "tokens": tokens}


@needs_chromium
def test_completions_are_compared_sorted_and_tinted(show):
    before = [completion("a", "one two three", 0.5), completion("b", "four five", 0.5), completion("c", "six", 0.5)]
    after = [
        completion("a", "one new three", 0.9, 0.0, 5.0, 0.02),
        completion("b", "four five", 0.1, 0.1, 0.2),
        completion("c", "seven", 0.4, 0.5),
    ]
    run = ReportRun("a", {"rewards": ["proxy"], "watched": ["true"]}, samples={"before": before, "after": after})
    page = show([run]).page
    prompts = page.locator(".samples .prompt")
    assert prompts.all_inner_texts() == ["a", "b", "c"]
    assert page.locator(".samples mark").all_inner_texts() == ["new", "seven"]
    page.get_by_label("Sort by").select_option("lowest true (true reward)")
    assert prompts.all_inner_texts() == ["b", "c", "a"]
    page.get_by_label("Sort by").select_option("largest KL of a token")
    assert prompts.all_inner_texts() == ["a", "c", "b"]
    page.get_by_label("Mark").select_option("KL of each token")
    tokens = page.locator(".samples li").first.locator(".cells section").last.locator(".token")
    assert tokens.all_text_contents() == ["one ", "new ", "three"]
    # The tint is the number of the levels 0.01, 0.03, 0.1, 0.3, 1 and 3 that the KL reaches.
    assert tokens.evaluate_all("all => all.map((one) => one.className)") == ["token k0", "token k6", "token k1"]
    assert tokens.nth(1).get_attribute("title") == "5 nats"
    values = page.locator(".samples li").first.locator(".cells section").last.locator("dd")
    assert float(values.last.get_attribute("data-value") or "nan") == pytest.approx(5.02)  # the KL of the completion


@needs_chromium
def test_completions_during_training_are_columns(show):
    """The first and the last evaluation of each run are shown; the reader can select the others."""
    texts = {"before": "zero", "step 40": "forty", "step 8": "eight", "after": "last", "unknown": "hidden"}
    runs = [
        ReportRun("one", samples={when: [completion("a", text, 0.5)] for when, text in texts.items()}),
        ReportRun("two", samples={"step 8": [completion("a", "other", 0.5)]}),
    ]
    page = show(runs).page
    headings = page.locator(".cells h3")
    assert headings.all_inner_texts() == ["one, before training", "two, step 8", "one, after training"]
    assert page.locator(".completion").all_inner_texts() == ["zero", "other", "last"]
    page.get_by_label("Show").select_option("every stored evaluation")
    assert page.locator(".completion").all_inner_texts() == ["zero", "eight", "other", "forty", "last"]
    assert headings.nth(3).inner_text() == "one, step 40"
    page.get_by_label("Show").select_option("before training and step 40")
    assert page.locator(".completion").all_inner_texts() == ["zero", "forty"]
    assert page.locator(".samples mark").all_inner_texts() == ["forty"]
    page.get_by_label("Sort by").select_option("lowest true")


@needs_chromium
def test_the_further_columns_of_a_prompt_are_shown_as_text(show):
    sample = {"prompt": "12+34=", "columns": {"answer": "46", "<b>": "<i>"}, "completion": "46", "rewards": {}}
    page = show([ReportRun("a", {}, [{"step": 1, "reward": 1.0}], samples={"after": [sample]})]).page
    item = page.locator(".samples > li")
    assert item.locator("> .rewards dt").all_inner_texts() == ["answer", "<b>"]
    assert item.locator("> .rewards dd").all_inner_texts() == ["46", "<i>"]


@needs_chromium
def test_samples_are_paired_by_prompt_and_truncated(show):
    def completions(prompts: list[str], word: str) -> list[dict]:
        return [
            {"prompt": p, "completion": f"{word} {i}", "rewards": {"r": float("nan")}} for i, p in enumerate(prompts)
        ]

    order = ["a", "b", "a", "c"]
    long = [{"prompt": f"p{i}", "completion": "x" * 10_000} for i in range(30)]
    runs = [
        ReportRun("one", samples={"before": completions(order, "before"), "after": completions(order[::-1], "after")}),
        ReportRun("two", samples={"before": long}),
    ]
    page = show(runs).page
    items = page.locator(".samples > li")
    pairs = {
        (item.locator(".prompt").inner_text(), *item.locator(".completion").all_inner_texts())
        for item in items.all()[:4]
    }
    assert pairs == {
        ("a", "before 0", "after 1"),
        ("b", "before 1", "after 2"),
        ("a", "before 2", "after 3"),
        ("c", "before 3", "after 0"),
    }
    assert items.first.locator(".cells dd").first.get_attribute("data-value") == ""
    assert page.locator("text=28 of 30 prompts.").count() == 1
    assert (items.nth(4).locator(".completion").text_content() or "").endswith("(4,000 more characters)")
    assert items.count() == 4 + 24


@needs_chromium
def test_rewards_are_drawn_against_the_square_root_of_the_kl(show):
    def evaluation(step: int, kl: float | None, reward: float) -> dict:
        return {"step": step, "kl_policy_ref_per_token": kl, "rewards/good": reward}

    budget = {"target": 0.04, "unit": "token"}
    config = {"rewards": ["good"], "budget": budget}
    rows = [evaluation(0, 0.0, 0.5), evaluation(10, 0.09, 0.75), evaluation(20, 0.04, 0.875), evaluation(30, None, 0.9)]
    runs = [ReportRun("a", config, [{"step": 1}], rows), ReportRun("b", {"rewards": ["good"]}, [{"step": 1}], rows[:2])]
    page = show(runs).page
    assert last_value(page, "reward-by-kl", "a", "good") == (pytest.approx(0.2), 0.875)
    assert last_value(page, "reward-by-kl", "b", "good") == (pytest.approx(0.3), 0.75)
    chart = page.locator("#chart-reward-by-kl")
    assert chart.locator(".limit-label").text_content() == "budget 0.04"
    chart.locator("summary", has_text="Data, save, link").click()
    chart.locator(".data td").first.wait_for()
    cells = [row.locator("th, td").all_inner_texts() for row in chart.locator(".data tbody tr").all()]
    assert cells == [["0", "0.5", "0.5"], ["0.2", "0.875", ""], ["0.3", "0.75", "0.75"]]
    # One evaluation is not a trail.
    page = show([ReportRun("a", config, [{"step": 1}], rows[:1])]).page
    assert page.locator("#chart-reward-by-kl").count() == 0


@needs_chromium
def test_a_trail_has_a_cursor_although_its_kl_decreases(show):
    rows = [
        {"step": 10 * i, "kl_policy_ref_per_token": kl, "rewards/good": reward}
        for i, (kl, reward) in enumerate([(0.0, 0.5), (0.09, 0.75), (0.04, 0.875)])
    ]
    page = show([ReportRun("a", {"budget": {"target": 0.04, "unit": "token"}}, [{"step": 1}], rows)]).page
    slider = page.locator("#chart-reward-by-kl [role=slider]")
    slider.focus()
    values = []
    for key in ("Home", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
        values.append(float(page.locator("#chart-reward-by-kl .legend td").first.get_attribute("data-value") or "nan"))
    assert values == [0.5, 0.875, 0.75]  # in the order of the KL
    assert page.locator("#chart-reward-by-kl .limit-label").inner_html() == "budget 0.04"


# ---- the file ----


def test_a_failed_write_keeps_the_old_report(tmp_path, monkeypatch):
    path = write_report([ReportRun("a")], tmp_path / "report.html", title="The old one")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        write_report([ReportRun("a")], path, title="The new one")
    assert "The old one" in path.read_text("utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("count", [0, 7])
def test_the_number_of_runs_is_checked(tmp_path, count):
    with pytest.raises(InputError, match=f"from 1 to 6 runs, got {count}"):
        write_report([ReportRun("a")] * count, tmp_path / "report.html", title="A run")


def test_invalid_tables_and_directories_raise(tmp_path):
    with pytest.raises(InputError, match="expected 2 cells in each row, one for each column, got 1 in row 0"):
        write_report(
            [ReportRun("a")], tmp_path / "r.html", title="A run", table={"columns": ["a", "b"], "rows": [["1"]]}
        )
    with pytest.raises(InputError, match="does not exist"):
        write_report([ReportRun("a")], tmp_path / "nowhere" / "r.html", title="A run")


@pytest.mark.skipif(NODE is None and not IN_CI, reason="node is not installed")
def test_axes_with_node():
    found = subprocess.run(
        [NODE or "node", "--test", str(Path(__file__).with_name("test_axes.mjs"))],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "# fail 0" in found.stdout
    assert not re.search(r"^# pass 0", found.stdout, re.MULTILINE)
