"""Free running: the KL along sampled continuations, against enumeration of all continuations in float64."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import kullback
from kullback.cli import main
from kullback.compare import generation
from kullback.compare.corpus import Document, encode
from kullback.compare.generation import GenerationSettings, TrajectorySums, choose_prompts
from kullback.compare.results import Comparison
from kullback.errors import InputError

logging.disable_progress_bar()

TEXTS = [f"{a}+{b}={a + b}" for a in range(3, 60, 7) for b in (8, 55)]
TOKENS = 10


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("generation") / "changed"
    changed = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter += 0.08 * torch.randn_like(parameter)
    changed.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def comparison(tiny_model: Path, model: Path) -> Comparison:
    return kullback.compare(tiny_model, model, text=TEXTS, generate=TOKENS, floor="bfloat16", continuations=2)


@cache
def exact_model(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)


@torch.no_grad()
def log_probs(path: Path, rows: np.ndarray, first: int) -> np.ndarray:
    """The log-probabilities in float64 of the tokens after each position from `first` on."""
    return exact_model(path)(torch.from_numpy(rows)).logits[:, first:].log_softmax(-1).numpy()


@dataclass(frozen=True)
class Enumeration:
    """The mean and the variance of the sum of the KL over all continuations of one prompt."""

    mean: float
    variance: float
    kl: float


def enumerated(p: Path, q: Path, prompt: list[int], tokens: int, ends: list[int]) -> Enumeration:
    """All continuations of a prompt under p, their KL sums, and the KL of the distributions of continuations."""
    vocabulary = len(AutoTokenizer.from_pretrained(p))
    found: list[tuple[float, float, float]] = []  # log p, log q, sum of the KL
    alive = [((), 0.0, 0.0, 0.0)]
    for step in range(tokens):
        rows = np.array([[*prompt, *ids] for ids, *_ in alive])
        log_p, log_q = (log_probs(path, rows, rows.shape[1] - 1)[:, 0, :vocabulary] for path in (p, q))
        kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)
        following = []
        for row, (ids, a, b, total) in enumerate(alive):
            for token in range(vocabulary):
                entry = ((*ids, token), a + log_p[row, token], b + log_q[row, token], total + kl[row])
                is_end = token in ends or step == tokens - 1
                if is_end:
                    found.append(entry[1:])
                else:
                    following.append(entry)
        alive = following
    log_p, log_q, total = np.array(found).T
    weight = np.exp(log_p)
    assert weight.sum() == pytest.approx(1)
    mean = float(weight @ total)
    return Enumeration(mean, float(weight @ (total - mean) ** 2), float(weight @ (log_p - log_q)))


def test_sums_are_unbiased_estimates_of_the_kl_of_continuations(tiny_model: Path, model: Path) -> None:
    texts, samples = ["12+34=46", "5+5=10"], 400
    found = kullback.compare(tiny_model, model, text=texts, generate=3, continuations=samples, batch_size=100).models[0]
    assert found.free_running is not None
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompts = [tokenizer(text[: len(text) // 2], add_special_tokens=False)["input_ids"] for text in texts]
    for trajectories, p, q in (
        (found.free_running.base_samples, tiny_model, model),
        (found.free_running.model_samples, model, tiny_model),
    ):
        exact = [enumerated(p, q, prompt, 3, [tokenizer.eos_token_id]) for prompt in prompts]
        for one in exact:  # the chain rule
            assert one.mean == pytest.approx(one.kl, rel=1e-9)
        error = np.sqrt(sum(one.variance for one in exact) / samples) / len(exact)
        truth = np.mean([one.kl for one in exact])
        assert truth > 20 * error
        assert abs(trajectories.per_continuation.value - truth) < 4 * error


def test_values_along_the_samples_equal_float64(tiny_model: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[tuple[str, list[np.ndarray], list[np.ndarray]]] = []
    sample = generation.FreeRunningWork.sample

    def recorded(self: Any, one: Any, variant: Any, rows: Any) -> Any:
        found = sample(self, one, variant, rows)
        batches.append((one.source.name, [prompt.ids for prompt, _ in rows], found))
        return found

    end = AutoTokenizer.from_pretrained(tiny_model).eos_token_id
    monkeypatch.setattr(generation.FreeRunningWork, "sample", recorded)
    result = kullback.compare(tiny_model, model, text=TEXTS, generate=TOKENS, continuations=2).models[0]
    assert result.free_running is not None
    for name, found in (
        (str(tiny_model), result.free_running.base_samples),
        (str(model), result.free_running.model_samples),
    ):
        p, q = (tiny_model, model) if name == str(tiny_model) else (model, tiny_model)
        kls, ended = [], []
        for _, prompts, continuations in (batch for batch in batches if batch[0] == name):
            for prompt, tokens in zip(prompts, continuations, strict=True):
                row = np.concatenate([prompt, tokens])[None]
                log_p, log_q = (log_probs(path, row, len(prompt) - 1)[0, :-1] for path in (p, q))
                kls.append((np.exp(log_p) * (log_p - log_q)).sum(-1))
                ended.append(tokens[-1] == end)
        assert len(kls) == 2 * len(TEXTS)
        assert found.per_token.value == pytest.approx(np.concatenate(kls).mean(), rel=1e-4)
        assert found.per_continuation.value == pytest.approx(np.mean([kl.sum() for kl in kls]), rel=1e-4)
        assert found.per_continuation.count == len(TEXTS)
        assert found.tokens.value == np.mean([len(kl) for kl in kls])
        assert found.ended.value == np.mean(ended)
        for label, (low, high) in {"1": (0, 1), "2-4": (1, 4), "5-16": (4, 16)}.items():
            part = np.concatenate([kl[low:high] for kl in kls])
            count, mean = found.positions[label]
            assert count == len(part)
            assert mean.value == pytest.approx(part.mean(), rel=1e-4)
        assert found.examples[0]["kl"] == pytest.approx(max(kl.sum() for kl in kls), rel=1e-4)


def test_continuations_have_the_frequencies_of_the_model(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first: list[int] = []
    sample = generation.FreeRunningWork.sample

    def recorded(self: Any, *arguments: Any) -> Any:
        found = sample(self, *arguments)
        first.extend(int(tokens[0]) for tokens in found)
        return found

    monkeypatch.setattr(generation.FreeRunningWork, "sample", recorded)
    kullback.compare(tiny_model, tiny_model, text=["12+3"], generate=1, continuations=2000, batch_size=500)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompt = np.array([tokenizer("12", add_special_tokens=False)["input_ids"]])
    probs = np.exp(log_probs(tiny_model, prompt, 1)[0, 0, : len(tokenizer)])
    base, model = np.array(first).reshape(4, 2, 500).swapaxes(0, 1).reshape(2, 2000)
    np.testing.assert_array_equal(base, model)  # the random numbers depend on the document and the sample alone
    counts = np.bincount(base, minlength=len(probs))
    expected = 2000 * probs
    assert ((counts - expected) ** 2 / expected).sum() < 40  # chi-squared with 13 degrees of freedom: p = 1e-4


def test_the_base_has_distance_zero_from_itself(tiny_model: Path) -> None:
    result = kullback.compare(tiny_model, tiny_model, text=TEXTS, generate=TOKENS).models[0]
    assert result.free_running is not None
    for found in (result.free_running.base_samples, result.free_running.model_samples):
        assert found.per_token.value == found.per_continuation.value == 0


def free_running(comparison: Comparison) -> list[Any]:
    found = (model.free_running for model in (*comparison.models, *comparison.floors))
    return [one.to_dict() for one in found if one is not None]


@pytest.mark.slow
def test_a_floor_and_a_rounded_cache_have_continuations(comparison: Comparison, tiny_model: Path) -> None:
    assert len(free_running(comparison)) == 2
    floor = comparison.floors[0].free_running
    assert floor is not None
    assert comparison.models[0].free_running is not None
    assert 0 < floor.base_samples.per_token.value < comparison.models[0].free_running.base_samples.per_token.value
    settings: dict[str, Any] = {"text": TEXTS, "generate": TOKENS, "kv_cache_dtype": ["float16", "float8_e5m2"]}
    cached = kullback.compare(tiny_model, [], **settings)
    near, far = (free_running(cached)[i]["model_samples"]["per_token"]["value"] for i in (0, 1))
    assert 0 < near < far


@pytest.mark.slow
def test_one_model_at_a_time_gives_the_same_results(comparison: Comparison, tiny_model: Path, model: Path) -> None:
    settings: dict[str, Any] = {"text": TEXTS, "generate": TOKENS, "floor": "bfloat16", "continuations": 2}
    alone = kullback.compare(tiny_model, model, **settings, one_at_a_time=True)
    assert free_running(alone) == free_running(comparison)
    assert alone.to_dict()["models"] == comparison.to_dict()["models"]
    other = kullback.compare(tiny_model, model, **settings, seed=1)
    assert free_running(other) != free_running(comparison)


@pytest.mark.slow
def test_resumed_and_distributed_runs_give_the_same_results(
    comparison: Comparison,
    tiny_model: Path,
    model: Path,
    tmp_path: Path,
    in_two_processes: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    words = ["compare", tiny_model, model, "--text", tmp_path / "texts.jsonl", "--floor", "bfloat16"]
    words += ["--generate", TOKENS, "--continuations", 2, "--output", tmp_path / "run", "--json"]

    def results(output: str) -> list[Any]:
        content = json.loads(output)
        found = [one["free_running"] for one in (*content["models"], *content["floors"])]
        for one in found:
            for examples in (side["examples"] for side in one.values()):
                for example in examples:
                    del example["name"]
        return found

    expected = json.loads(json.dumps(comparison.to_dict()))
    distributed = results(in_two_processes(*words))
    assert distributed == results(json.dumps(expected))
    assert (tmp_path / "run" / "generation-1.jsonl").stat().st_size
    lines = (tmp_path / "run" / "generation-1.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "generation-1.jsonl").write_text(lines[0] + lines[1][:30])
    assert main([*map(str, words), "--resume"]) == 0
    assert results(capsys.readouterr().out) == distributed


def test_intervals_of_the_length_end_at_the_largest_length() -> None:
    sums = TrajectorySums()
    for document, (length, is_ended) in enumerate([(3, False)] * 9 + [(1, True)]):
        example = {"kl": 0.0, "document": document, "sample": 0}
        sums.add(document, np.zeros(length), is_ended=is_ended, example=example)
    longer, found = sums.summary(), sums.summary(3)
    assert found.tokens.value == longer.tokens.value == 2.8
    assert longer.tokens.interval[1] > 3
    assert found.tokens.interval == (longer.tokens.interval[0], 3)


def test_the_command_prints_the_continuations(
    tiny_model: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("12+34=46")
    assert main(["compare", str(tiny_model), str(model), "--text", str(tmp_path), "--generate", "4"]) == 0
    output = capsys.readouterr().out
    assert "free running, a continuation of at most 4 tokens for each of 1 prompts" in output
    for label in ("nats per continuation", "standard error", "on the text", "token 2-4"):
        assert label in output


def test_the_prompt_of_a_chat_precedes_its_last_answer(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '+' if m.role == 'user' else '=' }}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}={% endif %}"
    )
    chats = [
        [("user", "12"), ("assistant", "3"), ("user", "4"), ("assistant", "56")],
        [("user", "7"), ("assistant", "8"), ("user", "9")],
    ]
    documents = [
        Document("chat", [{"role": role, "content": content} for role, content in messages]) for messages in chats
    ]
    corpus = encode([*documents, Document("text", "12345")], tokenizer, prompts=True)
    prompts, left_out = choose_prompts(corpus, GenerationSettings(4), None)
    assert [tokenizer.decode(prompt.ids).replace(" ", "") for prompt in prompts] == ["+12=3+4=", "+7=", "12"]
    assert left_out == 0
    prompts, left_out = choose_prompts(corpus, GenerationSettings(4, prompt_tokens=2), 5)
    assert [tokenizer.decode(prompt.ids).replace(" ", "") for prompt in prompts] == ["+7=", "12"]
    assert left_out == 1


def test_documents_are_drawn_by_the_seed(tiny_model: Path) -> None:
    corpus = encode([Document(str(i), text) for i, text in enumerate(TEXTS)], AutoTokenizer.from_pretrained(tiny_model))
    drawn = [
        [prompt.document for prompt in choose_prompts(corpus, GenerationSettings(4, prompts=5, seed=seed), None)[0]]
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 5


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"generate": 0}, "--generate: expected at least 1, got 0"),
        ({"generate": 40}, "--generate 40: expected a prompt and a continuation of at most 32 tokens"),
        ({"generate": 4, "prompts": 0}, "--prompts: expected at least 1"),
        ({"generate": 4, "prompt_tokens": 0}, "--prompt-tokens: expected at least 1"),
        ({"generate": 4, "continuations": 0}, "--continuations: expected at least 1"),
        ({"generate": 4, "seed": -1}, "--seed: expected at least 0"),
    ],
)
def test_invalid_settings_are_refused(tiny_model: Path, settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        kullback.compare(tiny_model, tiny_model, text=TEXTS, **settings)


def test_options_of_continuations_require_generate(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("12+34=46")
    words = ["compare", str(tiny_model), str(tiny_model), "--text", str(tmp_path), "--prompt-tokens", "3"]
    assert main(words) == 2
    assert "--prompt-tokens: expected --generate N too, got none" in capsys.readouterr().err
