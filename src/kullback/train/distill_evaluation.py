"""Evaluation of a student: its divergence from the teacher and its entropy on a fixed set of prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object, is_peft_model
from torch.nn.utils.rnn import pad_sequence

from kullback.errors import InputError
from kullback.integrations.transformers import Completions, Head, capped_head_of, end_tokens, last_hidden, sample
from kullback.integrations.trl_distillation import completion_tokens
from kullback.policy.distillation import DistillationDivergence, distillation_loss
from kullback.runs.finite import finite_outputs
from kullback.samples.clustered_mean import kl_per_token
from kullback.tokens.linear import linear_token_kl

__all__ = ["DistillationEvaluation", "given_tokens"]

Row = dict[str, Any]
_BATCH = 64  # prompts that are evaluated at once
_MAX_SAMPLES = 12  # completions that are kept for the report
_STATISTICS = {
    "kl_student_teacher_per_token": "reverse_kl",
    "kl_teacher_student_per_token": "kl",
    "js_per_token": "js",
}
_KEYS = {"reverse": "kl_student_teacher_per_token", "forward": "kl_teacher_student_per_token", "js": "js_per_token"}


@dataclass(frozen=True)
class DistillationEvaluation:
    """Measures divergences between teacher and student on completions of a fixed set of prompts.

    Args:
        rows: The prompts, each with a "completion" if `off_policy`.
        tokenizer: The tokenizer of both models, with padding on the left.
        max_new_tokens: The maximum length of a completion in tokens.
        temperature: The divisor of the logits of both models, and of the sampling.
        divergence: The divergence of the loss.
        weight: w of `logit_divergence`.
        off_policy: Whether the completions are given. Otherwise, the student generates one for each prompt.
        rank: The index of this process. The prompts are divided among all processes.
        processes: The number of processes.
        seed: The seed of the sampling. The state of the global random number generators is not changed.
        chat_template_kwargs: Further arguments of the tokenizer's chat template, as in training.
    """

    rows: Sequence[Row]
    tokenizer: Any
    max_new_tokens: int
    temperature: float
    divergence: DistillationDivergence
    weight: float | None
    off_policy: bool = False
    rank: int = 0
    processes: int = 1
    seed: int = 0
    chat_template_kwargs: Mapping[str, Any] | None = None

    def measure(self, student: Any, teacher: Any, *, step: int) -> tuple[Row, list[Row]]:
        """Evaluate the student in evaluation mode.

        Args:
            student: The student, or the PEFT model around it.
            teacher: The teacher.
            step: The optimizer step, which is stored in the row.

        Returns:
            A row of averages in nats per token, and up to 12 rows with "prompt", "columns", "completion" and "rewards".
            Both are the same in every process.
        """
        modes = [(model, model.training) for model in (student, teacher)]
        devices = [student.device] if student.device.type == "cuda" else []
        try:
            student.eval()
            teacher.eval()
            with torch.random.fork_rng(devices), torch.no_grad(), finite_outputs(lambda: step):
                torch.manual_seed(self.seed + self.rank)
                local: list[Row] = []
                indices = range(self.rank, len(self.rows), self.processes)
                for start in range(0, len(indices), _BATCH):
                    local += self._measure_batch(student, teacher, indices[start : start + _BATCH])
        finally:
            for model, mode in modes:
                model.train(mode)
        results = sorted(gather_object(local), key=lambda result: result["index"])
        selected = results[:: max(1, len(results) // _MAX_SAMPLES)][:_MAX_SAMPLES]
        return {"step": step, **_summary(results)}, [result["sample"] for result in selected]

    def _measure_batch(self, student: Any, teacher: Any, indices: range) -> list[Row]:
        """One result for each of the prompts with these indices."""
        rows = [self.rows[index] for index in indices]
        completions = self._completions(student, rows)
        mask = completions.mask
        before = slice(-mask.shape[1] - 1, -1)  # the hidden state of a token predicts the next token
        states, heads, caps = [], [], []
        for name, model in (("teacher", teacher), ("student", student)):
            model = model.get_base_model() if is_peft_model(model) else model
            found = capped_head_of(model)
            if found is None:  # the trainer refuses these heads before
                raise InputError(f"expected a {name} whose output head is linear, got {type(model).__name__}")
            heads.append(found[0])
            caps.append(found[1])
            states.append(last_hidden(model, completions.ids, completions.attention)[:, before])
        values = self._values(states, heads, caps, mask)
        ids = [row[kept].tolist() for row, kept in zip(completions.ids[:, -mask.shape[1] :], mask, strict=True)]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        ends = end_tokens(student, self.tokenizer)
        return [
            {
                "index": index,
                "length": len(ids[i]),
                "truncated": float(ids[i][-1] not in ends),
                "sums": {key: float(value[i].double().sum()) for key, value in values.items()},
                "sample": {
                    "prompt": _text(rows[i]["prompt"]),
                    "columns": {},
                    "completion": texts[i],
                    "rewards": {},
                },
            }
            for i, index in enumerate(indices)
        ]

    def _values(self, states: list[Any], heads: list[Head], caps: list[float | None], mask: Any) -> dict[str, Any]:
        """The statistics of every token by key, 0 where masked."""
        stats = linear_token_kl(
            states[0],
            heads[0].weight,
            states[1],
            heads[1].weight,
            bias_p=heads[0].bias,
            bias_q=heads[1].bias,
            temperature=self.temperature,
            softcap_p=caps[0],
            softcap_q=caps[1],
            logit_scale_p=heads[0].scale,
            logit_scale_q=heads[1].scale,
            mask=mask,
        )
        values = {key: getattr(stats, name) for key, name in _STATISTICS.items()}
        values["entropy"] = torch.where(mask, stats.entropy_q, 0.0)
        if self.divergence in _KEYS:
            return values | {"divergence_per_token": values[_KEYS[self.divergence]]}
        loss = distillation_loss(
            states[0],
            heads[0].weight,
            states[1],
            heads[1].weight,
            divergence=self.divergence,
            weight=self.weight,
            mask=mask,
            teacher_bias=heads[0].bias,
            student_bias=heads[1].bias,
            temperature=self.temperature,
            teacher_softcap=caps[0],
            student_softcap=caps[1],
            teacher_logit_scale=heads[0].scale,
            student_logit_scale=heads[1].scale,
        )
        return values | {"divergence_per_token": loss.divergence}

    def _completions(self, student: Any, rows: Sequence[Row]) -> Completions:
        """Completions of the student, or the given completions."""
        if not self.off_policy:
            prompts = [row["prompt"] for row in rows]
            return sample(
                student,
                self.tokenizer,
                prompts,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                chat_template_kwargs=self.chat_template_kwargs,
            )
        pairs = [given_tokens(self.tokenizer, row, self.chat_template_kwargs) for row in rows]
        prompts, given = ([torch.tensor(pair[i]) for pair in pairs] for i in (0, 1))
        given = [ids[: self.max_new_tokens] for ids in given]
        columns = []
        for side, parts in (("left", prompts), ("right", given)):
            columns.append(
                [
                    pad_sequence(values, batch_first=True, padding_value=value, padding_side=side)
                    for values, value in (
                        (parts, self.tokenizer.pad_token_id),
                        ([torch.ones_like(part) for part in parts], 0),
                    )
                ]
            )
        ids, attention = (torch.cat([columns[0][i], columns[1][i]], dim=1).to(student.device) for i in (0, 1))
        return Completions(ids, attention, columns[1][1].bool().to(student.device))


def given_tokens(
    tokenizer: Any, row: Row, chat_template_kwargs: Mapping[str, Any] | None = None
) -> tuple[list[int], list[int]]:
    """The tokens of a prompt, and the tokens of its given completion.

    Args:
        tokenizer: The tokenizer.
        row: A row with "prompt" and "completion", both text or both messages.
        chat_template_kwargs: Further arguments of the chat template.

    Raises:
        InputError: The chat template does not begin the conversation with the tokens of the prompt.
    """
    prompt = row["prompt"]
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    else:
        encoded = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **(chat_template_kwargs or {})
        )
        ids = encoded["input_ids"]
    return ids, completion_tokens(tokenizer, prompt, row["completion"], ids, chat_template_kwargs)


def _summary(results: Sequence[Row]) -> Row:
    """Averages over all results, with prompts as independent samples."""
    lengths, indices = [result["length"] for result in results], [result["index"] for result in results]
    row: Row = {"count": len(results)}
    for key in ("divergence_per_token", *_STATISTICS):
        estimate = kl_per_token([result["sums"][key] for result in results], lengths, indices)
        row |= {key: estimate.value, f"{key}_std_error": estimate.std_error}
    row["entropy"] = sum(result["sums"]["entropy"] for result in results) / sum(lengths)
    row["completion_length"] = sum(lengths) / len(results)
    row["truncated"] = sum(result["truncated"] for result in results) / len(results)
    return row


def _text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
