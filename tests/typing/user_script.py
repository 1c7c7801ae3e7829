# pyright: strict
"""What a type checker infers for the results of the public functions; tests/test_typing.py runs Pyright on it."""

from typing import Any, assert_type

import jax
import numpy as np
import torch
from numpy.typing import NDArray

import kullback
from kullback.families import Normal
from kullback.optimum.best_of_n import BestOfN
from kullback.optimum.tilt import Frontier, Optimum


def tensors(p: torch.Tensor, q: torch.Tensor, mask: torch.Tensor) -> None:
    assert_type(kullback.kl_probs(p, q, where=mask), torch.Tensor)
    assert_type(kullback.kl_log_probs(p, [-0.5, -0.9]), torch.Tensor)
    assert_type(kullback.kl_logits([0.0, 1.0], q, axis=0), torch.Tensor)
    assert_type(kullback.divergence(p, q, lambda ratio: ratio * ratio.log(), at_zero=0.0), torch.Tensor)
    assert_type(kullback.tilt(p, [0.0, 1.0], torch.nn.Parameter(q)), Optimum[torch.Tensor])
    assert_type(kullback.frontier(p, [0.0, 1.0]).reward_at(0.1), torch.Tensor)
    assert_type(kullback.nats_to_bits(kullback.entropy(p)), torch.Tensor)
    assert_type(kullback.token_kl(p, q, mask=mask), torch.Tensor)
    assert_type(kullback.grpo_loss(log_prob=p, advantages=q, mask=mask), torch.Tensor)
    assert_type(kullback.KLPenalty(estimator="k2").loss(log_prob=p, ref_log_prob=q), torch.Tensor)
    assert_type(kullback.kl(torch.distributions.Normal(p, q), torch.distributions.Laplace(p, q)), torch.Tensor)


def jax_arrays(p: jax.Array, q: jax.Array) -> None:
    assert_type(kullback.kl_terms(p, q), jax.Array)
    assert_type(kullback.cross_entropy(p, q), jax.Array)
    assert_type(kullback.log_gamma_residual(p, 0.5), jax.Array)
    assert_type(kullback.tilt_to_budget(p, q, 0.1).saturated, jax.Array)
    assert_type(kullback.best_of_n_policy(p, [0.0, 1.0], 4), BestOfN[jax.Array])


def numpy_arrays_and_numbers(p: NDArray[np.float32], q: NDArray[np.float64], unknown: Any) -> None:
    assert_type(kullback.kl_probs(p, q), NDArray[Any])
    assert_type(kullback.kl_probs([0.5, 0.5], (0.25, 0.75)), NDArray[Any])
    assert_type(kullback.kl_probs([[0.5, 0.5]], [[0.25, 0.75]]), NDArray[Any])
    assert_type(kullback.phi(np.float32(0.5)), NDArray[Any])
    assert_type(kullback.log1p_residual(1), NDArray[Any])
    assert_type(kullback.best_of_n_kl_bound(16), NDArray[Any])
    assert_type(kullback.frontier([0.5, 0.5], [0.0, 1.0]), Frontier[NDArray[Any]])
    assert_type(kullback.entropy(unknown), Any)
    assert_type(kullback.kl(Normal(loc=0.0, scale=1.0), Normal(loc=q, scale=1.0)), Any)
    assert_type(kullback.measure(Normal(loc=0.0, scale=1.0), Normal(loc=1.0, scale=1.0)), kullback.Estimate)
    assert_type(kullback.nats_to_bits(p).astype(np.float16), NDArray[np.float16])
