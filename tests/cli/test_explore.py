"""`kullback explore`: directories of runs, damaged runs, and clients that close their connection."""

import http.client
import json
import os
import re
import socket
import struct
import sys
import threading
from pathlib import Path

import pytest

from kullback.cli import main
from kullback.explore.run_logs import RunLog
from kullback.explore.server import make_server
from kullback.runs.run_directory import RunDirectory


def create(path: Path) -> RunDirectory:
    run = RunDirectory(path)
    run.create({"budget": {"target": 0.05, "unit": "token"}, "rewards": ["good"], "watched": []})
    for step in range(1, 4):
        run.add_metrics({"step": step, "kl_policy_ref_per_token": 0.01 * step, "beta": 0.1, "seconds": step})
    run.add_evaluation({"step": 3, "kl_policy_ref_per_token": 0.03, "rewards/good": 0.5})
    return run


def shown(path: Path) -> list[str]:
    page = re.search(r'id="page">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    assert page is not None
    return [run["name"] for run in json.loads(page[1])["runs"]["runs"]]


def test_a_directory_of_runs_shows_every_run(tmp_path, capsys):
    for name in ("b", "a"):
        create(tmp_path / "runs" / name)
    (tmp_path / "runs" / "notes").mkdir()
    page = tmp_path / "page.html"
    assert main(["explore", str(tmp_path / "runs"), "--output", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert shown(page) == ["a", "b"]
    assert main(["explore", str(tmp_path / "runs"), str(tmp_path / "runs" / "a"), "--output", str(page)]) == 0
    assert shown(page) == ["a", "b"]
    for name in "cdefgh":
        create(tmp_path / "runs" / name)
    assert main(["explore", str(tmp_path / "runs"), "--output", str(page)]) == 2
    assert "expected at most 6 runs, got 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", '{"step": 1}\n{"step": \n{"step": 3}\n', "metrics.jsonl: line 2"),
        ("metrics.jsonl", '{"step": 1}\n7\n', "metrics.jsonl: line 2"),
        ("evaluations.jsonl", "[" * 20_000 + "\n", "evaluations.jsonl: line 1"),
        ("config.json", '{"rewards": 7}', "expected a list under 'rewards'"),
        ("samples.json", "{", "samples.json: not JSON"),
        ("samples.json", "[7]", "samples.json: expected a JSON object, got list"),
    ],
)
def test_the_other_rows_of_a_damaged_run_stay(name, content, message, tmp_path, capsys):
    create(tmp_path / "runs" / "good")
    damaged = create(tmp_path / "runs" / "damaged").path
    (damaged / name).write_text(content)
    page = tmp_path / "page.html"
    for path, expected in ((tmp_path / "runs", ["damaged", "good"]), (damaged, ["damaged"])):
        assert main(["explore", str(path), "--output", str(page)]) == 0
        output = capsys.readouterr()
        assert output.err.count("\n") == 1
        assert message in output.err
        assert str(damaged) in output.err
        assert shown(page) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", '{"step": \n', "metrics.jsonl: line 1"),
        ("config.json", "{", "config.json"),
        ("config.json", "[]", "config.json: expected a JSON object, got []"),
        ("config.json", "\x00\x01", "config.json"),
        (
            "config.json",
            '{"kind": "compare"}',
            "expected a run of kullback train, got a run of kullback compare; open ",
        ),
    ],
)
def test_a_run_without_a_row_gives_one_line_and_the_others_stay(name, content, message, tmp_path, capsys):
    create(tmp_path / "runs" / "good")
    damaged = create(tmp_path / "runs" / "damaged").path
    (damaged / "evaluations.jsonl").unlink()
    (damaged / name).write_text(content)
    (damaged / "compare.html").touch()
    if "compare" in content:
        (damaged / "metrics.jsonl").unlink()
        (damaged / "blocks-0.jsonl").write_text('{"block": 0, "part": 1}\n')
    page = tmp_path / "page.html"
    assert main(["explore", str(tmp_path / "runs"), "--output", str(page)]) == 0
    output = capsys.readouterr()
    assert output.out == f"{page}\n"
    assert output.err.count("\n") == 1
    assert message in output.err
    assert str(damaged) in output.err
    assert shown(page) == ["good"]
    # Without another run, the damage is an error.
    assert main(["explore", str(damaged), "--output", str(page)]) == 2
    assert message in capsys.readouterr().err


def test_paths_that_are_no_runs(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for path, message in (
        ("absent", "expected a run directory, found no such file or directory"),
        ("file", "expected a run directory, got a file"),
        ("empty", "expected a run directory, found no config.json in it"),
    ):
        assert main(["explore", str(tmp_path / path), "--output", str(tmp_path / "page.html")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_clients_that_hang_up_leave_the_server_alive(tmp_path, capfd):
    run = create(tmp_path / "mine")
    server, address = make_server({"mine": RunLog(run.path)})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host, port, path = re.fullmatch(r"http://(.*):(\d+)(/.*)", address).groups()  # pyright: ignore[reportOptionalMemberAccess]
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
    try:
        for content in (
            b"",
            b"GET",
            request[:-2],
            request,
            request * 3,
            b"\x16\x03\x01\x02\x00\xff",
            b"GET / HTTP/9\r\n\r\n",
        ):
            for _ in range(5):
                client = socket.create_connection((host, int(port)))
                # A reset instead of an orderly end of the connection.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sendall(content)
                client.close()
        client = http.client.HTTPConnection(host, int(port), timeout=20)
        client.request("GET", f"{path}runs.json", headers={"Connection": "close"})
        assert client.getresponse().status == 200
        client.close()
    finally:
        server.shutdown()
        server.server_close()
    assert capfd.readouterr().err == ""


def test_the_server_names_the_damage_of_a_run_and_keeps_its_rows(tmp_path):
    server, address = make_server({name: RunLog(create(tmp_path / name).path) for name in ("a", "b")})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host, port, path = re.fullmatch(r"http://(.*):(\d+)(/.*)", address).groups()  # pyright: ignore[reportOptionalMemberAccess]
    try:
        with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
            file.write('{"step": NaN}\n')
        client = http.client.HTTPConnection(host, int(port), timeout=20)
        client.request("GET", f"{path}runs.json", headers={"Connection": "close"})
        response = client.getresponse()
        assert response.status == 200
        damaged, intact = json.loads(response.read())["runs"]
        assert damaged["metrics"]["rows"] == intact["metrics"]["rows"] == 3
        assert intact["problems"] == []
        (problem,) = damaged["problems"]
        assert problem.startswith(f"{tmp_path / 'a' / 'metrics.jsonl'}: line 4: expected an object with a number")
        client.close()
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("config", ["[]", '{"model_type": "llama"}', "3"])
def test_a_configuration_of_another_program_is_named(config, tmp_path, capsys):
    run = create(tmp_path / "run")
    (run.path / "config.json").write_text(config)
    assert main(["explore", str(run.path), "--output", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert "config.json" in error
    assert "Error" not in error


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    fifo, received = tmp_path / "fifo", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: received.append(fifo.read_bytes()))
    reader.start()
    assert main(["explore", "--output", str(fifo)]) == 0
    reader.join()
    assert fifo.is_fifo()
    assert b"</html>" in received[0]


def test_a_symbolic_link_is_kept_and_a_directory_is_refused(tmp_path, capsys):
    page, link = tmp_path / "page.html", tmp_path / "link.html"
    page.write_text(old := '<!doctype html>\n<meta http-equiv="Content-Security-Policy">old')
    link.symlink_to(page)
    assert main(["explore", "--output", str(link)]) == 0
    assert link.is_symlink()
    assert page.read_text() != old
    assert main(["explore", "--output", str(tmp_path)]) == 2
    assert "expected the path of a file, got a directory" in capsys.readouterr().err
    assert main(["explore", "--output", str(page), "--port", "3"]) == 2
    assert "--port: expected no port with --output, which starts no server" in capsys.readouterr().err


def test_only_pages_are_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    RunDirectory(run).create({"kind": "grpo"})
    RunDirectory(run).add_metrics({"step": 1, "reward": 0.5})
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    for name in before:
        assert main(["explore", str(run), "--output", str(run / name)]) == 2
        assert "expected a new file or an earlier page, got another file" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    (tmp_path / "mine.html").write_text("<!doctype html>\n<title>A page of another program</title>")
    assert main(["explore", str(run), "--output", str(tmp_path / "mine.html")]) == 2
    assert "expected a new file or an earlier page, got another file" in capsys.readouterr().err
    for _ in range(2):
        assert main(["explore", str(run), "--output", str(tmp_path / "page.html")]) == 0


@pytest.mark.parametrize(
    "words", [["demo", "--overwrite"], ["bottleneck", "--data", "digits", "--budgets", "1"]], ids=" ".join
)
def test_the_report_of_several_runs_replaces_pages_only(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.html").write_text("my own report")
    assert main(["train", *words, "--output", str(tmp_path)]) == 2
    assert "expected a directory whose report.html may be replaced" in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text() == "my own report"
