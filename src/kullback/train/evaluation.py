"""Evaluation of a language-model policy on a fixed set of prompts: KL from the reference, rewards, text statistics."""

import asyncio
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerState

from kullback.integrations.transformers import (
    AnyHead,
    Completions,
    completion_entropy,
    completion_kl,
    end_tokens,
    head_of,
    last_hidden,
    sample,
)
from kullback.result import Estimate
from kullback.runs.finite import finite_outputs
from kullback.samples.clustered_mean import kl_per_sequence, kl_per_token
from kullback.train.rewards import Reward

__all__ = ["Evaluation"]

Row = dict[str, Any]
_BATCH = 128  # prompts that are sampled at once
_MAX_SAMPLES = 12  # completions that are kept for the report
_RESERVED_COLUMNS = ("prompt", "completion", "completion_ids")  # TRL passes these to rewards under plural names


@dataclass(frozen=True)
class Evaluation:
    """Evaluates a policy on a fixed set of prompts, which has less noise than one training batch.

    Args:
        rows: The prompts. Each row has a "prompt" and the columns that the rewards take.
        rewards: Reward functions, called with the arguments that TRL passes.
        tokenizer: The policy's tokenizer, with padding on the left.
        max_new_tokens: The maximum length of a completion in tokens.
        temperature: The sampling temperature of training.
        rank: The index of this process. The prompts are divided among all processes.
        processes: The number of processes.
        seed: The seed of the sampling. The state of the global random number generators is not changed.
        chat_template_kwargs: Further arguments of the tokenizer's chat template, as in training.
    """

    rows: Sequence[Row]
    rewards: Sequence[Reward]
    tokenizer: Any
    max_new_tokens: int
    temperature: float
    rank: int = 0
    processes: int = 1
    seed: int = 0
    chat_template_kwargs: Mapping[str, Any] | None = None

    @property
    def names(self) -> list[str]:
        """The names of the rewards."""
        return [reward.__name__ for reward in self.rewards]

    def measure(self, policy: Any, reference: Any, *, step: int) -> tuple[Row, list[Row]]:
        """Sample one completion of each prompt, and average KL(policy || reference), rewards and text statistics.

        Args:
            policy: The language model that is evaluated. It is put into evaluation mode for the measurement.
            reference: The reference language model; or a function that returns the output head and the last hidden
                states of the reference on completions, for a reference that is the policy with other weights.
            step: The optimizer step, which is stored in the row.

        Returns:
            A row of averages, with KL in nats per token and per sequence, and up to 12 rows with "prompt", "columns"
            (the further columns of the prompt), "completion", "rewards" and "tokens" (the text of each token and its
            KL in nats). Both are the same in every process.
        """
        was_training = policy.training
        policy.eval()
        devices = [policy.device] if policy.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices), torch.no_grad(), finite_outputs(lambda: step):
                torch.manual_seed(self.seed + self.rank)
                local: list[Row] = []
                indices = range(self.rank, len(self.rows), self.processes)
                for start in range(0, len(indices), _BATCH):
                    local += self._measure_batch(policy, reference, indices[start : start + _BATCH])
        finally:
            policy.train(was_training)
        results = sorted(gather_object(local), key=lambda result: result["index"])
        selected = results[:: max(1, len(results) // _MAX_SAMPLES)][:_MAX_SAMPLES]
        samples = [
            {
                **{key: result[key] for key in ("prompt", "columns", "completion", "rewards")},
                "tokens": self._tokens(result["ids"], result["token_kl"]),
            }
            for result in selected
        ]
        return {"step": step, **self._summary(results)}, samples

    def _measure_batch(self, policy: Any, reference: Any, indices: range) -> list[Row]:
        """One result for each of the prompts with these indices."""
        rows = [self.rows[index] for index in indices]
        prompts = [row["prompt"] for row in rows]
        completions = sample(
            policy,
            self.tokenizer,
            prompts,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            chat_template_kwargs=self.chat_template_kwargs,
        )
        head, hidden = head_of(policy), last_hidden(policy, completions.ids, completions.attention)
        ref_head, ref_hidden = _reference_states(reference, completions)
        kl = completion_kl(head, hidden, ref_head, ref_hidden, completions.mask, temperature=self.temperature)
        entropy = completion_entropy(head, hidden, completions.mask, temperature=self.temperature)
        completion_ids = completions.ids[:, -completions.mask.shape[1] :]
        ids = [row[mask].tolist() for row, mask in zip(completion_ids, completions.mask, strict=True)]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        rewards, ends = self._rewards(rows, prompts, texts, ids), end_tokens(policy, self.tokenizer)
        return [
            {
                "index": index,
                "prompt": _prompt_text(prompts[i]),
                "columns": {name: str(value) for name, value in rows[i].items() if name != "prompt"},
                "completion": texts[i],
                "rewards": {name: values[i] for name, values in rewards.items()},
                "ids": ids[i],
                "token_kl": kl[i][completions.mask[i]].tolist(),
                "kl": float(kl[i].sum()),
                "entropy": float(entropy[i].sum()),
                "length": len(ids[i]),
                "repetition": _repetition(ids[i]),
                "truncated": float(ids[i][-1] not in ends),
            }
            for i, index in enumerate(indices)
        ]

    def _tokens(self, ids: Sequence[int], kl: Sequence[float]) -> list[list[Any]]:
        """The text of each token with its KL. A text is the addition of the token to the decoded text before it."""
        texts = self.tokenizer.batch_decode([ids[:end] for end in range(len(ids) + 1)])
        return [
            [after[len(before) :], float(f"{value:.6g}")]
            for before, after, value in zip(texts, texts[1:], kl, strict=False)
        ]

    def _rewards(
        self, rows: Sequence[Row], prompts: Sequence[Any], texts: Sequence[str], ids: Sequence[list[int]]
    ) -> dict[str, list[float | None]]:
        """The values of each reward, by name; the arguments are those that TRL's GRPOTrainer passes."""
        chat = not isinstance(prompts[0], str)
        arguments = {
            "prompts": prompts,
            "completions": [[{"role": "assistant", "content": text}] for text in texts] if chat else list(texts),
            "completion_ids": ids,
            **{key: [row[key] for row in rows] for key in rows[0] if key not in _RESERVED_COLUMNS},
            "trainer_state": TrainerState(),
            "log_extra": lambda *_: None,
            "log_metric": lambda *_: None,
        }
        return {name: _call(reward, arguments) for name, reward in zip(self.names, self.rewards, strict=True)}

    def _summary(self, results: Sequence[Row]) -> Row:
        """Averages over all results."""
        kl, lengths = [r["kl"] for r in results], [r["length"] for r in results]
        prompts = [r["index"] for r in results]
        token, sequence = kl_per_token(kl, lengths, prompts), kl_per_sequence(kl, prompts)
        return {
            "count": len(results),
            **_with_std_error("kl_policy_ref_per_token", token),
            **_with_std_error("kl_policy_ref_per_sequence", sequence),
            **{f"rewards/{name}": _mean([r["rewards"][name] for r in results]) for name in self.names},
            "entropy": sum(r["entropy"] for r in results) / sum(lengths),
            "repetition": _mean([r["repetition"] for r in results]),
            "completion_length": _mean(lengths),
            "truncated": _mean([r["truncated"] for r in results]),
        }


def _reference_states(
    reference: torch.nn.Module | Callable[[Completions], tuple[AnyHead, torch.Tensor]], completions: Completions
) -> tuple[AnyHead, torch.Tensor]:
    """The output head and the last hidden states of the reference on completions."""
    if not isinstance(reference, torch.nn.Module):
        return reference(completions)
    model: Any = reference
    return head_of(model), last_hidden(model, completions.ids, completions.attention)


def _call(reward: Reward, arguments: Mapping[str, Any]) -> list[float | None]:
    """Call a reward function, which may be a coroutine function."""
    values = reward(**arguments)
    return asyncio.run(values) if inspect.iscoroutine(values) else values


def _with_std_error(name: str, estimate: Estimate) -> Row:
    return {name: estimate.value, f"{name}_std_error": estimate.std_error}


def _mean(values: Sequence[float | None]) -> float:
    """The mean of the values that are not None; nan if there are none."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else math.nan


def _repetition(ids: Sequence[int]) -> float:
    """The share of adjacent token pairs that repeat an earlier pair of the same completion."""
    pairs = list(pairwise(ids))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def _prompt_text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
