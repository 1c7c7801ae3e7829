"""Enumeration of all 64 sequences of three tokens from a vocabulary of four: every expectation is an exact sum."""

from itertools import product

import torch
from torch import Tensor

VOCABULARY, TIME = 4, 3
TOOL, END = 2, 3  # with tools: the token that calls a tool, and the token that ends a sequence


class Language:
    """All sequences with their probabilities and masks.

    Without tools the policy generates every token. With tools it generates neither the token after a tool call nor the
    tokens after the end token.
    """

    def __init__(self, tools: bool) -> None:
        tokens, nodes, mask, chance = [], [], [], []
        answer = [0.1, 0.2, 0.3, 0.4]  # the distribution of the tool's answer
        for sequence in product(range(VOCABULARY), repeat=TIME):
            node, row, kept, weight = 0, [], [], 1.0
            for step, token in enumerate(sequence):
                before = sequence[:step]
                ended = tools and END in [t for t, made in zip(before, kept, strict=True) if made]
                called = tools and not ended and step > 0 and before[-1] == TOOL and kept[-1]
                row.append(node)
                kept.append(not (ended or called))
                if ended:
                    weight *= float(token == 0)  # padding
                elif called:
                    weight *= answer[token]
                node = 4 * node + 1 + token
            tokens.append(sequence)
            nodes.append(row)
            mask.append(kept)
            chance.append(weight)
        self.tokens = torch.tensor(tokens)
        self.nodes = torch.tensor(nodes)
        self.mask = torch.tensor(mask)
        self.chance = torch.tensor(chance, dtype=torch.float64)

    def logits(self, weights: Tensor) -> Tensor:
        """The logits at every position, shape (64, 3, 4); `weights` has a row for each of the 21 prefixes."""
        return weights[self.nodes]

    def log_prob(self, weights: Tensor) -> Tensor:
        return self.logits(weights).log_softmax(-1).gather(-1, self.tokens[..., None])[..., 0]

    def probability(self, weights: Tensor) -> Tensor:
        """The probability of each sequence, including tool answers and padding."""
        return self.chance * torch.where(self.mask, self.log_prob(weights), 0.0).sum(-1).exp()

    def kl_sequence(self, p: Tensor, q: Tensor) -> Tensor:
        """KL between the distributions of sequences, from their 64 probabilities."""
        possible = self.chance > 0
        prob_p, prob_q = self.probability(p)[possible], self.probability(q)[possible]
        return (prob_p * (prob_p / prob_q).log()).sum()

    def kl_token(self, p: Tensor, q: Tensor, sampler: Tensor) -> Tensor:
        """E[sum_t KL_t] over prefixes from the sampler, whose probabilities receive no gradient."""
        log_p, log_q = self.logits(p).log_softmax(-1), self.logits(q).log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        return (self.probability(sampler).detach() * torch.where(self.mask, kl, 0.0).sum(-1)).sum()


def weights(seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(21, VOCABULARY, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
