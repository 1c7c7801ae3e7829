"""Published objectives, with their constants, and what their KL penalty's gradient is."""

from dataclasses import dataclass
from typing import Literal

import kullback.tokens  # noqa: F401  first: where PyTorch is missing it says what to install

# isort: split
from torch import Tensor

from kullback.errors import PenaltyError
from kullback.policy.aggregation import Aggregate
from kullback.policy.losses import Clip, Ratio, ppo_loss
from kullback.policy.penalty import KLPenalty
from kullback.policy.penalty_gradients import refusal

__all__ = ["PRESETS", "Preset", "preset"]


@dataclass(frozen=True)
class Preset:
    """A published objective. None stands for what its source does not say, or does not have.

    Args:
        source: Key in docs/references.bib, and where the constants are from.
        clip: How far the ratio may leave 1, below and above.
        ratio: What the ratio is of: see `ppo_loss`.
        aggregate: How tokens make one number: see `aggregate_tokens`.
        advantages: "gae", by a critic (`gae`); "group" and "group_centred" (`group_advantages`, scale=False);
            "leave_one_out".
        penalty: Its KL penalty.
        towards: What the penalty holds the policy to: "reference", or "old", the policy that made the samples.
        beta: Reward per nat; the first one where it adapts.
        kl_target: The KL that an adaptive beta aims at, nats per `kl_unit`.
        kl_unit: "sequence" or "step".
        discount: The discount of returns.
        decay: GAE's lambda.
        group: Completions a prompt.
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
        """Why the gradient of its penalty is not that of the KL it is named for; None where it is."""
        kind = self.penalty
        return kind and refusal(kind.direction, kind.estimator, kind.placement, kind.horizon, kind.sampler)

    def loss(
        self,
        *,
        log_prob: Tensor,
        advantages: Tensor,
        old_log_prob: Tensor | None = None,
        ref_log_prob: Tensor | None = None,
        logits: Tensor | None = None,
        ref_logits: Tensor | None = None,
        mask: Tensor | None = None,
        beta: float | Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        """`ppo_loss` with these constants. A penalty placed in the reward is not in it: subtract
        `beta * penalty.to_go(...)` from the returns.

        Arguments, returns and errors as for `ppo_loss`; `beta` overrides the published one, where it adapts.
        """
        beta = self.beta if beta is None else beta
        if self.penalty is None or self.penalty.placement == "reward":
            beta = 0.0
        elif self.towards == "old" and ref_log_prob is None:
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
        "[ziegler2019], section 2.2 for the discount; the rest is its released code's, for sentiment",
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
        "[shao2024], section 4.2; one update a batch, so that no clip is given or needed",
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
        "[ahmadian2024]; clip and beta are TRL's",
        0.2,
        "sequence_mean",
        "leave_one_out",
        ratio="sequence",
        penalty=_K1_IN_REWARD,
        beta=0.05,
    ),
    "dr_grpo": Preset(
        "[liu2025]; clip and group are its released code's", 0.2, "sequence_sum", "group_centred", group=8
    ),
    "dapo": Preset("[yu2025], section 4.1", (0.2, 0.28), "token_mean", "group", group=16),
    "gspo": Preset("[zheng2025], section 5.1", (3e-4, 4e-4), "sequence_mean", "group", ratio="sequence_mean"),
}


def preset(name: str) -> Preset:
    """A published objective by its name.

    Args:
        name: "ppo2017", "ppo2017_adaptive_kl", "ziegler2019", "instructgpt", "deepseekmath", "deepseek_r1", "rloo",
            "dr_grpo", "dapo" or "gspo".

    Returns:
        A `Preset`.

    Raises:
        PenaltyError: No such name.

    Example:
        >>> preset("deepseekmath").beta
        0.04
        >>> print(preset("deepseekmath").caveat[:76])
        k3 differentiated as a loss on the policy's own samples descends KL(ref || p
    """
    if name not in PRESETS:
        raise PenaltyError(f"expected a preset of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
