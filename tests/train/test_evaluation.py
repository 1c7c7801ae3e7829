"""Completions that an evaluation keeps: the text and the KL of each token, against the logits of both models."""

import copy

import pytest
import torch

from kullback.train.demo.addition_task import make_model, make_tokenizer, prompt_rows
from kullback.train.evaluation import Evaluation


def test_the_kl_of_each_token_of_a_completion_is_kept():
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    reference = make_model(tokenizer).eval()
    policy = copy.deepcopy(reference)
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.05 * torch.randn_like(weight)
    evaluation = Evaluation(prompt_rows(20, seed=0), [], tokenizer, max_new_tokens=6, temperature=0.7)
    row, samples = evaluation.measure(policy, reference, step=3)
    assert len(samples) == 12
    for sample in samples:
        texts, kls = zip(*sample["tokens"], strict=True)
        completion = tokenizer("".join(texts))["input_ids"]
        ids = tokenizer(sample["prompt"])["input_ids"] + completion
        with torch.no_grad():
            p, q = (
                torch.log_softmax(model(torch.tensor([ids])).logits.double() / 0.7, -1)[0, -len(kls) - 1 : -1]
                for model in (policy, reference)
            )
        assert list(kls) == pytest.approx((p.exp() * (p - q)).sum(-1).tolist(), rel=1e-3)
        assert tokenizer.decode(completion, skip_special_tokens=True) == sample["completion"]
        assert min(kls) > 0
    assert row["kl_policy_ref_per_token"] > 0
