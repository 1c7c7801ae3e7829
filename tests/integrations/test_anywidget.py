"""The widget's JavaScript module in a browser, with the page in its frame."""

import json
import shutil

import pytest
from playwright.sync_api import sync_playwright

from kullback.explore.explorer import explorer_page
from kullback.integrations.anywidget import PageWidget

CHROMIUM = shutil.which("chromium")


@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
def test_the_page_is_shown_in_a_frame(tmp_path):
    widget = PageWidget(page=explorer_page({}, live=False), height=600)
    state = json.dumps({"page": widget.page, "height": widget.height}).replace("<", "\\u003c")
    module = str(widget._esm).replace("export default { render };", "")
    html = f"""<!doctype html><div id="cell"></div><script>{module}
    const state = {state};
    render({{ model: {{ get: (name) => state[name], on: () => 0 }}, el: document.getElementById("cell") }});</script>"""
    (tmp_path / "notebook.html").write_text(html, encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        messages = []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(f"file://{tmp_path / 'notebook.html'}")
        page.wait_for_timeout(1000)
        shown = "document.querySelector('[data-name=forward]').dataset.value"
        assert float(page.frames[1].evaluate(shown)) == pytest.approx(11.818425, abs=1e-5)
        assert page.locator("iframe").bounding_box()["height"] == 600
        assert messages == []
        browser.close()
