"""The result of a check: what is wrong, the numbers that show it, the cause and the remedy."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

__all__ = ["Finding", "Severity"]

Severity: TypeAlias = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One fault in a training set-up or in a finished run.

    Args:
        name: An identifier of a few words with hyphens, such as "kl-at-start". docs/doctor.md lists every name.
        severity: "error" if the run does not compute what its settings state; "warning" if it does, but the
            results may be misleading.
        cause: What is wrong.
        remedy: What to change.
        evidence: The measured values that show the fault, by name.

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
        evidence = ", ".join(f"{name} {_format(value)}" for name, value in self.evidence.items())
        return f"{self.severity} {self.name}: {self.cause}\n  evidence: {evidence}\n  remedy: {self.remedy}"

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON types.

        Returns:
            A dict with the keys `name`, `severity`, `cause`, `remedy` and `evidence`. JSON has neither infinities nor
            nan, so they are written as the strings "inf", "-inf" and "nan".

        Example:
            >>> Finding("kl-not-finite", "error", "overflow", "use float32", {"kl": math.inf}).to_dict()["evidence"]
            {'kl': 'inf'}
        """
        evidence = {name: str(value) if _is_not_finite(value) else value for name, value in self.evidence.items()}
        return {**asdict(self), "evidence": evidence}


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
