"""A language task so small that all it can write is listed: its exact frontier, and exactly where a policy stands."""

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
    "LONGEST",
    "PROMPTS",
    "Gradient",
    "Task",
    "make_reference",
    "make_tokenizer",
    "rested",
    "reward",
    "successors",
]

PROMPTS = "abcd"  # tokens 1 to 4; 0 is the end
LONGEST = 5
Gradient = Literal["sequence", "token", "k3"]


def make_reference(seed: int) -> LlamaForCausalLM:
    """A Llama with random weights, far from uniform: what it writes after some letters is nearly certain."""
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
    """One token a letter, and the end."""
    vocabulary = {token: index for index, token in enumerate(["<end>", *PROMPTS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<end>", eos_token="<end>", padding_side="left", model_max_length=16
    )


def successors(completion: Sequence[int], prompt: int) -> float:
    """The share of the five places that hold the letter after the one before (a after d)."""
    before = [prompt, *completion]
    return sum(token == last % len(PROMPTS) + 1 for last, token in zip(before, completion, strict=False)) / LONGEST


def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    """The same, as TRL asks for it."""
    return [successors(ids, PROMPTS.index(prompt) + 1) for prompt, ids in zip(prompts, completion_ids, strict=True)]


class Task:
    """All completions of each prompt, what they earn, and the frontier of a reference."""

    def __init__(self, reference: LlamaForCausalLM) -> None:
        self.reference = reference
        exact = deepcopy(reference).double()
        self.found = [_listed(exact, prompt) for prompt in range(1, len(PROMPTS) + 1)]
        self.earned = [
            np.array([successors(row[:size].tolist(), prompt) for row, size in zip(f.tokens, f.lengths, strict=True)])
            for prompt, f in enumerate(self.found, start=1)
        ]
        self.ref, self.rewards = tabulate(self.found, self.earned)
        self.contexts = np.full(len(PROMPTS), 1 / len(PROMPTS))
        self.frontier: Frontier = frontier(self.ref, self.rewards, contexts=self.contexts)

    @property
    def base(self) -> float:
        """What the reference earns."""
        return float(self.frontier.expected_reward[0])

    @torch.no_grad()
    def judged(self, policy: LlamaForCausalLM) -> tuple[float, float]:
        """KL(policy || reference) of completions, nats, and the expected reward: sums over all completions."""
        policy = deepcopy(policy).double().eval()
        kl, earned = [], []
        for prompt, (found, each) in enumerate(zip(self.found, self.earned, strict=True), start=1):
            written = torch.from_numpy(found.tokens >= 0)
            tokens = torch.from_numpy(found.tokens).clamp(min=0)
            ids = torch.cat([torch.full((len(tokens), 1), prompt), tokens], dim=1)
            logs = policy(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
            log_probs = torch.where(written, logs, 0.0).sum(dim=1).numpy()
            kl.append(float(kl_log_probs(log_probs, found.log_probs)))
            earned.append(float(np.exp(log_probs) @ each))
        return fmean(kl), fmean(earned)

    def rest(self, beta: float, gradient: Gradient) -> tuple[float, float]:
        """KL and reward where a penalty's gradient leaves a policy that is free at every prefix.

        With Q the reward that a token leads to, C the KL that follows it, and V the mean of Q under the policy:

            "sequence": policy ~ ref e^(Q/beta - C), the optimum;
            "token":    policy ~ ref e^(Q/beta), since no token answers for later KL;
            "k3":       policy = ref / (1 + (V - Q)/beta), since k3's gradient is that of KL(ref || policy).
        """
        ends = [rested(found, each, beta, gradient) for found, each in zip(self.found, self.earned, strict=True)]
        return fmean(kl for _, kl in ends), fmean(earned for earned, _ in ends)


def _listed(model: LlamaForCausalLM, prompt: int) -> Sequences:
    @torch.no_grad()
    def next_logits(prefixes: np.ndarray) -> np.ndarray:
        ids = torch.from_numpy(np.pad(prefixes, ((0, 0), (1, 0)), constant_values=prompt))
        return model(input_ids=ids).logits[:, -1].numpy()

    return enumerate_sequences(next_logits, max_tokens=LONGEST, end=0)


def rested(found: Sequences, earned: np.ndarray, beta: float, gradient: Gradient) -> tuple[float, float]:
    """The reward and the KL of one prompt's completions, from the last token to the first."""
    mass: dict[tuple[int, ...], float] = defaultdict(float)
    ahead: dict[tuple[int, ...], tuple[float, float]] = {}
    for row, size, log_prob, each in zip(found.tokens, found.lengths, found.log_probs, earned, strict=True):
        completion = tuple(row[:size].tolist())
        ahead[completion] = (each, 0.0)
        for end in range(size + 1):
            mass[completion[:end]] += np.exp(log_prob)
    following = defaultdict(list)
    for prefix in mass:
        if prefix:
            following[prefix[:-1]].append(prefix)
    for prefix in sorted(following, key=len, reverse=True):
        ref = np.array([mass[each] for each in following[prefix]]) / mass[prefix]
        q, cost = np.array([ahead[each] for each in following[prefix]]).T
        if gradient == "k3":
            policy = _where_k3_rests(ref, q, beta)
        else:
            gain = q / beta - (cost if gradient == "sequence" else 0.0)
            policy = ref * np.exp(gain - gain.max())
            policy /= policy.sum()
        ahead[prefix] = (float(policy @ q), float(policy @ cost + kl_probs(policy, ref)))
    return ahead[()]


def _where_k3_rests(ref: np.ndarray, q: np.ndarray, beta: float) -> np.ndarray:
    if np.ptp(q) == 0:
        return ref
    best = q.argmax()
    # V lies where all probabilities are positive and none exceeds 1; in terms of the best token's, which is smooth.
    share = brentq(lambda p: (ref / (ref[best] / p + (q[best] - q) / beta)).sum() - 1, ref[best] * 0.5, 1.0, xtol=1e-14)
    policy = ref / (ref[best] / share + (q[best] - q) / beta)
    return policy / policy.sum()
