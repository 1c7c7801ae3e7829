"""Published rules for the coefficient of a KL penalty, beside `KLBudget`. Pure: state in, state out."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, Self

from kullback.budget.kl_budget import KLBudget, require_kl
from kullback.errors import BudgetError

__all__ = [
    "CONTROLLERS",
    "PPO2017",
    "Controller",
    "FixedBeta",
    "RLlibController",
    "Ziegler2019",
    "controller_config",
    "controller_from_dict",
    "controller_to_dict",
]


_LEAST, _MOST = 2.0**-126, 2.0**127  # of a float32: from 0 or inf no rule comes back


class Controller(Protocol):
    """What says the price of a nat: `beta` now, and the state after a measured KL. `KLBudget` is one."""

    @property
    def beta(self) -> float: ...

    def update(self, observed_kl: float, *, std_error: float = math.nan, count: int = 1) -> Self: ...


@dataclass(frozen=True)
class FixedBeta:
    """The same coefficient always.

    Args:
        beta: Reward per nat, >= 0.

    Example:
        >>> FixedBeta(3.0).update(0.5)
        FixedBeta(beta=3.0)
    """

    beta: float

    def __post_init__(self) -> None:
        _require(0 <= self.beta < math.inf, "a finite beta >= 0", beta=self.beta)

    def update(self, observed_kl: float, *, std_error: float = math.nan, count: int = 1) -> Self:  # noqa: ARG002
        require_kl(observed_kl, "observed_kl")
        return self


@dataclass(frozen=True)
class PPO2017:
    """PPO's rule: after each policy update, beta is doubled above 1.5 targets and halved below target / 1.5.

    Args:
        target: d_targ, nats per step, > 0: of KL(old || policy) in the paper.
        beta: Reward per nat; 1 at first in the paper.

    Source: [schulman2017], section 4; table 1 has targets of 0.003, 0.01 and 0.03.

    Example:
        >>> PPO2017(0.01).update(0.016).beta, PPO2017(0.01).update(0.006).beta, PPO2017(0.01).update(0.01).beta
        (2.0, 0.5, 1.0)
    """

    target: float = 0.01
    beta: float = 1.0

    def __post_init__(self) -> None:
        _require_target(self.target, self.beta)

    def update(self, observed_kl: float, *, std_error: float = math.nan, count: int = 1) -> Self:  # noqa: ARG002
        require_kl(observed_kl, "observed_kl")
        if observed_kl < self.target / 1.5:
            return replace(self, beta=_held(self.beta / 2))
        return replace(self, beta=_held(self.beta * 2)) if observed_kl > self.target * 1.5 else self


@dataclass(frozen=True)
class RLlibController:
    """RLlib's rule: beta times 1.5 above 2 targets, and halved below half of one.

    Args:
        target: `kl_target`, nats per step, > 0: of KL(old || policy) there.
        beta: `kl_coeff` at first: reward per nat.

    Source: [liang2018]; `KLCoeffMixin.update_kl` of its PPO, and the defaults of `PPOConfig`.

    Example:
        >>> RLlibController().update(0.03).beta, RLlibController().update(0.004).beta, RLlibController().update(0.015).beta
        (0.30000000000000004, 0.1, 0.2)
    """

    target: float = 0.01
    beta: float = 0.2

    def __post_init__(self) -> None:
        _require_target(self.target, self.beta)

    def update(self, observed_kl: float, *, std_error: float = math.nan, count: int = 1) -> Self:  # noqa: ARG002
        require_kl(observed_kl, "observed_kl")
        if observed_kl > 2 * self.target:
            return replace(self, beta=_held(self.beta * 1.5))
        return replace(self, beta=_held(self.beta * 0.5)) if observed_kl < 0.5 * self.target else self


@dataclass(frozen=True)
class Ziegler2019:
    """Proportional control of log beta: beta (1 + gain clip(KL / target - 1, -0.2, 0.2)).

    Args:
        target: Nats, > 0, per sequence in the paper: of KL(policy || reference).
        beta: Reward per nat.
        gain: K_beta, 0.1 in the paper; its code has n / 10000 for a batch of n samples.

    Source: [ziegler2019], section 2.2.

    Example:
        >>> [round(Ziegler2019(6.0, beta=1.0).update(kl).beta, 9) for kl in (6.6, 60.0)]
        [1.01, 1.02]
    """

    target: float = 6.0
    beta: float = 0.2
    gain: float = 0.1

    def __post_init__(self) -> None:
        _require_target(self.target, self.beta)
        _require(0 < self.gain < math.inf, "a finite gain > 0", gain=self.gain)

    def update(self, observed_kl: float, *, std_error: float = math.nan, count: int = 1) -> Self:  # noqa: ARG002
        require_kl(observed_kl, "observed_kl")
        error = max(-0.2, min(0.2, observed_kl / self.target - 1))
        return replace(self, beta=_held(self.beta * (1 + self.gain * error)))


CONTROLLERS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (FixedBeta, KLBudget, PPO2017, RLlibController, Ziegler2019)
}


def controller_to_dict(controller: Any) -> dict[str, Any]:
    """A controller's kind and whole state as JSON types.

    Raises:
        BudgetError: It is none of `CONTROLLERS`.

    Example:
        >>> controller_from_dict(controller_to_dict(PPO2017(0.03, beta=4.0)))
        PPO2017(target=0.03, beta=4.0)
    """
    kind = type(controller).__name__
    if CONTROLLERS.get(kind) is not type(controller):
        raise BudgetError(f"expected one of {', '.join(CONTROLLERS)}, got {controller!r}: only these are stored")
    return {"kind": kind, **(controller.to_dict() if isinstance(controller, KLBudget) else asdict(controller))}


def controller_from_dict(state: dict[str, Any]) -> Any:
    """The controller that `controller_to_dict` was called on.

    Raises:
        BudgetError: The state is of no known kind, or not one of that kind.
    """
    fields = dict(state)
    kind = CONTROLLERS.get(fields.pop("kind", ""))
    if kind is None:
        raise BudgetError(f"expected the state of one of {', '.join(CONTROLLERS)}, got kind {state.get('kind')!r}")
    try:
        return KLBudget.from_dict(fields) if kind is KLBudget else kind(**fields)
    except TypeError as error:
        raise BudgetError(f"expected what controller_to_dict gave, got {state!r}: {error}") from error


def controller_config(controller: Any, *, unit: str) -> dict[str, Any]:
    """What a run's configuration says of its controller: what was asked for, not how it stands.

    Example:
        >>> controller_config(PPO2017(0.03), unit="step")
        {'kind': 'PPO2017', 'target': 0.03, 'unit': 'step', 'beta': 1.0}
    """
    stored = controller_to_dict(controller)
    asked = ("price_min", "price_max", "gain") if isinstance(controller, KLBudget) else ("beta", "gain")
    return {
        **{key: stored[key] for key in ("kind", "target") if key in stored},
        "unit": unit,
        **{key: stored[key] for key in asked if key in stored},
    }


def _held(beta: float) -> float:
    return max(_LEAST, min(_MOST, beta))


def _require_target(target: float, beta: float) -> None:
    _require(0 < target < math.inf, "a finite target in nats > 0", target=target)
    _require(0 < beta < math.inf, "a finite beta > 0, which is multiplied", beta=beta)


def _require(holds: bool, what: str, **got: float) -> None:
    if not holds:
        raise BudgetError(f"expected {what}, got {', '.join(f'{name}={value}' for name, value in got.items())}")
