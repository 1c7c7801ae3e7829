"""Annealed reverse fits to powers p^t of the target, for increasing exponents t."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from math import inf
from typing import Any

import numpy as np

from kullback.densities.density import Density
from kullback.densities.resolve import resolve
from kullback.errors import SupportError
from kullback.fit.result import Fit
from kullback.fit.reverse import fit_reverse
from kullback.fit.target_family import is_module, reject_options
from kullback.fit.targets import evaluate_log_prob, power, univariate_density
from kullback.numerics.arguments import as_float64, shown

__all__ = ["fit_tempered"]


def fit_tempered(
    family: Any,
    *,
    log_prob: Callable[[Any], Any] | None = None,
    target: Any = None,
    exponents: Sequence[float] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0),
    start: Any = None,
    support: tuple[float, float] = (-inf, inf),
    **settings: Any,
) -> tuple[Fit, ...]:
    """The members q that minimise KL(q || p^t / Z(t)) for increasing t, by deterministic annealing.

    argmin_q KL(q || p^t / Z(t)) = argmax_q (t E_q[log p(x)] + H(q)),  Z(t) = integral p^t

    Each fit starts where the previous fit ended. At small t the entropy H(q) dominates, and q covers the target as a
    forward fit does. At t = 1 the fit is a reverse fit, whose minimum depends less on the start than the minimum that
    `fit_reverse` finds by descent from it.

    Args:
        family: A class of `kullback.families` or of `torch.distributions`: a univariate family, or normals or mixtures
            of normals. Or a module, which is trained in place at each exponent. In more than two dimensions, and for
            modules, the fits are by stochastic gradients, as in `fit_reverse`.
        log_prob: The log-density of p up to a constant, at points of shape (n,) or (n, d). Pass either log_prob or
            target.
        target: The distribution p, with a density.
        exponents: The increasing, positive exponents t, which are inverse temperatures.
        start: A member of the family at which the first descent begins. It is required for multivariate families.
        support: The bounds of the support of a univariate log_prob.
        **settings: Further keyword arguments of `fit_reverse`, such as fixed or components.

    Returns:
        One `Fit` for each exponent, with KL(q || p^t / Z(t)) in nats. `path` is the descent from the previous fit,
        whose last step is the start of the next fit. `minima` has every minimum found at this exponent.
        `diagnostics["exponent"]` is t.

    Raises:
        SupportError: The exponents are not positive and increasing; p^t has no finite integral (for example, a Cauchy
            distribution with t <= 1/2); the target is discrete; KL(q || p^t / Z(t)) is `inf` at every start; or neither
            or both of log_prob and target are given.
        ParameterError: A parameter must be fixed or cannot be fixed, or a start or the number of components is
            required.

    References:
        Katahira, Watanabe and Okada (2008), "Deterministic Annealing Variant of Variational Bayes Method"
        [katahira2008].

    Example:
        >>> from kullback.families import Normal, NormalMixture
        >>> two = NormalMixture(weights=[0.7, 0.3], locs=[0.0, 6.0], scales=[1.0, 1.0])
        >>> path = fit_tempered(Normal, target=two, exponents=[1 / 4, 1], start=Normal(loc=6.0, scale=1.0))
        >>> [round(fit.path[-1].distribution.loc, 1) for fit in path]  # fit_reverse from this start ends at 6
        [2.7, 0.0]
    """
    if is_module(family):
        reject_options("a module", start=(start, None))
    powers = as_float64("exponents", exponents)
    if powers.ndim != 1 or not powers.size or not (np.diff(powers, prepend=0.0) > 0).all() or powers[-1] == np.inf:
        raise SupportError(f"expected positive, finite and increasing exponents, got {shown(exponents)}")
    if (log_prob is None) == (target is None):
        raise SupportError("expected either log_prob or target, got " + ("neither" if target is None else "both"))
    density = None
    if log_prob is None:
        density = None if is_module(family) else _continuous_density(target)
        log_prob = _sampler_log_density(target) if density is None else None
    fits: list[Fit] = []
    for exponent in powers:
        try:
            if density is not None:
                fit = _fit_to_power(family, density, float(exponent), start=start, support=support, **settings)
            else:
                assert log_prob is not None
                tempered = partial(_tempered_log_prob, log_prob, float(exponent))
                fit = fit_reverse(family, log_prob=tempered, start=start, support=support, **settings)
        except SupportError as error:
            raise SupportError(f"at exponent {exponent:g}: {error}") from error
        if not is_module(family):
            is_stochastic = fit.diagnostics.get("method") == "gradients"  # its path ends before the last step
            start = fit.distribution if is_stochastic or not fit.path else fit.path[-1].distribution
        fits.append(replace(fit, diagnostics=fit.diagnostics | {"exponent": float(exponent)}))
    return tuple(fits)


def _fit_to_power(family: Any, density: Density, exponent: float, **settings: Any) -> Fit:
    """The reverse fit to a power of a univariate density, which keeps the points where the density varies."""
    tempered = power(density, exponent)
    fit = fit_reverse(family, target=tempered.density, **settings)
    estimate = tempered.with_error_of_evidence(fit.estimate)
    bound = tempered.log_evidence - estimate.value
    return replace(
        fit,
        estimate=estimate,
        converged=fit.converged and estimate.status != "unreliable",
        diagnostics=fit.diagnostics | {"log_evidence": tempered.log_evidence, "evidence_bound": bound},
    )


def _continuous_density(target: Any) -> Density | None:
    """The density of a univariate target; None for other targets."""
    density = univariate_density(target)
    if density is not None and density.discrete:
        raise SupportError(
            f"expected a continuous target, got {type(target).__name__}, which is discrete; its powers are not "
            "supported"
        )
    return density


def _sampler_log_density(target: Any) -> Callable[[Any], Any]:
    """The log-density of a target that has a sampler, at arrays or tensors."""
    sampler = resolve(target).native_sampler
    if sampler is None:
        raise SupportError(
            f"expected a target with a density or a log_prob, got {type(target).__name__}; pass log_prob, its "
            "log-density up to a constant"
        )

    def log_density(x: Any) -> Any:
        if _is_tensor(x):
            return import_module("kullback.fit.stochastic").target_log_density(None, target)(x)
        return sampler.log_density(x)

    return log_density


def _is_tensor(x: Any) -> bool:
    return type(x).__module__.partition(".")[0] == "torch"


def _tempered_log_prob(log_prob: Callable[[Any], Any], exponent: float, x: Any) -> Any:
    if _is_tensor(x):  # of a stochastic gradient
        return exponent * log_prob(x)
    return exponent * evaluate_log_prob(log_prob, np.asarray(x, dtype=np.float64))
