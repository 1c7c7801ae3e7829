"""Browser tests of the section for runs of the explorer, and tests of its server."""

import http.client
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from kullback.cli import main
from kullback.errors import InputError
from kullback.explore.explorer import explorer_page, readable_runs
from kullback.explore.run_logs import RunLog
from kullback.explore.server import make_server
from kullback.runs.run_directory import RunDirectory

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
HOSTILE = "</script><script>window.injected = true</script><img src=x onerror='window.injected = true'>"


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "mine")
    config = {"budget": {"target": 0.05, "unit": "token"}, "rewards": ["good"], "watched": [], "note": HOSTILE}
    directory.create(config)
    for step in range(1, 6):
        directory.add_metrics({"step": step, "kl_policy_ref_per_token": 0.01 * step, "beta": 0.1, "seconds": step})
    directory.add_evaluation({"step": 5, "kl_policy_ref_per_token": 0.05, "rewards/good": 0.5})
    sample = {"prompt": HOSTILE, "completion": HOSTILE, "rewards": {"good": 1.0}}
    directory.set_samples("after", [sample])
    return directory


@pytest.fixture
def open_page(browser, tmp_path):
    """Return a function that opens a page of the explorer as a file, offline; any console message fails the test."""
    contexts, messages = [], []

    def opened(name: str, runs=None, width: int = 1100, **options):
        logs, _ = readable_runs({key: one.path for key, one in (runs or {}).items()})
        (tmp_path / "page.html").write_text(explorer_page(logs, live=False), encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **options)
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(f"file://{tmp_path / 'page.html'}#{name}")
        page.wait_for_selector(f"#{name}:not([hidden])")
        contexts.append(context)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert messages == []


@needs_chromium
def test_markup_in_a_run_is_shown_as_text(open_page, run):
    page = open_page("runs", {HOSTILE: run})
    page.wait_for_selector("#runs .chart")
    assert page.evaluate("window.injected") is None
    assert page.locator("#runs img[src=x]").count() == 0
    assert page.locator("#runs .completion").first.inner_text() == HOSTILE


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_a_run(open_page, run, scheme):
    page = open_page("runs", {"mine": run}, color_scheme=scheme)
    page.wait_for_selector("#runs .chart")
    violations = Axe().run(page).response["violations"]
    assert [one["id"] for one in violations if one["impact"] in ("serious", "critical")] == []


@needs_chromium
def test_a_narrow_page_does_not_scroll_sideways(open_page, run):
    page = open_page("runs", {"mine": run}, width=400, color_scheme="dark")
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


@needs_chromium
def test_a_live_run_is_updated(browser, run):
    server, address = make_server({"mine": RunLog(run.path)})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        page = browser.new_page()
        page.goto(address + "#runs")
        page.wait_for_selector("#runs .chart")
        assert "5 steps" in page.inner_text("#runs")
        run.add_metrics({"step": 6, "kl_policy_ref_per_token": 0.06, "beta": 0.1, "seconds": 6})
        page.wait_for_selector("#runs >> text=6 steps", timeout=15_000)
        page.close()
    finally:
        server.shutdown()
        server.server_close()


def request_status(address: str, path: str, method: str = "GET", **headers: str) -> int:
    host, _, token = address.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.request(method, path.replace("TOKEN", token.strip("/")), headers=headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def test_the_server_answers_only_its_two_paths(run, tmp_path):
    (tmp_path / "secret").write_text("secret")
    server, address = make_server({"mine": RunLog(run.path)})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert server.server_address[0] == "127.0.0.1"
        assert request_status(address, "/TOKEN/") == 200
        assert request_status(address, "/TOKEN/runs.json") == 200
        for path in (
            "/",
            "/TOKEN",
            "/TOKEN/../secret",
            "/TOKEN/%2e%2e/secret",
            "/wrong/",
            "/TOKEN/?a",
            "/TOKEN/mine/config.json",
        ):
            assert request_status(address, path) == 404, path
        assert request_status(address, "/TOKEN/", Host="evil.example") == 403
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert request_status(address, "/TOKEN/", method) == 501
        for query in ("run=mine", "run=other&from=0&to=1", "run=mine&from=x&to=1", "since=[]", "since={"):
            assert request_status(address, f"/TOKEN/runs.json?{query}") == 404, query
        assert request_status(address, "/TOKEN/runs.json?since=" + "[" * 3000) == 404
        assert request_status(address, "/TOKEN/runs.json?run=mine&from=0&to=3") == 200
    finally:
        server.shutdown()
        server.server_close()


def test_invalid_input_gives_a_one_line_error(tmp_path, capsys, run):
    server, _ = make_server({})
    used_port = str(server.server_address[1])
    for words in (
        ["--port", "70000"],
        ["--port", used_port],
        [str(tmp_path / "nothing")],
        ["--output", str(tmp_path / "no" / "page.html")],
    ):
        assert main(["explore", "--no-browser", *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("kullback: ")
        assert error.count("\n") == 1
    server.server_close()
    with pytest.raises(InputError, match="expected a run directory"):
        readable_runs({"a": tmp_path})
    assert main(["explore", str(run.path), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "https://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert json.loads(re.search(r'id="page">(.*?)</script>', page, re.DOTALL)[1])["runs"]["runs"][0]["name"] == "mine"


def test_ctrl_c_stops_the_server(tmp_path):
    import signal

    # Background jobs of a shell and their children ignore SIGINT, so the child restores the default handler.
    restore_sigint = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", restore_sigint, sys.executable, "-m", "kullback", "explore", "--no-browser"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error == "kullback: interrupted\n"
