"""Fits by the alpha-divergence, which interpolates between the forward and the reverse KL divergence."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf, nan
from typing import Any

from kullback.densities.from_families import has_density
from kullback.errors import ParameterError, SupportError
from kullback.fit.limits import without_limit
from kullback.fit.result import Fit, renamed
from kullback.fit.solver.multistart import minimise_from_starts
from kullback.fit.solver.objectives import univariate_objective
from kullback.fit.solver.parametrisation import parametrise
from kullback.fit.solver.starting_points import missing_start_error, univariate_starts, widened_starts
from kullback.fit.target_family import family_adapter, list_of_starts, validate_components
from kullback.fit.targets import univariate_density
from kullback.measure import measure
from kullback.numerics.arguments import is_number
from kullback.result import Estimate

__all__ = ["fit_alpha"]


def fit_alpha(
    family: Any,
    *,
    target: Any,
    alpha: float,
    start: Any = None,
    starts: Sequence[Any] = (),
    fixed: dict[str, Any] | None = None,
    components: int | None = None,
) -> Fit:
    """The member q of a univariate family that minimises the alpha-divergence D_a(p || q), where p is the target.

    D_a(p || q) = (1 - integral p^a q^(1-a)) / (a (1-a))

    The limits are KL(p || q) at a = 1, which `fit_forward` minimises, and KL(q || p) at a = 0, which `fit_reverse`
    minimises. For 0 < a < 1 the minima are also the minima of the Renyi divergence of order a.

    Args:
        family: A univariate class of `kullback.families` or of `torch.distributions`.
        target: The distribution p, with a univariate density or probability mass function.
        alpha: The order a, from 0 to 1.
        start: A member of the family at which the first descent begins, such as the fit of a nearby order; `path`
            records this descent.
        starts: Further starting points. Members that are matched to parts of the target are always added.
        fixed: Parameters that are not fitted, by name.
        components: The number of components of a `NormalMixture`.

    Returns:
        A `Fit` whose `alpha_divergence`, also of each step and minimum, is D_a(p || q) in nats. `diagnostics` has
        "forward_kl", KL(p || q), and "reverse_kl", KL(q || p), of the best member, in nats; either may be `inf`. `kl`
        is KL(p || q) at a = 1, KL(q || p) at a = 0, and nan otherwise.

    Raises:
        SupportError: alpha is not between 0 and 1, the target has no univariate density, or the divergence is `inf` at
            every start.
        ParameterError: The family is not univariate, a parameter must be fixed or cannot be fixed, or a start or the
            number of components is required.

    References:
        Minka (2005), "Divergence measures and message passing" [minka2005].

    Example:
        >>> from kullback.families import Normal, NormalMixture
        >>> two = NormalMixture(weights=[0.7, 0.3], locs=[0.0, 4.0], scales=[1.0, 1.0])
        >>> [round(fit_alpha(Normal, target=two, alpha=a).distribution.scale, 3) for a in (1.0, 0.5, 0.0)]
        [2.088, 2.018, 1.892]
    """
    if not (is_number(alpha) and 0 <= alpha <= 1):
        raise SupportError(f"expected alpha from 0, KL(q || target), to 1, KL(target || q), got {alpha!r}")
    adapter, density = family_adapter(family), univariate_density(target)
    fixed, components = adapter.validate_fixed(fixed), validate_components(adapter.family, components)
    if adapter.fixed_member(fixed) is not None:
        raise ParameterError(
            f"expected a parameter of {adapter.family.__name__} that is not fixed, got fixed={fixed}; measure the KL "
            "of this member with kullback.measure"
        )
    if not has_density(adapter.family):
        raise ParameterError(f"expected a univariate family, got {adapter.family.__name__}")
    if density is None:
        raise SupportError(f"expected a target with a univariate density, got {type(target).__name__}")
    members = [adapter.from_requested(one) for one in ([start] if start is not None else []) + list_of_starts(starts)]
    matched = univariate_starts(adapter.family, density, fixed, components)
    members += widened_starts(matched, density, fixed) if alpha == 1 else matched
    if not members:
        raise missing_start_error(adapter.family, fixed)
    parametrisation = parametrise(adapter.family, members[0], fixed)
    objective = univariate_objective(parametrisation, density, alpha=float(alpha))
    found = minimise_from_starts(parametrisation, objective, members)
    if not found.minima:
        raise SupportError(
            f"expected a finite divergence at a start, but it is inf at all {len(members)}: the supports or the tails "
            "of the target and the family are incompatible"
        )
    best = found.minima[0]
    forward, reverse = measure(target, best.distribution), measure(best.distribution, target)
    diagnostics = {
        "method": "quadrature",
        "alpha": float(alpha),
        "alpha_divergence": best.kl,
        "forward_kl": forward.value,
        "reverse_kl": reverse.value,
    }
    interval = (best.kl - 1e-10, best.kl + 1e-10)
    estimate = Estimate(best.kl, error=1e-10, interval=interval, method="quadrature", status="bounded")
    path, minima = renamed(found.path, "alpha_divergence"), renamed(found.minima, "alpha_divergence")
    kl = nan
    if alpha in (0, 1):  # the divergence is a KL
        estimate = forward if alpha else reverse
        kl = estimate.value
        if kl == inf:
            raise SupportError(
                f"expected a target whose divergence from some {type(best.distribution).__name__} is finite, but "
                f"{'; '.join(estimate.warnings)}"
            )
        path = tuple(replace(step, kl=step.alpha_divergence) for step in path)
        minima = tuple(replace(minimum, kl=minimum.alpha_divergence) for minimum in minima)
    fit = Fit(best.distribution, kl, estimate, path, minima, found.converged, diagnostics)
    if alpha in (0, 1):
        fit = without_limit(
            fit, lambda member: (measure(target, member) if alpha else measure(member, target)).value, fixed
        )
    return adapter.convert_fit(fit)
