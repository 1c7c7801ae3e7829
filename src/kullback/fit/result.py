"""The result of a fit: the fitted distribution, its KL, the path of the optimisation and every minimum found."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from math import isnan, nan
from typing import Any, Literal, TypeAlias, TypeVar

from kullback.families import Distribution
from kullback.numerics.records import EqualByValue
from kullback.result import Estimate

__all__ = [
    "Fit",
    "Minimum",
    "Quantity",
    "Step",
    "closed_form_fit",
    "renamed",
    "unknown_kl_from_samples",
    "with_distributions",
]

Quantity: TypeAlias = Literal["cross_entropy", "evidence_bound", "alpha_divergence"]
_Item = TypeVar("_Item", "Step", "Minimum")


@dataclass(frozen=True, eq=False)
class Step(EqualByValue):
    """One iterate of a descent.

    Args:
        distribution: The member of the family at this iterate; None where the fit trains a `torch.nn.Module`.
        kl: KL at this iterate, in nats; nan in a fit whose objective is another quantity.
        cross_entropy: -mean log q(x) of the samples at this iterate, in nats, in a fit to samples; otherwise nan.
        evidence_bound: E_q[log p - log q], in nats, in a fit to a density with an unknown integral; otherwise nan.
        alpha_divergence: The alpha-divergence, in nats, in a fit of `fit_alpha`; otherwise nan.

    Example:
        >>> from kullback import fit_reverse
        >>> from kullback.families import Normal
        >>> fit = fit_reverse(Normal, target=Normal(loc=1.0, scale=2.0), start=Normal(loc=0.0, scale=2.0))
        >>> step = fit.path[0]
        >>> step.distribution.loc, round(step.kl, 6)
        (0.0, 0.125)
    """

    distribution: Any
    kl: float
    cross_entropy: float = nan
    evidence_bound: float = nan
    alpha_divergence: float = nan


@dataclass(frozen=True, eq=False)
class Minimum(EqualByValue):
    """A local minimum of KL over a family.

    Args:
        distribution: The member of the family at the minimum.
        kl: KL at the minimum, in nats; nan where KL is unknown.
        basin: The starting points whose descents end at this minimum.
        cross_entropy: -mean log q(x) of the samples, in nats, in a fit to samples; otherwise nan.
        evidence_bound: E_q[log p - log q], in nats, in a fit to a density with an unknown integral; otherwise nan.
        alpha_divergence: The alpha-divergence, in nats, in a fit of `fit_alpha`; otherwise nan.

    Example:
        >>> from kullback import fit_reverse
        >>> from kullback.families import Normal
        >>> fit = fit_reverse(Normal, target=Normal(loc=1.0, scale=2.0))
        >>> minimum = fit.minima[0]
        >>> round(minimum.distribution.loc, 6), round(minimum.distribution.scale, 6), len(minimum.basin) > 0
        (1.0, 2.0, True)
    """

    distribution: Any
    kl: float
    basin: tuple[Any, ...] = field(default=(), repr=False)
    cross_entropy: float = nan
    evidence_bound: float = nan
    alpha_divergence: float = nan


@dataclass(frozen=True, eq=False)
class Fit(EqualByValue):
    """The result of `fit_forward`, `fit_reverse`, `fit_alpha` or `fit_tempered`; `repr` omits `path` and basins.

    Args:
        distribution: The best member found, an instance of the class that was requested, or the trained module.
        kl: KL of the best member, in nats: KL(target || distribution) for `fit_forward` and KL(distribution || target)
            for `fit_reverse`. It is nan where it is unknown: from samples alone, from a log-density with an unknown
            integral, and for `fit_alpha` with 0 < alpha < 1. `path` and `minima` then have the objective under its own
            name.
        estimate: KL with its error or interval; for `fit_alpha`, the alpha-divergence.
        path: The steps of the descent from the first starting point. A closed form has one step, the result.
        minima: Every minimum found, the lowest first.
        converged: Whether the gradient vanishes and the Hessian is positive definite at the best member. It is always
            true for a closed form and for training by stochastic gradients.
        diagnostics: Further values by name. `method`: the method of the fit. `cross_entropy`: -mean log q(x) of the
            samples, in nats. `log_evidence`: the logarithm of the integral of an unnormalised target, in nats.
            `evidence_bound`: E_q[log p - log q], in nats, which is at most `log_evidence`. `pareto_k`: the shape of the
            tail of the importance weights p/q; above 0.7, importance sampling from the fit is unreliable.
            `not_converged`: why `converged` is false, where the reason is known, such as a limit of the family.

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
    path: tuple[Step, ...] = field(default=(), repr=False)
    minima: tuple[Minimum, ...] = ()
    converged: bool = True
    diagnostics: dict[str, Any] = field(default_factory=dict)

    @property
    def cross_entropy(self) -> float:
        """-mean log q(x) of the samples under the best member, in nats; nan unless the fit is to samples."""
        return self.diagnostics.get("cross_entropy", nan)

    @property
    def evidence_bound(self) -> float:
        """E_q[log p - log q] of the best member, in nats; nan unless the fit is to an unnormalised log-density."""
        return self.diagnostics.get("evidence_bound", nan)

    @property
    def alpha_divergence(self) -> float:
        """The alpha-divergence of the best member, in nats; nan unless the fit is of `fit_alpha`."""
        return self.diagnostics.get("alpha_divergence", nan)


def renamed(items: Iterable[_Item], name: Quantity, *, sign: int = 1) -> tuple[_Item, ...]:
    """Steps or minima whose objective, which the optimiser stores as `kl`, is stored under its own name.

    Example:
        >>> renamed([Step(None, 1.5)], "cross_entropy")[0].cross_entropy
        1.5
    """
    return tuple(replace(item, **{"kl": nan, name: sign * item.kl}) for item in items)


def closed_form_fit(best: Distribution, estimate: Estimate, diagnostics: dict[str, Any]) -> Fit:
    """The fit of a closed form: the path and the minima hold the result alone."""
    value, cross_entropy = estimate.value, diagnostics.get("cross_entropy", nan)
    minima = (Minimum(best, value, (best,), cross_entropy),)
    return Fit(best, value, estimate, (Step(best, value, cross_entropy),), minima, True, diagnostics)


def unknown_kl_from_samples(cross_entropy: float) -> Estimate:
    """The estimate of KL(p || q) from samples of p alone: nan, because the entropy of p is unknown."""
    known = "-mean log q(x)" if isnan(cross_entropy) else f"{cross_entropy:.6g}"
    return Estimate(
        nan,
        method="samples",
        status="unreliable",
        warnings=(f"KL(p || q) = {known} - H(p), and the entropy H(p) cannot be computed from samples alone",),
    )


def with_distributions(fit: Fit, convert: Callable[[Any], Any]) -> Fit:
    """The fit with every distribution replaced by a function of it.

    Args:
        fit: The result of a fit.
        convert: Returns the new distribution for each distribution of the result, its path and its minima.

    Example:
        >>> from kullback import fit_forward
        >>> from kullback.families import Normal
        >>> fit = fit_forward(Normal, samples=[0.0, 2.0])
        >>> with_distributions(fit, lambda member: float(member.loc)).distribution
        1.0
    """
    return replace(
        fit,
        distribution=convert(fit.distribution),
        path=tuple(replace(step, distribution=convert(step.distribution)) for step in fit.path),
        minima=tuple(
            replace(minimum, distribution=convert(minimum.distribution), basin=tuple(map(convert, minimum.basin)))
            for minimum in fit.minima
        ),
    )
