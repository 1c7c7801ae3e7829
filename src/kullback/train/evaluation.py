"""What a policy does on a fixed set of prompts: its KL from the reference, its rewards, how its text looks."""

import asyncio
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerState

from kullback.integrations.transformers import completion_entropy, completion_kl, head_of, last_hidden, sample
from kullback.result import Estimate
from kullback.samples.clustered_mean import kl_per_sequence, kl_per_token
from kullback.train.rewards import Reward

__all__ = ["Evaluation"]

Row = dict[str, Any]
_BATCH = 128
_SHOWN = 12
_NOT_COLUMNS = ("prompt", "completion", "completion_ids")  # TRL hands these over by other names


@dataclass(frozen=True)
class Evaluation:
    """A fixed set of prompts to judge a policy by: one training batch is too noisy for that.

    Args:
        rows: Each with a "prompt" and the columns that the rewards take.
        rewards: Called as TRL calls them.
        tokenizer: The policy's, padding on the left.
        max_new_tokens: Where a completion is cut.
        temperature: At which the policy samples in training.
        rank: Which process this is; the prompts are shared out among them.
        processes: How many there are.
        seed: Of the sampling; the training's own random numbers are left alone.
    """

    rows: Sequence[Row]
    rewards: Sequence[Reward]
    tokenizer: Any
    max_new_tokens: int
    temperature: float
    rank: int = 0
    processes: int = 1
    seed: int = 0

    @property
    def names(self) -> list[str]:
        """The rewards by name."""
        return [reward.__name__ for reward in self.rewards]

    def measure(self, policy: Any, reference: Any, *, step: int) -> tuple[Row, list[Row]]:
        """One row of numbers over all the prompts, and some completions to look at; the same in every process."""
        was_training = policy.training
        policy.eval()
        devices = [policy.device] if policy.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices), torch.no_grad():
                torch.manual_seed(self.seed + self.rank)
                mine: list[Row] = []
                indices = range(self.rank, len(self.rows), self.processes)
                for start in range(0, len(indices), _BATCH):
                    mine += self._judge(policy, reference, indices[start : start + _BATCH])
        finally:
            policy.train(was_training)
        results = sorted(gather_object(mine), key=lambda result: result["index"])
        shown = results[:: max(1, len(results) // _SHOWN)][:_SHOWN]
        samples = [{key: result[key] for key in ("prompt", "completion", "rewards")} for result in shown]
        return {"step": step, **self._summary(results)}, samples

    def _judge(self, policy: Any, reference: Any, indices: range) -> list[Row]:
        rows = [self.rows[index] for index in indices]
        prompts = [row["prompt"] for row in rows]
        drawn = sample(
            policy, self.tokenizer, prompts, max_new_tokens=self.max_new_tokens, temperature=self.temperature
        )
        head, hidden = head_of(policy), last_hidden(policy, drawn.ids, drawn.attention)
        ref_head, ref_hidden = head_of(reference), last_hidden(reference, drawn.ids, drawn.attention)
        kl = completion_kl(head, hidden, ref_head, ref_hidden, drawn.mask, temperature=self.temperature)
        entropy = completion_entropy(head, hidden, drawn.mask, temperature=self.temperature)
        written = drawn.ids[:, -drawn.mask.shape[1] :]
        ids = [row[keep].tolist() for row, keep in zip(written, drawn.mask, strict=True)]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        rewards = self._rewards(rows, prompts, texts, ids)
        return [
            {
                "index": index,
                "prompt": _text(prompts[i]),
                "completion": texts[i],
                "rewards": {name: values[i] for name, values in rewards.items()},
                "kl": float(kl[i].sum()),
                "entropy": float(entropy[i].sum()),
                "length": len(ids[i]),
                "repetition": _repetition(ids[i]),
                "truncated": float(ids[i][-1] != self.tokenizer.eos_token_id),
            }
            for i, index in enumerate(indices)
        ]

    def _rewards(
        self, rows: Sequence[Row], prompts: Sequence[Any], texts: Sequence[str], ids: Sequence[list[int]]
    ) -> dict[str, list[float | None]]:
        chat = not isinstance(prompts[0], str)
        arguments = {
            "prompts": prompts,
            "completions": [[{"role": "assistant", "content": text}] for text in texts] if chat else list(texts),
            "completion_ids": ids,
            **{
                key: [row[key] for row in rows]
                for key in rows[0]
                if key not in ("prompt", "completion", "completion_ids")
            },
            "trainer_state": TrainerState(),
            "log_extra": lambda *_: None,
            "log_metric": lambda *_: None,
        }
        return {name: _called(reward, arguments) for name, reward in zip(self.names, self.rewards, strict=True)}

    def _summary(self, results: Sequence[Row]) -> Row:
        kl, lengths = [r["kl"] for r in results], [r["length"] for r in results]
        prompts = [r["index"] for r in results]
        token, sequence = kl_per_token(kl, lengths, prompts), kl_per_sequence(kl, prompts)
        return {
            "count": len(results),
            **_named("kl_policy_ref_per_token", token),
            **_named("kl_policy_ref_per_sequence", sequence),
            **{f"rewards/{name}": _mean([r["rewards"][name] for r in results]) for name in self.names},
            "entropy": sum(r["entropy"] for r in results) / sum(lengths),
            "repetition": _mean([r["repetition"] for r in results]),
            "completion_length": _mean(lengths),
            "truncated": _mean([r["truncated"] for r in results]),
        }


def _called(reward: Reward, arguments: Mapping[str, Any]) -> list[float | None]:
    values = reward(**arguments)
    return asyncio.run(values) if inspect.iscoroutine(values) else values


def _named(name: str, estimate: Estimate) -> Row:
    return {name: estimate.value, f"{name}_std_error": estimate.std_error}


def _mean(values: Sequence[float | None]) -> float:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else math.nan


def _repetition(ids: Sequence[int]) -> float:
    """The share of adjacent pairs of tokens that the completion holds already."""
    pairs = list(pairwise(ids))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(f"{one['role']}: {one['content']}" for one in prompt)
