"""A language task with enumerable completions: the exact reward-KL frontier, and exact KL and reward of a policy."""

from collections import defaultdict
from collections.abc import Sequence
from copy import deepcopy
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import brentq
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kullback import kl_log_probs, kl_probs
from kullback.optimum.sequences import Sequences, enumerate_sequences, tabulate
from kullback.optimum.tilt import Frontier, frontier

__all__ = [
    "MAX_TOKENS",
    "PROMPTS",
    "Gradient",
    "Task",
    "make_reference",
    "make_tokenizer",
    "reward",
    "stationary_point",
    "successors",
]

PROMPTS = "abcd"  # tokens 1 to 4; 0 is the end
MAX_TOKENS = 5
Gradient = Literal["sequence", "token", "k3"]


def make_reference(seed: int) -> LlamaForCausalLM:
    """Return a Llama with random weights whose next-token distributions are far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(PROMPTS) + 1,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=0,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per letter, and an end token."""
    vocabulary = {token: index for index, token in enumerate(["<end>", *PROMPTS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<end>", eos_token="<end>", padding_side="left", model_max_length=16
    )


def successors(completion: Sequence[int], prompt: int) -> float:
    """Return the share of the five positions whose letter is the successor of the letter before it (a follows d)."""
    before = [prompt, *completion]
    return sum(token == last % len(PROMPTS) + 1 for last, token in zip(before, completion, strict=False)) / MAX_TOKENS


def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    """Return `successors` of each completion, with the signature of TRL's reward functions."""
    return [successors(ids, PROMPTS.index(prompt) + 1) for prompt, ids in zip(prompts, completion_ids, strict=True)]


class Task:
    """All completions of each prompt, their rewards, and the reward-KL frontier of a reference.

    Args:
        reference: The reference policy, whose completions are enumerated.
    """

    def __init__(self, reference: LlamaForCausalLM) -> None:
        self.reference = reference
        exact = deepcopy(reference).double()
        self.completions = [_enumerate(exact, prompt) for prompt in range(1, len(PROMPTS) + 1)]
        self.completion_rewards = [
            np.array([successors(row[:size].tolist(), prompt) for row, size in zip(c.tokens, c.lengths, strict=True)])
            for prompt, c in enumerate(self.completions, start=1)
        ]
        self.ref, self.rewards = tabulate(self.completions, self.completion_rewards)
        self.contexts = np.full(len(PROMPTS), 1 / len(PROMPTS))
        self.frontier: Frontier = frontier(self.ref, self.rewards, contexts=self.contexts)

    @property
    def reference_reward(self) -> float:
        """The expected reward of the reference."""
        return float(self.frontier.expected_reward[0])

    @torch.no_grad()
    def evaluate(self, policy: LlamaForCausalLM) -> tuple[float, float]:
        """Return KL(policy || reference) in nats per completion and the expected reward: sums over all completions."""
        policy = deepcopy(policy).double().eval()
        kls, expected_rewards = [], []
        pairs = zip(self.completions, self.completion_rewards, strict=True)
        for prompt, (completions, rewards) in enumerate(pairs, start=1):
            generated = torch.from_numpy(completions.tokens >= 0)
            tokens = torch.from_numpy(completions.tokens).clamp(min=0)
            ids = torch.cat([torch.full((len(tokens), 1), prompt), tokens], dim=1)
            logs = policy(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
            log_probs = torch.where(generated, logs, 0.0).sum(dim=1).numpy()
            kls.append(float(kl_log_probs(log_probs, completions.log_probs)))
            expected_rewards.append(float(np.exp(log_probs) @ rewards))
        return fmean(kls), fmean(expected_rewards)

    def stationary_point(self, beta: float, gradient: Gradient) -> tuple[float, float]:
        """Return KL and expected reward at the stationary point of a penalty's gradient, for a tabular policy.

        A tabular policy has independent logits at every prefix. With Q the expected reward after a token, C the
        expected KL of the tokens that follow it, and V the mean of Q under the policy:

            "sequence": policy ~ ref e^(Q/beta - C), the optimum;
            "token":    policy ~ ref e^(Q/beta): the gradient of a token does not include later KL;
            "k3":       policy = ref / (1 + (V - Q)/beta): the gradient of k3 is the gradient of KL(ref || policy).
        """
        pairs = zip(self.completions, self.completion_rewards, strict=True)
        points = [stationary_point(completions, rewards, beta, gradient) for completions, rewards in pairs]
        return fmean(kl for _, kl in points), fmean(reward for reward, _ in points)


def _enumerate(model: LlamaForCausalLM, prompt: int) -> Sequences:
    @torch.no_grad()
    def next_logits(prefixes: np.ndarray) -> np.ndarray:
        ids = torch.from_numpy(np.pad(prefixes, ((0, 0), (1, 0)), constant_values=prompt))
        return model(input_ids=ids).logits[:, -1].numpy()

    return enumerate_sequences(next_logits, max_tokens=MAX_TOKENS, end=0)


def stationary_point(
    completions: Sequences, rewards: np.ndarray, beta: float, gradient: Gradient
) -> tuple[float, float]:
    """Return the expected reward and the KL of one prompt at the stationary point, by recursion from the last token."""
    mass: dict[tuple[int, ...], float] = defaultdict(float)
    to_go: dict[tuple[int, ...], tuple[float, float]] = {}
    columns = (completions.tokens, completions.lengths, completions.log_probs, rewards)
    for row, size, log_prob, value in zip(*columns, strict=True):
        completion = tuple(row[:size].tolist())
        to_go[completion] = (value, 0.0)
        for end in range(size + 1):
            mass[completion[:end]] += np.exp(log_prob)
    following = defaultdict(list)
    for prefix in mass:
        if prefix:
            following[prefix[:-1]].append(prefix)
    for prefix in sorted(following, key=len, reverse=True):
        ref = np.array([mass[each] for each in following[prefix]]) / mass[prefix]
        q, cost = np.array([to_go[each] for each in following[prefix]]).T
        if gradient == "k3":
            policy = _k3_stationary_policy(ref, q, beta)
        else:
            gain = q / beta - (cost if gradient == "sequence" else 0.0)
            policy = ref * np.exp(gain - gain.max())
            policy /= policy.sum()
        to_go[prefix] = (float(policy @ q), float(policy @ cost + kl_probs(policy, ref)))
    return to_go[()]


def _k3_stationary_policy(ref: np.ndarray, q: np.ndarray, beta: float) -> np.ndarray:
    """Solve policy = ref / (1 + (V - Q)/beta) for the policy."""
    if np.ptp(q) == 0:
        return ref
    best = q.argmax()
    # The unknown is the probability of the best token instead of V: the sum of the policy is a smooth function of it.
    share = brentq(lambda p: (ref / (ref[best] / p + (q[best] - q) / beta)).sum() - 1, ref[best] * 0.5, 1.0, xtol=1e-14)
    policy = ref / (ref[best] / share + (q[best] - q) / beta)
    return policy / policy.sum()
