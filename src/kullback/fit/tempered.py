"""Reverse fits to a target's powers: from one so flat that the fit covers it all, to the target itself."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import inf, isfinite
from typing import Any

import numpy as np

from kullback.densities.resolve import resolve
from kullback.errors import SupportError
from kullback.fit.result import Fit
from kullback.fit.reverse import fit_reverse
from kullback.fit.targets import called, density_of
from kullback.numerics.arrays import Array

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
    """Reverse fits to p^t / Z(t) for rising t, each begun where the one before ended: annealing, made a path.

    argmin_q KL(q || p^t/Z) = argmax_q (t E_q[log p] + H(q)). At small t the entropy rules, and q covers the target as a
    forward fit does; at t = 1 it is `fit_reverse`, and q sits in a mode: the one that the path led to.

    Args:
        family: As for `fit_reverse`.
        log_prob: The target's log-density up to a constant, as for `fit_reverse`.
        target: A distribution with a density, in place of log_prob.
        exponents: The t, rising, above 0; the inverse temperatures.
        start: Where the first descent begins, a member.
        support: The ends of log_prob's support, on the line.
        **settings: More of `fit_reverse`'s.

    Returns:
        A `Fit` for each exponent, of KL(q || p^t/Z(t)): `path` is the descent that follows, its last step where the
        next one begins; `minima` has every minimum at that exponent, the other ones too. `diagnostics["exponent"]` is
        t.

    Raises:
        SupportError: The exponents do not rise above 0; p^t has no finite integral, as a Cauchy's at t <= 1/2; the
            target is of counts; or as `fit_reverse` does.

    Source: [katahira2008].

    Example:
        >>> from kullback.families import Normal, NormalMixture
        >>> two = NormalMixture(weights=[0.7, 0.3], locs=[0.0, 6.0], scales=[1.0, 1.0])
        >>> path = fit_tempered(Normal, target=two, exponents=[1 / 4, 1], start=Normal(loc=6.0, scale=1.0))
        >>> [round(fit.path[-1].distribution.loc, 1) for fit in path]  # without it the descent ends at 6
        [2.7, 0.0]
    """
    rising = all(low < high for low, high in zip([0.0, *exponents], exponents, strict=False))
    if not exponents or not rising or not isfinite(exponents[-1]):
        raise SupportError(f"expected exponents that rise above 0, got {tuple(exponents)!r}")
    if (log_prob is None) == (target is None):
        raise SupportError("expected either log_prob or target, got " + ("neither" if target is None else "both"))
    if log_prob is None:
        log_prob, support = _of_target(target, support)
    fits: list[Fit] = []
    for exponent in exponents:
        raised = partial(_raised, log_prob, float(exponent))
        try:
            fit = fit_reverse(family, log_prob=raised, start=start, support=support, **settings)
        except SupportError as error:
            raise SupportError(f"at exponent {exponent:g}: {error}") from error
        start = fit.path[-1].distribution if fit.path else fit.distribution
        fits.append(replace(fit, diagnostics=fit.diagnostics | {"exponent": float(exponent)}))
    return tuple(fits)


def _of_target(target: Any, support: tuple[float, float]) -> tuple[Callable[[Array], Array], tuple[float, float]]:
    density = density_of(target)
    if density is not None:
        if density.discrete:
            raise SupportError(f"expected a target with a density, got {type(target).__name__}, which is of counts")
        return lambda x: density.log_density(np.zeros_like(x), x), density.support
    sampler = resolve(target).native_sampler
    if sampler is None:
        raise SupportError(f"expected a target with a density or a log_prob, got {type(target).__name__}")
    return sampler.log_density, support


def _raised(log_prob: Callable[[Any], Any], exponent: float, x: Any) -> Any:
    return exponent * called(log_prob, np.asarray(x, dtype=np.float64))
