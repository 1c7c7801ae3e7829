"""The page of a comparison in an offline browser: values equal the results, text is escaped, tokens have details."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Page
from transformers import AutoModelForCausalLM, AutoTokenizer

import kullback
from kullback.compare import token_values
from kullback.compare.corpus import Corpus, TokenizedDocument
from kullback.compare.page import comparison_data, write_comparison_page
from kullback.compare.results import Comparison, format_estimate
from kullback.compare.token_values import NLL_LEVELS, TokenStore, TokenValues, kl_from_codes, shown_documents

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>&amp;{{data}}\u2028\x00"
needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None and "CI" not in os.environ, reason="Chromium is not installed"
)


@pytest.fixture(scope="module")
def comparison(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two changed copies of the tiny model against it; a token of the largest document is hostile text."""
    directory = tmp_path_factory.mktemp("page")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    names = [directory / "near", directory / "far"]
    for name in names:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(name)
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(name)
    texts = [f"{a}+{b}={a + b}" * (1 + a % 3) for a, b in ((17, 25), (3, 9), (44, 8), (60, 31), (5, 71))]
    settings = {"by_module": "layer", "generate": 6, "output": directory / "run"}
    found = kullback.compare(tiny_model, names, text=texts, context=16, **settings)
    (most, *others) = found.documents
    hostile = replace(most, name=HOSTILE, tokens=(*most.tokens[:1], HOSTILE, "", *most.tokens[3:]))
    first, *rest = found.models
    assert first.free_running is not None
    side = first.free_running.base_samples
    examples = ({**side.examples[0], "text": HOSTILE, "prompt": HOSTILE}, *side.examples[1:])
    running = replace(first.free_running, base_samples=replace(side, examples=examples))
    models = (replace(first, free_running=running), *rest)
    return replace(found, documents=(hostile, *others), models=models)


@pytest.fixture(scope="module")
def page(browser: Browser, comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    path = write_comparison_page(comparison, tmp_path_factory.mktemp("page") / "compare.html")
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_offline(True)
    page = context.new_page()
    messages, requests = [], []
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("console", lambda message: messages.append(message.text))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("svg[role=slider]:not([viewBox])", state="detached")
    yield page
    assert messages == []
    assert requests == [path.as_uri()]
    context.close()


@needs_chromium
def test_hostile_text_is_shown_as_text(page: Page) -> None:
    assert page.evaluate("window.hacked") is None
    assert page.locator(".tokens img, .tokens script").count() == 0
    assert page.locator(".tokens [data-index='1']").text_content() == HOSTILE
    assert page.locator("select[aria-label=Document] option").first.text_content()
    assert not re.search(r"NaN|undefined|\[object", page.locator("main").inner_text())


@needs_chromium
def test_values_equal_the_results(page: Page, comparison: Comparison) -> None:
    row = page.locator(".outcome tbody tr").filter(has_text="KL(base || model)")
    for column, model in enumerate(comparison.models):
        assert row.locator("td").nth(column).inner_text() == format_estimate(model.metrics["kl"])
    drawn = page.locator("#chart-percentiles .legend td").evaluate_all("all => all.map((c) => Number(c.dataset.value))")
    assert drawn == [model.summary.quantiles["kl"]["99.9%"] for model in comparison.models]
    shown = page.locator(".worst:not(.continuations) strong").evaluate_all(
        "all => all.map((n) => Number(n.dataset.kl))"
    )
    assert shown == [token["kl"] for model in comparison.models for token in model.worst]


@needs_chromium
def test_modules_and_continuations_are_shown(page: Page, comparison: Comparison) -> None:
    for number, model in enumerate(comparison.models):
        modules, running = model.modules, model.free_running
        assert modules is not None
        assert running is not None
        cells = page.locator("table.modules").nth(number).locator("tbody tr").filter(has_text="layers.1")
        assert cells.locator("td").nth(0).inner_text() == format_estimate(modules.kl["layers.1"])
        row = page.locator("table.running").nth(number).locator("tbody tr").filter(has_text="nats per continuation")
        sides = (running.base_samples, running.model_samples)
        assert [row.locator("td").nth(i).inner_text() for i in (0, 1)] == [
            format_estimate(side.per_continuation) for side in sides
        ]
    last = page.locator("#chart-modules .legend td").evaluate_all("all => all.map((c) => Number(c.dataset.value))")
    assert last == [model.modules.kl["layers.1"].value for model in comparison.models if model.modules is not None]
    page.locator("summary").filter(has_text="Continuations of the largest KL").click()
    assert page.locator(".continuations mark").first.text_content() == HOSTILE


@needs_chromium
def test_tokens_have_the_kl_of_the_model(page: Page, comparison: Comparison) -> None:
    for number, model in enumerate(comparison.models):
        page.get_by_label("Model", exact=True).first.select_option(str(number))
        kl = page.locator(".tokens > span[data-kl]").evaluate_all("all => all.map((n) => Number(n.dataset.kl))")
        values = comparison.documents[0].values[number]
        assert values is not None
        assert kl == kl_from_codes(values.kl).tolist()
        worst = model.worst[0]["kl"]
        assert any(abs(value - worst) <= worst / 256 for value in kl) or len(comparison.documents) > 1


@needs_chromium
def test_details_follow_the_pointer_and_the_keys(page: Page, comparison: Comparison) -> None:
    page.get_by_label("Document", exact=True).first.select_option("1")
    tokens = page.locator(".tokens > span")
    tokens.nth(2).hover()
    assert "token 2" in page.locator(".detail").inner_text()
    tokens.nth(2).click()
    page.keyboard.press("ArrowRight")
    detail = page.locator(".detail").inner_text()
    assert "token 3" in detail
    assert "nats" in detail
    assert page.locator(".tokens > span[tabindex='0']").count() == 1
    page.keyboard.press("Home")
    assert "not counted" in page.locator(".detail").inner_text()


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_not_wider_than_the_window(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@needs_chromium
def test_an_infinite_kl_is_shown_as_infinite(browser: Browser, comparison: Comparison, tmp_path: Path) -> None:
    model, document = comparison.models[0], comparison.documents[0]
    summary = model.summary.quantiles["kl"]
    bounded = replace(model.summary, quantiles={"kl": {**summary, "99.9%": np.inf, "max": np.inf}})
    changed = replace(model, worst=({**model.worst[0], "kl": np.inf}, *model.worst[1:]))
    changed.__dict__["summary"] = bounded  # the cached property
    values = TokenValues.encode(*np.full((3, len(document.tokens) - document.first), np.inf))
    changed_document = replace(document, values=(values,))
    infinite = replace(comparison, models=(changed,), floors=(), documents=(changed_document,))
    page = browser.new_page()
    page.goto(write_comparison_page(infinite, tmp_path / "compare.html").as_uri())
    assert page.locator(".worst:not(.continuations) strong").first.inner_text() == "∞ nats"
    assert "∞ (99.9%)" in page.locator(".scale").inner_text()
    assert page.locator(".tokens > .k6").count() == len(document.tokens) - document.first
    assert "NaN" not in page.locator("main").inner_text()
    page.close()


def test_stored_values_are_the_exact_values_within_the_stated_error(comparison: Comparison, tiny_model: Path) -> None:
    for number, model in enumerate(comparison.models):
        sums = {}
        for document in comparison.documents:
            values = document.values[number]
            assert values is not None
            sums[document.name] = kl_from_codes(values.kl).astype(float).sum()
        total = model.metrics["kl"].value * model.summary.tokens
        assert sum(sums.values()) == pytest.approx(total, rel=2**-8)


def test_codes_have_the_stated_error() -> None:
    generator = np.random.default_rng(0)
    kl = np.concatenate([10 ** generator.uniform(-30, 4, 5000), [0.0, np.inf]])
    nll = np.concatenate([10 ** generator.uniform(-3, 2, 5001), [0.0]])
    codes = TokenValues.encode(kl, nll, nll)
    np.testing.assert_allclose(kl_from_codes(codes.kl), kl, rtol=2**-8)
    np.testing.assert_allclose(NLL_LEVELS[codes.nll], nll, rtol=0.023)


def test_the_blocks_of_the_smallest_kl_are_removed_beyond_the_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(token_values, "KEPT_TOKENS", 20)
    for directory in (None, tmp_path):
        store = TokenStore(directory)
        for block, kl in enumerate((0.3, 0.1, 0.5, 0.2, 0.4)):
            store.add(block, 0, {block: TokenValues.encode(*np.full((3, 10), kl))})
        found = store.documents((block, 0) for block in range(5))
        assert sorted(document for _, document in found) == [2, 4]
    assert len(list((tmp_path / "tokens").iterdir())) == 2


def test_damaged_values_are_left_out(tmp_path: Path) -> None:
    values = TokenValues.encode(*np.ones((3, 5)))
    TokenStore(tmp_path).add(0, 0, {3: values, 4: values})
    TokenStore(tmp_path).add(1, 0, {5: values})
    found = TokenStore(tmp_path).documents([(0, 0), (1, 0)])
    assert {key: found[key].kl.tolist() for key in found} == {(0, i): values.kl.tolist() for i in (3, 4, 5)}
    path = tmp_path / "tokens" / "0-0.bin"
    path.write_bytes(path.read_bytes()[:-3])
    assert list(TokenStore(tmp_path).documents([(0, 0), (1, 0), (2, 0)])) == [(0, 5)]


def test_documents_are_left_out_above_the_limit(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kullback.compare import runner

    texts = [f"{a}+{a}={2 * a}" for a in range(40)]
    complete = kullback.compare(tiny_model, tiny_model, text=texts)
    assert {document.name for document in complete.documents} == {f"text {i}" for i in range(40)}
    monkeypatch.setattr(runner, "_SHOWN_BYTES", 2_000)
    part = kullback.compare(tiny_model, tiny_model, text=texts)
    assert 1 <= len(part.documents) < 10
    assert len(json.dumps(comparison_data(part)["documents"], separators=(",", ":"))) <= 2_000
    assert part.documents[0].name == complete.documents[0].name
    assert part.models[0].metrics == complete.models[0].metrics


def test_texts_of_tokens_join_to_the_document(tmp_path: Path) -> None:
    """Byte tokens: a character of several tokens is the text of the last, and an incomplete character remains."""

    class Bytes:
        def decode(self, ids: list[int], **_: object) -> str:
            return bytes(ids).decode("utf-8", "replace")

    text = "na\u00efve \U0001f389 \u65e5\u672c\u8a9e"
    ids = np.array([*text.encode(), 0xE6], np.int32)
    corpus = Corpus((TokenizedDocument("a", ids, np.zeros(len(ids), np.uint16)),), (), ("text",), 0, "", "")
    found = {(0, 0): TokenValues.encode(*np.ones((3, len(ids) - 1)))}
    (document,) = shown_documents(found, 1, corpus, Bytes(), 10_000)
    assert len(document.tokens) == len(ids)
    assert "".join(document.tokens) == text + "\ufffd"
    assert document.tokens[2:4] == ("", "\u00ef")
    (cut,) = shown_documents(found, 1, corpus, Bytes(), 300)
    assert 1 < len(cut.tokens) < cut.length == len(ids)


def test_result_json_does_not_depend_on_the_page(comparison: Comparison) -> None:
    assert replace(comparison, documents=()).to_dict() == comparison.to_dict()
    json.dumps(comparison.to_dict(), allow_nan=False)
