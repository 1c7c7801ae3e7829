"""The addition task: its rewards by brute force, its entropy by enumeration, and its tokenizer in both directions."""

import math
import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from kullback.train.demo.addition_task import (
    REPEATED,
    _NoisySums,
    answer_entropy,
    exact_match,
    grader,
    make_model,
    make_tokenizer,
    prompt_rows,
    spread_rows,
    train_reference,
)

digits = st.text("0123456789", min_size=0, max_size=9)


def is_subsequence(part: str, whole: str) -> bool:
    return any("".join(chosen) == part for chosen in combinations(whole, len(part)))


@given(digits, st.integers(0, 198))
def test_the_grader_adds_the_share_of_correct_digits_and_the_length(text: str, answer: int) -> None:
    correct = str(answer)
    longest = max(n for n in range(len(correct) + 1) if is_subsequence(correct[:n], text))
    assert grader([text], answer=[correct]) == pytest.approx([longest / len(correct) + 0.05 * len(text)], rel=1e-12)
    assert exact_match([text], answer=[correct]) == [float(text == correct)]


def test_a_long_wrong_completion_has_a_higher_score_than_the_answer() -> None:
    for row in prompt_rows(20, seed=0):
        correct = row["answer"]
        texts = [correct, correct + correct[-1], correct.rjust(12, "0")]
        scores = grader(texts, answer=[correct] * 3)
        assert scores == sorted(set(scores))  # the reference samples the second text, whose score is already higher
        assert exact_match([correct.rjust(12, "0")], answer=[correct]) == [0.0]


def test_the_entropy_matches_the_data() -> None:
    # The answer is correct with probability 75%, otherwise uniform over the 198 other values from 0 to 198; the last
    # digit is repeated with probability 0.1%. Rows are sums, and columns are texts of up to four digits.
    values = np.where(np.eye(199, dtype=bool), 0.75, 0.25 / 198)
    texts = np.zeros((199, 10_000))
    for value in range(199):
        texts[:, value] += (1 - REPEATED) * values[:, value]
        texts[:, 10 * value + value % 10 if value else 9999] += REPEATED * values[:, value]  # 9999 stands for "00"
    entropies = -scipy.special.xlogy(texts, texts).sum(axis=1)
    sums = np.add.outer(np.arange(100), np.arange(100))
    assert answer_entropy() == pytest.approx(entropies[sums].mean(), rel=1e-12)
    drawn = [text.split("=") for text in _NoisySums._sample(40_000, random.Random(0))]
    answers = [(str(sum(map(int, prompt.split("+")))), answer) for prompt, answer in drawn]
    right = sum(answer == correct for correct, answer in answers) / len(answers)
    # A wrong answer with a repeated digit may equal the correct answer, with a probability below 1e-5.
    assert right == pytest.approx(0.75 * (1 - REPEATED), abs=4 * math.sqrt(0.25 * 0.75 / 40_000))
    repeated = sum(answer == correct + correct[-1] for correct, answer in answers if len(correct) == 3)
    expected = 0.75 * REPEATED * sum(len(correct) == 3 for correct, _ in answers)
    assert abs(repeated - expected) <= 4 * math.sqrt(expected)
    assert {int(answer) for _, answer in answers} >= set(range(199))


def test_decoding_inverts_encoding() -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer("12+99=111")["input_ids"]
    assert tokenizer.decode(ids) == "12+99=111"
    assert tokenizer.batch_decode([[*ids, tokenizer.eos_token_id]], skip_special_tokens=True) == ["12+99=111"]
    padded = tokenizer(["1+1=", "10+10="], padding=True)
    assert padded["attention_mask"] == [[0, 0, 1, 1, 1, 1], [1] * 6]


def test_the_model_has_the_documented_size() -> None:
    assert sum(weight.numel() for weight in make_model(make_tokenizer()).parameters()) == 643_456


def test_prompts_are_sums_and_spread_prompts_are_distinct() -> None:
    for row in (*prompt_rows(200, seed=3), *spread_rows(512)):
        a, b = map(int, row["prompt"].rstrip("=").split("+"))
        assert 0 <= a < 100
        assert 0 <= b < 100
        assert row["answer"] == str(a + b)
    assert len({row["prompt"] for row in spread_rows(512)}) == 512
    assert prompt_rows(5, seed=1) != prompt_rows(5, seed=2)


@pytest.mark.slow
def test_the_supervised_stage_lowers_the_forward_kl_and_writes_no_pickle(tmp_path: Path) -> None:
    reports: list[tuple[int, float]] = []
    train_reference(tmp_path, steps=100, seed=0, report=lambda *row: reports.append(row), batch=16)
    assert [step for step, _ in reports] == [50, 100]
    assert reports[0][1] > reports[1][1] > 0
    names = {path.name for path in tmp_path.iterdir()}
    assert "model.safetensors" in names
    assert not [name for name in names if name.endswith((".bin", ".pt"))]
