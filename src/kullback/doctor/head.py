"""The check of an output head that a trainer computes by itself."""

from collections.abc import Callable

import torch
from torch import Tensor

from kullback.doctor.finding import Finding
from kullback.doctor.forward_pass import CompletionBatch, PolicyAndReference, base_model, preserve_training_state
from kullback.errors import ArrayTypeError, ShapeError
from kullback.numerics.arguments import shown

__all__ = ["check_head"]

_ROUNDINGS = 64  # how many roundings of the largest logit may separate two ways to compute the logits


def check_head(pair: PolicyAndReference, head_logits: Callable[[CompletionBatch], Tensor]) -> list[Finding]:
    """Check that the logits from which a trainer computes the KL are the logits of the model.

    A trainer that avoids to store the logits of all positions applies the output head to hidden states. A cap, a scale,
    a layer before the projection or an adapter may then be missing.

    Criterion: without autocast, at the positions that count, the logits differ by at most 64 roundings of the largest
    logit.

    Args:
        pair: The policy and the batch.
        head_logits: The trainer's logits of a batch, of the shape that `forward_logits` returns.

    Returns:
        `head-differs` (error), or nothing.

    Raises:
        ArrayTypeError: `head_logits` does not return a tensor of floating-point numbers.
        ShapeError: The logits have other rows or positions than the batch.
    """
    batch, policy = pair.batch, pair.policy
    model = base_model(policy)
    with torch.no_grad(), torch.autocast(batch.ids.device.type, enabled=False), preserve_training_state(policy):
        policy.eval()
        # The forward pass of the class, because trainers replace it in the model by one with autocast.
        own = type(model).forward(model, input_ids=batch.ids, attention_mask=batch.attention_mask, use_cache=False)
        computed = head_logits(batch)
    _require_logits(computed, (len(batch.mask), batch.mask.shape[1] + 1))
    own = own.logits[:, -batch.mask.shape[1] - 1 : -1][batch.mask].double()
    precision = torch.finfo(computed.dtype).eps
    computed = computed[:, :-1][batch.mask].double()
    largest = float("inf")
    if computed.shape == own.shape:  # equal infinities, as of tokens that are excluded, do not differ
        largest = float(torch.where(computed == own, 0.0, computed - own).abs().max())
    scale = float(own.abs().nan_to_num(posinf=0.0).max())
    if largest <= _ROUNDINGS * precision * scale:
        return []
    cause = "the KL is computed from logits that are not the model's: a part of its output head is missing"
    remedy = "use a model whose hidden states its output head maps to logits position by position, or report this model"
    evidence = {"largest difference of a logit": largest, "largest logit": scale, "model": type(pair.policy).__name__}
    return [Finding("head-differs", "error", cause, remedy, evidence)]


def _require_logits(computed: object, shape: tuple[int, int]) -> None:
    if not isinstance(computed, Tensor) or not computed.is_floating_point():
        got = computed.dtype if isinstance(computed, Tensor) else shown(computed)
        raise ArrayTypeError(
            f"expected head_logits to return a tensor of floating-point numbers, got {got}; return the logits"
        )
    if computed.ndim != 3 or computed.shape[:2] != shape:
        raise ShapeError(
            f"expected head_logits to return the shape ({shape[0]}, {shape[1]}, vocabulary), got "
            f"{tuple(computed.shape)}; return the logits from the position before the first completion token"
        )
