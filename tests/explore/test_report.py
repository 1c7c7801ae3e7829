"""The report page: opened from disk in a browser with the network cut, and its numbers read back."""

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

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from kullback.errors import InputError
from kullback.explore import html as pages
from kullback.explore.downsample import DownsampledSeries, finite
from kullback.explore.report import ReportRun, Table, write_report

CHROMIUM = shutil.which("chromium")
NODE = shutil.which("node")
IN_CI = "CI" in os.environ
IMAGES = Path(__file__).parents[2] / "docs" / "images"
HOSTILE = (
    "</script><script>window.hacked = 1</script><!-- <img src=x onerror='window.hacked = 2'> --> \"quoted\" 'single' "
    "&amp; {{data}} $& \u2028\u2029 \u202eabc\u202c \u05d0\u05d1 \ud800 \x00 ]]> ${window.hacked = 3}"
)

needs_chromium = pytest.mark.skipif(CHROMIUM is None and not IN_CI, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield chromium
        chromium.close()


@dataclass
class Opened:
    """A page, and what went wrong in it."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def violations(self) -> list[str]:
        return self.page.evaluate("window.violations")

    def assert_sound(self) -> None:
        """No request but the file itself, no error, nothing forbidden tried, no number that is not one."""
        assert self.complaints == []
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
    """Write a report and open it: show(arms, width=..., scheme=..., title=...)."""
    contexts = []

    def open_report(arms: list[ReportRun], width: int = 1200, scheme: Any = "light", **words: Any) -> Opened:
        path = write_report(arms, tmp_path / "report.html", **{"title": "A run", **words})
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        context.set_offline(True)
        opened = Opened(context.new_page())
        opened.page.add_init_script(
            "window.violations = [];"
            "addEventListener('securitypolicyviolation', (e) => window.violations.push(e.violatedDirective), true);"
        )
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.on("console", lambda message: opened.complaints.append(message.text))
        opened.page.goto(path.as_uri())
        # The first drawing waits for the size of the figure. (Functions to wait for would be strings, which the page's
        # own policy forbids to run.)
        opened.page.wait_for_selector("svg[role=slider]:not([viewBox])", state="detached")
        return opened

    yield open_report
    for context in contexts:
        context.close()


def last_value(page: Page, chart: str, group: str, name: str) -> tuple[float, float]:
    node = page.locator(f"#chart-{chart} .series[data-group='{group}'][data-name='{name}']")
    return float(node.get_attribute("data-last-x") or "nan"), float(node.get_attribute("data-last-value") or "nan")


def readout(page: Page, chart: str, name: str, column: int) -> float:
    """The value under the cursor, in the legend's row of a name."""
    row = page.locator(f"#chart-{chart} .legend tbody tr").filter(
        has=page.get_by_role("rowheader", name=name, exact=True)
    )
    return float(row.locator("td").nth(column).get_attribute("data-value") or "nan")


def tick_heights(page: Page, chart: str) -> list[tuple[float, float]]:
    """The numbers on the vertical axis, with the height of each in pixels."""
    return page.locator(f"#chart-{chart} .axes text[text-anchor=end]").evaluate_all(
        "all => all.map((t) => [Number(t.textContent), Number(t.getAttribute('y')) - 4]).filter((t) => t[0] >= 0)"
    )


# ---- the page, whole ----


@needs_chromium
def test_opens_from_disk_with_the_network_cut(show, two_arms):
    opened = show(
        two_arms, summary="It held.", table=Table(columns=["arm", "KL"], rows=[["budget 0.05", "0.00 → 0.05"]])
    )
    opened.assert_sound()
    page = opened.page
    charts = page.locator("figure.chart").evaluate_all("all => all.map((f) => f.id.replace('chart-', ''))")
    assert charts == ["reward", "kl-token", "beta", "control", "entropy", "length", "truncated", "repetition"]
    assert page.title() == "A run"
    assert page.locator(".summary").inner_text() == "It held."
    assert page.locator(".outcome tbody td").inner_text() == "0.00 → 0.05"
    for title, words in page.locator("svg[role=slider]").evaluate_all(
        "all => all.map((s) => [s.querySelector('title').textContent, s.querySelector('desc').textContent])"
    ):
        assert len(title) > 5
        assert "budget 0.05" in words
    assert "no budget · 300 steps · 16 evaluations · 12 min" in page.locator(".arms").inner_text()


@needs_chromium
def test_the_last_values_are_those_of_the_data(show, two_arms):
    page = show(two_arms).page
    for arm in two_arms:
        for chart, key in (("kl-token", "kl_policy_ref_per_token"), ("entropy", "entropy"), ("truncated", "truncated")):
            for name, rows in (("training batch", arm.metrics), ("evaluation", arm.evaluations)):
                step, value = last_value(page, chart, arm.name, name)
                assert step == rows[-1]["step"]
                assert value == pytest.approx(rows[-1][key], abs=1e-9)
        assert last_value(page, "reward", arm.name, "fluent (watched), evaluation")[1] == pytest.approx(
            arm.evaluations[-1]["rewards/fluent"], abs=1e-9
        )
    # An arm without a price has no curve on a logarithmic axis.
    assert page.locator("#chart-beta .series").count() == 1


@needs_chromium
def test_the_arrow_keys_read_out_the_data(show, two_arms):
    page = show(two_arms).page
    svg = page.locator("#chart-kl-token > svg")
    svg.focus()
    page.keyboard.press("Home")
    assert svg.get_attribute("aria-valuenow") == "0"  # the evaluation before the first step
    for _ in range(7):
        page.keyboard.press("ArrowRight")
    assert svg.get_attribute("aria-valuenow") == "7"
    for column, arm in enumerate(two_arms):
        expected = arm.metrics[6]["kl_policy_ref_per_token"]
        assert readout(page, "kl-token", "training batch", column) == pytest.approx(expected, abs=1e-6)
        assert f"{arm.name}, training batch {float(f'{expected:.4g}'):g}" in (svg.get_attribute("aria-valuetext") or "")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#chart-kl-token .position").inner_text() == "step 299"
    page.keyboard.press("End")
    evaluation = two_arms[1].evaluations[-1]
    assert readout(page, "kl-token", "evaluation", 1) == pytest.approx(evaluation["kl_policy_ref_per_token"], abs=1e-6)
    error = 2 * evaluation["kl_policy_ref_per_token_std_error"]
    assert f"± {error:.2g}" in (svg.get_attribute("aria-valuetext") or "")


@needs_chromium
def test_the_pointer_moves_the_same_cursor(show, two_arms):
    page = show(two_arms).page
    page.locator("#chart-entropy > svg").hover()  # at its centre
    step = int(page.locator("#chart-entropy > svg").get_attribute("aria-valuenow") or 0)
    assert 120 < step < 180
    assert readout(page, "entropy", "training batch", 0) == pytest.approx(
        two_arms[0].metrics[step - 1]["entropy"], abs=1e-6
    )
    assert page.locator("#chart-entropy .cursor").is_visible()
    page.mouse.move(0, 0)
    assert page.locator("#chart-entropy > svg").get_attribute("aria-valuenow") == "300"


@needs_chromium
def test_marks_stand_where_the_axis_says(show, two_arms):
    """The height of the last entropy, read off the ticks, is the last entropy."""
    page = show(two_arms).page
    ticks = tick_heights(page, "entropy")
    (low, y_low), (high, y_high) = ticks[0], ticks[-1]
    path = page.locator("#chart-entropy .series[data-group='no budget'][data-name='training batch'] .line")
    y = float((path.get_attribute("d") or "").rsplit(",", 1)[1])
    value = low + (y - y_low) / (y_high - y_low) * (high - low)
    assert value == pytest.approx(two_arms[1].metrics[-1]["entropy"], abs=0.01)


@needs_chromium
def test_the_budget_is_a_line_with_its_band(show, two_arms):
    page = show(two_arms).page
    chart = page.locator("#chart-kl-token")
    assert chart.locator(".limit-label").text_content() == "budget 0.05, ±20%"
    assert chart.get_by_role("button").get_attribute("aria-pressed") == "true"  # an arm went far beyond the budget
    on_log = float(chart.locator(".limit .band").get_attribute("height") or 0)
    chart.get_by_role("button").click()
    assert chart.get_by_role("button").get_attribute("aria-pressed") == "false"
    band = chart.locator(".limit .band")
    y, height = (float(band.get_attribute(name) or "nan") for name in ("y", "height"))
    assert on_log > 1.5 * height
    assert y + height / 2 == pytest.approx(float(chart.locator(".limit line").get_attribute("y1") or "nan"), abs=0.01)
    heights = tick_heights(page, "kl-token")
    pixels = (heights[0][1] - heights[-1][1]) / (heights[-1][0] - heights[0][0])  # for each nat
    assert height == pytest.approx(2 * 0.2 * 0.05 * pixels, rel=1e-3)


@needs_chromium
def test_the_data_table_opens(show, two_arms):
    page = show(two_arms).page
    data = page.locator("#chart-kl-token .data")
    assert data.locator("tr").count() == 0
    data.locator("summary").click()
    data.locator("tbody tr").last.wait_for()
    assert data.locator("tbody tr").count() == 301  # 300 steps and the evaluation at step 0
    assert data.locator("tbody tr").last.locator("th").inner_text() == "300"
    expected = two_arms[0].metrics[-1]["kl_policy_ref_per_token"]
    assert float(data.locator("tbody tr").last.locator("td").first.inner_text()) == pytest.approx(expected, rel=1e-4)


# ---- widths, themes, paper ----


@needs_chromium
@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("light", 1200, "light"), ("dark", 1200, "dark"), ("narrow", 400, "light")]
)
def test_looks(show, two_arms, tmp_path, name, width, scheme):
    """No sideways scrolling; every colour stands out from the paper. KULLBACK_UPDATE_IMAGES=1 renews docs/images."""
    table = Table(
        columns=["", "KL, nats per token", "cheerful", "fluent (watched)", "repetition"],
        rows=[
            ["budget 0.05", "0.000 → 0.052", "0.22 → 0.70", "0.83 → 0.83", "0.02 → 0.02"],
            ["no budget", "0.003 → 0.339", "0.18 → 0.86", "0.83 → 0.28", "0.01 → 0.31"],
        ],
    )
    title = "Cheerful completions under a KL budget"
    summary = (
        "Held at 0.05 nats per token, the reward rose from 0.22 to 0.70 and fluency stayed; "
        "without a budget fluency fell from 0.83 to 0.28."
    )
    opened = show(two_arms, width, scheme, title=title, summary=summary, table=table)
    opened.assert_sound()
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") == width
    paper, *colours = page.evaluate(
        """() => {
          const probe = document.body.appendChild(document.createElement("i"));
          const colour = (name) => { probe.className = name; return getComputedStyle(probe).color; };
          const all = ["c0", "c1", "c2", "c3", "c4", "c5", "aside"].map(colour);
          probe.remove();
          return [getComputedStyle(document.body).backgroundColor, ...all];
        }"""
    )
    assert (luminance(paper) < 0.05) == (scheme == "dark")
    assert len(set(colours)) == 7
    assert min(contrast(paper, colour) for colour in colours[:6]) > 3
    assert contrast(paper, colours[6]) > 4.5  # the quiet ink is read as text
    folder = IMAGES if os.environ.get("KULLBACK_UPDATE_IMAGES") else tmp_path
    image = folder / f"report-{name}.png"
    page.screenshot(path=image, full_page=True, clip={"x": 0, "y": 0, "width": width, "height": 1600})
    assert 10_000 < image.stat().st_size < 300_000


def luminance(colour: str) -> float:
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@needs_chromium
def test_prints_on_white_even_from_a_dark_screen(show, two_arms):
    page = show(two_arms, scheme="dark").page
    page.emulate_media(media="print")
    assert luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) > 0.9
    assert not page.locator("button").first.is_visible()
    assert len(page.pdf(format="A4", print_background=True)) > 20_000


# ---- foreign text ----


@needs_chromium
def test_foreign_text_stays_text(show):
    rewards = {f"rewards/{HOSTILE}": 0.5, "reward": 0.1}
    sample = {"prompt": HOSTILE, "completion": HOSTILE + "x" * 500, "rewards": {HOSTILE: 0.25}}
    config = {
        "rewards": [HOSTILE],
        HOSTILE: HOSTILE,
        "nested": {HOSTILE: [HOSTILE]},
        "budget": {"target": 0.1, "unit": "token"},
    }
    rows = [{"step": step, "kl_policy_ref_per_token": 0.1, **rewards} for step in (1, 2)]
    arms = [ReportRun(HOSTILE, config, rows, [], {"before": [sample], "after": [sample]}), ReportRun("plain", {}, rows)]
    table = Table(columns=["arm", HOSTILE], rows=[[HOSTILE, HOSTILE]])
    opened = show(arms, width=400, title=HOSTILE, summary=HOSTILE, table=table)
    opened.assert_sound()
    page = opened.page
    page.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 2
    assert page.locator("img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    exact = json.dumps(HOSTILE)  # compared inside the page: a lone surrogate does not survive the way out
    for place in (".prompt", ".rewards dt", ".outcome tbody th", ".outcome tbody td", ".arms bdi", ".settings dd code"):
        assert page.evaluate(
            f"[...document.querySelectorAll({json.dumps(place)})].some((n) => n.textContent === {exact})"
        ), place
    assert page.evaluate(f"document.querySelector('.completion').textContent === {exact} + 'x'.repeat(500)")
    # The heading is markup: UTF-8 has no lone surrogate, and HTML drops a null.
    assert page.locator("h1").text_content() == HOSTILE.replace("\ud800", "?").replace("\x00", "")


@needs_chromium
def test_the_page_forbids_itself_everything_else(show):
    """Also shows that a page which tried would have been found out by assert_sound."""
    opened = show([ReportRun("a")])
    attempts = {
        "img-src": "Object.assign(new Image(), {src: 'data:image/gif;base64,R0lGODlhAQABAAAAACw='})",
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


def test_nothing_in_the_file_ends_a_script_early(tmp_path):
    arm = ReportRun(HOSTILE, {HOSTILE: HOSTILE}, [{"step": 1, "reward": 1.0}])
    text = write_report([arm], tmp_path / "report.html", title="A run").read_text("utf-8")
    assert text.count("</script") == 2
    data = text.split('id="page">')[1].split("</script>")[0]
    assert not set(data) & set("<>&\u2028\u2029")
    assert json.loads(data)["arms"][0]["name"] == HOSTILE
    for name in (*pages.MODULES, "style.css"):
        asset = (files("kullback.explore") / name).read_text("utf-8")
        assert not re.search(r"</s|<!--|innerHTML|\beval\b", asset), name


# ---- runs that are short, broken, long or many ----


@needs_chromium
def test_a_run_without_a_step_says_so(show, two_arms):
    opened = show([ReportRun("a", two_arms[0].config)])
    opened.assert_sound()
    assert opened.page.locator(".notice").all_inner_texts() == ["a: no training step has been recorded."]
    assert opened.page.locator("figure").count() == 0
    opened.page.locator(".settings summary").click()
    assert "target 0.05, unit token" in opened.page.locator(".settings").inner_text()


@needs_chromium
def test_a_run_of_one_step_is_drawn(show, two_arms):
    arm = ReportRun("a", two_arms[0].config, two_arms[0].metrics[:1])
    opened = show([arm], width=400)
    opened.assert_sound()
    assert opened.page.locator(".notice").all_inner_texts() == ["a: a single training step has been recorded."]
    assert opened.page.locator("#chart-entropy .series .marker").count() == 1
    assert last_value(opened.page, "kl-token", "a", "training batch")[1] == arm.metrics[0]["kl_policy_ref_per_token"]
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 400


@needs_chromium
def test_what_is_missing_is_a_gap(show):
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
    assert "1 value is not finite" in page.locator("#chart-entropy figcaption").inner_text()
    assert last_value(page, "kl-token", "a", "training batch") == (9, 0.1)
    assert page.locator(".notice").all_inner_texts() == ["a: 1 row without a step left out."]
    page.locator("#chart-entropy > svg").focus()
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert math.isnan(readout(page, "entropy", "training batch", 0))


@needs_chromium
def test_fifty_thousand_steps_stay_small_and_say_what_is_drawn(show, long_arms):
    long_arms[1].metrics[31_234]["entropy"] = 9.0
    opened = show(long_arms)
    opened.assert_sound()
    page = opened.page
    assert Path(page.url.removeprefix("file://")).stat().st_size < 3_000_000
    notice = page.locator(".notice").first.inner_text()
    assert notice.startswith(
        "budget 0.05, no budget: 50,000 steps are drawn as 400 means; the shading runs from the least to"
    )
    last = long_arms[0].metrics[-1]["kl_policy_ref_per_token"]
    assert last_value(page, "kl-token", "budget 0.05", "training batch") == (50_000, pytest.approx(last, abs=1e-9))
    page.locator("#chart-entropy > svg").focus()
    page.keyboard.press("Home")
    assert page.locator("#chart-entropy .position").inner_text() == "steps 1–125"
    # The one step that stands out is in the shading, and so on the axis.
    labels = page.locator("#chart-entropy .axes text[text-anchor=end]").all_text_contents()
    assert "8" in labels


@needs_chromium
def test_six_arms_with_budgets_in_both_units(show, two_arms):
    units = ["token", "sequence", "token", "token", "sequence", "token"]
    arms = [
        ReportRun(
            f"arm {i}", {**two_arms[0].config, "budget": {"target": 0.05 + i, "unit": unit}}, two_arms[i % 2].metrics
        )
        for i, unit in enumerate(units)
    ]
    opened = show(arms, width=400)
    opened.assert_sound()
    page = opened.page
    assert page.locator("#chart-kl-token .limit").count() == 4
    assert page.locator("#chart-kl-sequence .limit").count() == 2
    assert page.locator("#chart-kl-token .series[data-name='training batch']").count() == 6
    assert page.evaluate("document.documentElement.scrollWidth") == 400


@needs_chromium
def test_rewards_on_unlike_scales_get_a_chart_each(show):
    rows = [{"step": step, "rewards/small": step / 10, "rewards/large": step * 10.0} for step in (1, 2, 3)]
    opened = show([ReportRun("a", {"rewards": ["small"], "watched": ["large"]}, rows)])
    opened.assert_sound()
    titles = opened.page.locator("figure h3").all_inner_texts()
    assert titles == ["Reward: small", "Reward: large (watched)"]


@needs_chromium
def test_samples_stand_side_by_side(show, two_arms):
    page = show(two_arms).page
    first = page.locator(".samples").first.locator("li").first
    assert first.locator("h4").all_inner_texts() == ["Before training", "After training"]
    before, after = first.locator("section").all()
    before_box, after_box = before.bounding_box(), after.bounding_box()
    assert before_box
    assert after_box
    assert before_box["y"] == after_box["y"]
    assert before.locator(".completion").inner_text() == two_arms[0].samples["before"][0]["completion"]
    assert (
        float(after.locator("dd").first.get_attribute("data-value") or 0)
        == two_arms[0].samples["after"][0]["rewards"]["cheerful"]
    )


def test_samples_are_paired_by_prompt_and_cut_when_many(tmp_path):
    def some(prompts: list[str], word: str) -> list[dict]:
        return [
            {"prompt": p, "completion": f"{word} {i}", "rewards": {"r": float("nan")}} for i, p in enumerate(prompts)
        ]

    order = ["a", "b", "a", "c"]
    long = [{"prompt": f"p{i}", "completion": "x" * 10_000} for i in range(30)]
    arms = [
        ReportRun("one", samples={"before": some(order, "before"), "after": some(order[::-1], "after")}),
        ReportRun("two", samples={"before": long}),
    ]
    text = write_report(arms, tmp_path / "report.html", title="A run").read_text("utf-8")
    one, two = json.loads(text.split('id="page">')[1].split("</script>")[0])["samples"]
    pairs = {(item["prompt"], *(cell["completion"] for cell in item["cells"])) for item in one["items"]}
    assert pairs == {
        ("a", "before 0", "after 1"),
        ("b", "before 1", "after 2"),
        ("a", "before 2", "after 3"),
        ("c", "before 3", "after 0"),
    }
    assert one["items"][0]["cells"][0]["rewards"] == [["r", None]]
    assert two["note"] == "The first 24 of 30 prompts."
    assert two["items"][0]["cells"][0]["completion"].endswith("(4,000 more characters)")
    assert len(two["items"]) == 24


# ---- numbers before they are drawn ----


def test_buckets_hold_their_mean_least_and_greatest():
    rng = np.random.default_rng(0)
    values = rng.normal(size=4_000)
    values[1_234] = np.nan
    track = DownsampledSeries([{"step": i, "x": v} for i, v in enumerate(values)])
    curve, grid = track.curve("x"), track.grid()
    assert curve
    assert len(grid["x"]) == 400
    parts = [values[int(first) : int(last) + 1] for first, last in grid["spans"]]
    assert sum(map(len, parts)) == 4_000
    np.testing.assert_allclose(curve["values"], [np.nanmean(part) for part in parts], rtol=1e-6)
    np.testing.assert_allclose(curve["low"], [np.nanmin(part) for part in parts], rtol=1e-6)
    np.testing.assert_allclose(curve["high"], [np.nanmax(part) for part in parts], rtol=1e-6)
    np.testing.assert_allclose(grid["x"], [(first + last) / 2 for first, last in grid["spans"]], rtol=1e-6)
    assert curve["last"] == {"x": 3_999.0, "value": values[-1]}


def test_a_bucket_with_nothing_in_it_is_a_gap():
    rows: list[dict] = [{"step": i, "x": None if 500 <= i < 700 else 1.0} for i in range(1_000)]
    curve = DownsampledSeries(rows).curve("x")
    assert curve
    assert curve["values"].count(None) == curve["low"].count(None) == 80


def test_whiskers_are_two_standard_errors():
    curve = DownsampledSeries([{"step": 0, "kl": 0.5, "kl_std_error": 0.1}, {"step": 1, "kl": 0.5}]).curve("kl")
    assert curve
    assert curve["low"] == [0.3, None]
    assert curve["high"] == [0.7, None]


def test_a_step_written_twice_counts_once_and_in_order():
    track = DownsampledSeries([{"step": 2, "x": 1.0}, {"step": 1, "x": 0.0}, {"step": 2, "x": 5.0}])
    curve = track.curve("x")
    assert curve
    assert (track.steps, curve["values"]) == ([1.0, 2.0], [0.0, 5.0])


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), None, "0.5", True, 10**400, 1e305, [], np.float64("nan")]
)
def test_what_is_no_finite_number_is_none(value):
    assert finite(value) is None


def test_numpy_numbers_are_numbers():
    assert finite(np.float32(0.5)) == 0.5
    assert finite(np.int64(3)) == 3.0


# ---- the file ----


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    path = write_report([ReportRun("a")], tmp_path / "report.html", title="The old one")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(OSError, match="no room"):
        write_report([ReportRun("a")], path, title="The new one")
    assert "The old one" in path.read_text("utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("count", [0, 7])
def test_arms_from_one_to_six(tmp_path, count):
    with pytest.raises(InputError, match=f"from 1 to 6 arms, and {count} came"):
        write_report([ReportRun("a")] * count, tmp_path / "report.html", title="A run")


def test_a_ragged_table_or_a_missing_directory_is_named(tmp_path):
    with pytest.raises(InputError, match="2 columns, but a row of 1"):
        write_report(
            [ReportRun("a")], tmp_path / "r.html", title="A run", table={"columns": ["a", "b"], "rows": [["1"]]}
        )
    with pytest.raises(InputError, match="does not exist"):
        write_report([ReportRun("a")], tmp_path / "nowhere" / "r.html", title="A run")


@pytest.mark.skipif(NODE is None and not IN_CI, reason="node is not installed")
def test_the_axes_under_node():
    found = subprocess.run(
        [NODE or "node", "--test", str(Path(__file__).with_name("test_axes.mjs"))],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "# fail 0" in found.stdout
    assert not re.search(r"^# pass 0", found.stdout, re.MULTILINE)
