"""Checks of the tokenizers, the chat templates and the vocabularies of a policy and its reference."""

from collections.abc import Mapping
from typing import Any

from kullback.doctor.finding import Finding
from kullback.doctor.forward_pass import CompletionBatch

__all__ = [
    "check_beginning_of_sequence",
    "check_chat_templates",
    "check_generation_prompt",
    "check_tokenizers",
    "check_tokens",
    "check_vocabularies",
]


def check_tokens(
    batch: CompletionBatch,
    tokenizer: Any,
    ref_tokenizer: Any,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """Check that the prompts follow the chat template, and that policy and reference have one tokenizer and template.

    Runs `check_beginning_of_sequence`, `check_generation_prompt`, `check_tokenizers` and `check_chat_templates`.

    Args:
        batch: The prompts with their completions.
        tokenizer: The tokenizer of the policy; None: nothing is checked.
        ref_tokenizer: The tokenizer of the reference; None: only the prompts are checked.
        chat_template_kwargs: Further arguments of the chat template with which the prompts were encoded.

    Returns:
        Findings named `chat-template` or `tokenizer`.
    """
    if tokenizer is None or not len(batch.ids):
        return []
    findings = check_beginning_of_sequence(batch, tokenizer)
    findings += check_generation_prompt(batch, tokenizer, chat_template_kwargs)
    if ref_tokenizer is not None:
        findings += check_tokenizers(tokenizer, ref_tokenizer) + check_chat_templates(tokenizer, ref_tokenizer)
    return findings


def check_tokenizers(tokenizer: Any, ref_tokenizer: Any) -> list[Finding]:
    """Check that the tokenizers of policy and reference give every token the same id.

    Args:
        tokenizer: The tokenizer of the policy.
        ref_tokenizer: The tokenizer of the reference.

    Returns:
        `tokenizer` (error), or nothing.
    """
    vocabulary, ref_vocabulary = tokenizer.get_vocab(), ref_tokenizer.get_vocab()
    tokens = vocabulary.keys() | ref_vocabulary.keys()
    differing = sorted(token for token in tokens if vocabulary.get(token) != ref_vocabulary.get(token))
    if not differing:
        return []
    cause = "the reference has another tokenizer: it decodes the same ids as other text"
    remedy = "use a reference with the policy's tokenizer: a KL between distributions on two vocabularies is undefined"
    first = differing[0]
    evidence = {
        "tokens with different ids": len(differing),
        "first": f"{first!r}: {vocabulary.get(first)} / {ref_vocabulary.get(first)}",
    }
    return [Finding("tokenizer", "error", cause, remedy, evidence)]


def check_chat_templates(tokenizer: Any, ref_tokenizer: Any) -> list[Finding]:
    """Check that the chat templates of policy and reference are equal.

    Args:
        tokenizer: The tokenizer of the policy.
        ref_tokenizer: The tokenizer of the reference.

    Returns:
        `chat-template` (warning), or nothing.
    """
    if tokenizer.chat_template == ref_tokenizer.chat_template:
        return []
    cause = "the reference has another chat template: it expects prompts in another format"
    remedy = (
        "use one template for both; a reference that was trained with another template gives these prompts unusual "
        "probabilities"
    )
    evidence = {
        "characters of the policy's template": len(tokenizer.chat_template or ""),
        "characters of the reference's template": len(ref_tokenizer.chat_template or ""),
    }
    return [Finding("chat-template", "warning", cause, remedy, evidence)]


def check_beginning_of_sequence(batch: CompletionBatch, tokenizer: Any) -> list[Finding]:
    """Check that no prompt begins with two beginning-of-sequence tokens.

    Args:
        batch: The prompts with their completions.
        tokenizer: The tokenizer of the policy.

    Returns:
        `chat-template` (error), or nothing.
    """
    prompts, bos = _prompts(batch), tokenizer.bos_token_id
    doubled = [ids for ids in prompts if bos is not None and ids[:2] == [bos, bos]]
    if not doubled:
        return []
    cause = "prompts begin with two beginning-of-sequence tokens: the chat template and the tokenizer each add one"
    remedy = "encode templated text with add_special_tokens=False"
    evidence = {"prompts": len(doubled), "of": len(prompts), "first tokens": tokenizer.decode(doubled[0][:4])}
    return [Finding("chat-template", "error", cause, remedy, evidence)]


def check_generation_prompt(
    batch: CompletionBatch, tokenizer: Any, chat_template_kwargs: Mapping[str, Any] | None = None
) -> list[Finding]:
    """Check that prompts end with the tokens that the chat template writes before an answer.

    Criterion: at least one prompt ends with these tokens, if the tokenizer has a template that writes any.

    Args:
        batch: The prompts with their completions.
        tokenizer: The tokenizer of the policy.
        chat_template_kwargs: Further arguments of the chat template with which the prompts were encoded.

    Returns:
        `chat-template` (warning), or nothing.
    """
    if not tokenizer.chat_template or not (ending := _generation_prompt(tokenizer, chat_template_kwargs or {})):
        return []
    prompts = _prompts(batch)
    if any(ids[-len(ending) :] == ending for ids in prompts):
        return []
    cause = "no prompt ends with the generation prompt of the chat template: the template was not applied"
    remedy = "pass prompts as messages, or apply the template with add_generation_prompt=True"
    evidence = {
        "prompts": len(prompts),
        "last tokens": tokenizer.decode(prompts[0][-8:]),
        "expected": tokenizer.decode(ending),
    }
    return [Finding("chat-template", "warning", cause, remedy, evidence)]


def _prompts(batch: CompletionBatch) -> list[list[int]]:
    """The token ids of each prompt, without padding."""
    width = batch.prompt_mask.shape[1]
    return [ids[:width][mask.bool()].tolist() for ids, mask in zip(batch.ids, batch.prompt_mask, strict=True)]


def _generation_prompt(tokenizer: Any, settings: Mapping[str, Any]) -> list[int]:
    """The tokens that the chat template writes before an answer; empty if it writes none."""
    messages = [{"role": "user", "content": "1"}]
    without, with_prompt = (
        tokenizer.apply_chat_template(messages, add_generation_prompt=add, return_dict=True, **settings)["input_ids"]
        for add in (False, True)
    )
    return with_prompt[len(without) :] if with_prompt[: len(without)] == without else []


def check_vocabularies(policy: Any, reference: Any, batch: CompletionBatch, tokenizer: Any) -> list[Finding]:
    """Check that the output layers of policy and reference have one size, and that all token ids are below it.

    Args:
        policy: The policy.
        reference: The reference, if it is a separate model.
        batch: The prompts with their completions.
        tokenizer: The tokenizer of the policy, if there is one.

    Returns:
        `vocabulary` (error), or nothing.
    """
    sizes = [_rows(model.get_output_embeddings()) for model in (policy, reference) if model is not None]
    largest = int(batch.ids.max()) if len(batch.ids) else 0
    evidence = {
        "vocabulary size of the policy": sizes[0],
        "vocabulary size of the reference": sizes[-1],
        "largest id in the batch": largest,
    }
    remedy = "call resize_token_embeddings on both models alike, or use a reference with the policy's vocabulary"
    if len(set(sizes)) > 1:
        cause = "the policy and the reference have vocabularies of different sizes"
        return [Finding("vocabulary", "error", cause, remedy, evidence)]
    if largest >= sizes[0] or (tokenizer is not None and len(tokenizer) > sizes[0]):
        evidence |= {"vocabulary size of the tokenizer": len(tokenizer)} if tokenizer is not None else {}
        cause = "the tokenizer has more tokens than the model: some token ids are outside the model's vocabulary"
        return [Finding("vocabulary", "error", cause, remedy, evidence)]
    return []


def _rows(head: Any) -> int:
    """The number of rows of an output layer; of several layers, the last has one row for each token."""
    weight = getattr(head, "weight", None)
    return ([one for one in head.parameters() if one.ndim == 2][-1] if weight is None else weight).shape[0]
