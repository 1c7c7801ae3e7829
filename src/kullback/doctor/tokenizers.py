"""Whether a policy's tokenizer, its chat template and its vocabulary are its reference's, and were used."""

from typing import Any

from kullback.doctor.finding import Finding
from kullback.doctor.forward_pass import CompletionBatch

__all__ = ["check_tokens", "check_vocabularies"]


def check_tokens(seen: CompletionBatch, tokenizer: Any, ref_tokenizer: Any) -> list[Finding]:
    """Whether two tokenizers are one, and whether the prompts begin and end as theirs do."""
    if tokenizer is None or not len(seen.ids):
        return []
    found = _check_prompts(seen, tokenizer)
    if ref_tokenizer is None:
        return found
    ours, theirs = tokenizer.get_vocab(), ref_tokenizer.get_vocab()
    differ = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if differ:
        cause = "the reference has another tokenizer: the same ids are other text to it"
        remedy = "take a reference with the policy's tokenizer; a KL between two vocabularies is of nothing"
        first = differ[0]
        evidence = {"tokens of other ids": len(differ), "first": f"{first!r}: {ours.get(first)} / {theirs.get(first)}"}
        found.append(Finding("tokenizer", "error", cause, remedy, evidence))
    if tokenizer.chat_template != ref_tokenizer.chat_template:
        cause = "the reference's chat template is another: it would have read the prompts in another form"
        remedy = "one template for both; where the reference was trained on its own, the KL starts from an odd place"
        sizes = [len(one.chat_template or "") for one in (tokenizer, ref_tokenizer)]
        evidence = {"characters of the policy's template": sizes[0], "of the reference's": sizes[1]}
        found.append(Finding("chat-template", "warning", cause, remedy, evidence))
    return found


def _check_prompts(seen: CompletionBatch, tokenizer: Any) -> list[Finding]:
    width = seen.prompt_mask.shape[1]
    prompts = [row[:width][keep.bool()].tolist() for row, keep in zip(seen.ids, seen.prompt_mask, strict=True)]
    found = []
    begin = tokenizer.bos_token_id
    doubled = [ids for ids in prompts if begin is not None and ids[:2] == [begin, begin]]
    if doubled:
        cause = "prompts begin with two beginning-of-text marks: the chat template writes one and the tokenizer another"
        remedy = "encode templated text with add_special_tokens=False"
        evidence = {"prompts": len(doubled), "of": len(prompts), "begin": tokenizer.decode(doubled[0][:4])}
        found.append(Finding("chat-template", "error", cause, remedy, evidence))
    if tokenizer.chat_template and (ending := _ending(tokenizer)):
        bare = [ids for ids in prompts if ids[-len(ending) :] != ending]
        if len(bare) == len(prompts):
            cause = "no prompt ends as the chat template opens an answer: it was left out, or is another's"
            remedy = "give prompts as messages, or apply the template with add_generation_prompt=True"
            evidence = {
                "prompts": len(bare),
                "end": tokenizer.decode(bare[0][-8:]),
                "expected": tokenizer.decode(ending),
            }
            found.append(Finding("chat-template", "warning", cause, remedy, evidence))
    return found


def _ending(tokenizer: Any) -> list[int]:
    """What the template writes before an answer."""
    message = [{"role": "user", "content": "1"}]
    closed, opened = (
        tokenizer.apply_chat_template(message, add_generation_prompt=opens, return_dict=True)["input_ids"]
        for opens in (False, True)
    )
    return opened[len(closed) :] if opened[: len(closed)] == closed else []


def check_vocabularies(policy: Any, reference: Any, seen: CompletionBatch, tokenizer: Any) -> list[Finding]:
    """Whether both heads have as many tokens, and all ids are among them."""
    sizes = [model.get_output_embeddings().weight.shape[0] for model in (policy, reference) if model is not None]
    largest = int(seen.ids.max()) if len(seen.ids) else 0
    evidence = {"the policy's head": sizes[0], "the reference's": sizes[-1], "largest id in the batch": largest}
    remedy = "resize both by one resize_token_embeddings, or take a reference with the policy's vocabulary"
    if len(set(sizes)) > 1:
        cause = "the policy and the reference have vocabularies of different sizes"
        return [Finding("vocabulary", "error", cause, remedy, evidence)]
    if largest >= sizes[0] or (tokenizer is not None and len(tokenizer) > sizes[0]):
        evidence |= {"tokenizer": len(tokenizer)} if tokenizer is not None else {}
        cause = "the tokenizer knows more tokens than the model: ids lie beyond its vocabulary"
        return [Finding("vocabulary", "error", cause, remedy, evidence)]
    return []
