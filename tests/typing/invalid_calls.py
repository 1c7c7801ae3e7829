# pyright: strict
"""Calls that a type checker must reject, one on each line that ends with the comment "error"."""

import numpy as np
import torch
from numpy.typing import NDArray

import kullback


def wrong_arguments(tensor: torch.Tensor, optional: torch.Tensor | None) -> None:
    kullback.kl_probs(tensor, {0.5})  # error
    kullback.entropy("0.5, 0.5")  # error
    kullback.kl_logits(optional, tensor)  # error
    kullback.phi([0.5, None])  # error
    kullback.token_kl(tensor, {0.0, 1.0})  # error
    kullback.KLPenalty(estimator="k4")  # error


def wrong_results(tensor: torch.Tensor, ndarray: NDArray[np.float64]) -> torch.Tensor:
    kullback.kl_probs(ndarray, ndarray).backward()  # error
    kullback.nats_to_bits(tensor).astype(float)  # error
    kullback.measure(0.5, 0.5).mean()  # error
    return kullback.tilt(ndarray, ndarray, 1.0).policy  # error
