"""A KL penalty: which KL, by which estimator, placed where, over which horizon, on whose samples."""

from dataclasses import dataclass, field, fields
from math import inf
from typing import Literal, Unpack, get_args

import kullback.tokens  # noqa: F401  first: where PyTorch is missing it says what to install

# isort: split
import torch
from torch import Tensor

from kullback.errors import PenaltyError
from kullback.policy.aggregation import Aggregate
from kullback.policy.estimators import sampled_kl, slope, straight_through, sum_after, times, weight
from kullback.policy.penalty_gradients import refusal
from kullback.policy.penalty_inputs import Batch, PenaltyInputs, read_batch
from kullback.policy.penalty_statistics import Prompts, estimate, statistics
from kullback.result import Estimate

__all__ = ["KLPenalty"]


@dataclass(frozen=True)
class KLPenalty:
    """KL(policy || ref), or KL(ref || policy), as a penalty on sampled tokens whose gradient is the one it states.

    With L_t = log policy/ref of token t, w_t = policy/old, and KL_t the exact KL of the next token at t, the gradient
    of `loss`, summed over the tokens that the mask counts and averaged over the sampler's sequences, is that of

        horizon "token":    E[ sum_t KL_t ] with the visited prefixes, the sampler's, held fixed;
        horizon "sequence": KL of the whole sequences' distributions = E[ sum_t KL_t ], prefixes moving with the policy.

    Tokens that the policy did not make (tool output, padding) are the same under both policies: mask them.

    Args:
        direction: "reverse" for KL(policy || ref), "forward" for KL(ref || policy).
        estimator: "exact", over the vocabulary, from the logits; else from the sampled token, k1 = L, k2 = L^2/2,
            k3 = phi(-L).
        placement: "loss": `loss` is differentiated. "reward": `to_go` is subtracted from the returns; its `loss` is the
            same penalty where there are no returns, sg(to_go) log policy. Take one of the two.
        horizon: "token" or "sequence", as above.
        sampler: Whose samples: "policy", the one that is differentiated; "behaviour", another, given by old_log_prob.
        unsafe: Allow what has another KL's gradient, to reproduce papers. It then is the plain form: the estimator
            differentiated, or summed, as it stands; without old_log_prob nothing is weighed.
        bound: Ratios above e^bound are held there, as fixed weights of a derivative that goes on: none dies, none
            overflows.

    Raises:
        PenaltyError: The gradient would be another KL's; the message names the right penalty.

    Source: [schulman2020] for k1, k2, k3; [tang2025] for gradients; [amini2025] for the exact sum at sampled prefixes.

    Example:
        >>> penalty = KLPenalty(estimator="k2")
        >>> log_prob = torch.tensor([[-1.0, -2.0]], requires_grad=True)
        >>> penalty.loss(log_prob=log_prob, ref_log_prob=torch.tensor([[-1.5, -2.0]])).sum().backward()
        >>> log_prob.grad
        tensor([[0.5000, 0.0000]])
        >>> KLPenalty(estimator="k1")
        Traceback (most recent call last):
        kullback.errors.PenaltyError: the expected gradient of k1 in a loss is 0: take ...
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
            if given not in allowed:
                raise PenaltyError(f"expected {choice.name} to be {' or '.join(map(repr, allowed))}, got {given!r}")
        if not 1 <= self.bound <= 40:
            raise PenaltyError(f"expected a bound from 1 to 40, so that float32 holds its square, got {self.bound!r}")
        wrong = refusal(self.direction, self.estimator, self.placement, self.horizon, self.sampler)
        if wrong and not self.unsafe:
            raise PenaltyError(f"{wrong} (unsafe=True reproduces it)")

    def loss(
        self,
        *,
        log_prob: Tensor,
        ref_log_prob: Tensor,
        old_log_prob: Tensor | None = None,
        logits: Tensor | None = None,
        ref_logits: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """A surrogate at every token whose sum over tokens, averaged over sequences, has the stated KL's gradient.

        The derivative by log policy of the sampled token, sg being held fixed (v = ref/old):

            reverse, k2 in the loss        sg(L)              (straight through: any L, without an exponential)
            reverse, w k1, w k3            sg(w (L + 1)), sg(w L)
            forward, k3                    sg(w - v)
            in the reward                  sg(to_go)

        and for "exact" the gradient of KL_t by the logits; in the reward, also that of sg(later KL) log policy.

        Args:
            log_prob: Shape (batch, time), nats: log-probability of each token under the policy; differentiated.
            ref_log_prob: Shape (batch, time), nats, under the reference.
            old_log_prob: Shape (batch, time), nats, under the policy that made the samples; for sampler="behaviour".
            logits: Shape (batch, time, V), of the policy, at the sampling temperature; for "exact"; differentiated.
            ref_logits: Shape (batch, time, V), of the reference, likewise.
            mask: Shape (batch, time), true (or not 0) for the tokens that count. The rest may hold anything.

        Returns:
            Shape (batch, time), nats, float32 or float64, 0 where the mask is false. Its value is the estimate itself,
            its ratios bounded. `inf` where the reference rules out a token that came (or, for "exact", could come).

        Raises:
            PenaltyError: A ratio or logits are missing, or samples said to be the policy's are another's.
            ShapeError: The shapes differ.
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
            by_log_prob = slope(
                batch.terms, self.direction, self.estimator, weighted=batch.is_weighted, bound=self.bound
            )
            return straight_through(batch.log_prob, self._at_tokens(batch, self.bound), by_log_prob)
        if batch.kl is None or (self.placement == "reward" and self.direction == "forward"):
            return straight_through(batch.log_prob, self._at_tokens(batch, self.bound), self._to_go(batch))
        exact = self._at_tokens(batch, self.bound)
        if self.placement == "loss" or self.horizon == "token":
            return exact
        return exact + straight_through(batch.log_prob, torch.zeros_like(exact), sum_after(exact))

    @torch.no_grad()
    def to_go(self, **batch: Unpack[PenaltyInputs]) -> Tensor:
        """What to subtract, times beta, from the return of every token: its own log-ratio and the KL that comes later.

            k1:     to_go_t = sum_{s >= t} W_s L_s,   W_s = prod_{u <= s} w_u   (1 on the policy's own samples)
            exact:  to_go_t = W_t L_t + sum_{s > t} W_{s-1} KL_s

        and the first term alone, with w_t, where the horizon is the token. E[ sum_t to_go_t grad log policy_t ] is the
        stated KL's gradient. The token's own term is L_t and not KL_t, which does not depend on the token. The ratios
        are in it: multiply by no other.

        Args:
            **batch: As for `loss`.

        Returns:
            Shape (batch, time), nats, without gradient, 0 where the mask is false.

        Raises:
            PenaltyError: As for `loss`; or the placement is "loss".
            ShapeError: The shapes differ.
        """
        if self.placement == "loss" and not self.unsafe:
            raise PenaltyError("the KL is in the loss, and would count twice in returns: take placement='reward'")
        seen = self._read(**batch)
        return torch.where(seen.mask, self._to_go(seen), 0.0)

    @torch.no_grad()
    def value(
        self, *, aggregate: Aggregate = "token_mean", prompts: Prompts = None, **batch: Unpack[PenaltyInputs]
    ) -> Estimate:
        """The stated KL, estimated from the batch, nothing bounded.

        Args:
            aggregate: "token_mean", the sum over all tokens / their number; "sequence_mean", the mean over sequences of
                each one's mean over its tokens (0 where it has none); "sequence_sum", that of each one's sum.
            prompts: Shape (batch,): equal numbers for completions of one prompt, which are alike; the standard error
                takes prompts as the independent draws. None: each sequence is one.
            **batch: As for `loss`.

        Returns:
            An `Estimate` in nats per token, or per sequence for "sequence_sum". k2's is biased, to third order in L.

        Raises:
            PenaltyError: As for `loss`.
            ShapeError: The shapes differ, or no token counts.
        """
        seen = self._read(**batch)
        method = f"{self.estimator} on samples of the {self.sampler}"
        return estimate(self._at_tokens(seen, inf), seen.mask, aggregate, prompts, method)

    @torch.no_grad()
    def statistics(
        self, *, aggregate: Aggregate = "token_mean", prompts: Prompts = None, **batch: Unpack[PenaltyInputs]
    ) -> dict[str, float]:
        """What to log of a batch: the estimate as it is and as the loss bounds it, and how far to trust it.

        Args:
            aggregate: As for `value`.
            prompts: As for `value`.
            **batch: As for `loss`.

        Returns:
            NAME being kl_policy_ref, or kl_ref_policy for the forward direction, with _per_token or _per_sequence:

            NAME, NAME_std_error: `value`, raw, and its standard error; may be inf.
            NAME_bounded, NAME_bounded_std_error: the same with every ratio held at e^bound, as in the loss.
            NAME_p99: the 99th percentile over tokens of the raw estimate at a token.
            effective_sample_size: (sum a)^2 / sum a^2 over tokens, a being what the estimate weighs each one by.
            beyond_bound: the share of tokens whose estimate the bound changes.
            tokens, sequences: how many count.

        Raises:
            PenaltyError: As for `loss`.
            ShapeError: The shapes differ, or no token counts.
        """
        seen = self._read(**batch)
        is_reverse = self.direction == "reverse"
        sampled_weight = seen.terms.policy if is_reverse else seen.terms.reference
        return statistics(
            "kl_policy_ref" if is_reverse else "kl_ref_policy",
            self._at_tokens(seen, inf),
            self._at_tokens(seen, self.bound),
            sampled_weight if seen.kl is None else seen.terms.prefix,
            seen.mask,
            aggregate,
            prompts,
        )

    def _read(self, **batch: Unpack[PenaltyInputs]) -> Batch:
        # Whose prefixes count: as they came, or reweighed to those of the distribution that the expectation is over.
        prefixes = None
        if self.horizon == "sequence":
            prefixes = "reference" if self.direction == "forward" else "policy" if self.placement == "reward" else None
        is_local = self.estimator == "exact" and self.placement == "loss" and self.horizon == "token"
        if self.unsafe and self.sampler == "policy":
            batch["old_log_prob"] = None
        sampler = None if self.unsafe or is_local else self.sampler
        return read_batch(
            direction=self.direction, exact=self.estimator == "exact", prefixes=prefixes, sampler=sampler, **batch
        )

    def _at_tokens(self, batch: Batch, bound: float) -> Tensor:
        """The estimate at each token, with the weight of its prefix; differentiable where it is exact."""
        if batch.kl is None:
            return sampled_kl(batch.terms, self.direction, self.estimator, bound)
        return times(weight(batch.terms.prefix, bound), batch.kl)

    def _to_go(self, batch: Batch) -> Tensor:
        own = later = self._at_tokens(batch, self.bound)
        if batch.kl is not None and self.direction == "reverse":
            own = sampled_kl(batch.terms, "reverse", "k1", self.bound)
        return own + sum_after(later) if self.horizon == "sequence" else own
