"""The fits between the two directions: by the alpha-divergence, which is one KL at each end."""

from collections.abc import Sequence
from typing import Any

from kullback.densities.from_families import has_density
from kullback.errors import ParameterError, SupportError
from kullback.fit.result import Fit
from kullback.fit.solver.multistart import search
from kullback.fit.solver.objectives import problem_on_the_line
from kullback.fit.solver.parametrisation import coordinates_of
from kullback.fit.solver.starting_points import starts_on_the_line
from kullback.fit.target_family import family_adapter
from kullback.fit.targets import density_of
from kullback.measure import measure
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
    """The q of a family on the line that minimises the alpha-divergence of target and q: a path between the two fits.

    D_a(p || q) = (1 - integral p^a q^(1-a)) / (a (1-a)): KL(p || q) at a = 1, as `fit_forward` minimises, and
    KL(q || p) at a = 0, as `fit_reverse` does. For 0 < a < 1 its minima are those of Renyi's divergence of order a.

    Args:
        family: A record class of `kullback.families`, or a class of `torch.distributions`.
        target: p, a distribution on the line.
        alpha: Where between the two directions, from 0 to 1.
        start: Where a descent begins, such as the fit of the alpha before; its path is kept.
        starts: More of them; members matched to pieces of the target are tried besides.
        fixed: Parameters that are not fitted, by name.
        components: How many components a `NormalMixture` is to have.

    Returns:
        A `Fit` whose `kl`, minima and path are of D_a, nats; `diagnostics` has `forward_kl` and `reverse_kl` of the
        best, which may be `inf`.

    Raises:
        SupportError: alpha is not between 0 and 1, the target has no density on the line, or the divergence is `inf`
            at every start.
        ParameterError: The family is not on the line, or a start or parameter is needed.

    Source: [minka2005].

    Example:
        >>> from kullback.families import Normal, NormalMixture
        >>> two = NormalMixture(weights=[0.7, 0.3], locs=[0.0, 4.0], scales=[1.0, 1.0])
        >>> [round(fit_alpha(Normal, target=two, alpha=a).distribution.scale, 3) for a in (1.0, 0.5, 0.0)]
        [2.088, 2.018, 1.892]
    """
    if not 0 <= alpha <= 1:
        raise SupportError(f"expected alpha from 0, KL(q || target), to 1, KL(target || q), got {alpha!r}")
    kind, density = family_adapter(family), density_of(target)
    fixed = kind.fixed(fixed)
    if not has_density(kind.record_class):
        raise ParameterError(f"expected a family on the line, got {kind.record_class.__name__}")
    if density is None:
        raise SupportError(f"expected a target with a density on the line, got {type(target).__name__}")
    begin = [kind.record(one) for one in ([start] if start is not None else []) + list(starts)]
    begin += starts_on_the_line(kind.record_class, density, fixed, components)
    if not begin:
        raise ParameterError(f"expected a start for {kind.record_class.__name__}: pass start=, one of its records")
    chart = coordinates_of(kind.record_class, begin[0], fixed)
    found = search(chart, problem_on_the_line(chart, density, alpha=float(alpha)), begin)
    if not found.minima:
        raise SupportError(f"expected a finite divergence at a start, but it is inf at all {len(begin)}")
    best = found.minima[0]
    told = {
        "method": "quadrature",
        "alpha": float(alpha),
        "forward_kl": measure(target, best.distribution).value,
        "reverse_kl": measure(best.distribution, target).value,
    }
    interval = (best.kl - 1e-10, best.kl + 1e-10)
    estimate = Estimate(best.kl, error=1e-10, interval=interval, method="quadrature", status="bounded")
    return kind.returned(Fit(best.distribution, best.kl, estimate, found.path, found.minima, found.converged, told))
