"""Browser tests of the questions of the explorer: pointer, keys, touch, values against Python, address, downloads."""

import csv
import gzip
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page
from scipy.integrate import quad
from scipy.optimize import minimize

from kullback import (
    best_of_n_policy,
    divergence,
    fit_forward,
    fit_reverse,
    kl_probs,
    kl_terms,
    measure,
    tilt,
    tilt_to_budget,
)
from kullback.explore.explorer import MODULES, explorer_page
from kullback.explore.html import concatenated_modules, script_hash
from kullback.families import Normal, NormalMixture
from kullback.optimum.mdp import MDP
from kullback.optimum.soft_value_iteration import soft_value_iteration
from kullback.optimum.trajectory_kl import trajectory_kl

pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="Debian's chromium is not installed")
REFERENCE = np.asarray([0.24, 0.2, 0.22, 0.12, 0.07, 0.11, 0.03, 0.01])
PROXY = np.asarray([0.2, 0.1, 0.6, 0.66, 0.8, 0.55, 0.9, 1.0])
TRUE = np.asarray([0.2, 0, 0.7, 0.75, 1, 0.4, 0.1, 0])
DEMO = json.loads((files("kullback.explore") / "static" / "demo_runs.json").read_text("utf-8"))
SECTIONS = ("directions", "next-token", "policy", "demo", "runs")
Opener = Callable[..., Page]


@pytest.fixture
def open_explorer(browser: Browser, tmp_path: Path) -> Iterator[Opener]:
    """Return a function that opens the explorer as a file; console messages and requests to a network fail the test."""
    contexts, messages = [], []
    path = tmp_path / "page.html"
    path.write_text(explorer_page({}, live=False), encoding="utf-8")

    def opened(address: str = "", *, width: int = 1280, **options) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: request.url.startswith("http") and messages.append(request.url))
        page.goto(f"{path.as_uri()}{address}")
        page.wait_for_selector("body[data-ready]")
        frame(page)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert messages == []


def frame(page: Page) -> None:
    """Wait until the changes so far are drawn."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))")


def wait_until(page: Page, condition: str) -> None:
    """Wait until a JavaScript expression is true. The policy of the page forbids `page.wait_for_function`."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(condition)


def value(page: Page, section: str, name: str) -> float:
    frame(page)
    text = page.get_attribute(f"#{section} [data-name='{name}']", "data-value")
    return float((text or "nan").replace("Infinity", "inf"))


def center(page: Page, handle: str) -> tuple[float, float]:
    x, y = page.evaluate(
        """(handle) => {
          const box = document.querySelector(`[data-handle='${handle}'] circle:last-child`).getBoundingClientRect();
          return [box.x + box.width / 2, box.y + box.height / 2];
        }""",
        handle,
    )
    return x, y


def drag(page: Page, handle: str, *moves: tuple[float, float]) -> list[tuple[float, float]]:
    """Drag a handle by successive displacements in pixels, and return its distances from the pointer after each."""
    figure = page.locator("figure", has=page.locator(f"[data-handle='{handle}']"))
    figure.scroll_into_view_if_needed()
    x, y = center(page, handle)
    x, y = x + 2, y - 3  # the pointer takes the handle beside its centre
    page.mouse.move(x, y)
    page.mouse.down()
    distances = []
    for dx, dy in moves:
        x, y = x + dx, y + dy
        page.mouse.move(x, y, steps=4)
        frame(page)
        now = center(page, handle)
        distances.append((now[0] - x + 2, now[1] - y - 3))
    page.mouse.up()
    frame(page)
    return distances


def slider_value(page: Page, name: str) -> float:
    frame(page)
    return float(page.get_attribute(f"#{name}", "data-value") or "nan")


def two_modes(second: float = 20.0) -> NormalMixture:
    return NormalMixture(weights=[0.5, 0.5], locs=[0.0, second], scales=[2.0, 2.0])


# ---- question 1 ----


def check_directions(page: Page, target: NormalMixture) -> Normal:
    q = Normal(loc=value(page, "directions", "mean"), scale=value(page, "directions", "sd"))
    assert value(page, "directions", "forward") == pytest.approx(measure(target, q).value, rel=1e-6)
    assert value(page, "directions", "reverse") == pytest.approx(measure(q, target).value, rel=1e-6)
    return q


def test_kl_of_densities_by_pointer_and_by_keys(open_explorer):
    page = open_explorer()
    assert float(check_directions(page, two_modes()).loc) == 5
    drag(page, "q", (90, 15))
    q = check_directions(page, two_modes())
    assert float(q.loc) == pytest.approx(5 + 90 * 50 / 1048, abs=0.05)
    assert float(q.scale) > 2.4
    drag(page, "map-q-reverse", (-60, 0))
    check_directions(page, two_modes())
    page.click("#directions .more summary")
    page.locator("#p-mean-1").focus()
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    assert slider_value(page, "p-mean-1") == pytest.approx(18, abs=1e-9)
    check_directions(page, two_modes(18.0))


def test_a_handle_follows_the_pointer_and_returns_with_it(open_explorer):
    """A drag by 60 pixels up and back once changed the standard deviation from 2.24 to 0.4 and then to 15."""
    page = open_explorer()
    distances = drag(page, "q", (40, -20), (0, -10), (-40, 30), (0, 20), (0, -20))
    assert np.abs(distances).max() < 0.6
    assert value(page, "directions", "mean") == pytest.approx(5, abs=1e-6)
    assert value(page, "directions", "sd") == pytest.approx(5**0.5, rel=1e-6)
    distances = drag(page, "q", (0, -60), (0, 60))
    assert value(page, "directions", "sd") == pytest.approx(5**0.5, rel=1e-6)
    assert abs(distances[-1][1]) < 0.6


def test_a_handle_can_be_dragged_by_touch(open_explorer):
    page = open_explorer(has_touch=True, width=390)
    page.locator("[data-handle='q']").scroll_into_view_if_needed()
    x, y = center(page, "q")
    client = page.context.new_cdp_session(page)
    client.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x + 8, "y": y + 8}]})
    for step in range(1, 6):
        point = {"x": x + 8 + 10 * step, "y": y + 8}
        client.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point]})
    client.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert value(page, "directions", "mean") == pytest.approx(5 + 50 * 50 / 302, abs=0.5)
    assert center(page, "q")[0] == pytest.approx(x + 50, abs=1)
    check_directions(page, two_modes())


def curve_points(page: Page, curve: str) -> np.ndarray:
    """The points of an integrand in units of its axes, from the path that is drawn and the labels of the axes."""
    data = page.evaluate(
        """(curve) => {
          const svg = document.querySelector("#integrands > svg");
          const texts = [...svg.querySelectorAll(".axes text")];
          const number = (node) => Number(node.textContent.replace("−", "-"));
          const across = texts.filter((node) => node.getAttribute("text-anchor") === "middle");
          const up = texts.filter((node) => node.getAttribute("text-anchor") === "end" && node.textContent !== "x");
          return {
            path: svg.querySelector(`[data-curve=${curve}]`).getAttribute("d"),
            across: across.map((node) => [Number(node.getAttribute("x")), number(node)]),
            up: up.map((node) => [Number(node.getAttribute("y")) - 4, number(node)]),
          };
        }""",
        curve,
    )
    pixels = np.asarray([pair.split(",") for pair in re.split("[ML]", data["path"])[1:]], float)
    columns = []
    for axis, ticks in ((0, data["across"]), (1, data["up"])):
        (a, first), (b, last) = ticks[0], ticks[-1]
        columns.append(first + (pixels[:, axis] - a) * (last - first) / (b - a))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("form", ["phi", "usual"])
def test_the_drawn_areas_and_the_stated_part_outside_are_the_kls(open_explorer, form):
    """The axis once ended at -15 and 35: of the 38.4 nats of a wide Q, an area of 3.4 was drawn."""
    page = open_explorer(f"#directions?q=10,25&form={form}")
    q = Normal(loc=10.0, scale=25.0)
    expected = {"forward": measure(two_modes(), q).value, "reverse": measure(q, two_modes()).value}
    assert expected["reverse"] == pytest.approx(38.4, abs=0.05)

    def log_normal(x: float, mean: float, sd: float) -> float:
        return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd * np.sqrt(2 * np.pi))

    def normal(x: float) -> float:
        return log_normal(x, 10, 25)

    def mixture(x: float) -> float:
        return np.logaddexp(log_normal(x, 0, 2), log_normal(x, 20, 2)) - np.log(2)

    for name, (p, q) in {"forward": (mixture, normal), "reverse": (normal, mixture)}.items():
        kl = expected[name]
        points = curve_points(page, name)

        def integrand(x: float, p=p, q=q) -> float:
            log_p, log_q = p(x), q(x)
            usual = np.exp(log_p) * (log_p - log_q)
            return usual if form == "usual" else usual + np.exp(log_q) - np.exp(log_p)

        low, high = points[:, 0].min(), points[:, 0].max()
        tails = quad(integrand, -400, low, limit=200)[0] + quad(integrand, high, 400, limit=200)[0]
        outside = float(page.get_attribute("#outside", f"data-{name}") or "nan")
        assert outside == pytest.approx(tails, rel=0.02, abs=0.002)
        area = np.trapezoid(points[:, 1], points[:, 0])
        assert area + outside == pytest.approx(kl, rel=0.01, abs=0.01)
        assert abs(outside) < 0.02 * kl, "the axis follows Q"
        text = f"{outside:.4g} of the {kl:.4g} nats of {'KL(P || Q)' if name == 'forward' else 'KL(Q || P)'}"
        assert text.replace("-", "−") in page.inner_text("#outside") or abs(outside) < 1e-3 * kl


def test_local_minima_and_the_sentence_about_them(open_explorer):
    page = open_explorer()
    kls = page.eval_on_selector_all("[data-minima=reverse] li", "all => all.map((item) => Number(item.dataset.value))")
    expected = fit_reverse(Normal, target=two_modes()).minima
    assert kls == pytest.approx([minimum.kl for minimum in expected], abs=1e-6)
    texts = page.locator("[data-minima=reverse] li").all_inner_texts()
    assert ["covers one mode" in text for text in texts] == [True, True, False]
    assert "spans every mode" in texts[2]
    assert "3 local minima, of which one is not the lowest" in page.inner_text("#minima-note")
    page.locator("[data-minima=reverse] button").last.click()
    assert value(page, "directions", "reverse") == pytest.approx(kls[2], rel=1e-6)
    page.locator("#map-reverse [data-minimum='1']").click()
    assert value(page, "directions", "reverse") == pytest.approx(kls[1], rel=1e-6)


@pytest.mark.parametrize("name", ["two", "unequal", "skewed", "disjoint"])
def test_fits_descend_to_the_minima(open_explorer, name):
    page = open_explorer(reduced_motion="reduce")
    page.check(f"[data-choice={name}]", force=True)
    frame(page)
    parts = page.evaluate("new URLSearchParams(location.hash.split('?')[1]).get('p')")
    targets = {
        "two": ([0.5, 0.5], [0, 20], [2, 2]),
        "unequal": ([0.8, 0.2], [2, 16], [2.5, 1.2]),
        "skewed": ([0.45, 0.35, 0.2], [2, 5, 11], [1.2, 2.2, 4]),
        "disjoint": ([0.5, 0.5], [-8, 28], [0.8, 0.8]),
    }
    weights, locs, scales = (np.asarray(column, float) for column in targets[name])
    target = NormalMixture(weights=weights, locs=locs, scales=scales)
    page.click("#fit-forward")
    q = check_directions(page, target)
    forward = fit_forward(Normal, target=target).distribution
    assert (float(q.loc), float(q.scale)) == pytest.approx((float(forward.loc), float(forward.scale)), rel=1e-6)
    page.click("#fit-reverse")
    check_directions(page, target)
    minima = [minimum.kl for minimum in fit_reverse(Normal, target=target).minima]
    assert min(abs(value(page, "directions", "reverse") / kl - 1) for kl in minima) < 1e-6
    assert parts in (None, name)


def test_a_fit_can_be_followed_backwards_and_forwards(open_explorer):
    page = open_explorer()
    page.click("#fit-forward")
    wait_until(page, "document.getElementById('path').dataset.value === '1'")
    assert value(page, "directions", "mean") == pytest.approx(10, abs=1e-6)
    page.focus("#path")
    page.keyboard.press("Home")
    assert value(page, "directions", "mean") == pytest.approx(5, abs=1e-12)
    page.keyboard.press("PageUp")
    assert 5 < value(page, "directions", "mean") < 10


def test_the_reader_guesses_before_the_fits_are_named(open_explorer):
    page = open_explorer()
    labels = "#densities svg .note"
    assert sorted(page.locator(labels).all_text_contents()) == ["A", "B"]
    page.click("[data-guess=B]")
    frame(page)
    assert sorted(page.locator(labels).all_text_contents()) == ["forward fit", "reverse fit"]
    for term in ("mean-seeking", "mode-covering", "mode-seeking"):
        assert term in page.inner_text("#verdict")


# ---- question 2 ----


def next_token_rows(page: Page) -> tuple[list[str], np.ndarray]:
    """The table of contributions: the tokens, and a row of numbers for each."""
    if not page.locator("#next-token .more").first.evaluate("(node) => node.open"):
        page.click("#next-token .more summary")
    page.locator("#next-token-bars .save summary").click()
    with page.expect_download() as download:
        page.locator("#next-token-bars button:text-is('CSV')").click()
    page.locator("#next-token-bars .save summary").click()
    rows = list(csv.reader(Path(download.value.path()).read_text("utf-8").splitlines()))
    numbers = np.asarray([[float(x.replace("Infinity", "inf")) for x in row[1:]] for row in rows[1:]])
    return [row[0] for row in rows[1:]], numbers


def test_contributions_of_tokens_in_both_forms(open_explorer):
    """The table once showed p phi(log q/p) without naming it, where a reader expects p log(p/q)."""
    page = open_explorer()

    def check() -> np.ndarray:
        tokens, rows = next_token_rows(page)
        p, q, usual, phi = rows.T
        assert usual == pytest.approx(p * np.log(p / q), rel=1e-9, abs=1e-15)
        assert phi == pytest.approx(np.asarray(kl_terms(p, q)), rel=1e-9, abs=1e-15)
        assert np.all(np.diff(usual) <= 0), "rows are sorted by their contribution"
        for one in (usual.sum(), phi.sum()):
            assert value(page, "next-token", "forward") == pytest.approx(one, rel=1e-9)
        assert value(page, "next-token", "reverse") == pytest.approx(float(kl_probs(q, p)), rel=1e-9)
        assert value(page, "next-token", "js") == pytest.approx(float(divergence(p, q, "js")), rel=1e-6)
        return q[tokens.index("dog")]

    before = check()
    distances = drag(page, "token-3", (80, 0))
    assert abs(distances[0][0]) < 0.6
    assert check() > before + 0.05
    page.locator("#temperature").press("ArrowRight")
    check()
    header = page.locator("#next-token .more thead").inner_text()
    assert "p log(p/q)" in header
    assert "p φ(log(q/p))" in header
    assert re.search(r"“dog” contributes p log\(p/q\) = .* nats\. .* p φ\(log\(q/p\)\) = ", page.inner_text("#spelled"))
    page.locator("#top-p").press("Home")
    assert value(page, "next-token", "forward") == np.inf
    assert np.isfinite(value(page, "next-token", "reverse"))
    assert "infinite" in page.inner_text("#next-token")


def bigram_model(page: Page) -> tuple[list[str], np.ndarray, list[str]]:
    """The words, the transition matrix of P from the text in the page, and the sentence."""
    source = (files("kullback.explore") / "static" / "page_next_token.js").read_text("utf-8")
    text = re.search(r'TRAINING_TEXT = "([^"]*)"', source)
    words = re.search(r"WORDS = (\[.*?\])", source)
    assert text
    assert words
    names = json.loads(words[1])
    counts = np.full((len(names), len(names)), 0.2)
    tokens = text[1].split()
    for before, after in zip([".", *tokens], tokens, strict=False):
        counts[names.index(before), names.index(after)] += 1
    return names, counts / counts.sum(axis=1, keepdims=True), page.locator(".sentence .token").all_text_contents()


def test_the_kl_of_a_sentence_is_the_sum_over_its_tokens(open_explorer):
    page = open_explorer("#next-token?temperature=1.3")
    words, p, sentence = bigram_model(page)
    assert len(sentence) == 20
    biases = np.asarray([{"cat": 0.9, "mat": -0.8, "slept": 0.6}.get(word, 0.0) for word in words])
    q = (p * np.exp(biases)) ** (1 / 1.3)
    q /= q.sum(axis=1, keepdims=True)
    rows = np.asarray([float(kl_probs(p[i], q[i])) for i in range(len(words))])
    contexts = [words.index(word) for word in [".", *sentence[:-1]]]
    shown = page.eval_on_selector_all(".sentence .token", "all => all.map((node) => Number(node.dataset.value))")
    assert shown == pytest.approx(rows[contexts].tolist(), rel=1e-9)
    total = page.locator("#sentence-total")
    assert float(total.get_attribute("data-sum") or "nan") == pytest.approx(rows[contexts].sum(), rel=1e-9)
    state, mean = np.eye(len(words))[words.index(".")], 0.0
    for _ in sentence:
        mean += state @ rows
        state = state @ p
    assert float(total.get_attribute("data-mean") or "nan") == pytest.approx(mean, rel=1e-9)
    page.locator(".sentence .token").nth(8).click()
    assert value(page, "next-token", "forward") == pytest.approx(rows[contexts[8]], rel=1e-9)


def test_bias_and_spread_of_the_estimators(open_explorer):
    page = open_explorer("#next-token?samples=64")
    _, rows = next_token_rows(page)
    p, q = rows.T[:2]
    moments = json.loads(page.locator("[data-moments]").get_attribute("data-moments") or "")
    d = np.log(q) - np.log(p)
    for name, values in (("k1", -d), ("k2", d * d / 2), ("k3", np.expm1(d) - d)):
        mean = p @ values
        assert moments[name]["mean"] == pytest.approx(mean, rel=1e-9, abs=1e-15)
        assert moments[name]["sd"] == pytest.approx(np.sqrt(p @ (values - mean) ** 2), rel=1e-9)
    assert moments["k1"]["mean"] == pytest.approx(value(page, "next-token", "forward"), rel=1e-9)
    with page.expect_download() as download:
        page.locator("#estimators .save summary").click()
        page.locator("#estimators button:text-is('CSV')").click()
    table = np.loadtxt(Path(download.value.path()), delimiter=",", skiprows=1)
    assert table.shape == (100, 4)
    for column, name in enumerate(("k1", "k2", "k3"), start=1):
        error = moments[name]["sd"] / 8 / 10  # 100 estimates of 64 tokens each
        assert abs(table[:, column].mean() - moments[name]["mean"]) < 4 * error
        assert table[:, column].std() == pytest.approx(moments[name]["sd"] / 8, rel=0.35)


# ---- question 3 ----


def test_the_optimal_policy_under_a_budget_and_a_penalty(open_explorer):
    page = open_explorer("#policy?guessed=1")

    def press(slider: str, key: str) -> float:
        """Press a key, and return the new value of the slider; a busy browser handles the key later."""
        before = slider_value(page, slider)
        page.locator(f"#{slider}").press(key)
        for _ in range(100):
            if (after := slider_value(page, slider)) != before:
                return after
        raise AssertionError(f"{key} did not change {slider}")

    for key in ("ArrowRight", "PageUp", "ArrowLeft"):
        nats = press("budget", key)
        best = tilt_to_budget(REFERENCE, PROXY, nats)
        assert value(page, "policy", "kl") == pytest.approx(nats, rel=1e-6)
        assert value(page, "policy", "beta") == pytest.approx(float(best.beta), rel=1e-6)
        assert value(page, "policy", "proxy") == pytest.approx(float(best.expected_reward), rel=1e-6)
        assert value(page, "policy", "true") == pytest.approx(float(np.asarray(best.policy) @ TRUE), rel=1e-6)
    page.check("[data-choice=beta]", force=True)
    best = tilt(REFERENCE, PROXY, press("beta", "ArrowLeft"))
    assert value(page, "policy", "kl") == pytest.approx(float(best.kl), rel=1e-6)


def test_the_optimal_policy_for_the_forward_kl(open_explorer):
    page = open_explorer("#policy?direction=forward&budget=0.4")
    found = minimize(
        lambda policy: -policy @ PROXY,
        REFERENCE,
        jac=lambda _: -PROXY,
        bounds=[(1e-9, 1)] * 8,
        constraints=[
            {"type": "eq", "fun": lambda policy: policy.sum() - 1},
            {"type": "ineq", "fun": lambda policy: 0.4 - float(kl_probs(REFERENCE, policy / policy.sum()))},
        ],
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert found.success
    assert value(page, "policy", "kl") == pytest.approx(0.4, rel=1e-6)
    assert value(page, "policy", "proxy") == pytest.approx(-found.fun, abs=1e-6)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_a_policy_learns_until_its_kl_is_the_budget(open_explorer, algorithm):
    page = open_explorer(f"#policy?algorithm={algorithm}&budget=0.3&guessed=1", reduced_motion="reduce")
    page.click("#train")
    assert value(page, "policy", "learned-step") == 600
    assert value(page, "policy", "learned-kl") == pytest.approx(0.3, rel=0.15)
    best = tilt_to_budget(REFERENCE, PROXY, value(page, "policy", "learned-kl"))
    proxy = value(page, "policy", "learned-proxy")
    assert float(best.expected_reward) - 0.01 < proxy <= float(best.expected_reward) + 1e-9
    page.click("#restart")
    assert value(page, "policy", "learned-step") == 0
    assert value(page, "policy", "learned-kl") == 0


def test_training_can_be_paused(open_explorer):
    page = open_explorer("#policy")
    page.click("#train")
    wait_until(page, "Number(document.querySelector('[data-name=learned-step]').dataset.value) > 20")
    page.click("#train")
    step = value(page, "policy", "learned-step")
    page.wait_for_timeout(150)
    assert value(page, "policy", "learned-step") == step < 600


def test_the_turning_point_is_shown_after_the_guess(open_explorer):
    page = open_explorer("#policy?guess=1.2")
    assert page.locator("#frontier path.true").count() == 0
    page.click("#reveal")
    frame(page)
    assert page.locator("#frontier path.true").count() == 1
    text = page.inner_text("#turning-point")
    found = re.search(r"You guessed 1.2 nats\. The true reward is largest at ([\d.]+) nats, where it is ([\d.]+)", text)
    assert found, text
    grid = np.linspace(0.05, 2, 400)
    rewards = [float(np.asarray(tilt_to_budget(REFERENCE, PROXY, nats).policy) @ TRUE) for nats in grid]
    assert float(found[1]) == pytest.approx(grid[int(np.argmax(rewards))], abs=0.06)
    assert float(found[2]) == pytest.approx(max(rewards), abs=1e-3)
    titles = page.locator("#frontier title").all_text_contents()
    sixteen = next(title for title in titles if title.startswith("best of 16:"))
    expected = best_of_n_policy(REFERENCE, PROXY, 16)
    assert sixteen.startswith(f"best of 16: {float(kl_probs(np.asarray(expected.policy), REFERENCE)):.4g} nats")


def gridworld(rewards: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """The transitions and rewards of the gridworld of the page, with these rewards for entering cells."""
    side, goal = 5, 5
    transitions, reward = np.zeros((25, 4, 25)), np.zeros((25, 4))
    for cell in range(25):
        for action, (down, right) in enumerate([(-1, 0), (0, 1), (1, 0), (0, -1)]):
            row, column = cell // side + down, cell % side + right
            target = side * row + column if 0 <= row < side and 0 <= column < side else cell
            target = cell if cell == goal else target
            transitions[cell, action, target] = 1
            reward[cell, action] = 0 if cell == goal else rewards.get(target, 0)
    return transitions, reward


def decision_process(rewards: dict[int, float]) -> MDP:
    return MDP(*gridworld(rewards), horizon=12, initial=np.eye(25)[20])


def expected_reward(policy: np.ndarray, rewards: dict[int, float]) -> float:
    """The expected reward of a policy, by a forward pass over the distribution of the cell."""
    transitions, reward = gridworld(rewards)
    mass, total = np.eye(25)[20], 0.0
    for step in range(12):
        moves = mass[:, None] * policy[step]
        total += float((moves * reward).sum())
        mass = np.einsum("ca,cad->d", moves, transitions)
    return total


@pytest.mark.slow
def test_a_small_budget_in_the_gridworld_learns_the_true_reward(open_explorer):
    """The true reward once had its largest value, 0.209, where an honest reward would have given 0.954."""
    page = open_explorer("#policy")
    proxy_rewards, uniform = {5: 1.0, 14: 0.3}, np.full((25, 4), 0.25)
    found = {}
    for nats in (0.5, 1.5, 9.0):
        page = open_explorer(f"#policy?grid={nats}")
        assert value(page, "policy", "grid-kl") == pytest.approx(nats, rel=1e-6)
        solved = soft_value_iteration(decision_process(proxy_rewards), value(page, "policy", "grid-beta"))
        policy = np.asarray(solved.policy)
        assert float(trajectory_kl(decision_process(proxy_rewards), policy, uniform)) == pytest.approx(nats, rel=1e-6)
        assert value(page, "policy", "grid-proxy") == pytest.approx(expected_reward(policy, proxy_rewards), rel=1e-6)
        found[nats] = value(page, "policy", "grid-true")
        assert found[nats] == pytest.approx(expected_reward(policy, {5: 1.0}), rel=1e-6)
        assert value(page, "policy", "grid-best") >= found[nats] - 1e-9
    start = expected_reward(np.broadcast_to(uniform, (12, 25, 4)), {5: 1.0})
    assert start < 0.2 < found[0.5] < found[1.5]
    assert found[1.5] > 0.9 > 0.4 > found[9.0]
    text = page.inner_text("#policy")
    assert "An episode has 12 steps" in text
    assert "0.3 for each visit of the coin" in text
    assert "Dotted: the largest true reward at each KL" in text


# ---- question 4 ----


def test_the_step_moves_the_charts_and_the_completions(open_explorer):
    page = open_explorer("#demo")
    steps = DEMO["arms"][0]["steps"]
    for key, index in (("Home", 0), ("ArrowRight", 1), ("End", len(steps) - 1)):
        page.locator("#step").press(key)
        assert value(page, "demo", "step") == steps[index]
        for k, arm in enumerate(DEMO["arms"]):
            for name in ("kl", "proxy", "true"):
                assert value(page, "demo", f"{name}-{k}") == arm[name][index]
        cells = page.locator("#demo .completions tbody tr").first.locator("td").all_text_contents()
        texts = [texts[index] for texts in DEMO["prompts"][0]["completions"]]
        assert [cell.removesuffix(" ✓") for cell in cells[1:]] == texts
        assert f"step {steps[index]}" in page.locator("#demo caption").inner_text()
    assert page.locator("#trails title").count() == 4


def test_the_data_of_the_demonstration_show_overoptimisation():
    without, within = DEMO["arms"]
    assert max(without["true"]) > without["true"][0] > without["true"][-1]
    assert without["proxy"][-1] > within["proxy"][-1] > within["proxy"][0]
    assert within["true"][-1] > without["true"][-1]
    assert without["kl"][-1] > 10 * within["kl"][-1]
    assert within["kl"][-1] == pytest.approx(DEMO["budget"], rel=0.3)


# ---- the whole page ----


def test_the_questions_are_sections_of_one_page(open_explorer):
    page = open_explorer()
    headings = page.locator("h2").all_inner_texts()
    assert headings == [
        "1. Which Q is nearest?",
        "2. What does a token cost?",
        "3. What does the penalty do?",
        "4. What did a run do?",
        "5. Your run",
    ]
    for section, link in zip(SECTIONS, page.locator("nav a").all(), strict=True):
        link.click()
        wait_until(page, f"location.hash.startsWith('#{section}')")
        top = f"Math.abs(document.getElementById('{section}').getBoundingClientRect().top) < 80"
        wait_until(page, f"{top} || scrollY + innerHeight > document.body.scrollHeight - 80")
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map((node) => Number(node.tagName[1]))")
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels


def state_of(page: Page) -> list[str]:
    frame(page)
    return page.evaluate(
        """[
          ...[...document.querySelectorAll("[data-value]:not(#runs *)")].map((node) => node.dataset.value),
          ...[...document.querySelectorAll("input:checked")].map((node) => node.dataset.choice),
          document.getElementById("verdict").textContent,
        ]"""
    )


@pytest.mark.slow
def test_the_address_restores_the_state(open_explorer, browser):
    page = open_explorer("#directions", permissions=["clipboard-read", "clipboard-write"])
    initial = state_of(page)
    page.check("[data-choice=unequal]", force=True)
    drag(page, "q", (33, 7))
    drag(page, "mode-0", (-21, 5))
    page.click("[data-guess=A]")
    drag(page, "token-4", (40, 0))
    page.locator("#temperature").press("ArrowRight")
    page.locator("#position").press("ArrowRight")
    page.check("[data-choice=grpo]", force=True)
    page.check("[data-choice=forward]", force=True)
    page.locator("#budget").press("ArrowRight")
    page.locator("#guess").press("ArrowLeft")
    page.click("#reveal")
    page.locator("#grid-budget").press("PageUp")
    page.locator("#step").press("Home")
    page.click("#copy-link")
    link = page.evaluate("navigator.clipboard.readText()")
    wait_until(page, f"location.href === {json.dumps(link)}")
    other = open_explorer(link[link.index("#") :])
    assert state_of(other) == state_of(page) != initial
    page.click("#reset")
    assert state_of(page) == initial
    wait_until(page, "location.hash === '#directions' || !location.hash.includes('?')")


@pytest.mark.slow
def test_an_invalid_address_is_ignored(open_explorer):
    initial = state_of(open_explorer())
    for address in (
        "#directions?q=a,b&p=1,2&guess1=C&form=%00",
        "#nowhere?q=1&bias=1,2&temperature=99&position=-3&step=7&samples=1e99",
        "#policy?algorithm=__proto__&budget=&beta=NaN&grid=x&direction=constructor",
        "#<img src=x onerror=alert(1)>?p=<script>",
    ):
        assert state_of(open_explorer(address)) == initial, address


@pytest.mark.slow
def test_arrow_keys_are_reversible_and_home_and_end_select_the_limits(open_explorer):
    page = open_explorer()
    page.click("#directions .more summary")
    sliders = page.eval_on_selector_all(
        "input[type=range]", "all => all.filter((node) => node.checkVisibility()).map((node) => node.id)"
    )
    assert len(sliders) >= 14
    for name in sliders:
        page.focus(f"#{name}")
        page.keyboard.press("Home")
        low = slider_value(page, name)
        page.keyboard.press("End")
        high = slider_value(page, name)
        assert low < high, name
        for key in ("ArrowDown", "ArrowLeft"):
            page.keyboard.press(key)
        middle = slider_value(page, name)
        assert low < middle < high, name
        for up, down in (("ArrowUp", "ArrowDown"), ("ArrowRight", "ArrowLeft"), ("Shift+ArrowUp", "Shift+ArrowDown")):
            page.keyboard.press(down)
            below = slider_value(page, name)
            assert below < middle, name
            if below == low:  # the limit
                page.keyboard.press("Home")
                break
            page.keyboard.press(up)
            assert slider_value(page, name) == pytest.approx(middle, rel=1e-9), name
        page.keyboard.press("End")
        page.keyboard.press("PageDown")
        assert slider_value(page, name) < middle, name
        page.keyboard.press("PageUp")
        assert slider_value(page, name) == pytest.approx(high, rel=1e-9), name
    page.locator("#q-sd").press("Home")
    low = slider_value(page, "q-sd")
    drag(page, "map-q-forward", (0, 600))
    assert value(page, "directions", "sd") == pytest.approx(low, rel=1e-9), "one limit for one parameter"


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"forced_colors": "active"}])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious(open_explorer, options, width):
    page = open_explorer("#directions?guess1=A&guessed=1", width=width, **options)
    for summary in page.locator("details.more > summary").all():
        summary.click()
    frame(page)
    found = [
        (violation["id"], [node["html"][:200] for node in violation["nodes"][:3]])
        for violation in Axe().run(page).response["violations"]
        if violation["impact"] in ("serious", "critical")
    ]
    assert found == []


@pytest.mark.parametrize("options", [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"forced_colors": "active"}])
def test_marks_have_a_contrast_of_three(open_explorer, options):
    """Lines, dots and handles have a contrast of at least 3 with the background of the page, opacity included."""
    page = open_explorer("#directions?guess1=A&guessed=1", **options)
    low = page.evaluate(
        """() => {
          const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
          const luminance = (rgb) => rgb.reduce((sum, v, i) => sum + linear(v / 255) * [0.2126, 0.7152, 0.0722][i], 0);
          const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
          const rgb = (color) => {
            canvas.fillStyle = color;
            canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
          };
          const back = rgb(getComputedStyle(document.body).backgroundColor);
          const found = [];
          const marks = [".line", ".spot", ".bar", ".contour", ".upright", ".exact", ".cloud", ".error-bar", ".arrow",
            ".reward-tick", ".ring", ".handle circle:last-child"].map((name) => `.live svg ${name}`).join(",");
          for (const node of document.querySelectorAll(marks)) {
            const style = getComputedStyle(node);
            const isFilled = node.matches(".bar, .spot:not(.hollow)");
            const color = rgb(isFilled ? style.fill : style.stroke);
            const opacity = Number(style.opacity);
            const seen = color.map((v, i) => opacity * v + (1 - opacity) * back[i]);
            const [a, b] = [luminance(seen), luminance(back)].sort((x, y) => y - x);
            const contrast = (a + 0.05) / (b + 0.05);
            if (contrast < 3) found.push([node.getAttribute("class"), contrast]);
          }
          return found;
        }"""
    )
    assert low == []


def test_changes_are_announced_politely(open_explorer):
    page = open_explorer()
    region = page.locator("#directions [aria-live=polite]")
    page.locator("#q-mean").press("ArrowRight")
    wait_until(page, "document.querySelector('#directions [aria-live=polite]').textContent.includes('mean of Q: 5.1')")
    assert "forward KL(P || Q), nats: " in region.inner_text()
    inside = page.locator("[role=img] :is([tabindex], a, button, input)").count()
    assert inside == 0, "an image has no focusable content"


@pytest.mark.slow
def test_figures_are_saved_as_svg_and_csv(open_explorer):
    page = open_explorer("#directions?guess1=A&guessed=1")
    figures = page.eval_on_selector_all("figure.live", "all => all.map((node) => node.id)")
    assert len(figures) == 13
    for name in figures:
        page.locator(f"#{name} .save summary").click()
        saved = {}
        for kind in ("svg", "csv"):
            with page.expect_download() as download:
                page.locator(f"#{name} button:text-is('{kind.upper()}')").click()
            assert download.value.suggested_filename == f"{name}.{kind}"
            saved[kind] = Path(download.value.path()).read_text("utf-8")
        page.locator(f"#{name} .save summary").click()
        page.wait_for_timeout(250)  # Chromium drops downloads after the first 10 of one second
        svg = ElementTree.fromstring(saved["svg"])
        assert svg.tag == "{http://www.w3.org/2000/svg}svg"
        assert float(svg.get("width") or 0) > 100
        assert "class=" not in saved["svg"]
        assert "currentColor" not in saved["svg"]
        rows = list(csv.reader(saved["csv"].splitlines()))
        assert len(rows) > 1
        assert {len(row) for row in rows} == {len(rows[0])}


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_the_page_does_not_scroll_sideways(open_explorer, width):
    page = open_explorer("#directions?guess1=A&guessed=1", width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_control_and_its_figure_fit_on_a_phone(open_explorer):
    page = open_explorer(width=390)
    for figure, slider in (
        ("densities", "q-sd"),
        ("frontier", "budget"),
        ("trails", "step"),
        ("estimators", "samples"),
    ):
        boxes = [page.locator(f"#{name}").bounding_box() for name in (figure, slider)]
        top = min(box["y"] for box in boxes if box)
        bottom = max(box["y"] + box["height"] for box in boxes if box)
        assert bottom - top < 800, figure


def test_the_page_with_its_data_is_small_and_its_script_is_minified():
    source = concatenated_modules(MODULES)
    minified = (files("kullback.explore") / "static" / "explorer.min.js").read_text("utf-8")
    assert minified.startswith(f"// {script_hash(source)}\n"), "a module has changed; run make minify"
    assert len(gzip.compress(explorer_page({}, live=False).encode(), 9)) <= 60_000
