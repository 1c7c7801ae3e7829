"""Published RL objectives for language models: their constants, and the gradient of their KL penalty."""

from dataclasses import dataclass
from typing import Literal

import kullback.tokens  # noqa: F401  first: raises MissingDependencyError where PyTorch is not installed

# isort: split
from torch import Tensor

from kullback.errors import PenaltyError
from kullback.numerics.arguments import shown
from kullback.numerics.array_types import Float, Shaped
from kullback.policy.aggregation import Aggregate
from kullback.policy.losses import Clip, Ratio, ppo_loss
from kullback.policy.penalty import KLPenalty
from kullback.policy.penalty_gradients import gradient_mismatch
from kullback.tokens.logits import is_scalar

__all__ = ["PRESETS", "Preset", "preset"]


@dataclass(frozen=True)
class Preset:
    """A published objective: the clipped surrogate, a KL penalty, and the constants of the source.

        loss = aggregate of  -min(w A, clip(w, 1 - low, 1 + high) A) + beta penalty.loss,   w = policy/old

    None means that the source does not state the constant, or that the objective does not have it.

    Args:
        source: Keys of docs/references.bib, and the sections or the code in which the constants are given.
        clip: The range [1 - low, 1 + high] of w: one number for both sides, (low, high), or None for no clipping.
        aggregate: How token losses are averaged: "token_mean", "sequence_mean" or "sequence_sum"; see
            `aggregate_tokens`.
        advantages: The advantage estimator: "gae" (`gae`), "group" (`group_advantages`), "group_centred"
            (`group_advantages` with scale=False) or "leave_one_out" (`leave_one_out`).
        ratio: The probabilities that w compares: "token", "sequence" or "sequence_mean"; see `ppo_loss`.
        penalty: The KL penalty.
        towards: The policy to which the penalty compares: "reference", or "old", the policy that generated the samples.
        beta: The coefficient of the penalty, in units of reward per nat; its initial value where it is adaptive.
        kl_target: The KL to which an adaptive beta is controlled, in nats per `kl_unit`.
        kl_unit: "sequence" or "step".
        discount: The discount factor of the returns, in [0, 1].
        decay: The parameter lambda of generalised advantage estimation, in [0, 1].
        group: The number of completions per prompt.

    Example:
        >>> Preset("[yu2025], section 4.1", (0.2, 0.28), "token_mean", "group", group=16) == preset("dapo")
        True
    """

    source: str
    clip: Clip
    aggregate: Aggregate
    advantages: Literal["gae", "group", "group_centred", "leave_one_out"]
    ratio: Ratio = "token"
    penalty: KLPenalty | None = None
    towards: Literal["reference", "old"] = "reference"
    beta: float = 0.0
    kl_target: float | None = None
    kl_unit: Literal["sequence", "step"] | None = None
    discount: float | None = None
    decay: float | None = None
    group: int | None = None

    @property
    def caveat(self) -> str | None:
        """How the gradient of the penalty differs from the gradient of the KL that it names; None if they agree."""
        kl = self.penalty
        return kl and gradient_mismatch(kl.direction, kl.estimator, kl.placement, kl.horizon, kl.sampler)

    def loss(
        self,
        *,
        log_prob: Float[Tensor, "batch time"],
        advantages: Float[Tensor, "batch time"] | Float[Tensor, " batch"],
        old_log_prob: Float[Tensor, "batch time"] | None = None,
        ref_log_prob: Float[Tensor, "batch time"] | None = None,
        logits: Float[Tensor, "batch time vocab"] | None = None,
        ref_logits: Float[Tensor, "batch time vocab"] | None = None,
        mask: Shaped[Tensor, "batch time"] | None = None,
        beta: float | Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Float[Tensor, ""]:
        """The published loss: `ppo_loss` with the constants of the preset.

        The KL whose gradient the penalty descends is the KL that `penalty` names, unless `caveat` names a different
        KL. A penalty with placement="reward" is not part of the loss: subtract `beta * penalty.to_go(...)` from the
        returns before computing advantages.

        Args:
            log_prob: Shape (batch, time), nats: log-probability of each token under the policy; differentiated.
            advantages: Shape (batch, time), or (batch,) for one advantage per sequence; not differentiated.
            old_log_prob: Shape (batch, time), nats: log-probability of each token under the policy that generated the
                samples. None: the differentiated policy generated them.
            ref_log_prob: Shape (batch, time), nats: log-probability of each token under the reference. For
                towards="old", `old_log_prob` by default.
            logits: Shape (batch, time, V): logits of the policy, for a penalty with estimator="exact"; differentiated.
            ref_logits: Shape (batch, time, V): logits of the reference, for a penalty with estimator="exact".
            mask: Shape (batch, time), true (or nonzero) for the tokens that count. None: all tokens count.
            beta: Replaces the published coefficient of a penalty in the loss, for example where it is adaptive.
            normalizer: Replaces the denominator of the average; see `aggregate_tokens`.

        Returns:
            A scalar to minimise. `inf` where the reference has probability 0 for a sampled token.

        Raises:
            PenaltyError: `beta` is negative, infinite or nan; it is given, but the objective has no penalty in the
                loss; or an array that the penalty needs is missing.
            ShapeError: The shapes differ.

        Example:
            >>> import torch
            >>> log_prob = torch.tensor([[-1.0, -2.0]], requires_grad=True)
            >>> preset("dapo").loss(log_prob=log_prob, advantages=torch.tensor([1.0])).item()
            -1.0
        """
        is_in_loss = self.penalty is not None and self.penalty.placement == "loss"
        if beta is None:
            beta = self.beta if is_in_loss else 0.0
        elif self.penalty is None and not (is_scalar(beta) and beta == 0):
            raise PenaltyError(
                f"expected no beta, got {shown(beta)}: this objective has no KL penalty; pass beta and penalty to "
                "ppo_loss"
            )
        if is_in_loss and self.towards == "old" and ref_log_prob is None:
            ref_log_prob = log_prob.detach() if old_log_prob is None else old_log_prob
        return ppo_loss(
            log_prob=log_prob,
            advantages=advantages,
            old_log_prob=old_log_prob,
            ref_log_prob=ref_log_prob,
            logits=logits,
            ref_logits=ref_logits,
            mask=mask,
            clip=self.clip,
            ratio=self.ratio,
            beta=beta,
            penalty=self.penalty or KLPenalty(),
            aggregate=self.aggregate,
            normalizer=normalizer,
        )


_K1_IN_REWARD = KLPenalty(estimator="k1", placement="reward", horizon="sequence")
_K3_IN_LOSS = KLPenalty(estimator="k3", unsafe=True)

PRESETS = {
    "ppo2017": Preset("[schulman2017], tables 1 and 3", 0.2, "token_mean", "gae", discount=0.99, decay=0.95),
    "ppo2017_adaptive_kl": Preset(
        "[schulman2017], section 4 and table 1",
        None,
        "token_mean",
        "gae",
        penalty=KLPenalty("forward", "exact", sampler="behaviour"),
        towards="old",
        beta=1.0,
        kl_target=0.01,
        kl_unit="step",
        discount=0.99,
        decay=0.95,
    ),
    "ziegler2019": Preset(
        "[ziegler2019], section 2.2 for the discount; the released code for sentiment for the other constants",
        0.2,
        "token_mean",
        "gae",
        penalty=_K1_IN_REWARD,
        beta=0.15,
        kl_target=6.0,
        kl_unit="sequence",
        discount=1.0,
        decay=0.95,
    ),
    "instructgpt": Preset(
        "[ouyang2022], appendix C.4", 0.2, "token_mean", "gae", penalty=_K1_IN_REWARD, beta=0.02, discount=1.0
    ),
    "deepseekmath": Preset(
        "[shao2024], section 4.2; one update per batch, so that the clip has no effect and is not stated",
        None,
        "sequence_mean",
        "group",
        penalty=_K3_IN_LOSS,
        beta=0.04,
        group=64,
    ),
    "deepseek_r1": Preset(
        "[guo2025], methods", 10.0, "sequence_mean", "group", penalty=_K3_IN_LOSS, beta=0.001, group=16
    ),
    "rloo": Preset(
        "[ahmadian2024]; TRL for clip and beta",
        0.2,
        "sequence_mean",
        "leave_one_out",
        ratio="sequence",
        penalty=_K1_IN_REWARD,
        beta=0.05,
    ),
    "dr_grpo": Preset("[liu2025]; the released code for clip and group", 0.2, "sequence_sum", "group_centred", group=8),
    "dapo": Preset("[yu2025], section 4.1", (0.2, 0.28), "token_mean", "group", group=16),
    "gspo": Preset("[zheng2025], section 5.1", (3e-4, 4e-4), "sequence_mean", "group", ratio="sequence_mean"),
}


def preset(name: str) -> Preset:
    """Returns a published objective by name.

    Args:
        name: "ppo2017", "ppo2017_adaptive_kl", "ziegler2019", "instructgpt", "deepseekmath", "deepseek_r1", "rloo",
            "dr_grpo", "dapo" or "gspo".

    Returns:
        A `Preset` with the published constants. Its `caveat` states whether its penalty descends a KL other than the
        KL that it names.

    Raises:
        PenaltyError: The name is unknown.

    References:
        `Preset.source` names the source of each objective.

    Example:
        >>> preset("deepseekmath").beta
        0.04
        >>> print(preset("deepseekmath").caveat[:76])
        k3 differentiated as a loss on the policy's own samples descends KL(ref || p
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise PenaltyError(f"expected the name of a preset, one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
