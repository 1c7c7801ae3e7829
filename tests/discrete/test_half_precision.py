"""Probabilities in float16 and bfloat16: sums may deviate from 1 by rounding, and by no more than rounding."""

import math

import pytest
import torch

from kullback.discrete.entropy import entropy
from kullback.discrete.kl import kl_log_probs, kl_probs
from kullback.errors import NotNormalizedError
from kullback.families import Categorical


@pytest.mark.parametrize(
    ("dtype", "off"), [(torch.bfloat16, 1.01), (torch.float16, 1.01), (torch.float16, 1.003), (torch.bfloat16, 0.98)]
)
def test_half_precision_sums_deviate_by_no_more_than_rounding(dtype, off):
    wrong = torch.tensor([0.25, 0.25, 0.5 + (off - 1)], dtype=dtype)
    right = torch.tensor([0.25, 0.25, 0.5], dtype=dtype)
    for call in (lambda: kl_probs(wrong, right), lambda: entropy(wrong), lambda: Categorical(probs=wrong)):
        with pytest.raises(NotNormalizedError, match="to sum to 1"):
            call()
    with pytest.raises(NotNormalizedError, match="to sum to 1"):
        kl_log_probs(*(torch.full((4,), math.log(0.25) + shift, dtype=dtype) for shift in (0.03, 0.0)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("events", [2, 1000, 128_256])
def test_softmax_in_half_precision_is_accepted(dtype, scale, events):
    logits = scale * torch.randn(2, events, generator=torch.Generator().manual_seed(events))
    p, q = (side.to(dtype) for side in logits.softmax(-1))
    assert float(kl_probs(p, q)) >= 0
    divided = p / p.sum()  # the remedy of the message, in the same dtype
    assert float(kl_probs(divided, divided)) == 0
    log_p, log_q = logits.log_softmax(-1).to(dtype)
    assert float(kl_log_probs(log_p, log_q)) >= 0
