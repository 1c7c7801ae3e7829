"""Published controllers of the coefficient of a KL penalty. Each is a pure function of its state, as `KLBudget` is."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, Self

from kullback.budget.kl_budget import KLBudget, require_kl
from kullback.errors import BudgetError
from kullback.numerics.arguments import is_number, shown

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


_BETA_MIN, _BETA_MAX = 2.0**-126, 2.0**127  # the range of float32: a multiplicative rule cannot leave 0 or inf


class Controller(Protocol):
    """The interface of a controller: the current `beta`, and `update`, which returns the state after a measured KL."""

    @property
    def beta(self) -> float: ...

    def update(self, observed_kl: float, *, std_error: float = math.nan, count: int = 1) -> Self: ...


@dataclass(frozen=True)
class FixedBeta:
    """A constant coefficient.

    Args:
        beta: Reward per nat, >= 0.

    Example:
        >>> FixedBeta(3.0).update(0.5)
        FixedBeta(beta=3.0)
    """

    beta: float

    def __post_init__(self) -> None:
        _require(is_number(self.beta) and 0 <= self.beta < math.inf, "a finite beta >= 0", beta=self.beta)
        _make_floats(self)

    def update(self, observed_kl: float, *, std_error: float = math.nan, count: int = 1) -> Self:  # noqa: ARG002
        observed_kl = require_kl(observed_kl, "observed_kl")
        return self


@dataclass(frozen=True)
class PPO2017:
    """The rule of the PPO paper: beta is doubled if the KL exceeds 1.5 target, and halved if it is below target / 1.5.

    The rule is applied once after each policy update.

    Args:
        target: d_targ, nats per step, > 0. The paper uses KL(old policy || policy).
        beta: The initial coefficient, reward per nat; 1 in the paper.

    References:
        Schulman et al. (2017), Proximal policy optimization algorithms, section 4. Table 1 has targets of 0.003, 0.01
        and 0.03.

    Example:
        >>> PPO2017(0.01).update(0.016).beta, PPO2017(0.01).update(0.006).beta, PPO2017(0.01).update(0.01).beta
        (2.0, 0.5, 1.0)
    """

    target: float = 0.01
    beta: float = 1.0

    def __post_init__(self) -> None:
        _require_target(self.target, self.beta)
        _make_floats(self)

    def update(self, observed_kl: float, *, std_error: float = math.nan, count: int = 1) -> Self:  # noqa: ARG002
        observed_kl = require_kl(observed_kl, "observed_kl")
        if observed_kl < self.target / 1.5:
            return replace(self, beta=_bounded(self.beta / 2))
        return replace(self, beta=_bounded(self.beta * 2)) if observed_kl > self.target * 1.5 else self


@dataclass(frozen=True)
class RLlibController:
    """The rule of RLlib: beta is multiplied by 1.5 if the KL exceeds 2 target, and halved if it is below target / 2.

    Args:
        target: `kl_target`, nats per step, > 0. RLlib uses KL(old policy || policy).
        beta: The initial `kl_coeff`, reward per nat.

    References:
        Liang et al. (2018), RLlib: abstractions for distributed reinforcement learning; `KLCoeffMixin.update_kl` and
        the defaults of `PPOConfig` in its code.

    Example:
        >>> [round(RLlibController().update(kl).beta, 9) for kl in (0.03, 0.004, 0.015)]
        [0.3, 0.1, 0.2]
    """

    target: float = 0.01
    beta: float = 0.2

    def __post_init__(self) -> None:
        _require_target(self.target, self.beta)
        _make_floats(self)

    def update(self, observed_kl: float, *, std_error: float = math.nan, count: int = 1) -> Self:  # noqa: ARG002
        observed_kl = require_kl(observed_kl, "observed_kl")
        if observed_kl > 2 * self.target:
            return replace(self, beta=_bounded(self.beta * 1.5))
        return replace(self, beta=_bounded(self.beta * 0.5)) if observed_kl < 0.5 * self.target else self


@dataclass(frozen=True)
class Ziegler2019:
    """Proportional control of log beta: beta (1 + gain clip(KL / target - 1, -0.2, 0.2)).

    Args:
        target: Nats, > 0. The paper uses KL(policy || reference) per sequence.
        beta: The initial coefficient, reward per nat.
        gain: K_beta, 0.1 in the paper; its code uses n / 10000 for a batch of n samples.

    References:
        Ziegler et al. (2019), Fine-tuning language models from human preferences, section 2.2.

    Example:
        >>> [round(Ziegler2019(6.0, beta=1.0).update(kl).beta, 9) for kl in (6.6, 60.0)]
        [1.01, 1.02]
    """

    target: float = 6.0
    beta: float = 0.2
    gain: float = 0.1

    def __post_init__(self) -> None:
        _require_target(self.target, self.beta)
        _require(is_number(self.gain) and 0 < self.gain < math.inf, "a finite gain > 0", gain=self.gain)
        _make_floats(self)

    def update(self, observed_kl: float, *, std_error: float = math.nan, count: int = 1) -> Self:  # noqa: ARG002
        observed_kl = require_kl(observed_kl, "observed_kl")
        error = max(-0.2, min(0.2, observed_kl / self.target - 1))
        return replace(self, beta=_bounded(self.beta * (1 + self.gain * error)))


_FORMER_KINDS = {"RLlib": "RLlibController"}  # of states that were saved before the class was renamed
CONTROLLERS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (FixedBeta, KLBudget, PPO2017, RLlibController, Ziegler2019)
}


def controller_to_dict(controller: Any) -> dict[str, Any]:
    """Return the name and the whole state of a controller as JSON types.

    Args:
        controller: An instance of a class in `CONTROLLERS`.

    Returns:
        A dictionary with the class name as "kind".

    Raises:
        BudgetError: The class of the controller is not in `CONTROLLERS`.

    Example:
        >>> controller_from_dict(controller_to_dict(PPO2017(0.03, beta=4.0)))
        PPO2017(target=0.03, beta=4.0)
    """
    kind = type(controller).__name__
    if CONTROLLERS.get(kind) is not type(controller):
        raise BudgetError(f"expected one of {', '.join(CONTROLLERS)}, got {shown(controller)}: only these can be saved")
    return {"kind": kind, **(controller.to_dict() if isinstance(controller, KLBudget) else asdict(controller))}


def controller_from_dict(state: dict[str, Any]) -> Any:
    """Return the controller whose state `controller_to_dict` returned; former names are accepted.

    Args:
        state: The dictionary.

    Returns:
        The controller.

    Raises:
        BudgetError: The "kind" is unknown, or the other entries are not the state of such a controller.

    Example:
        >>> controller_from_dict({"kind": "FixedBeta", "beta": 3.0})
        FixedBeta(beta=3.0)
    """
    if not isinstance(state, Mapping):
        raise BudgetError(f"expected a dictionary from controller_to_dict, got {shown(state)}")
    fields = dict(state)
    name = str(fields.pop("kind", ""))
    kind = CONTROLLERS.get(_FORMER_KINDS.get(name, name))
    if kind is None:
        raise BudgetError(f"expected the state of one of {', '.join(CONTROLLERS)}, got kind {state.get('kind')!r}")
    try:
        return KLBudget.from_dict(fields) if kind is KLBudget else kind(**fields)
    except TypeError as error:
        raise BudgetError(f"expected a dictionary from controller_to_dict, got {shown(state)}: {error}") from error


def controller_config(controller: Any, *, unit: str) -> dict[str, Any]:
    """Return the settings of a controller, without its state, as they are written to the configuration of a run.

    Args:
        controller: An instance of a class in `CONTROLLERS`.
        unit: The unit of the KL that it controls.

    Returns:
        A dictionary of JSON types.

    Example:
        >>> controller_config(PPO2017(0.03), unit="step")
        {'kind': 'PPO2017', 'target': 0.03, 'unit': 'step', 'beta': 1.0}
    """
    stored = controller_to_dict(controller)
    settings = ("price_min", "price_max", "gain") if isinstance(controller, KLBudget) else ("beta", "gain")
    return {
        **{key: stored[key] for key in ("kind", "target") if key in stored},
        "unit": unit,
        **{key: stored[key] for key in settings if key in stored},
    }


def _make_floats(controller: Any) -> None:
    """Replace scalars of NumPy and PyTorch by numbers of Python, which JSON can store."""
    for name, value in vars(controller).items():
        object.__setattr__(controller, name, float(value))


def _bounded(beta: float) -> float:
    """Return beta within the range of float32."""
    return max(_BETA_MIN, min(_BETA_MAX, beta))


def _require_target(target: float, beta: float) -> None:
    _require(is_number(target) and 0 < target < math.inf, "a finite target in nats > 0", target=target)
    holds = is_number(beta) and 0 < beta < math.inf
    _require(holds, "a finite beta > 0, since the rule multiplies it", beta=beta)


def _require(holds: bool, what: str, **got: float) -> None:
    if not holds:
        raise BudgetError(f"expected {what}, got {', '.join(f'{name}={shown(value)}' for name, value in got.items())}")
