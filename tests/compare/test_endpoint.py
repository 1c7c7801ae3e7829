"""Comparisons with models behind servers: bounds of the exact KL, an unbiased estimate, and one line for each error."""

import json
import math
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

import kullback
from kullback.cli import main
from kullback.compare import endpoint
from kullback.compare.bounds import BoundComparison
from kullback.compare.endpoint import compare_with_endpoint
from kullback.errors import InputError
from kullback.integrations.openai_server import Position, Server

from ..oracles.completions_server import CompletionsServer, serve

logging.disable_progress_bar()
KINDS = {"vllm": "prompt_logprobs", "openai": "echo", "llama-server": "steps"}
TOP = 4  # of 15 tokens


@pytest.fixture(scope="module")
def texts() -> list[str]:
    generator = random.Random(0)
    return ["".join(generator.choices("0123456789+=", k=generator.randint(4, 30))) for _ in range(6)]


@pytest.fixture(scope="module")
def changed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("endpoints") / "changed"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest, changed: Path) -> Iterator[CompletionsServer]:
    with serve(changed, request.param) as running:
        yield running


@pytest.fixture(scope="module")
def vllm(changed: Path) -> Iterator[CompletionsServer]:
    with serve(changed, "vllm") as running:
        yield running


@pytest.fixture(scope="module")
def exact(tiny_model: Path, changed: Path, texts: list[str]) -> dict[str, float]:
    metrics = kullback.compare(tiny_model, changed, text=texts).models[0].metrics
    back = kullback.compare(changed, tiny_model, text=texts).models[0].metrics
    assert back["kl"].value == pytest.approx(metrics["reverse_kl"].value, rel=1e-6)
    return {name: estimate.value for name, estimate in metrics.items()}


def name_of(server: CompletionsServer) -> str:
    return f"openai:{server.url}#tiny"


def values(comparison: BoundComparison) -> dict[str, float]:
    return {name: estimate.value for name, estimate in comparison.models[0].metrics.items()}


def merged(p: torch.Tensor, q: torch.Tensor, tokens: torch.Tensor) -> float:
    """KL(p || q) of the events of single tokens and of all others together, in float64."""
    events = []
    for row in (p, q):
        known = row.double().exp()[tokens]
        others = row.double().exp()
        others[tokens] = 0
        events.append(torch.cat([known, others.sum()[None]]))
    return float((events[0] * (events[0] / events[1]).log()).sum())


@torch.no_grad()
def brute_force(base: Path, model: Path, served: int, texts: list[str]) -> dict[str, float]:
    """The means over tokens of the bounds, where the top k are those of the base (served = 0) or of the model (1)."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    both = [AutoModelForCausalLM.from_pretrained(path).eval() for path in (base, model)]
    rows = []
    for text in texts:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        p, q = (one(ids).logits[0, :-1, : len(tokenizer)].double().log_softmax(-1) for one in both)
        for position in range(ids.shape[1] - 1):
            pair = p[position], q[position]
            tokens = pair[served].topk(TOP).indices
            masses = [1 - float(one.exp()[tokens].sum()) for one in pair]
            rows.append([merged(*pair, tokens), merged(pair[1], pair[0], tokens), *masses])
    return dict(zip(("kl", "reverse_kl", "missing_mass_base", "missing_mass"), np.mean(rows, 0), strict=True))


def test_a_model_behind_a_server_gives_bounds(
    server: CompletionsServer, tiny_model: Path, changed: Path, texts: list[str], exact: dict[str, float]
) -> None:
    comparison = compare_with_endpoint(str(tiny_model), [name_of(server)], text=texts, top=TOP, sampled_positions=0)
    found = values(comparison)
    expected = brute_force(tiny_model, changed, 1, texts)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    assert found["kl"] < exact["kl"]
    assert found["reverse_kl"] < exact["reverse_kl"] < found["reverse_kl_upper"]
    assert "kl_upper" not in found
    assert comparison.config["models"][name_of(server)]["log_probs"] == KINDS[server.kind]
    if server.kind == "llama-server":
        assert "nll" not in found
    else:
        assert np.exp(found["nll"]) == pytest.approx(exact["perplexity"], rel=1e-5)


def test_a_base_behind_a_server_gives_bounds(
    server: CompletionsServer, tiny_model: Path, changed: Path, texts: list[str], exact: dict[str, float]
) -> None:
    found = values(compare_with_endpoint(name_of(server), [str(tiny_model)], text=texts, top=TOP, sampled_positions=0))
    expected = brute_force(changed, tiny_model, 0, texts)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    assert found["kl"] < exact["reverse_kl"] < found["kl_upper"]
    assert "reverse_kl_upper" not in found


def test_all_log_probabilities_give_the_exact_kl(
    server: CompletionsServer, tiny_model: Path, changed: Path, texts: list[str]
) -> None:
    metrics = kullback.compare(tiny_model, changed, text=texts, context=12, stride=5).models[0].metrics
    exact = {name: estimate.value for name, estimate in metrics.items()}
    words: dict[str, Any] = {"text": texts, "context": 12, "stride": 5}
    comparison = compare_with_endpoint(str(tiny_model), [name_of(server)], top=1000, sampled_positions=5, **words)
    found = values(comparison)
    names = ["kl", "kl_estimate"] if "kl_estimate" in found else ["kl"]
    for name in names:
        # Where the server states names instead of ids, tokens of equal text are in the tail.
        assert found[name] == pytest.approx(exact["kl"], rel=1e-4), name
    assert found["missing_mass"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("is_base", [False, True])
def test_the_estimate_is_unbiased(
    vllm: CompletionsServer, tiny_model: Path, changed: Path, texts: list[str], exact: dict[str, float], is_base: bool
) -> None:
    pair = (name_of(vllm), str(tiny_model)) if is_base else (str(tiny_model), name_of(vllm))
    true = exact["reverse_kl" if is_base else "kl"]
    runs = [
        values(compare_with_endpoint(pair[0], [pair[1]], text=texts[:3], top=2, sampled_positions=10**6, seed=seed))
        for seed in range(8)
    ]
    part = kullback.compare(*((changed, tiny_model) if is_base else (tiny_model, changed)), text=texts[:3])
    true = part.models[0].metrics["kl"].value
    estimates = np.array([run["kl_estimate"] for run in runs])
    error = estimates.std(ddof=1) / np.sqrt(len(estimates))
    assert runs[0]["kl"] < true - 5 * error  # the bound is far below, so that the estimate adds what is missing
    assert abs(estimates.mean() - true) < 4 * error


@pytest.mark.slow
def test_fewer_samples_have_the_same_mean(vllm: CompletionsServer, tiny_model: Path, texts: list[str]) -> None:
    part = kullback.compare(tiny_model, vllm_directory(vllm), text=texts[:2])
    runs = [
        values(
            compare_with_endpoint(
                str(tiny_model), [name_of(vllm)], text=texts[:2], top=2, sampled_positions=20, seed=seed
            )
        )
        for seed in range(16)
    ]
    estimates = np.array([run["kl_estimate"] for run in runs])
    error = estimates.std(ddof=1) / np.sqrt(len(estimates))
    assert abs(estimates.mean() - part.models[0].metrics["kl"].value) < 4 * error


def vllm_directory(server: CompletionsServer) -> Path:
    return Path(server.model.config._name_or_path)


def test_both_sides_can_be_servers(
    vllm: CompletionsServer, tiny_model: Path, texts: list[str], exact: dict[str, float]
) -> None:
    with serve(tiny_model, "vllm") as other:
        words: dict[str, Any] = {"text": texts, "top": TOP, "tokenizer": str(tiny_model), "sampled_positions": 0}
        found = values(compare_with_endpoint(name_of(other), [name_of(vllm)], **words))
        assert 0 < found["kl"] < exact["kl"]
        assert 0 < found["reverse_kl"] < exact["reverse_kl"]
        assert not {"kl_upper", "reverse_kl_upper"} & found.keys()
        long = ["1+2=3" * 8]  # without a model on this machine, whose positions are known
        with pytest.raises(InputError, match="the prompt has 40 tokens: if the server allows fewer, pass --context"):
            compare_with_endpoint(name_of(other), [name_of(vllm)], **(words | {"text": long}))
        with pytest.raises(InputError, match="--tokenizer: expected the tokenizer of the servers"):
            compare_with_endpoint(name_of(other), [name_of(vllm)], text=texts)


@pytest.mark.slow
def test_the_command_prints_the_bounds_and_continues_a_run(
    vllm: CompletionsServer,
    tiny_model: Path,
    changed: Path,
    tmp_path: Path,
    texts: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ["compare", str(tiny_model), name_of(vllm), "--text", str(tmp_path / "texts.jsonl"), "--top", str(TOP)]
    words += ["--output", str(tmp_path / "run"), "--seed", "0"][:2]
    assert main([*words, "--fail-above", "1e-6"]) == 3
    output, errors = capsys.readouterr()
    for label in ("KL(base || model), lower bound", "sampled estimate", "outside the known tokens", "prompt_logprobs"):
        assert label in output
    assert "exceed 1e-06" in errors
    parts = tmp_path / "run" / "parts-0.jsonl"
    content = parts.read_bytes()
    parts.write_bytes(content[: content.index(b"\n") + 20])  # as a process leaves it that is killed
    before = len(vllm.requests)
    assert main([*words, "--resume", "--json"]) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert resumed == json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(vllm.requests) > before
    fresh = compare_with_endpoint(str(tiny_model), [name_of(vllm)], text=tmp_path / "texts.jsonl", top=TOP)
    assert resumed["models"] == json.loads(json.dumps(fresh.to_dict()))["models"]
    assert parts.read_bytes().count(b"\n") == len(texts)
    assert main([*words[:-2], "--against", str(tmp_path / "run"), "--json"]) == 0
    pair = json.loads(capsys.readouterr().out)["paired"][0]
    assert pair["second"] == f"{name_of(vllm)} (earlier)"
    assert pair["difference"]["value"] == 0
    assert main([*words[:-4], "--top", "3", "--against", str(tmp_path / "run")]) == 2
    assert "--top was 4, is 3" in capsys.readouterr().err
    assert main([*words, "--top", "3", "--resume"]) == 2
    assert "the run was started with --top 4, got 3" in capsys.readouterr().err
    local = ["compare", str(tiny_model), str(changed), "--text", str(tmp_path / "texts.jsonl")]
    context = str(resumed["config"]["settings"]["context"])
    assert main([*local, "--context", context, "--against", str(tmp_path / "run")]) == 2  # exact KL and lower bound
    assert "got the result of a comparison with a model behind a server" in capsys.readouterr().err


def test_the_key_is_sent_and_never_shown(
    changed: Path, tiny_model: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(changed, "vllm") as server:
        server.key = "sk-secret-key"

        def run() -> BoundComparison:
            return compare_with_endpoint(
                str(tiny_model),
                [name_of(server)],
                text=texts[:1],
                sampled_positions=0,
                output=tmp_path / "run",
                overwrite=True,
            )

        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        with pytest.raises(InputError, match=r"HTTP status 401.*set the environment variable OPENAI_API_KEY"):
            run()
        monkeypatch.setenv("OPENAI_API_KEY", "sk-other-key")
        with pytest.raises(InputError, match=r"Incorrect API key provided: Bearer \*\*\*") as caught:
            run()
        assert "sk-other" not in str(caught.value)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-key")
        result = run()
        assert "sk-secret" not in json.dumps(result.to_dict()) + str(result)
        stored = [path.read_text() for path in (tmp_path / "run").iterdir() if path.is_file()]
        assert not any("sk-secret" in text for text in stored)
        assert all(headers["Authorization"].startswith("Bearer sk-") for headers, _ in server.requests[1:])


def choices(**entries: Any) -> bytes:
    return json.dumps({"choices": [entries]}).encode()


BROKEN: dict[str, tuple[tuple[int, Any], str]] = {
    "status": ((500, {"error": {"message": "out of\nmemory"}}), "HTTP status 500: out of memory"),
    "html": ((200, b"<html>"), "expected the reply of the completions API, got text that is not JSON"),
    "list": ((200, b"[]"), "got JSON of type list"),
    "nothing": ((200, b"{}"), "got a reply without choices"),
    "no logprobs": ((200, choices(text="a", logprobs=None)), "got a reply without log-probabilities"),
    "short": ((200, choices(prompt_logprobs=[None])), "log-probabilities of 1 tokens for a prompt of"),
    "redirect": ((302, b"http://127.0.0.1:1/"), "HTTP status 302"),
    "text": ((200, choices(prompt_logprobs=[None, *[{"3": {"logprob": "x"}}] * 40])), "'x' as a log-probability"),
    "positive": ((200, choices(prompt_logprobs=[None, *[{"3": {"logprob": 2.0}}] * 40])), "2.0 as a log-probability"),
    "mass": (
        (200, choices(prompt_logprobs=[None, *[{"3": {"logprob": -0.1}, "4": {"logprob": -0.2}}] * 40])),
        "probabilities of position 1 that sum to 1.724",
    ),
    "large id": (
        (200, choices(prompt_logprobs=[None, *[{"999": {"logprob": -1}}] * 40])),
        "got 999 at position 1; the",
    ),
    "no target": (
        (200, choices(prompt_logprobs=[None, *[{"0": {"logprob": -1}}] * 40])),
        "no log-probability of token",
    ),
    "vocabulary": (
        (200, choices(prompt_logprobs=[None, *[{"3": {"logprob": -1, "decoded_token": "dog"}}] * 40])),
        "got 'dog'; the server has another vocabulary",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_faulty_replies_are_one_line(
    vllm: CompletionsServer,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    reply, expected = BROKEN[fault]
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(vllm, "broken", lambda _: reply)
    (tmp_path / "a.txt").write_text("12+34=46")
    assert main(["compare", str(tiny_model), name_of(vllm), "--text", str(tmp_path / "a.txt")]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert expected in errors
    assert errors.count("\n") == 1


def test_a_busy_server_is_asked_again(
    vllm: CompletionsServer, tiny_model: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0

    def busy(body: dict[str, Any]) -> tuple[int, Any]:
        nonlocal count
        count += 1
        return (503, {"detail": "busy"}) if count in (2, 3) else vllm.reply(body)

    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(vllm, "broken", busy)
    found = compare_with_endpoint(str(tiny_model), [name_of(vllm)], text=texts[:1], sampled_positions=0)
    assert found.models[0].metrics["kl"].value > 0
    assert count == 4


def test_servers_that_do_not_reply_are_one_line(
    tiny_model: Path, vllm: CompletionsServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("12+34=46")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        cases = {
            f"openai:http://127.0.0.1:{port}/v1#tiny": (["--timeout", "0.2"], "no reply within 0.2 s"),
            "openai:http://127.0.0.1:1/v1#tiny": ([], "cannot be reached"),
            f"openai:{vllm.url}#other": ([], "HTTP status 404: The model `other` does not exist."),
            f"openai:{vllm.url}/more#tiny": ([], "HTTP status 404: no route"),
            "openai:http://user:secret@host/v1#tiny": ([], "without user, password or query"),
            "openai:host#tiny": ([], "expected openai:URL#MODEL with a URL of http or https"),
            "openai:http://host/v1": ([], "expected openai:URL#MODEL with a URL"),
            "openai:http://host:port/v1#tiny": ([], "a URL that is not valid"),
        }
        for name, (words, expected) in cases.items():
            assert main(["compare", str(tiny_model), name, "--text", str(tmp_path / "a.txt"), *words]) == 2, name
            output, errors = capsys.readouterr()
            assert output == ""
            assert expected in errors, errors
            assert errors.count("\n") == 1, errors
            assert "secret" not in errors


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--top", "0"], "--top: expected 1 or more"),
        (["--sampled-positions", "-1"], "--sampled-positions: expected 0 or more"),
        (["--timeout", "0"], "--timeout: expected a finite number"),
        (["--floor", "bfloat16"], "--floor: expected local models"),
        (["--card"], "--card: expected local models"),
        (["--context", "33"], "--context: expected at most 32"),
    ],
)
def test_invalid_options_are_one_line(
    vllm: CompletionsServer,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    expected: str,
) -> None:
    (tmp_path / "a.txt").write_text("12+34=46")
    assert main(["compare", str(tiny_model), name_of(vllm), "--text", str(tmp_path / "a.txt"), *words]) == 2
    assert expected in capsys.readouterr().err


def test_options_of_servers_require_a_server(tiny_model: Path, changed: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["compare", str(tiny_model), str(changed), "--text", "x", "--top", "5"]) == 2
    assert "--top: expected an endpoint openai:URL#NAME" in capsys.readouterr().err


def test_another_tokenizer_of_the_server_is_refused(
    vllm: CompletionsServer, tiny_model: Path, changed: Path, tmp_path: Path
) -> None:
    """The server has the ids of two tokens exchanged."""
    tokenizer = json.loads((tiny_model / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["1"], words["2"] = words["2"], words["1"]
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(tmp_path / "exchanged")
    PreTrainedTokenizerFast.from_pretrained(tiny_model).save_pretrained(tmp_path / "exchanged")
    (tmp_path / "exchanged" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="the server has another vocabulary"):
        compare_with_endpoint(str(tmp_path / "exchanged"), [name_of(vllm)], text=["12+21=33"], sampled_positions=0)


def test_names_that_several_tokens_have_are_not_known() -> None:
    server = Server("openai:x", "http://127.0.0.1:1/v1", "x", 4, ["a", "b", "b", "\ufffd"].__getitem__)
    assert [server._id_of(name) for name in ("a", "b", "\ufffd", "c", "token_id:2")] == [0, None, None, None, 2]
    found = server._by_names({"a": -0.5, "b": -1.5, "\ufffd": -2.0}, 1)
    position = server._position(found, None)
    assert position.log_probs == {0: -0.5}
    assert not position.is_top


@pytest.mark.parametrize("scale", [3.0, 12.0, 40.0])
def test_confident_positions_have_an_upper_bound_and_the_mass_that_is_not_stated(scale: float) -> None:
    """The tail of 13 of 40 tokens is below the rounding of log-probabilities in float32."""
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(20, 40, generator=generator, dtype=torch.float64)
    base, model = logits.log_softmax(-1), (logits + torch.randn(20, 40, generator=generator)).log_softmax(-1)
    for p, q in zip(base, model, strict=True):
        largest, ids = p.float().topk(13)
        position = Position(dict(zip(ids.tolist(), largest.tolist(), strict=True)), None, is_top=True)
        true = float((p.exp() * (p - q)).sum())
        upper = endpoint._upper_bound(ids.tolist(), position, q)
        assert true - 1e-6 <= upper <= true + 1e-3 + 60 * float(1 - p[ids].exp().sum())
        stated = endpoint._stated_tokens([position])
        assert endpoint._tail(stated, position, None) == pytest.approx(float(1 - p[ids].exp().sum()), abs=2e-6)


def test_a_reply_that_arrives_byte_by_byte_ends_at_the_timeout(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The timeout of a socket begins again with each byte. A reply that ended would not be JSON."""
    (tmp_path / "a.txt").write_text("12+34=46")
    is_over = threading.Event()

    def send_slowly(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n")
            for _ in range(200):
                if is_over.wait(0.05):
                    break
                connection.sendall(b" ")

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        thread = threading.Thread(target=send_slowly, args=(server,))
        thread.start()
        name = f"openai:http://127.0.0.1:{server.getsockname()[1]}/v1#tiny"
        words = ["compare", str(tiny_model), name, "--text", str(tmp_path / "a.txt"), "--timeout", "0.4"]
        assert main(words) == 2
        is_over.set()
        thread.join()
    assert "no reply within 0.4 s" in capsys.readouterr().err


def _foreign(entry: dict[str, Any]) -> None:
    entry["top_logprobs"] = [
        row and {f"word{i}": v for i, v in enumerate(row.values())} for row in entry["top_logprobs"]
    ]


def _contradiction(entry: dict[str, Any]) -> None:
    entry["token_logprobs"] = [None, *(value - 0.5 for value in entry["token_logprobs"][1:])]


def _all_infinite(entry: dict[str, Any]) -> None:
    entry["top_logprobs"] = [row and dict.fromkeys(row, -math.inf) for row in entry["top_logprobs"]]


def _short(entry: dict[str, Any]) -> None:
    for key in ("tokens", "token_logprobs", "top_logprobs"):
        entry[key] = entry[key][:-2]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_foreign, "texts is one; the server has another vocabulary"),
        (_contradiction, "got two log-probabilities"),
        (_all_infinite, "of position 1 that are all -inf"),
        (_short, "tokens for a prompt of"),
    ],
)
def test_replies_that_contradict_themselves_or_the_tokenizer_are_refused(
    tiny_model: Path, changed: Path, texts: list[str], change: Any, expected: str
) -> None:
    with serve(changed, "openai") as server:

        def broken(body: dict[str, Any]) -> tuple[int, Any]:
            status, reply = server.reply(body)
            if status == 200 and body.get("echo"):
                change(reply["choices"][0]["logprobs"])
            return status, reply

        server.broken = broken
        with pytest.raises(InputError, match=expected):
            compare_with_endpoint(str(tiny_model), [name_of(server)], text=texts[:2], sampled_positions=0)


@given(st.integers(0, 2**32), st.integers(1, 11), st.floats(0, 5), st.booleans())
def test_tokens_that_are_not_the_most_probable_give_lower_bounds(
    seed: int, k: int, scale: float, is_event: bool
) -> None:
    # A server adds the token of the text to the most probable ones, and between two servers the last event is the tail.
    generator = torch.Generator().manual_seed(seed)
    p = (3 * torch.randn(12, dtype=torch.float64, generator=generator)).log_softmax(-1)
    q = (p + scale * torch.randn(12, dtype=torch.float64, generator=generator)).log_softmax(-1)
    tokens = torch.randperm(12, generator=generator)[:k]
    other, ids = q, tokens.tolist()
    if is_event:
        tail = q.clone()
        tail[tokens] = -math.inf
        other, ids = torch.cat([q[tokens], tail.logsumexp(-1)[None]]), list(range(k))
    bounds = endpoint._bounds_of_tokens(p[tokens].tolist(), ids, other)
    for bound, (first, second) in ((bounds.kl, (p, q)), (bounds.reverse_kl, (q, p))):
        exact = float((first.exp() * (first - second)).sum())
        merged = torch.ones(12, dtype=torch.bool)
        merged[tokens] = False
        masses = first[merged].logsumexp(-1), second[merged].logsumexp(-1)
        known = float((first[tokens].exp() * (first[tokens] - second[tokens])).sum())
        of_events = known + float(masses[0].exp() * (masses[0] - masses[1]))
        assert float(bound) <= exact + 1e-9
        assert float(bound) == pytest.approx(of_events, rel=1e-6, abs=1e-9)


def test_an_improbable_token_of_the_text_does_not_change_the_bound() -> None:
    p = torch.full((100,), 0.499999 / 98, dtype=torch.float64)
    p[0], p[1] = 0.5, 1e-6
    bounds = endpoint._bounds_of_tokens(p[:2].log().tolist(), [0, 1], torch.zeros(100, dtype=torch.float64))
    assert float(bounds.kl) == pytest.approx(1.6195297286979629, rel=1e-9)  # also the exact KL; it was 4.6
