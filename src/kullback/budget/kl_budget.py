"""A KL budget: what holds KL(policy || reference) at a target while a policy learns. Pure: state in, state out.

Three things act, from the slow one to the fast one, all on one smoothed estimate of the KL (`filtered_kl`):

- the price, beta times the budget, integrates until a step no longer wants to change the KL (then it is the
  Lagrange multiplier of the budget), and lies at its floor while the budget does not bind;
- `learning_rate_scale`, a factor on the learning rate, keeps the KL that one step moves to a few percent of the target, and to
  what can be kl_filter: beta has no authority over the size of an optimiser's normalised step;
- `displacement_scale`, a factor on the weights' displacement from the reference, corrects the level at once: KL goes with a power of
  it, its square near the reference; further out the power is learned.
"""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self, TypeAlias, get_args

from kullback.budget.kl_filter import KLFilter
from kullback.budget.pull_response import PullExponent
from kullback.errors import BudgetError

__all__ = ["KLBudget", "Unit", "require_kl"]

Unit: TypeAlias = Literal["token", "sequence", "step", "image"]

_SMOOTH = 0.2  # share of the newest step in the running push
_MEMORY = 0.1  # share of the newest in the running rms_kl_step and rms_change_error
_SIGHT = 0.003  # how badly a step near the target may be kl_filter: the standard error of the KL's change, relative ...
_FAR_SIGHT = 0.1  # ... and at a KL near zero, where no harm comes of it
_RUSH = 4.0  # how much larger a step may be while the KL is still near zero
_FASTER = 1.2  # the most that the step grows by at once
_PULL_OUT = 1.04  # outward the KL is only trimmed: reward, not the controller, is to spend the budget
_NEAR = 0.8  # share of the target above which it may be trimmed outward
_EDGE = 1.2  # share of the target above which a step is taken back at once
_SLOWEST = 1e-4  # of the learning rate: what is left of a move at smaller steps is rounding
_OFFSET = 0.15  # the most that a judged set may differ from the batches and still be what is held


@dataclass(frozen=True)
class KLBudget:
    """Holds KL(policy || reference) at `target` nats per `unit`; where it does not bind, below, with beta at its floor.

    Once an optimizer step, in this order: `update` with the KL of a fresh batch; the step, with the learning rate times
    `learning_rate_scale`; the displacement from the reference scaled by `displacement_scale`; `moved` with the KL of held-out positions before
    and after; the displacement scaled by `brake` and `braked`, where `brake` is below 1. A user without weights to pull
    calls `update` alone. Where a fixed set of prompts judges the policy every so often, `judged` with its KL: that is
    held then.

    Args:
        target: The budget in nats per unit, > 0.
        unit: What the nats are per: "token" (KL summed over tokens / tokens), "sequence" (the same / sequences), "step"
            (a state visited in an environment), or "image" (all of a VAE's latent dimensions, an example).
        price: What the whole budget costs in the loss, in reward: beta * target. Budgets of any size start alike.
        price_min: Where the price rests while the budget does not bind.
        price_max: Where it stops: beyond it a larger price moves nothing.
        gain: The largest change of the price's logarithm in one step.
        step_limit: How far one step may move the KL near the target, root mean square, as a share of the target.
        learning_rate_scale: The factor on the learning rate, in (0, 1]. It starts low: how far a step moves is not known yet.
        mean_log_kl_step: How far recent steps wanted to move log KL, on average.
        rms_kl_step: How far a step at the full learning rate moves it, root mean square, as a share of the target.
        rms_change_error: The standard error with which held-out positions show such a step, relative, root mean square.
        pull_exponent: With which power of the displacement the KL goes, as learned from pulls.
        kl_filter: What is known of the KL from the measurements.

    Raises:
        BudgetError: A number that makes no sense; the message says which.

    Example:
        >>> budget = KLBudget(0.05, unit="token")
        >>> for _ in range(50):
        ...     budget = budget.update(0.08, std_error=0.008, count=16)
        >>> budget.beta > 0.3, budget.displacement_scale < 1
        (True, True)
        >>> KLBudget.from_dict(budget.to_dict()) == budget
        True
    """

    target: float
    unit: Unit = "token"
    price: float = 5e-3
    price_min: float = 5e-4
    price_max: float = 0.5
    gain: float = 0.05
    step_limit: float = 0.02
    learning_rate_scale: float = 0.1
    mean_log_kl_step: float = 0.0
    rms_kl_step: float = 0.0
    rms_change_error: float = 0.0
    pull_exponent: PullExponent = field(default_factory=PullExponent)
    kl_filter: KLFilter = field(default_factory=KLFilter)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.target) and self.target > 0):
            raise BudgetError(f"a KL budget must be a finite number of nats > 0, got {self.target}")
        if self.unit not in get_args(Unit):
            raise BudgetError(f"expected a unit of {', '.join(map(repr, get_args(Unit)))}, got {self.unit!r}")
        if not 0 < self.price_min <= self.price <= self.price_max < math.inf:
            got = f"price_min={self.price_min}, price={self.price}, price_max={self.price_max}"
            raise BudgetError(f"expected 0 < price_min <= price <= price_max, got {got}")
        if not (0 < self.gain < math.inf and 0 < self.step_limit < math.inf and 0 < self.learning_rate_scale <= 1):
            got = f"gain={self.gain}, step_limit={self.step_limit}, learning_rate_scale={self.learning_rate_scale}"
            raise BudgetError(f"expected gain > 0, step_limit > 0 and 0 < learning_rate_scale <= 1, got {got}")

    @property
    def filtered_kl(self) -> float:
        """The smoothed estimate of the KL, in nats per unit; 0 before the first measurement."""
        return self.kl_filter.value

    @property
    def beta(self) -> float:
        """The penalty's coefficient: reward per nat, in the budget's unit."""
        return self.price / self.target

    @property
    def status(self) -> Literal["not binding", "held", "saturated"]:
        """How it binds: "not binding", price at its floor; "saturated", at its ceiling: steps alone hold it; else "held"."""
        if self.price <= self.price_min:
            return "not binding"
        return "saturated" if self.price >= self.price_max else "held"

    @property
    def effective_target(self) -> float:
        """The level at which the KL on the judged prompts is the target; the target itself where nothing is judged."""
        return self.target * math.exp(-max(-_OFFSET, min(_OFFSET, self.kl_filter.offset)))

    @property
    def displacement_scale(self) -> float:
        """The factor to scale the displacement from the reference by, after the next step."""
        if self.filtered_kl <= 0:
            return 1.0
        # Logarithms, so that no level is too large or too small for it.
        change = (
            math.log(self.effective_target) - math.log(self.filtered_kl) - self.mean_log_kl_step - self.kl_filter.drift
        )
        trims = self.status != "not binding" and self.filtered_kl > _NEAR * self.effective_target
        return math.exp(min(change, math.log(_PULL_OUT) if trims else 0.0) / self.pull_exponent.value)

    @property
    def brake(self) -> float:
        """The factor to scale the displacement by at once: below 1 where a step overran the budget by over a fifth."""
        return (
            (self.effective_target / self.filtered_kl) ** (1 / self.pull_exponent.value)
            if self.filtered_kl > _EDGE * self.effective_target
            else 1.0
        )

    def update(self, observed_kl: float, *, std_error: float = math.nan, count: int = 1) -> Self:
        """The state after measuring the policy's KL on fresh samples: a corrected level, a new beta.

        Args:
            observed_kl: KL(policy || reference) in nats per unit on samples of the policy as it is.
            std_error: Its standard error; nan if unknown.
            count: On how many independent prompts it rests.

        Raises:
            BudgetError: `observed_kl` is negative, nan or infinite; a standard error below 0; no prompt.
        """
        require_kl(observed_kl, "observed_kl")
        if std_error < 0 or not count >= 1:
            raise BudgetError(f"expected std_error >= 0 or nan, and count >= 1, got {std_error} and {count}")
        # Where nobody says how far steps move, there is nothing to hold the steps back by.
        scale = (
            self.learning_rate_scale if self.kl_filter.has_step_update else min(1.0, _FASTER * self.learning_rate_scale)
        )
        seen = self.kl_filter.after_batch(observed_kl, std_error=std_error, count=count)
        told = replace(self, kl_filter=seen, learning_rate_scale=scale)
        return replace(told, price=told._next_price())

    def after_step(
        self, before: float, after: float, *, displacement_scale: float, std_error: float = math.nan
    ) -> Self:
        """The state after an optimizer step and a pull took the KL of fixed, held-out positions from before to after.

        Args:
            before: Their mean KL in nats per unit before the step.
            after: The same after the step and the pull.
            displacement_scale: The factor that the displacement was scaled by in between.
            std_error: That of after / before, relative; nan if unknown. Steps that the positions differ much about are
                made smaller: what a step did elsewhere is as uncertain.

        Raises:
            BudgetError: A KL that is negative, nan or infinite, a factor <= 0, or a standard error below 0.
        """
        require_kl(before, "before")
        require_kl(after, "after")
        if not displacement_scale > 0 or std_error < 0:
            raise BudgetError(
                f"expected displacement_scale > 0 and std_error >= 0 or nan, got {displacement_scale} and {std_error}"
            )
        if not self.kl_filter.is_valid_change(before, after):
            return replace(self, kl_filter=self.kl_filter.after_step(before, after, wanted=0.0))
        change = math.log(after / before)
        near = min(1.0, self.filtered_kl / self.target)
        noise = self.rms_kl_step * self.learning_rate_scale / max(near, 1e-300) or 1.0
        power = self.pull_exponent.after_step(math.log(displacement_scale), change, noise=noise)
        wanted = change - power.value * math.log(displacement_scale)
        move = near * max(-1.0, min(1.0, wanted))
        # Per unit of learning_rate_scale, so that what the scale did is not taken for calm.
        newest = abs(move) / self.learning_rate_scale
        rms_kl_step = _running(self.rms_kl_step, newest)
        rms_change_error = (
            self.rms_change_error
            if math.isnan(std_error)
            else _running(self.rms_change_error, min(1.0, std_error) / self.learning_rate_scale)
        )
        # Far below the target there is no harm in larger steps, and the budget is to be spent.
        far = max(0.0, 1 - self.filtered_kl / self.target)
        limit, sight = self.step_limit * (1 + _RUSH * far), _SIGHT + _FAR_SIGHT * far
        slower = min(1.0, limit / max(rms_kl_step, 1e-300), sight / max(rms_change_error, 1e-300))
        return replace(
            self,
            pull_exponent=power,
            kl_filter=self.kl_filter.after_step(before, after, wanted=wanted, std_error=std_error),
            mean_log_kl_step=(1 - _SMOOTH) * self.mean_log_kl_step + _SMOOTH * move,
            rms_kl_step=rms_kl_step,
            rms_change_error=rms_change_error,
            learning_rate_scale=max(
                min(slower, _FASTER * self.learning_rate_scale), min(_SLOWEST, self.learning_rate_scale)
            ),
        )

    def after_brake(self, before: float, after: float, *, factor: float | None = None) -> Self:
        """The state after the brake took the KL of the held-out positions from before to after.

        Args:
            before: Their mean KL in nats per unit before.
            after: The same after.
            factor: What the displacement was scaled by, where it was not by `brake`; 1 where another's moved the KL.

        Raises:
            BudgetError: A KL that is negative, nan or infinite, or a factor <= 0.
        """
        require_kl(before, "before")
        require_kl(after, "after")
        factor = self.brake if factor is None else factor
        if not factor > 0:
            raise BudgetError(f"expected a factor > 0, got {factor}")
        power = self.pull_exponent
        if self.kl_filter.is_valid_change(before, after):
            power = power.after_scaling(math.log(factor), math.log(after / before))
        return replace(self, pull_exponent=power, kl_filter=self.kl_filter.after_scaling(before, after))

    def update_evaluation(self, observed_kl: float, *, std_error: float) -> Self:
        """The state after measuring the KL on the fixed set of prompts that the policy is judged by.

        From then on the KL on that set is what is held, as far as it lies within 15% of the batches'.

        Args:
            observed_kl: KL(policy || reference) on the set, in nats per unit.
            std_error: Its standard error; nan (unknown) teaches nothing, nor does a level far below the target.

        Raises:
            BudgetError: `observed_kl` is negative, nan or infinite.
        """
        require_kl(observed_kl, "observed_kl")
        # On the way to the budget the level runs late by more than its rel_std_error says, and nothing needs an effective_target yet.
        if not (observed_kl > 0 and self.filtered_kl > _NEAR * self.target and math.isfinite(std_error)):
            return self
        return replace(self, kl_filter=self.kl_filter.after_evaluation(observed_kl, std_error=std_error))

    def to_dict(self) -> dict[str, Any]:
        """The whole state as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        """The budget that `to_dict` was called on.

        Raises:
            BudgetError: Something is missing, unknown or makes no sense.
        """
        try:
            return cls(
                **{
                    **state,
                    "pull_exponent": PullExponent(**state["pull_exponent"]),
                    "kl_filter": KLFilter(**state["kl_filter"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise BudgetError(f"expected what KLBudget.to_dict gave, got {state!r}: {error}") from error

    def _next_price(self) -> float:
        if self.filtered_kl <= 0:
            return self.price
        # Steps that push outward all alike (lead 1) raise the price at the target, and keep it on the way there.
        rms_kl_step = self.rms_kl_step * self.learning_rate_scale
        lead = self.mean_log_kl_step / rms_kl_step if rms_kl_step > 0 else 0.0
        error = max(-1.0, min(1.0, lead + math.log(self.filtered_kl) - math.log(self.effective_target)))
        return max(self.price_min, min(self.price_max, self.price * math.exp(self.gain * error)))


def _running(so_far: float, newest: float) -> float:
    """The root mean square, recent ones weighing most."""
    return math.hypot(math.sqrt(1 - _MEMORY) * (so_far or newest), math.sqrt(_MEMORY) * newest)


def require_kl(value: float, name: str) -> None:
    """Refuse what is no finite KL >= 0."""
    if not (math.isfinite(value) and value >= 0):
        raise BudgetError(
            f"expected {name} to be a finite KL >= 0 in nats, got {value}: inf says that the policy puts mass where "
            "the reference has none, nan that logits overflowed"
        )
