"""What the doctor says: one broken thing, the numbers that show it, what causes it, and what mends it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

__all__ = ["Finding", "Severity"]

Severity: TypeAlias = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Args:
        name: A few words with hyphens, the same every time; docs/doctor.md lists them.
        severity: "error": the run does not do what it says; "warning": it does, but look before you trust it.
        cause: What is broken.
        remedy: What to do.
        evidence: The numbers that show it, by name.

    Example:
        >>> print(Finding("dropout", "error", "dropout is on", "policy.eval()", {"kl_train": 0.0213, "kl_eval": 0}))
        error dropout: dropout is on
          evidence: kl_train 0.0213, kl_eval 0
          remedy: policy.eval()
    """

    name: str
    severity: Severity
    cause: str
    remedy: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        seen = ", ".join(f"{name} {_shown(value)}" for name, value in self.evidence.items())
        return f"{self.severity} {self.name}: {self.cause}\n  evidence: {seen}\n  remedy: {self.remedy}"

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON types; JSON has no infinity and no nan, so that their names stand for them."""
        evidence = {name: str(value) if _is_odd(value) else value for name, value in self.evidence.items()}
        return {**asdict(self), "evidence": evidence}


def _is_odd(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
