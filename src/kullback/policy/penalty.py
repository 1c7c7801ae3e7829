"""KL penalties for policy-gradient training, specified by direction, estimator, placement, horizon and sampler."""

from dataclasses import dataclass, field, fields
from math import inf
from typing import Literal, Unpack, get_args

import kullback.tokens  # noqa: F401  first: raises MissingDependencyError where PyTorch is not installed

# isort: split
import torch
from torch import Tensor

from kullback.errors import PenaltyError
from kullback.numerics.arguments import is_name, is_number, shown
from kullback.numerics.array_types import Float, Shaped
from kullback.policy.aggregation import Aggregate
from kullback.policy.estimators import (
    bounded_exp,
    loss_derivative,
    safe_product,
    sampled_kl,
    straight_through,
    sum_after,
)
from kullback.policy.penalty_gradients import gradient_mismatch
from kullback.policy.penalty_inputs import Batch, PenaltyInputs, read_batch
from kullback.policy.penalty_statistics import Prompts, estimate, statistics
from kullback.result import Estimate

__all__ = ["KLPenalty"]


@dataclass(frozen=True)
class KLPenalty:
    """A penalty KL(policy || ref) or KL(ref || policy) on sampled tokens, with the gradient of the KL that it names.

    Let L_t = log(policy/ref) of token t, w_t = policy/old, and KL_t the exact KL of the next-token distributions at t.
    The gradient of `loss`, summed over the tokens where the mask is true and averaged over sequences of the sampler, is
    the gradient of:

        horizon "token":    E[sum_t KL_t], with the prefixes that the sampler visits held fixed
        horizon "sequence": the KL of the sequence distributions, E[sum_t KL_t] with prefixes that follow the policy

    Tokens that the policy did not generate, such as tool output and padding, are the same under both policies; set
    their mask to false.

    Args:
        direction: "reverse" for KL(policy || ref), "forward" for KL(ref || policy).
        estimator: "exact", the sum over the vocabulary, computed from the logits; or an estimator from the sampled
            token: "k1" (L), "k2" (L^2/2) or "k3" (phi(-L), where phi(d) = e^d - 1 - d).
        placement: "loss": `loss` is differentiated. "reward": `to_go` is subtracted from the returns; for objectives
            without returns, `loss` is then the equivalent surrogate sg(to_go) log policy, where sg stops the gradient.
            Use only one of the two.
        horizon: "token" or "sequence", as defined above.
        sampler: The policy that generated the samples: "policy", the differentiated policy, or "behaviour", another
            policy with the log-probabilities `old_log_prob`.
        unsafe: Allow penalties with the gradient of another KL, to reproduce publications. The estimator is then
            differentiated, or summed, without correction; without `old_log_prob` no importance weights are used.
        bound: In nats. Ratios above e^bound are replaced by e^bound, and the factors that they multiply keep their
            derivatives, so that no gradient vanishes or overflows.

    Raises:
        PenaltyError: An option is unknown, `bound` is outside [1, 40], or the gradient would be the gradient of another
            KL; the message then names the correct penalties.

    References:
        Schulman (2020), "Approximating KL Divergence", for k1, k2 and k3 [schulman2020].
        Tang and Munos (2025), "On a few pitfalls in KL divergence gradient estimation for RL", for their gradients
        [tang2025].
        Amini, Vieira and Cotterell (2025), "Better Estimation of the KL Divergence Between Language Models", for the
        exact sum at sampled prefixes [amini2025].

    Example:
        >>> penalty = KLPenalty(estimator="k2")
        >>> log_prob = torch.tensor([[-1.0, -2.0]], requires_grad=True)
        >>> penalty.loss(log_prob=log_prob, ref_log_prob=torch.tensor([[-1.5, -2.0]])).sum().backward()
        >>> log_prob.grad
        tensor([[0.5000, 0.0000]])
        >>> KLPenalty(estimator="k1")
        Traceback (most recent call last):
        kullback.errors.PenaltyError: the expected gradient of k1 as a loss is 0: use ...
    """

    direction: Literal["reverse", "forward"] = "reverse"
    estimator: Literal["exact", "k1", "k2", "k3"] = "exact"
    placement: Literal["loss", "reward"] = "loss"
    horizon: Literal["token", "sequence"] = "token"
    sampler: Literal["policy", "behaviour"] = "policy"
    unsafe: bool = field(default=False, kw_only=True)
    bound: float = field(default=20.0, kw_only=True)

    def __post_init__(self) -> None:
        for choice in fields(self)[:5]:
            allowed, given = get_args(choice.type), getattr(self, choice.name)
            if not is_name(given, allowed):
                raise PenaltyError(f"expected {choice.name} to be {' or '.join(map(repr, allowed))}, got {given!r}")
        if not isinstance(self.unsafe, bool):
            raise PenaltyError(f"expected unsafe to be True or False, got {shown(self.unsafe)}")
        if not (is_number(self.bound) and 1 <= self.bound <= 40):
            raise PenaltyError(
                f"expected bound from 1 to 40, so that e^(2 bound) fits float32, got {shown(self.bound)}"
            )
        mismatch = gradient_mismatch(self.direction, self.estimator, self.placement, self.horizon, self.sampler)
        if mismatch and not self.unsafe:
            raise PenaltyError(f"{mismatch} (unsafe=True allows it)")

    def loss(
        self,
        *,
        log_prob: Float[Tensor, "batch time"],
        ref_log_prob: Float[Tensor, "batch time"],
        old_log_prob: Float[Tensor, "batch time"] | None = None,
        logits: Float[Tensor, "batch time vocab"] | None = None,
        ref_logits: Float[Tensor, "batch time vocab"] | None = None,
        mask: Shaped[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time"]:
        """The penalty at every token, as a loss to differentiate.

        The sum over tokens, averaged over sequences, has the gradient of the KL that the penalty names. Its derivative
        with respect to the log-probability of the sampled token, with v = ref/old and w and v held fixed, is:

            reverse, k2, on-policy         L              (no exponential of L, for any L)
            reverse, w k1 and w k3         w (L + 1) and w L
            forward, k3                    w - v
            placement "reward"             to_go

        For "exact", it is the gradient of KL_t with respect to the logits. For "exact" with placement "reward" and
        horizon "sequence", the gradient of sg(sum_{s > t} KL_s) log policy_t is added, where sg stops the gradient.

        Args:
            log_prob: Shape (batch, time), nats: log-probability of each token under the policy; differentiated.
            ref_log_prob: Shape (batch, time), nats: log-probability of each token under the reference.
            old_log_prob: Shape (batch, time), nats: log-probability of each token under the policy that generated the
                samples; required for sampler="behaviour".
            logits: Shape (batch, time, V): logits of the policy at the sampling temperature; required for "exact";
                differentiated.
            ref_logits: Shape (batch, time, V): logits of the reference at the sampling temperature; required for
                "exact".
            mask: Shape (batch, time), true (or nonzero) for the tokens that count. Values at other tokens are ignored,
                nan included. None: all tokens count.

        Returns:
            Shape (batch, time), nats, float32 or float64, 0 where the mask is false. The value is the estimate of the
            KL with bounded ratios. `inf` where the reference has probability 0 for the sampled token, or, for "exact",
            for a token of positive policy probability.

        Raises:
            PenaltyError: `old_log_prob` or the logits are missing, or sampler="policy" and `old_log_prob` differs from
                `log_prob` by more than 0.01 nats.
            ShapeError: The shapes differ.

        References:
            Tang and Munos (2025), "On a few pitfalls in KL divergence gradient estimation for RL" [tang2025].

        Example:
            >>> log_prob = torch.tensor([[-1.0, -2.0]], requires_grad=True)
            >>> KLPenalty(estimator="k2").loss(log_prob=log_prob, ref_log_prob=torch.tensor([[-1.5, -2.0]])).detach()
            tensor([[0.1250, 0.0000]])
        """
        batch = self._read(
            log_prob=log_prob,
            ref_log_prob=ref_log_prob,
            old_log_prob=old_log_prob,
            logits=logits,
            ref_logits=ref_logits,
            mask=mask,
        )
        if batch.kl is None and self.placement == "loss":
            derivative = loss_derivative(
                batch.log_ratios, self.direction, self.estimator, weighted=batch.is_weighted, bound=self.bound
            )
            return straight_through(batch.log_prob, self._token_estimates(batch, self.bound), derivative)
        if batch.kl is None or (self.placement == "reward" and self.direction == "forward"):
            return straight_through(batch.log_prob, self._token_estimates(batch, self.bound), self._to_go(batch))
        exact = self._token_estimates(batch, self.bound)
        if self.placement == "loss" or self.horizon == "token":
            return exact
        return exact + straight_through(batch.log_prob, torch.zeros_like(exact), sum_after(exact))

    @torch.no_grad()
    def to_go(self, **inputs: Unpack[PenaltyInputs]) -> Float[Tensor, "batch time"]:
        """The KL-to-go of every token, to be multiplied by beta and subtracted from the token's return.

            k1:     to_go_t = sum_{s >= t} W_s L_s,   W_s = prod_{u <= s} w_u   (1 on the policy's own samples)
            exact:  to_go_t = W_t L_t + sum_{s > t} W_{s-1} KL_s

        For horizon "token", to_go_t = w_t L_t. The expectation E[sum_t to_go_t grad log policy_t] is the gradient of
        the KL that the penalty names. The term of the token itself is L_t rather than KL_t, because KL_t does not
        depend on the sampled token and would contribute nothing to the gradient. The importance ratios are included;
        do not multiply by another ratio.

        Args:
            **inputs: The keyword arguments of `loss`: log_prob, ref_log_prob, old_log_prob, logits, ref_logits and
                mask.

        Returns:
            Shape (batch, time), nats, without gradient, 0 where the mask is false. `inf` where the reference has
            probability 0 for this token or for a later token.

        Raises:
            PenaltyError: The placement is "loss"; `old_log_prob` or the logits are missing; or sampler="policy" and
                `old_log_prob` differs from `log_prob` by more than 0.01 nats.
            ShapeError: The shapes differ.

        References:
            Tang and Munos (2025), "On a few pitfalls in KL divergence gradient estimation for RL" [tang2025].

        Example:
            >>> penalty = KLPenalty(estimator="k1", placement="reward", horizon="sequence")
            >>> log_prob = torch.tensor([[-1.0, -2.0]])
            >>> penalty.to_go(log_prob=log_prob, ref_log_prob=log_prob - 0.5)
            tensor([[1.0000, 0.5000]])
        """
        if self.placement == "loss" and not self.unsafe:
            raise PenaltyError(
                "expected placement='reward', got placement='loss': the KL is part of the loss and would count twice "
                "if it were subtracted from the returns; use placement='reward'"
            )
        batch = self._read(**inputs)
        return torch.where(batch.mask, self._to_go(batch), 0.0)

    @torch.no_grad()
    def value(
        self, *, aggregate: Aggregate = "token_mean", prompts: Prompts = None, **inputs: Unpack[PenaltyInputs]
    ) -> Estimate:
        """Estimates the KL that the penalty names from a batch, without bounding any ratio.

        Args:
            aggregate: "token_mean", the sum over all tokens divided by their number; "sequence_mean", the mean over
                sequences of each sequence's mean over its tokens (0 for a sequence without tokens); or "sequence_sum",
                the mean over sequences of each sequence's sum over its tokens.
            prompts: Shape (batch,): the index of each completion's prompt. Completions of one prompt are correlated, so
                the standard error treats prompts as the independent samples. None: each sequence is independent.
            **inputs: The keyword arguments of `loss`: log_prob, ref_log_prob, old_log_prob, logits, ref_logits and
                mask.

        Returns:
            An `Estimate` in nats per token, or in nats per sequence for "sequence_sum". The estimate of k2 has a bias
            of third order in L. `inf`, with standard error nan, where the reference has probability 0 for a sampled
            token.

        Raises:
            PenaltyError: `old_log_prob` or the logits are missing, or sampler="policy" and `old_log_prob` differs from
                `log_prob` by more than 0.01 nats.
            ShapeError: The shapes differ, or the mask is false everywhere.

        References:
            Schulman (2020), "Approximating KL Divergence", for k1, k2 and k3 [schulman2020].

        Example:
            >>> log_prob = torch.tensor([[-1.0, -2.0], [-1.0, -1.0]])
            >>> estimate = KLPenalty(estimator="k2").value(log_prob=log_prob, ref_log_prob=log_prob - 0.5)
            >>> estimate.value, estimate.unit
            (0.125, 'nats per token')
        """
        batch = self._read(**inputs)
        method = f"{self.estimator} on samples of the {self.sampler}"
        return estimate(self._token_estimates(batch, inf), batch.mask, aggregate, prompts, method)

    @torch.no_grad()
    def statistics(
        self, *, aggregate: Aggregate = "token_mean", prompts: Prompts = None, **inputs: Unpack[PenaltyInputs]
    ) -> dict[str, float]:
        """Statistics of a batch for logging: the raw estimate, the estimate with bounded ratios, and diagnostics.

        Args:
            aggregate: "token_mean", "sequence_mean" or "sequence_sum", as for `value`.
            prompts: Shape (batch,): the index of each completion's prompt, as for `value`.
            **inputs: The keyword arguments of `loss`: log_prob, ref_log_prob, old_log_prob, logits, ref_logits and
                mask.

        Returns:
            The following keys, where NAME is kl_policy_ref (reverse) or kl_ref_policy (forward), followed by _per_token
            or _per_sequence. Values of NAME are in nats.

            NAME, NAME_std_error: The estimate of `value` and its standard error; `inf` and nan where the reference has
                probability 0 for a sampled token.
            NAME_bounded, NAME_bounded_std_error: The estimate with ratios above e^bound replaced by e^bound, as in
                `loss`, and its standard error.
            NAME_p99: The 99th percentile over tokens of the raw estimate at a token.
            effective_sample_size: (sum a)^2 / sum a^2 over tokens, where a is the importance weight of a token.
            beyond_bound: The fraction of tokens whose estimate is changed by the bound.
            tokens, sequences: The number of tokens where the mask is true, and of sequences with such a token.

        Raises:
            PenaltyError: `old_log_prob` or the logits are missing, or sampler="policy" and `old_log_prob` differs from
                `log_prob` by more than 0.01 nats.
            ShapeError: The shapes differ, or the mask is false everywhere.

        Example:
            >>> log_prob = torch.tensor([[-1.0, -2.0], [-1.0, -1.0]])
            >>> logged = KLPenalty(estimator="k2").statistics(log_prob=log_prob, ref_log_prob=log_prob - 0.5)
            >>> logged["kl_policy_ref_per_token"], round(logged["effective_sample_size"], 6), logged["tokens"]
            (0.125, 4.0, 4.0)
        """
        batch = self._read(**inputs)
        is_reverse = self.direction == "reverse"
        sampled_weight = batch.log_ratios.policy_sampler if is_reverse else batch.log_ratios.ref_sampler
        return statistics(
            "kl_policy_ref" if is_reverse else "kl_ref_policy",
            self._token_estimates(batch, inf),
            self._token_estimates(batch, self.bound),
            sampled_weight if batch.kl is None else batch.log_ratios.prefix,
            batch.mask,
            aggregate,
            prompts,
        )

    def _read(self, **inputs: Unpack[PenaltyInputs]) -> Batch:
        """Validates and masks the inputs, and computes the ratios that the penalty needs."""
        # The expectation is over prefixes of the sampler, or of the distribution to which they are reweighted.
        prefix_distribution = None
        if self.horizon == "sequence":
            if self.direction == "forward":
                prefix_distribution = "reference"
            elif self.placement == "reward":
                prefix_distribution = "policy"
        needs_no_ratio = self.estimator == "exact" and self.placement == "loss" and self.horizon == "token"
        if self.unsafe and self.sampler == "policy":
            inputs["old_log_prob"] = None
        sampler = None if self.unsafe or needs_no_ratio else self.sampler
        return read_batch(
            direction=self.direction,
            exact=self.estimator == "exact",
            prefix_distribution=prefix_distribution,
            sampler=sampler,
            **inputs,
        )

    def _token_estimates(self, batch: Batch, bound: float) -> Float[Tensor, "batch time"]:
        """The estimate at each token, times the importance weight of its prefix; differentiable for "exact"."""
        if batch.kl is None:
            return sampled_kl(batch.log_ratios, self.direction, self.estimator, bound)
        return safe_product(bounded_exp(batch.log_ratios.prefix, bound), batch.kl)

    def _to_go(self, batch: Batch) -> Float[Tensor, "batch time"]:
        own = later = self._token_estimates(batch, self.bound)
        if batch.kl is not None and self.direction == "reverse":
            own = sampled_kl(batch.log_ratios, "reverse", "k1", self.bound)
        return own + sum_after(later) if self.horizon == "sequence" else own
