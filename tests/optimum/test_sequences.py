"""Enumerated language tasks: the optimum over sequences agrees with dynamic programming over prefixes."""

import itertools
import math

import numpy as np
import pytest
from scipy.special import log_softmax

from kullback.discrete.kl import kl_probs
from kullback.errors import InputError, ShapeError, SupportError
from kullback.optimum.mdp import MDP
from kullback.optimum.sequences import enumerate_sequences, next_token_probs, tabulate
from kullback.optimum.soft_value_iteration import soft_value_iteration
from kullback.optimum.tilt import frontier, tilt, tilt_to_budget
from kullback.optimum.trajectory_kl import trajectory_kl

VOCABULARY, END = 4, 3


def make_model(seed):
    """A reference whose next token depends on the whole prefix; the first token is never 2."""

    def next_logits(prefixes):
        rows = []
        for prefix in prefixes:
            logits = np.random.default_rng([seed, *prefix.tolist()]).normal(size=VOCABULARY) * 1.5 + 7
            rows.append(np.where((np.arange(VOCABULARY) == 2) & (len(prefix) == 0), -math.inf, logits))
        return np.asarray(rows, dtype=np.float32)

    return next_logits


def rewards(found):
    """A reward that depends on the order: +1 for each 0 after a 1, and -0.1 for each token."""
    pays = ((found.tokens[:, 1:] == 0) & (found.tokens[:, :-1] == 1)).sum(axis=1)
    return pays - 0.1 * found.lengths


def test_every_completion_is_listed_once_with_its_probability():
    found = enumerate_sequences(make_model(0), max_tokens=4, end=END)
    texts = [tuple(row[row >= 0].tolist()) for row in found.tokens]
    expected = {
        text
        for size in range(1, 5)
        for text in itertools.product(range(VOCABULARY), repeat=size)
        if END not in text[:-1] and (text[-1] == END or size == 4) and text[0] != 2
    }
    assert set(texts) == expected
    assert len(texts) == len(expected)
    for text, log_prob in zip(texts, found.log_probs, strict=True):
        parts = [log_softmax(make_model(0)(np.asarray([text[:t]]))[0].astype(float))[text[t]] for t in range(len(text))]
        assert log_prob == pytest.approx(sum(parts), rel=1e-13)
    assert np.exp(found.log_probs).sum() == pytest.approx(1, rel=1e-13)
    assert found.rest == 0
    assert (found.lengths == [len(text) for text in texts]).all()


def test_without_an_end_token_all_completions_have_the_maximal_length():
    found = enumerate_sequences(lambda prefixes: np.zeros((len(prefixes), 3)), max_tokens=3)
    assert found.tokens.shape == (27, 3)
    assert np.exp(found.log_probs) == pytest.approx(np.full(27, 1 / 27))


def soft_prefix_value(next_logits, beta, prefix=(), longest=4):
    """The soft Bellman value of a prefix, by recursion: beta log sum ref e^(value of the extended prefix / beta)."""
    if prefix and (prefix[-1] == END or len(prefix) == longest):
        row = np.asarray([[*prefix, *[-1] * (longest - len(prefix))]])
        pays = ((row[:, 1:] == 0) & (row[:, :-1] == 1)).sum()
        return pays - 0.1 * len(prefix)
    log_ref = log_softmax(next_logits(np.asarray([prefix], dtype=np.int64).reshape(1, -1))[0].astype(float))
    follow = [
        soft_prefix_value(next_logits, beta, (*prefix, token), longest) if log_ref[token] > -math.inf else 0.0
        for token in range(VOCABULARY)
    ]
    return beta * np.log(np.exp(log_ref + np.asarray(follow) / beta).sum())


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
def test_the_tilt_of_sequences_agrees_with_the_soft_bellman_equation(beta):
    found = enumerate_sequences(make_model(1), max_tokens=4, end=END)
    ref, reward = tabulate([found], [rewards(found)])
    best = tilt(ref[0], reward[0], beta)
    assert float(best.objective) == pytest.approx(soft_prefix_value(make_model(1), beta), rel=1e-12)
    # Each conditional distribution is the tilt by the soft values of the extended prefixes.
    for prefix in [(), (1,), (1, 0), (0, 2, 1)]:
        conditional = next_token_probs(found, best.policy, prefix, VOCABULARY)
        log_ref = log_softmax(make_model(1)(np.asarray([prefix], dtype=np.int64).reshape(1, -1))[0].astype(float))
        values = [
            soft_prefix_value(make_model(1), beta, (*prefix, token)) if log_ref[token] > -math.inf else 0.0
            for token in range(VOCABULARY)
        ]
        assert conditional == pytest.approx(tilt(np.exp(log_ref), values, beta).policy, rel=1e-11)


def test_the_kl_of_sequences_is_the_sum_of_conditional_kls():
    found = enumerate_sequences(make_model(2), max_tokens=3, end=END)
    ref, reward = tabulate([found], [rewards(found)])
    best = tilt_to_budget(ref[0], reward[0], 0.4)
    total = 0.0
    for size in range(3):
        for prefix in itertools.product(range(END), repeat=size):
            visits = best.policy[: len(found.tokens)][(found.tokens[:, :size] == prefix).all(axis=1)].sum()
            if visits > 0:
                pair = [next_token_probs(found, probs, prefix, VOCABULARY) for probs in (best.policy, ref[0])]
                total += visits * kl_probs(*pair)
    assert total == pytest.approx(0.4, rel=1e-11)


def test_a_markov_reference_agrees_with_the_mdp_solution():
    # The state is the last token, or 3 at the start. The reward is +1 for each 0 after a 1, and -0.1 for each token.
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(4, 3))
    found = enumerate_sequences(lambda p: logits[p[:, -1] if p.shape[1] else np.full(len(p), 3)], max_tokens=5)
    table = np.broadcast_to(np.eye(4)[:3], (4, 3, 4))
    paid = np.full((4, 3), -0.1)
    paid[1, 0] += 1
    mdp = MDP(table, paid, horizon=5, initial=np.eye(4)[3])
    ref = np.exp(log_softmax(logits, axis=1))
    best = soft_value_iteration(mdp, 0.3, ref)
    whole = tilt(np.exp(found.log_probs), rewards(found), 0.3)
    assert best.objective == pytest.approx(float(whole.objective), rel=1e-12)
    assert trajectory_kl(mdp, best.policy, ref) == pytest.approx(float(whole.kl), rel=1e-11)
    assert best.policy[0, 3] == pytest.approx(next_token_probs(found, whole.policy, [], 3), rel=1e-12)
    assert best.policy[2, 1] == pytest.approx(next_token_probs(found, whole.policy, [0, 1], 3), rel=1e-11)


def test_several_prompts_share_a_budget():
    found = [enumerate_sequences(make_model(seed), max_tokens=3, end=END) for seed in range(3)]
    ref, reward = tabulate(found, [rewards(each) for each in found])
    curve = frontier(ref, reward, contexts=np.full(3, 1 / 3), points=9)
    assert curve.kl[-1] == pytest.approx(tilt(ref, reward, 0.0).kl.mean(), rel=1e-12)
    assert (np.diff(curve.expected_reward) > 0).all()


def test_omitted_completions_bound_the_optimum_from_both_sides():
    whole = enumerate_sequences(make_model(4), max_tokens=4, end=END)
    part = enumerate_sequences(make_model(4), max_tokens=4, end=END, min_prob=2e-3)
    assert 0 < part.rest < 0.2
    assert len(part.tokens) < len(whole.tokens)
    assert np.exp(part.log_probs).sum() + part.rest == pytest.approx(1, rel=1e-12)
    for budget in (0.01, 0.3, 2.0):
        exact = float(tilt_to_budget(np.exp(whole.log_probs), rewards(whole), budget).expected_reward)
        low, high = (
            float(
                tilt_to_budget(
                    *(row[0] for row in tabulate([part], [rewards(part)], rest_reward=r)), budget
                ).expected_reward
            )
            for r in (rewards(whole).min(), rewards(whole).max())
        )
        assert low < exact < high
    with pytest.raises(InputError, match="rest_reward"):
        tabulate([part], [rewards(part)])


def test_invalid_arguments_raise():
    def coin(prefixes):
        return np.zeros((len(prefixes), 2))

    with pytest.raises(InputError, match="at most 100 sequences, but there are 128"):
        enumerate_sequences(coin, max_tokens=30, limit=100)
    with pytest.raises(InputError, match="max_tokens"):
        enumerate_sequences(coin, max_tokens=0)
    with pytest.raises(ShapeError, match=r"logits of shape \(1, vocabulary\), got \(2,\)"):
        enumerate_sequences(lambda prefixes: np.zeros(2), max_tokens=1)
    with pytest.raises(SupportError, match=r"next_logits\[0, 1\] is nan"):
        enumerate_sequences(lambda prefixes: [[0.0, math.nan]], max_tokens=1)
    found = enumerate_sequences(coin, max_tokens=2)
    with pytest.raises(ShapeError, match=r"rewards of shape \(4,\)"):
        tabulate([found], [[1.0, 2.0]])
    with pytest.raises(ShapeError, match="each of 1 prompts"):
        tabulate([found], [])
    with pytest.raises(InputError, match=r"positive probability, got \[5\]"):
        next_token_probs(found, np.full(4, 0.25), [5], 2)
