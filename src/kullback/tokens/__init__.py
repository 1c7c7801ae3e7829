"""Exact KL divergence between the next-token distributions of language models, from logits or hidden states."""

from kullback.errors import MissingDependencyError

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError("kullback.tokens needs PyTorch: pip install 'kullback[train]'") from error

from kullback.tokens.linear import linear_token_kl
from kullback.tokens.logits import token_kl
from kullback.tokens.stats import TokenStats, token_stats
from kullback.tokens.topk import TopKTokenKL, topk_token_kl

__all__ = ["TokenStats", "TopKTokenKL", "linear_token_kl", "token_kl", "token_stats", "topk_token_kl"]
