"""torch.distributions: its objects as records, and the closed forms of Kullback in its kl_divergence."""

from collections.abc import Iterator
from dataclasses import fields
from itertools import product
from math import inf
from typing import Any

from kullback import families as f
from kullback.closed_forms import FORMS, is_univariate
from kullback.distributions import kl
from kullback.errors import MissingDependencyError, NoClosedFormError
from kullback.numerics.arrays import holds

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError("torch is missing: pip install torch") from error

from torch import distributions as d
from torch.distributions.kl import _KL_MEMOIZE, _KL_REGISTRY
from torch.distributions.utils import logits_to_probs

__all__ = ["as_record", "install", "uninstall"]

# The parameters have the same names in both.
_FAMILIES: dict[type, type] = {
    d.Bernoulli: f.Bernoulli,
    d.Beta: f.Beta,
    d.Binomial: f.Binomial,
    d.Categorical: f.Categorical,
    d.Cauchy: f.Cauchy,
    d.Chi2: f.ChiSquared,
    d.ContinuousBernoulli: f.ContinuousBernoulli,
    d.Dirichlet: f.Dirichlet,
    d.Exponential: f.Exponential,
    d.FisherSnedecor: f.F,
    d.Gamma: f.Gamma,
    d.Geometric: f.Geometric,
    d.Gumbel: f.Gumbel,
    d.HalfCauchy: f.HalfCauchy,
    d.HalfNormal: f.HalfNormal,
    d.InverseGamma: f.InverseGamma,
    d.Kumaraswamy: f.Kumaraswamy,
    d.Laplace: f.Laplace,
    d.LogNormal: f.LogNormal,
    d.LowRankMultivariateNormal: f.LowRankMultivariateNormal,
    d.Multinomial: f.Multinomial,
    d.MultivariateNormal: f.MultivariateNormal,
    d.NegativeBinomial: f.NegativeBinomial,
    d.Normal: f.Normal,
    d.OneHotCategorical: f.OneHotCategorical,
    d.Pareto: f.Pareto,
    d.Poisson: f.Poisson,
    d.StudentT: f.StudentT,
    d.Uniform: f.Uniform,
    d.VonMises: f.VonMises,
    d.Weibull: f.Weibull,
    d.Wishart: f.Wishart,
}

_WAYS = (("probs", "logits"), ("covariance_matrix", "precision_matrix", "scale_tril"))

_NAMED = {d.ExpTransform: "exp", d.TanhTransform: "tanh"}


def as_record(distribution: Any) -> f.Distribution:
    """The record of an object of torch.distributions: its own tensors, so that gradients reach them.

    Args:
        distribution: Of any class that has a record here, or of a subclass; Independent, TransformedDistribution and
            a MixtureSameFamily of normals are looked into.

    Returns:
        The record. Of probs and logits, or of a covariance's forms, it holds the one that was given.

    Raises:
        NoClosedFormError: There is no record of this class; `kullback.measure` needs none.
        TypeError: It is no distribution.

    Example:
        >>> as_record(torch.distributions.Exponential(torch.tensor(2.0)))
        Exponential(rate=tensor(2.))
    """
    for kind in type(distribution).__mro__:
        if kind in _FAMILIES:
            return _copied(_FAMILIES[kind], distribution)
    match distribution:
        case d.Independent():
            return _independent(as_record(distribution.base_dist), distribution.reinterpreted_batch_ndims)
        case d.TransformedDistribution():
            return _transformed(distribution)
        case d.MixtureSameFamily():
            parts = as_record(distribution.component_distribution)
            if isinstance(parts, f.Normal):
                weights = distribution.mixture_distribution.probs
                return f.NormalMixture(weights=weights, locs=parts.loc, scales=parts.scale)
    name = type(distribution).__name__
    if isinstance(distribution, d.Distribution):
        raise NoClosedFormError(f"{name} has no closed form here; kullback.measure(p, q) bounds or estimates the KL")
    raise TypeError(f"expected an object of torch.distributions, got {name}; for tensors see kl_probs and kl_logits")


def _copied(kind: type, distribution: Any) -> f.Distribution:
    names = {field.name for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    holder = getattr(distribution, "_categorical", distribution)
    values = {}
    for way in _WAYS:
        # A Wishart's record has the covariance alone.
        if known := names.intersection(way):
            given = _given(holder, way)
            given = given if given in known else way[0]
            values[given] = getattr(holder, given)
            names -= known
    return kind(**values, **{name: getattr(distribution, name) for name in names})


def _given(holder: Any, way: tuple[str, ...]) -> str:
    """Which of several forms the distribution was made with; the others may have been derived, and kept, since."""
    first, *rest = (name for name in vars(holder) if name in way)
    if first != "probs" or not rest or getattr(holder, "_param", None) is holder.probs:
        return first
    # Expanding forgets which it was. Logits that torch derives from probs are clamped; then they make others.
    made = logits_to_probs(holder.logits.detach(), is_binary=not isinstance(holder, d.Categorical))
    return "logits" if holds(torch.allclose(made, holder.probs.detach(), rtol=1e-3, atol=0)) else "probs"


def _independent(base: f.Distribution, event_dims: int) -> f.Distribution:
    """One Independent, however many there were."""
    if isinstance(base, f.Independent):
        base, event_dims = base.base, event_dims + base.event_dims
    return f.Independent(base=base, event_dims=event_dims) if event_dims else base


def _transformed(distribution: Any) -> f.Distribution:
    transforms = list(distribution.transforms)
    base = distribution.base_dist
    while type(base) is d.TransformedDistribution:
        base, transforms = base.base_dist, [*base.transforms, *transforms]
    parts = [part for transform in transforms for part in _parts(transform)]
    record = as_record(base)
    invertible = _is_invertible(base, parts)
    if isinstance(record, f.Independent) and all(map(_is_elementwise, parts)):
        return _independent(_image(record.base, parts, invertible), record.event_dims)
    return _image(record, parts, invertible)


def _parts(transform: Any) -> Iterator[Any]:
    """The transforms that this one is made of; how the axes of an event are counted makes none of them another."""
    match transform:
        case d.ComposeTransform():
            for part in transform.parts:
                yield from _parts(part)
        case d.IndependentTransform():
            yield from _parts(transform.base_transform)
        case _:
            yield transform


def _is_elementwise(transform: Any) -> bool:
    return isinstance(transform, d.AffineTransform) or transform.domain.event_dim == transform.codomain.event_dim == 0


def _is_invertible(base: Any, parts: list[Any]) -> bool:
    """Whether no two values of the base become one: PowerTransform takes itself for bijective, but -1 and 1 square."""
    low, high = _bounds(base.support)
    for part in parts:
        domains = [_bounds(each.domain) for each in getattr(part, "transforms", [part])]
        outside = any(holds(torch.any((low < least) | (high > greatest))) for least, greatest in domains)
        # Of scale or exponent 0, all values become one.
        scales = isinstance(part, d.AffineTransform | d.PowerTransform)
        if not part.bijective or outside or (scales and holds(torch.any(torch.as_tensor(part.sign) == 0))):
            return False
        low, high = _bounds(part.codomain)
    return True


def _bounds(constraint: Any) -> tuple[Any, Any]:
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    low, high = getattr(constraint, "lower_bound", -inf), getattr(constraint, "upper_bound", inf)
    return torch.as_tensor(low), torch.as_tensor(high)


def _image(base: f.Distribution, parts: list[Any], invertible: bool) -> f.Distribution:
    names = tuple(_key(part) for part in parts)
    if isinstance(base, f.Normal) and names in (("exp",), ("tanh",)):
        return (f.LogNormal if names == ("exp",) else f.TanhNormal)(loc=base.loc, scale=base.scale)
    return f.Transformed(base=base, transform=names, invertible=invertible) if parts else base


def _key(transform: Any) -> Any:
    """What tells it from others by ==."""
    if isinstance(transform, d.ReshapeTransform):
        return "reshape", transform.in_shape, transform.out_shape
    return _NAMED.get(type(transform), transform)


_Pair = tuple[type, type]
_BEFORE: dict[_Pair, Any] = {}

# Rules for whole classes of families: they refuse what they cannot do, and are less exact than a pair's own form.
_RULES = (d.TransformedDistribution, d.ExponentialFamily, d.Distribution)


def install(*, stable: bool = False) -> None:
    """KL(p || q) by Kullback in torch.distributions.kl_divergence, for the pairs of families that PyTorch lacks.

    It gains the pairs with a closed form, and those on the line whose supports make KL infinite; `uninstall` takes them
    away again. A pair registered by anybody else is kept, and what PyTorch computes is computed as before, but for what
    it has by a rule for all transformed distributions or all exponential families.

    Args:
        stable: Also replace PyTorch's own: where those cancel, clamp, or say infinite of supports that are not known
            to differ, Kullback's do not; and transforms that are not invertible are refused.

    Example:
        >>> from torch.distributions import StudentT, Normal, kl_divergence
        >>> install()
        >>> kl_divergence(StudentT(torch.tensor(5.0)), Normal(0.0, 1.0))
        tensor(0.1248)
        >>> uninstall()
    """
    uninstall()
    pairs = [pair for pair in product(_FAMILIES, _FAMILIES) if _is_known(pair)]
    chosen = (
        [*pairs, (d.TransformedDistribution, d.TransformedDistribution)]
        if stable
        else [p for p in pairs if not _is_served(p)]
    )
    for pair in chosen:
        _BEFORE[pair] = _KL_REGISTRY.get(pair)
        d.register_kl(*pair)(kl)


def uninstall() -> None:
    """Put back what `install` found in torch.distributions."""
    while _BEFORE:
        pair, before = _BEFORE.popitem()
        if _KL_REGISTRY.get(pair) is not kl:  # somebody has registered another since
            continue
        if before is None:
            del _KL_REGISTRY[pair]
        else:
            _KL_REGISTRY[pair] = before
    _KL_MEMOIZE.clear()


def _is_known(pair: _Pair) -> bool:
    records = tuple(_FAMILIES[kind] for kind in pair)
    return records in FORMS or all(is_univariate(object.__new__(record)) for record in records)


def _is_served(pair: _Pair) -> bool:
    """Whether the pair is registered, itself or through its ancestors; a rule does not count."""
    ancestors = product(pair[0].__mro__, pair[1].__mro__)
    return any(pair in _KL_REGISTRY and pair[0] not in _RULES for pair in ancestors)
