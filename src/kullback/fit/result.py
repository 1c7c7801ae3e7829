"""What a fit comes to: the distribution, its KL, the way there, and every minimum that was met."""

from dataclasses import dataclass, field
from math import isnan, nan
from typing import Any

from kullback.result import Estimate

__all__ = ["Fit", "Minimum", "Step", "without_entropy"]


@dataclass(frozen=True)
class Step:
    """Where a descent stood.

    Args:
        distribution: The parameters, as a record.
        kl: What is descended, in nats; for samples alone the cross-entropy.
    """

    distribution: Any
    kl: float


@dataclass(frozen=True)
class Minimum:
    """A local minimum of KL over a family.

    Args:
        distribution: Where it is.
        kl: How much of KL is left there, in nats.
        basin: The starts from which the descent ended here.
    """

    distribution: Any
    kl: float
    basin: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Fit:
    """The member of a family that is nearest to a target.

    Args:
        distribution: The best that was found; of the class that was asked for.
        kl: Its KL, in nats: KL(target || distribution) of `fit_forward`, KL(distribution || target) of `fit_reverse`.
            nan where it cannot be known: from samples alone, or from a density without its normaliser beyond two
            dimensions; `diagnostics` then has what is known.
        estimate: The same with what is known of its error.
        path: From the first start, a `Step` for each step of the descent; a closed form has none but its end.
        minima: Every minimum that was found, the lowest first.
        converged: Whether the gradient vanished at the best of them, where KL curves upward.
        diagnostics: By name: `method`; `cross_entropy` (nats, samples); `log_evidence` (log of the integral of an
            unnormalised target) and `evidence_bound` (E_q[log p - log q] <= log_evidence), nats; `pareto_k` of the
            importance weights p/q (above 0.7 the fit's draws cannot be reweighted to the target).

    Example:
        >>> from kullback import fit_reverse
        >>> from kullback.families import Normal, NormalMixture
        >>> two = NormalMixture(weights=[0.5, 0.5], locs=[0.0, 20.0], scales=[2.0, 2.0])
        >>> [round(minimum.kl, 4) for minimum in fit_reverse(Normal, target=two).minima]
        [0.6931, 0.6931, 3.3066]
    """

    distribution: Any
    kl: float
    estimate: Estimate
    path: tuple[Step, ...] = ()
    minima: tuple[Minimum, ...] = ()
    converged: bool = True
    diagnostics: dict[str, Any] = field(default_factory=dict)


def without_entropy(cross_entropy: float) -> Estimate:
    """What samples alone tell of KL(p || q): nothing, for want of p's entropy."""
    known = "-mean log q(x)" if isnan(cross_entropy) else f"{cross_entropy:.6g}"
    return Estimate(
        nan,
        method="samples",
        status="unreliable",
        warnings=(f"KL(p || q) = {known} - H(p), and samples alone do not tell p's entropy H(p)",),
    )
