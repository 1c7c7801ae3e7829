"""Gradients of `linear_token_kl` in float32 against arithmetic with 40 digits, for ordinary and adversarial heads."""

from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kullback import linear_token_kl

STATISTICS = ("kl", "reverse_kl", "js")


def to_mpf(tensor: Tensor | None) -> Any:
    return None if tensor is None else np.vectorize(lambda x: mpmath.mpf(float(x)), otypes=[object])(tensor.numpy())


def log_softmax(z: Any) -> Any:
    """Row by row; the logit -inf has the logarithm -inf."""
    rows = []
    for row in z:
        log_sum = mpmath.log(mpmath.fsum(mpmath.exp(x) for x in row))
        rows.append([x - log_sum for x in row])
    return np.array(rows, object)


def exact_gradients(heads: list[Tensor], biases: list[Tensor | None], cap: float | None, statistic: str) -> list[Any]:
    """The derivatives of the sum over positions with respect to hidden_p, weight_p, hidden_q and weight_q."""
    hidden_p, weight_p, hidden_q, weight_q = map(to_mpf, heads)
    products = [hidden_p @ weight_p.T, hidden_q @ weight_q.T]
    for side, bias in enumerate(map(to_mpf, biases)):
        products[side] = products[side] if bias is None else products[side] + bias
    tanh, exp = (np.vectorize(function, otypes=[object]) for function in (mpmath.tanh, mpmath.exp))
    logits = products if cap is None else [cap * tanh(z / mpmath.mpf(cap)) for z in products]
    log_p, log_q = map(log_softmax, logits)
    p, q = exp(log_p), exp(log_q)
    minus = np.vectorize(lambda x, y: mpmath.mpf(0) if x == -mpmath.inf == y else x - y, otypes=[object])
    gap = minus(log_q, log_p)

    def centred(weights: Any, values: Any) -> Any:
        return weights * (values - (weights * values).sum(-1, keepdims=True))

    if statistic == "kl":
        by_p, by_q = centred(p, -gap), q - p
    elif statistic == "reverse_kl":
        by_p, by_q = p - q, centred(q, gap)
    else:
        log_half = np.vectorize(lambda x: mpmath.log1p(mpmath.expm1(x) / 2), otypes=[object])
        by_p, by_q = centred(p, -log_half(gap)) / 2, centred(q, -log_half(-gap)) / 2
    if cap is not None:
        by_p, by_q = (by * (1 - (z / cap) ** 2) for by, z in zip((by_p, by_q), logits, strict=True))
    return [by_p @ weight_p, by_p.T @ hidden_p, by_q @ weight_q, by_q.T @ hidden_q]


def relative_error(gradient: Tensor, exact: Any, absolute: float) -> float:
    """The norm of the error relative to the norm of the truth, beyond a norm of the error that is allowed."""
    size = mpmath.sqrt(mpmath.fsum(x * x for x in exact.ravel()))
    if size < 1e-25:  # beyond the normal numbers of float32 after a product
        return float(gradient.norm()) / 1e-20
    error = mpmath.sqrt(mpmath.fsum(x * x for x in (to_mpf(gradient) - exact).ravel()))
    return float(max(error - absolute, 0) / size)


def distance_of(a: Tensor, b: Tensor) -> float:
    """The norm of b - a relative to the norm of a."""
    return float((b.double() - a.double()).norm() / a.double().norm())


@pytest.mark.parametrize("kind", ["random", "near", "near heads", "one-hot"])
@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**32 - 1),
    log_size=st.floats(-1, 0.9),
    log_distance=st.floats(-6, -1),
    statistic=st.sampled_from(STATISTICS),
    bias=st.sampled_from(["none", "finite", "masked", "capped"]),
)
def test_gradients_have_five_digits(
    kind: str, seed: int, log_size: float, log_distance: float, statistic: str, bias: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    vocabulary, width, rows = 11, 11 if kind == "one-hot" else 3, 2
    size, distance = 10**log_size, 10**log_distance

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    hidden_p, weight_p = normal(rows, width) * size, normal(vocabulary, width)
    if kind == "random":
        hidden_q, weight_q = normal(rows, width) * size, normal(vocabulary, width)
    elif kind == "one-hot":
        hidden_q, weight_p, weight_q = normal(rows, width) * size, torch.eye(vocabulary), torch.eye(vocabulary)
    else:
        hidden_q, weight_q = hidden_p.clone(), weight_p + distance * normal(vocabulary, width)
        if kind == "near":
            hidden_q += distance * normal(rows, width)
    biases: list[Tensor | None] = [None, None]
    cap = 5.0 if bias == "capped" else None
    if bias in ("finite", "masked"):
        shared = normal(vocabulary)
        if bias == "masked":
            shared[[2, 5]] = -torch.inf
        biases = [shared, shared.clone()]
    heads = [hidden_p, weight_p, hidden_q, weight_q]
    given_heads = [tensor.clone().requires_grad_() for tensor in heads]
    value = getattr(
        linear_token_kl(*given_heads, bias_p=biases[0], bias_q=biases[1], softcap_p=cap, softcap_q=cap), statistic
    )
    gradients = torch.autograd.grad(value.sum(), given_heads)
    with mpmath.workdps(40):
        exact = exact_gradients(heads, biases, cap, statistic)
        # Errors of the gradient by the logits, which the other factor of a logit multiplies. The Jensen-Shannon
        # divergence of distant models is nearly log 2, and its gradient is a small difference. The logits of models
        # that are not close are rounded separately, by 2^-24 of their size.
        absolute = 1e-6 if statistic == "js" and kind in ("random", "one-hot") else 0.0
        if max(distance_of(hidden_p, hidden_q), distance_of(weight_p, weight_q)) > 1 / 24 and kind == "near":
            absolute = max(absolute, 2**-24 * float((hidden_p.double() @ weight_p.double().T).abs().max()))
        factors = (weight_p, hidden_p, weight_q, hidden_q)
        errors = [
            relative_error(gradient, truth, absolute * max(1.0, float(factor.norm())))
            for gradient, truth, factor in zip(gradients, exact, factors, strict=True)
        ]
    assert max(errors) <= 1e-5, errors
