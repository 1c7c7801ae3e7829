"""KLBudget: a controller that holds KL(policy || reference) at a target in nats while a policy learns.

The controller is a pure function of its state: every method returns a new state. It has three actuators, from the
slowest to the fastest, which all act on one filtered estimate of the KL (`filtered_kl`):

- `beta`, the coefficient of the KL penalty. `price` = beta * target is adjusted by integral control until the optimizer
  no longer changes the KL; beta is then the Lagrange multiplier of the constraint. While the constraint does not bind,
  the price is at its minimum.
- `learning_rate_scale`, a factor on the learning rate. It limits the change of the KL in one optimizer step to a few
  percent of the target, and to a change that held-out samples can measure. Beta alone cannot do this, since optimizers
  such as Adam normalise the size of their steps.
- `displacement_scale`, a factor on the displacement of the weights from the reference. It corrects the KL immediately:
  the KL is proportional to a power of the displacement, whose exponent is 2 close to the reference and is estimated
  elsewhere.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from dataclasses import fields as dataclass_fields
from typing import Any, Literal, Self, TypeAlias, get_args

from kullback.budget.kl_filter import KLFilter
from kullback.budget.pull_response import PullExponent
from kullback.errors import BudgetError
from kullback.numerics.arguments import is_name, is_number, shown

__all__ = ["MAX_BUDGET_DECAY", "KLBudget", "Unit", "require_kl"]

Unit: TypeAlias = Literal["token", "sequence", "step", "image"]

# The fields that are numbers.
_NUMBERS = (
    *("price", "price_min", "price_max", "gain", "step_limit", "learning_rate_scale"),
    *("mean_log_kl_step", "rms_kl_step", "rms_change_error"),
)

# The fields of the filter and of the exponent that can be negative.
_SIGNED = ("drift", "covariance", "offset", "mean_log_kl_step")

MAX_BUDGET_DECAY = 10.0  # the largest exponent of a budget that decreases during training
_STEP_GAIN = 0.2  # weight of the newest step in the running mean `mean_log_kl_step`
_RMS_GAIN = 0.1  # weight of the newest step in the running mean squares
_CHANGE_ERROR = 0.003  # largest relative standard error of the change of KL in one step near the target ...
_CHANGE_ERROR_FAR = 0.1  # ... and what is added to it at a KL near zero
_STEP_LIMIT_FAR = 4.0  # relative increase of `step_limit` at a KL near zero
_LEARNING_RATE_GROWTH = 1.2  # largest growth of `learning_rate_scale` in one step
_LEARNING_RATE_MIN = 1e-4  # smallest `learning_rate_scale`: smaller steps are rounding errors
_OUTWARD_MAX = (
    1.04  # largest factor by which scaling may increase the KL: the optimizer, not the controller, increases it
)
_OUTWARD_FROM = 0.8  # multiple of the target above which scaling may increase the KL
_BRAKE_FROM = 1.2  # multiple of the target above which the brake acts
_FAR_BELOW = 0.8  # multiple of the set point below which the price decreases slowly ...
_FAR_BELOW_GAIN = 0.5  # ... with this share of the gain: the KL that a policy gains at a low price has little reward
_PRICE_CHANGE_MAX = 0.12  # largest gain of log(price) over several steps
_OFFSET_MAX = 0.15  # largest |log| of the KL on the evaluation set over the KL on batches that is corrected

# Names in states that were saved before a field was renamed.
_FORMER_NAMES = {
    "step_scale": "learning_rate_scale",
    "push": "mean_log_kl_step",
    "bustle": "rms_kl_step",
    "blur": "rms_change_error",
    "power": "pull_exponent",
    "seen": "kl_filter",
}
_FORMER_FILTER_NAMES = {
    "doubt": "rel_std_error",
    "drift_doubt": "drift_std_error",
    "both": "covariance",
    "offset_doubt": "offset_std_error",
    "followed": "has_step_update",
}
_FORMER_EXPONENT_NAMES = {
    "push": "mean_log_kl_step",
    "doubt": "std_error",
    "push_doubt": "mean_log_kl_step_std_error",
    "both": "covariance",
}


@dataclass(frozen=True)
class KLBudget:
    """A controller that holds KL(policy || reference) at `target` nats per `unit`.

    Where the constraint does not bind, the KL stays below the target and beta is at its minimum. Call, once for each
    optimizer step and in this order:

    1. `update` with the KL of a fresh batch;
    2. the optimizer step, with the learning rate multiplied by `learning_rate_scale`;
    3. scale the displacement of the weights from the reference by `displacement_scale`;
    4. `after_step` with the KL of held-out samples before and after;
    5. while `brake` is below 1: scale the displacement by `brake` and call `after_brake`.

    `kullback.budget.step.BudgetStep` does steps 2 to 5. If the weights cannot be scaled, call `update` alone. If the KL
    is also measured on a fixed evaluation set at intervals, pass it to `update_evaluation`: the KL on that set is then
    held.

    Args:
        target: The budget in nats per unit, > 0.
        unit: The unit of the KL: "token" (the sum over tokens / the number of tokens), "sequence" (the sum over tokens
            / the number of sequences), "step" (a state visited in an environment) or "image" (all latent dimensions of
            a VAE, for one image).
        price: beta * target, which is the penalty at a KL equal to the target, in units of reward. Suitable values do
            not depend on the size of the budget.
        price_min: The smallest price, which applies while the constraint does not bind.
        price_max: The largest price.
        gain: The largest change of log(price) in one step, and twice its largest change while the KL is below 0.8
            times the target.
        step_limit: The root-mean-square change of the KL in one optimizer step near the target, as a share of the
            target.
        learning_rate_scale: The factor on the learning rate, in (0, 1]. The initial value is small, since the size of a
            step is not known before the first one.
        mean_log_kl_step: The running mean change of log KL by the optimizer alone.
        rms_kl_step: The running root-mean-square change of the KL in a step at the full learning rate, as a share of
            the target.
        rms_change_error: The running root-mean-square relative standard error of that change on held-out samples.
        pull_exponent: The estimated exponent of the KL as a power of the displacement.
        kl_filter: The filtered estimate of the KL.

    Raises:
        BudgetError: A setting is outside its range.

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
        if not (is_number(self.target) and math.isfinite(self.target) and self.target > 0):
            raise BudgetError(f"expected a KL budget that is a finite number of nats > 0, got {shown(self.target)}")
        if not is_name(self.unit, get_args(Unit)):
            names = ", ".join(map(repr, get_args(Unit)))
            raise BudgetError(f"expected unit to be one of {names}, got {shown(self.unit)}")
        for name in _NUMBERS:
            if not is_number(getattr(self, name)):
                raise BudgetError(f"expected {name} to be a number, got {shown(getattr(self, name))}")
        for name in ("target", *_NUMBERS):  # scalars of NumPy become numbers of Python, which JSON can store
            object.__setattr__(self, name, float(getattr(self, name)))
        if not 0 < self.price_min <= self.price <= self.price_max < math.inf:
            got = f"price_min={self.price_min}, price={self.price}, price_max={self.price_max}"
            raise BudgetError(f"expected 0 < price_min <= price <= price_max, got {got}")
        if not (0 < self.gain < math.inf and 0 < self.step_limit < math.inf and 0 < self.learning_rate_scale <= 1):
            got = f"gain={self.gain}, step_limit={self.step_limit}, learning_rate_scale={self.learning_rate_scale}"
            raise BudgetError(f"expected gain > 0, step_limit > 0 and 0 < learning_rate_scale <= 1, got {got}")
        is_valid = math.isfinite(self.mean_log_kl_step)
        if not (is_valid and 0 <= self.rms_kl_step < math.inf and 0 <= self.rms_change_error < math.inf):
            got = ", ".join(f"{name}={getattr(self, name)}" for name in _NUMBERS[-3:])
            raise BudgetError(f"expected running means that are finite, and mean squares >= 0, got {got}")

    @property
    def filtered_kl(self) -> float:
        """The filtered estimate of the KL, in nats per unit; 0 before the first measurement."""
        return self.kl_filter.value

    @property
    def beta(self) -> float:
        """The coefficient of the KL penalty, price / target, in reward per nat (per `unit`)."""
        return self.price / self.target

    @property
    def status(self) -> Literal["not binding", "held", "saturated"]:
        """The state of the constraint.

        "not binding" if the price is at its minimum; "saturated" if the price is at its maximum, so that only
        `learning_rate_scale` and `displacement_scale` hold the KL; otherwise "held".
        """
        if self.price <= self.price_min:
            return "not binding"
        return "saturated" if self.price >= self.price_max else "held"

    @property
    def effective_target(self) -> float:
        """The set point of `filtered_kl` for which the KL on the evaluation set equals the target."""
        return self.target * math.exp(-max(-_OFFSET_MAX, min(_OFFSET_MAX, self.kl_filter.offset)))

    @property
    def displacement_scale(self) -> float:
        """The factor by which the displacement from the reference is scaled after the next optimizer step."""
        if self.filtered_kl <= 0:
            return 1.0
        # Sums of logarithms neither overflow nor underflow.
        log_error = math.log(self.effective_target) - math.log(self.filtered_kl)
        change = log_error - self.mean_log_kl_step - self.kl_filter.drift
        outward = self.status != "not binding" and self.filtered_kl > _OUTWARD_FROM * self.effective_target
        return math.exp(min(change, math.log(_OUTWARD_MAX) if outward else 0.0) / self.pull_exponent.value)

    @property
    def brake(self) -> float:
        """An additional factor on the displacement: below 1 if the KL exceeds 1.2 times its set point."""
        if self.filtered_kl <= _BRAKE_FROM * self.effective_target:
            return 1.0
        return (self.effective_target / self.filtered_kl) ** (1 / self.pull_exponent.value)

    def update(self, observed_kl: float, *, std_error: float = math.nan, count: int = 1) -> Self:
        """Update the filtered KL and the price with the KL of fresh samples of the policy.

        Args:
            observed_kl: KL(policy || reference) in nats per unit on samples of the current policy.
            std_error: Its standard error; nan if unknown.
            count: The number of independent prompts that it is a mean of.

        Returns:
            The new state.

        Raises:
            BudgetError: `observed_kl` is negative, nan or infinite, `std_error` is negative or `count` is below 1.
        """
        observed_kl = require_kl(observed_kl, "observed_kl")
        error, number = _require_error_and_count(std_error, count)
        scale = self.learning_rate_scale
        if not self.kl_filter.has_step_update:  # The size of the steps is not measured and cannot be limited.
            scale = min(1.0, _LEARNING_RATE_GROWTH * scale)
        kl_filter = self.kl_filter.after_batch(observed_kl, std_error=error, count=number)
        updated = replace(self, kl_filter=kl_filter, learning_rate_scale=scale)
        return updated.with_price(updated._next_price())

    def update_price(self, observed_kl: float, *, set_point: float, steps: int = 1) -> Self:
        """Update the price alone, with a KL that was measured without error after a number of optimizer steps.

        price <- price exp(min(gain steps, 0.12) log(observed_kl / set_point)), with the logarithm within [-1, 1]

        Args:
            observed_kl: The KL in nats per unit, or its extrapolation; a KL of 0 or below counts as a small KL.
            set_point: The KL at which the price is constant.
            steps: The number of optimizer steps since the price was last changed.

        Returns:
            The new state.

        Raises:
            BudgetError: An argument is not a finite number, or `set_point` is not above 0.

        Example:
            >>> KLBudget(0.1).update_price(0.2, set_point=0.1, steps=2).price > KLBudget(0.1).price
            True
        """
        if not (is_number(observed_kl) and observed_kl < math.inf):
            raise BudgetError(f"expected observed_kl to be a finite number of nats, got {shown(observed_kl)}")
        if not (is_number(set_point) and 0 < set_point < math.inf):
            raise BudgetError(f"expected set_point to be a finite number of nats > 0, got {shown(set_point)}")
        _require_steps(steps, 0)
        log_error = math.log(observed_kl / set_point) if observed_kl > 0 else -1.0
        change = min(self.gain * steps, _PRICE_CHANGE_MAX) * max(-1.0, min(1.0, log_error))
        return self.with_price(self.price * math.exp(change))

    def with_price(self, price: float) -> Self:
        """Replace the price by the nearest one within `price_min` and `price_max`.

        Args:
            price: A number in units of reward.

        Returns:
            The new state.

        Raises:
            BudgetError: The price is not a number.

        Example:
            >>> KLBudget(0.1).with_price(0.02).price, KLBudget(0.1).with_price(9.0).price
            (0.02, 0.5)
        """
        if not is_number(price) or math.isnan(price):
            raise BudgetError(f"expected a price that is a number in units of reward, got {shown(price)}")
        return replace(self, price=max(self.price_min, min(self.price_max, price)))

    def update_learning_rate_scale(self, before: float, after: float, *, steps: int) -> Self:
        """Update the learning-rate scale alone, with the change of a KL that was measured without error.

        The root-mean-square change in one step is limited to `step_limit` of the target near it, and to five times as
        much far below it. The changes of several steps are taken as independent.

        Args:
            before: The KL in nats per unit before the steps.
            after: The KL after them.
            steps: The number of optimizer steps.

        Returns:
            The new state.

        Raises:
            BudgetError: An argument is not a finite number, or `steps` is below 1.

        Example:
            >>> round(KLBudget(0.1).update_learning_rate_scale(0.08, 0.1, steps=4).learning_rate_scale, 6)
            0.02
        """
        for name, value in (("before", before), ("after", after)):
            if not (is_number(value) and math.isfinite(value)):
                raise BudgetError(f"expected {name} to be a finite number of nats, got {shown(value)}")
        _require_steps(steps, 1)
        step = min(1.0, abs(after - before) / self.target) / math.sqrt(steps)
        rms_kl_step = _running_rms(self.rms_kl_step, step / self.learning_rate_scale)
        step_limit = self.step_limit * (1 + _STEP_LIMIT_FAR * max(0.0, 1 - after / self.target))
        scale = min(1.0, step_limit / max(rms_kl_step, 1e-300))
        scale = min(scale, _LEARNING_RATE_GROWTH ** min(steps, 1000) * self.learning_rate_scale)
        scale = max(scale, min(_LEARNING_RATE_MIN, self.learning_rate_scale))
        return replace(self, rms_kl_step=rms_kl_step, learning_rate_scale=scale)

    def after_step(
        self, before: float, after: float, *, displacement_scale: float, std_error: float = math.nan
    ) -> Self:
        """Update the state after an optimizer step and the scaling of the displacement.

        Args:
            before: The mean KL of fixed held-out samples before the step, nats per unit.
            after: Their mean KL after the step and the scaling.
            displacement_scale: The factor by which the displacement was scaled.
            std_error: The relative standard error of after / before; nan if unknown. Larger errors reduce
                `learning_rate_scale`, since the change of KL on other samples is then equally uncertain.

        Returns:
            The new state.

        Raises:
            BudgetError: A KL is negative, nan or infinite, the factor is not above 0 or `std_error` is negative.
        """
        before = require_kl(before, "before")
        after = require_kl(after, "after")
        numbers = is_number(displacement_scale) and is_number(std_error)
        if not numbers or not 0 < displacement_scale < math.inf or std_error < 0:
            got = f"{shown(displacement_scale)} and {shown(std_error)}"
            raise BudgetError(f"expected displacement_scale > 0 and std_error >= 0 or nan, got {got}")
        displacement_scale, std_error = float(displacement_scale), float(std_error)
        if not self.kl_filter.is_valid_change(before, after):
            return replace(self, kl_filter=self.kl_filter.after_step(before, after, optimizer_change=0.0))
        change = math.log(after / before)
        share = min(1.0, self.filtered_kl / self.target)
        noise = self.rms_kl_step * self.learning_rate_scale / max(share, 1e-300) or 1.0
        exponent = self.pull_exponent.after_step(math.log(displacement_scale), change, noise=noise)
        optimizer_change = change - exponent.value * math.log(displacement_scale)
        step = share * max(-1.0, min(1.0, optimizer_change))
        # Divided by the scale, so that a smaller learning rate is not mistaken for smaller steps.
        rms_kl_step = _running_rms(self.rms_kl_step, abs(step) / self.learning_rate_scale)
        rms_change_error = self.rms_change_error
        if not math.isnan(std_error):
            rms_change_error = _running_rms(rms_change_error, min(1.0, std_error) / self.learning_rate_scale)
        # Far below the target, larger steps are allowed.
        remaining = max(0.0, 1 - self.filtered_kl / self.target)
        step_limit = self.step_limit * (1 + _STEP_LIMIT_FAR * remaining)
        error_limit = _CHANGE_ERROR + _CHANGE_ERROR_FAR * remaining
        scale = min(1.0, step_limit / max(rms_kl_step, 1e-300), error_limit / max(rms_change_error, 1e-300))
        scale = min(scale, _LEARNING_RATE_GROWTH * self.learning_rate_scale)
        return replace(
            self,
            pull_exponent=exponent,
            kl_filter=self.kl_filter.after_step(before, after, optimizer_change=optimizer_change, std_error=std_error),
            mean_log_kl_step=(1 - _STEP_GAIN) * self.mean_log_kl_step + _STEP_GAIN * step,
            rms_kl_step=rms_kl_step,
            rms_change_error=rms_change_error,
            learning_rate_scale=max(scale, min(_LEARNING_RATE_MIN, self.learning_rate_scale)),
        )

    def after_brake(self, before: float, after: float, *, factor: float | None = None) -> Self:
        """Update the state after a scaling of the displacement alone.

        Args:
            before: The mean KL of the held-out samples before the scaling, nats per unit.
            after: Their mean KL after it.
            factor: The factor by which the displacement was scaled; None for `brake`, 1 if another controller changed
                the KL.

        Returns:
            The new state.

        Raises:
            BudgetError: A KL is negative, nan or infinite, or the factor is not above 0.
        """
        before = require_kl(before, "before")
        after = require_kl(after, "after")
        factor = self.brake if factor is None else factor
        if not (is_number(factor) and 0 < factor < math.inf):
            raise BudgetError(f"expected a finite factor > 0, got {shown(factor)}")
        exponent = self.pull_exponent
        if self.kl_filter.is_valid_change(before, after):
            exponent = exponent.after_scaling(math.log(factor), math.log(after / before))
        return replace(self, pull_exponent=exponent, kl_filter=self.kl_filter.after_scaling(before, after))

    def update_evaluation(self, observed_kl: float, *, std_error: float) -> Self:
        """Update the state with the KL on a fixed evaluation set.

        From then on, the KL on that set is held at the target, as long as it differs from the KL on batches by at most
        15%. The method has no effect while `filtered_kl` is far below the target, because its error is then larger than
        its standard error.

        Args:
            observed_kl: KL(policy || reference) on the evaluation set, in nats per unit.
            std_error: Its standard error; nan (unknown) leaves the state unchanged.

        Returns:
            The new state.

        Raises:
            BudgetError: `observed_kl` is negative, nan or infinite.
        """
        observed_kl = require_kl(observed_kl, "observed_kl")
        std_error, _ = _require_error_and_count(std_error, 1)
        if not (observed_kl > 0 and self.filtered_kl > _OUTWARD_FROM * self.target and math.isfinite(std_error)):
            return self
        return replace(self, kl_filter=self.kl_filter.after_evaluation(observed_kl, std_error=std_error))

    def to_dict(self) -> dict[str, Any]:
        """Return the whole state as a dictionary of JSON types.

        Returns:
            The fields by name; `from_dict` accepts this dictionary.
        """
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Return the budget whose state `to_dict` returned; states that use former field names are accepted.

        Args:
            state: The dictionary.

        Returns:
            The budget.

        Raises:
            BudgetError: A field is missing, unknown or outside its range.
        """
        try:
            fields = _renamed(state, _FORMER_NAMES)
            if fields.get("unit") == "latent":
                fields["unit"] = "image"
            exponent = _renamed(fields["pull_exponent"], _FORMER_EXPONENT_NAMES)
            kl_filter = _renamed(fields["kl_filter"], _FORMER_FILTER_NAMES)
            fields["pull_exponent"] = _part(PullExponent, "pull_exponent", exponent)
            fields["kl_filter"] = _part(KLFilter, "kl_filter", kl_filter)
            if missing := sorted(_names_of(cls) - fields.keys()):
                raise KeyError(missing[0])
            return cls(**fields)
        except KeyError as error:
            raise BudgetError(f"expected a dictionary from KLBudget.to_dict, got one without {error}") from error
        except (AttributeError, TypeError) as error:
            raise BudgetError(f"expected a dictionary from KLBudget.to_dict, got {shown(state)}: {error}") from error

    def _next_price(self) -> float:
        """Return the price, before its limits, after integral control on log KL with the mean step as a lead term."""
        if self.filtered_kl <= 0:
            return self.price
        # If all steps increase the KL equally, the lead is 1: the price increases at the target and is constant on the
        # way to it.
        rms_kl_step = self.rms_kl_step * self.learning_rate_scale
        lead = self.mean_log_kl_step / rms_kl_step if rms_kl_step > 0 else 0.0
        error = max(-1.0, min(1.0, lead + math.log(self.filtered_kl) - math.log(self.effective_target)))
        gain = self.gain * (_FAR_BELOW_GAIN if self.filtered_kl < _FAR_BELOW * self.effective_target else 1.0)
        return self.price * math.exp(gain * error)


def _renamed(state: Mapping[str, Any], former_names: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a saved state under their present names."""
    return {former_names.get(name, name): value for name, value in state.items()}


def _names_of(kind: type) -> set[str]:
    return {field.name for field in dataclass_fields(kind)}


def _part(kind: type, name: str, state: Mapping[str, Any]) -> Any:
    """Return a part of a budget from its saved state; raises BudgetError or KeyError unless all fields are valid."""
    if missing := sorted(_names_of(kind) - state.keys()):
        raise KeyError(f"{name}.{missing[0]}")
    for key, value in state.items():
        is_signed = key in _SIGNED
        holds = isinstance(value, bool) if key == "has_step_update" else is_number(value) and math.isfinite(value)
        if not holds or not (is_signed or value >= 0):
            expected = "true or false" if key == "has_step_update" else "a finite number" + " >= 0" * (not is_signed)
            raise BudgetError(f"expected {name}.{key} to be {expected}, got {shown(value)}")
    return kind(**state)


def _running_rms(rms: float, value: float) -> float:
    """Return the exponentially weighted root mean square after another value."""
    return math.hypot(math.sqrt(1 - _RMS_GAIN) * (rms or value), math.sqrt(_RMS_GAIN) * value)


def _require_error_and_count(std_error: float, count: float) -> tuple[float, float]:
    """Numbers of Python; raises BudgetError unless the error is a number >= 0 or nan, and the count a number >= 1."""
    if not (is_number(std_error) and is_number(count)) or std_error < 0 or not count >= 1:
        raise BudgetError(f"expected std_error >= 0 or nan, and count >= 1, got {shown(std_error)} and {shown(count)}")
    return float(std_error), float(count)


def _require_steps(steps: int, least: int) -> None:
    if not (is_number(steps) and least <= steps < math.inf):
        raise BudgetError(f"expected steps to be a number of optimizer steps >= {least}, got {shown(steps)}")


def require_kl(value: float, name: str) -> float:
    """A finite KL >= 0 as a number of Python; raises BudgetError for another value."""
    if not (is_number(value) and math.isfinite(value) and value >= 0):
        is_finite = not is_number(value) or math.isfinite(value)
        cause = (
            ": inf means that the policy has positive probability where the reference has none; nan means that logits "
            "overflowed"
        )
        raise BudgetError(
            f"expected {name} to be a finite KL >= 0 in nats, got {shown(value)}{'' if is_finite else cause}"
        )
    return float(value)
