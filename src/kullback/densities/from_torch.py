"""Adapter of torch.distributions: its distributions as families, univariate densities, samplers and mixtures."""

from collections.abc import Callable, Iterator
from copy import copy, deepcopy
from dataclasses import fields
from functools import partial
from math import inf, isfinite
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import distributions as d
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli
from torch.distributions.utils import logits_to_probs

from kullback import families as f
from kullback.closed_forms import is_univariate
from kullback.closed_forms.compiled_forms import DIRECT, INDEPENDENT, TRANSFORMED, Parameters
from kullback.densities.composites import (
    affine_image,
    constraint_bounds,
    merged_independent,
    mixture_density,
    overridden_method,
    require_methods_of_library,
    support_interval,
)
from kullback.densities.density import Density
from kullback.densities.gaussian_mixtures import Components, components
from kullback.densities.resolve import resolve
from kullback.errors import NoClosedFormError, ShapeError
from kullback.numerics.arrays import Array, holds, untracked
from kullback.samples.monte_carlo import Sampler

__all__ = [
    "FAMILIES",
    "as_components",
    "as_density",
    "as_family",
    "as_independent",
    "as_sampler",
    "is_injective",
    "split_transforms",
    "with_transforms",
]

# The parameters have the same names in PyTorch and in kullback.families.
FAMILIES: dict[type, type[f.Distribution]] = {
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
    d.LKJCholesky: f.LKJ,
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


def _direct(family: type, *names: str) -> Callable[[Any], Parameters]:
    """A reader of parameters that have the names and the meaning of the family's parameters."""
    return lambda distribution: (family, tuple(getattr(distribution, name) for name in names), names)


def _given_of_two(family: type, distribution: Any) -> Parameters:
    """The family with the one of probs and logits that was given, which PyTorch keeps as `_param`."""
    name = "probs" if vars(distribution).get("probs") is distribution._param else "logits"
    return family, (distribution._param,), (name,)


def _binomial(distribution: Any) -> Parameters:
    """The count, and the one of probs and logits that was given."""
    _, values, names = _given_of_two(f.Binomial, distribution)
    return f.Binomial, (distribution.total_count, *values), ("total_count", *names)


def _multivariate_normal(distribution: Any) -> Parameters | None:
    """The mean, and the factor or the covariance matrix if it was given: PyTorch then stores it first."""
    given = next(name for name in vars(distribution) if name in _PARAMETRISATIONS[1])
    if given == "precision_matrix":
        return None
    return f.MultivariateNormal, (distribution.loc, getattr(distribution, given)), ("loc", given)


def _geometric(distribution: Any) -> Parameters | None:
    """The probabilities, if they were given: PyTorch then stores them first."""
    first = next(name for name in vars(distribution) if name in ("probs", "logits"))
    return (f.Geometric, (distribution.probs,), ("probs",)) if first == "probs" else None


# The compiled forms read the parameters of these classes directly; subclasses may compute them differently.
DIRECT.update(
    {
        d.Bernoulli: partial(_given_of_two, f.Bernoulli),
        d.Beta: lambda distribution: (f.Dirichlet, (distribution._dirichlet.concentration,), ("concentration",)),
        d.Binomial: _binomial,
        d.Categorical: partial(_given_of_two, f.Categorical),
        d.Cauchy: _direct(f.Cauchy, "loc", "scale"),
        d.Chi2: _direct(f.Gamma, "concentration", "rate"),
        d.Dirichlet: _direct(f.Dirichlet, "concentration"),
        d.Exponential: _direct(f.Exponential, "rate"),
        d.Gamma: _direct(f.Gamma, "concentration", "rate"),
        d.Geometric: _geometric,
        d.Gumbel: _direct(f.Gumbel, "loc", "scale"),
        d.HalfNormal: _direct(f.HalfNormal, "scale"),
        d.InverseGamma: _direct(f.InverseGamma, "concentration", "rate"),
        d.Laplace: _direct(f.Laplace, "loc", "scale"),
        d.LogNormal: _direct(f.LogNormal, "loc", "scale"),
        d.LowRankMultivariateNormal: _direct(f.LowRankMultivariateNormal, "loc", "cov_factor", "cov_diag"),
        d.MultivariateNormal: _multivariate_normal,
        d.Normal: _direct(f.Normal, "loc", "scale"),
        d.OneHotCategorical: lambda distribution: _given_of_two(f.Categorical, distribution._categorical),
        d.Pareto: _direct(f.Pareto, "scale", "alpha"),
        d.Poisson: _direct(f.Poisson, "rate"),
        d.Uniform: _direct(f.Uniform, "low", "high"),
    }
)
INDEPENDENT[d.Independent] = attrgetter("base_dist", "reinterpreted_batch_ndims")

# Invertible maps without parameters, which are equal if their classes are equal.
_INVERTIBLE = (d.ExpTransform, d.SigmoidTransform, d.TanhTransform)


def _equal_maps(p: Any, q: Any) -> tuple[Any, Any] | None:
    """The bases of two distributions under equal invertible maps without parameters; None for other maps."""
    kinds, others = ([type(transform) for transform in side.transforms] for side in (p, q))
    if kinds != others or not all(kind in _INVERTIBLE for kind in kinds):
        return None
    return p.base_dist, q.base_dist


TRANSFORMED[d.TransformedDistribution] = _equal_maps

# Alternative parameters, of which a distribution is constructed with exactly one.
_PARAMETRISATIONS = (("probs", "logits"), ("covariance_matrix", "precision_matrix", "scale_tril"))

# The modules of classes whose methods are the library's own; Pyro extends classes of PyTorch without other densities.
_PACKAGES = ("torch.distributions", "pyro.distributions")

_TRANSFORM_NAMES = {d.ExpTransform: "exp", d.TanhTransform: "tanh"}


def as_family(distribution: Any) -> f.Distribution:
    """The distribution of `kullback.families` with the tensors of an object of torch.distributions.

    Args:
        distribution: An instance of a class in `FAMILIES`, or of a subclass that does not override its density; also
            Independent, TransformedDistribution and MixtureSameFamily with normal components.

    Returns:
        The distribution. It holds the same tensors, so that gradients reach them. Of alternative parameters, such as
        probs and logits, it holds the parameter that was given.

    Raises:
        NoClosedFormError: `kullback.families` has no family for this class.
        TypeError: The object is not a distribution.

    Example:
        >>> as_family(torch.distributions.Exponential(torch.tensor(2.0)))
        Exponential(rate=tensor(2.))
    """
    require_methods_of_library(distribution, _PACKAGES)
    for kind in type(distribution).__mro__:
        if kind in FAMILIES:
            return _copy_parameters(FAMILIES[kind], distribution)
    match distribution:
        case LogitRelaxedBernoulli():
            standard = f.Logistic(loc=distribution.logits, scale=torch.ones_like(distribution.logits))
            key = "divided by temperature", str(distribution.temperature.tolist())
            return f.Transformed(base=standard, transform=(key,), invertible=True)
        case d.Independent():
            return merged_independent(as_family(distribution.base_dist), distribution.reinterpreted_batch_ndims)
        case d.TransformedDistribution():
            return _from_transformed(distribution)
        case d.MixtureSameFamily():
            parts = as_family(distribution.component_distribution)
            if isinstance(parts, f.Normal):
                weights = distribution.mixture_distribution.probs
                return f.NormalMixture(weights=weights, locs=parts.loc, scales=parts.scale)
    name = type(distribution).__name__
    if isinstance(distribution, d.Distribution):
        raise NoClosedFormError(f"{name} has no closed form; kullback.measure(p, q) bounds or estimates the KL")
    raise TypeError(f"expected an object of torch.distributions, got {name}; for tensors see kl_probs and kl_logits")


def as_density(distribution: Any) -> Density | None:
    """The density or probability mass function of a univariate distribution; None for multivariate distributions.

    Raises:
        NoClosedFormError: A discrete distribution is mapped to values that are not integers.
        ShapeError: The distribution is a batch.
    """
    _require_single(distribution)
    if type(distribution).__name__ == "GeneralizedPareto":  # its log_prob does not accept float64
        from scipy.stats import genpareto

        from kullback.densities import from_scipy

        shape = (distribution.concentration, distribution.loc, distribution.scale)
        return from_scipy.as_density(genpareto(*(float(parameter) for parameter in shape)))
    if tuple(distribution.event_shape):
        return None
    overrides = overridden_method(type(distribution), _PACKAGES) is not None
    if isinstance(distribution, LogitRelaxedBernoulli) and not overrides:
        logits, temperature = (float(untracked(x)) for x in (distribution.logits, distribution.temperature))
        return resolve(f.Logistic(loc=logits / temperature, scale=1 / temperature)).density
    if not overrides and (composite := _composite_density(distribution)) is not None:
        return composite
    distribution, dtype = _in_best_dtype(distribution)
    sampler = as_sampler(distribution)
    if sampler is None:
        return None
    low, high = _support_interval(distribution)
    anchors = _anchors(distribution, sampler)
    inside_point, device = anchors[0][0], _device(distribution)

    def log_density(origin: Array, offset: Array) -> Array:
        x = np.asarray(origin + offset, dtype=np.float64)
        inside = (x >= low) & (x <= high)
        point = torch.from_numpy(np.where(inside, x, inside_point)).to(device, dtype)
        with torch.no_grad():
            logs = _log_prob(distribution, point)
        return np.where(inside, logs.cpu().numpy().astype(np.float64), -inf)

    return Density(
        log_density,
        (low, high),
        anchors,
        discrete=bool(distribution.support.is_discrete),
        sample=sampler.sample,
        epsilon=torch.finfo(dtype).eps,
    )


def as_sampler(distribution: Any) -> Sampler | None:
    """The sampler and log-density, both as NumPy arrays; None if the log-density is not implemented.

    Raises:
        ShapeError: The distribution is a batch.
    """
    _require_single(distribution)
    twin, dtype = _in_best_dtype(distribution)
    # The values of a transformed distribution may be rounded to an end of its support.
    source = twin if isinstance(distribution, d.TransformedDistribution) else distribution
    with torch.random.fork_rng(), torch.no_grad():
        draw = source.sample()
        device = draw.device
        try:
            _log_prob(twin, draw.to(dtype) if draw.is_floating_point() else draw)
        except NotImplementedError:  # such as a distribution transformed by a non-invertible transform
            return None

    def sample(count: int, rng: Any) -> Array:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(int(rng.integers(2**62)))
            return source.sample((count,)).cpu().numpy()

    def log_density(x: Array) -> Array:
        with torch.no_grad():
            point = torch.as_tensor(np.array(x)).to(device)
            point = point.to(dtype) if point.is_floating_point() or draw.is_floating_point() else point
            return _log_prob(twin, point).cpu().numpy()

    return Sampler(sample, log_density)


def split_transforms(distribution: Any) -> tuple[Any, list[Any]]:
    """The base and the elementary transforms of a transformed distribution; other distributions without transforms."""
    parts: list[Any] = []
    while isinstance(distribution, d.TransformedDistribution):
        if overridden_method(type(distribution), _PACKAGES) is not None:
            break
        parts = [part for transform in distribution.transforms for part in _elementary_transforms(transform)] + parts
        distribution = distribution.base_dist
    return distribution, parts


def with_transforms(base: Any, parts: list[Any]) -> Any:
    """The distribution of the base under these transforms."""
    return d.TransformedDistribution(base, parts, validate_args=False) if parts else base


def is_injective(distribution: Any, transform: Any) -> bool:
    """Whether a transform is injective on the support of the distribution."""
    return _is_invertible(distribution, [transform])


def as_independent(base: Any, count: int) -> Any:
    """`Independent` of a distribution."""
    return d.Independent(base, count, validate_args=False)


def as_components(distribution: Any) -> Components | None:
    """The weights, means and covariances of a multivariate normal or a mixture of them; None for other distributions.

    Raises:
        ShapeError: The distribution is a batch.
    """
    _require_single(distribution)
    weights, parts = np.ones(1), distribution
    if type(distribution).__name__ == "MixtureSameFamily":
        weights = untracked(distribution.mixture_distribution.probs).cpu().numpy()
        parts = distribution.component_distribution
    kind = type(parts).__name__
    base = parts.base_dist if kind == "Independent" else None
    if kind == "Independent" and type(base).__name__ == "Normal":
        kind = "diagonal"
    if kind not in ("MultivariateNormal", "LowRankMultivariateNormal", "diagonal") or len(parts.event_shape) != 1:
        return None
    if any(overridden_method(type(each), _PACKAGES) for each in (distribution, parts, base)):
        return None
    locs = untracked(parts.mean).cpu().numpy().reshape(weights.size, -1)
    if kind == "diagonal":
        covariances = untracked(parts.variance).cpu().numpy().reshape(locs.shape)[:, :, None] * np.eye(locs.shape[1])
    else:
        covariances = untracked(parts.covariance_matrix).cpu().numpy().reshape(*locs.shape, -1)
    return components(weights, locs, covariances)


def _copy_parameters(family: type, distribution: Any) -> f.Distribution:
    names = {field.name for field in fields(family)}  # pyright: ignore[reportArgumentType]
    owner = getattr(distribution, "_categorical", distribution)
    values = {}
    for alternatives in _PARAMETRISATIONS:
        # families.Wishart has no precision matrix as a parameter.
        if accepted := names.intersection(alternatives):
            given = _given_parameter(owner, alternatives)
            given = given if given in accepted else alternatives[0]
            values[given] = getattr(owner, given)
            names -= accepted
    return family(**values, **{name: getattr(distribution, name) for name in names})


def _given_parameter(owner: Any, alternatives: tuple[str, ...]) -> str:
    """Which alternative parameter was given; PyTorch caches the others on the instance once they are derived."""
    first, *rest = (name for name in vars(owner) if name in alternatives)
    # Geometric does not record it; the parameter that was given is the first.
    if first != "probs" or not rest or getattr(owner, "_param", owner.probs) is owner.probs:
        return first
    # After `expand` it is not recorded which was given. Logits derived from probs are clamped, so they may disagree.
    from_logits = logits_to_probs(owner.logits.detach(), is_binary=not isinstance(owner, d.Categorical))
    return "logits" if holds(torch.allclose(from_logits, owner.probs.detach(), rtol=1e-3, atol=0)) else "probs"


def _from_transformed(distribution: Any) -> f.Distribution:
    transforms = list(distribution.transforms)
    base = distribution.base_dist
    while type(base) is d.TransformedDistribution:
        base, transforms = base.base_dist, [*base.transforms, *transforms]
    parts = [part for transform in transforms for part in _elementary_transforms(transform)]
    family = as_family(base)
    invertible = _is_invertible(base, parts)
    if isinstance(family, f.Independent) and all(map(_is_elementwise, parts)):
        return merged_independent(_transformed_family(family.base, parts, invertible), family.event_dims)
    return _transformed_family(family, parts, invertible)


def _elementary_transforms(transform: Any) -> Iterator[Any]:
    """The transforms that a composition consists of. `IndependentTransform` changes event axes only and is dropped."""
    match transform:
        case d.ComposeTransform():
            for part in transform.parts:
                yield from _elementary_transforms(part)
        case d.IndependentTransform():
            yield from _elementary_transforms(transform.base_transform)
        case _:
            yield transform


def _is_elementwise(transform: Any) -> bool:
    return isinstance(transform, d.AffineTransform) or transform.domain.event_dim == transform.codomain.event_dim == 0


def _is_invertible(base: Any, parts: list[Any]) -> bool:
    """Whether the composition is injective on the support of the base.

    `bijective` alone is not sufficient: PowerTransform declares it, but with exponent 2 it maps -1 and 1 to 1.
    """
    low, high = _bounds(base.support)
    for part in parts:
        domains = [_bounds(each.domain) for each in getattr(part, "transforms", [part])]
        outside = any(holds(torch.any((low < lower) | (high > upper))) for lower, upper in domains)
        # A scale or an exponent of 0 maps all values to a single value.
        scales = isinstance(part, d.AffineTransform | d.PowerTransform)
        if not part.bijective or outside or (scales and holds(torch.any(torch.as_tensor(part.sign) == 0))):
            return False
        low, high = _bounds(part.codomain)
    return True


def _bounds(constraint: Any) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = constraint_bounds(constraint)
    return torch.as_tensor(low), torch.as_tensor(high)


def _transformed_family(base: f.Distribution, parts: list[Any], invertible: bool) -> f.Distribution:
    names = tuple(_transform_key(part) for part in parts)
    if isinstance(base, f.Normal) and names in (("exp",), ("tanh",)):
        return (f.LogNormal if names == ("exp",) else f.TanhNormal)(loc=base.loc, scale=base.scale)
    return f.Transformed(base=base, transform=names, invertible=invertible) if parts else base


def _transform_key(transform: Any) -> Any:
    """A value that equals (==) the value of another transform only if both transforms are the same map."""
    if isinstance(transform, d.ReshapeTransform):
        return "reshape", transform.in_shape, transform.out_shape
    return _TRANSFORM_NAMES.get(type(transform), transform)


def _require_single(distribution: Any) -> None:
    if tuple(distribution.batch_shape):
        raise ShapeError(
            f"expected one distribution at a time, got {type(distribution).__name__} of batch shape "
            f"{tuple(distribution.batch_shape)}; measure each distribution separately, or make the batch one event by "
            "Independent"
        )


def _device(distribution: Any) -> torch.device:
    with torch.random.fork_rng(), torch.no_grad():
        return distribution.sample().device


def _composite_density(distribution: Any) -> Density | None:
    """The density of an affine image, or of a mixture of components with different supports, by its parts."""
    if isinstance(distribution, d.TransformedDistribution):
        base, parts = split_transforms(distribution)
        if not (parts and isinstance(parts[-1], d.AffineTransform)) or tuple(base.batch_shape + base.event_shape):
            return None
        loc, scale = (float(untracked(torch.as_tensor(x)).reshape(())) for x in (parts[-1].loc, parts[-1].scale))
        inner = resolve(with_transforms(base, parts[:-1])).density
        return None if inner is None or scale == 0 else affine_image(inner, loc, scale)
    if isinstance(distribution, d.MixtureSameFamily):
        parts = _component_densities(distribution.component_distribution)
        if parts is not None and (len({part.support for part in parts}) > 1 or any(part.gaps for part in parts)):
            return mixture_density(untracked(distribution.mixture_distribution.probs.double()).cpu().numpy(), parts)
    return None


def _component_densities(components: Any) -> list[Density] | None:
    """The density of each member of a batch of shape (n,), or None if the members cannot be separated."""
    if isinstance(components, d.TransformedDistribution):
        base, parts = split_transforms(components)
        if not all(isinstance(part, d.AffineTransform) for part in parts):
            return None
        densities = _component_densities(base.expand(components.batch_shape))
        if densities is None:
            return None
        for part in parts:
            locs, scales = (
                torch.as_tensor(x, dtype=torch.float64).detach().expand(components.batch_shape)
                for x in (part.loc, part.scale)
            )
            densities = [affine_image(*each) for each in zip(densities, locs.tolist(), scales.tolist(), strict=True)]
        return densities
    try:
        family = as_family(components)
    except NoClosedFormError:
        return None
    if not is_univariate(family):
        return None
    given = {name: untracked(torch.as_tensor(v)).double() for name, v in vars(family).items() if v is not None}
    given = {name: value.cpu().expand(components.batch_shape).tolist() for name, value in given.items()}
    members = (type(family)(**dict(zip(given, values, strict=True))) for values in zip(*given.values(), strict=True))
    found = [resolve(member).density for member in members]
    densities = [density for density in found if density is not None]
    return densities if len(densities) == len(found) else None


def _support_interval(distribution: Any) -> tuple[float, float]:
    """The support of a univariate distribution; of a transformed distribution, the image of the support of its base."""
    base, parts = split_transforms(distribution)
    if not parts or not all(is_injective(with_transforms(base, parts[:i]), part) for i, part in enumerate(parts)):
        return support_interval(distribution.support)
    ends = torch.tensor(support_interval(base.support), dtype=torch.float64)
    for part in parts:
        ends = _image_of_ends(part, ends)
    declared = support_interval(distribution.support)
    low, high = (float(end) for end in ends.sort().values)
    return (low, high) if low < high else declared


def _image_of_ends(transform: Any, ends: torch.Tensor) -> torch.Tensor:
    """The image of the ends of an interval; PyTorch's own sigmoid and its inverse exclude 0, 1 and infinity."""
    if type(transform) is d.SigmoidTransform:
        return torch.sigmoid(ends)
    if isinstance(transform, d.transforms._InverseTransform) and type(transform.inv) is d.SigmoidTransform:
        return torch.logit(ends)
    return transform(ends)  # pyright: ignore[reportReturnType]


def _log_prob(distribution: Any, x: torch.Tensor) -> torch.Tensor:
    """`log_prob` of a distribution without validation, and -inf outside the support."""
    if type(distribution) is d.MixtureSameFamily:
        weights = torch.log_softmax(distribution.mixture_distribution.logits, dim=-1)
        return torch.logsumexp(_log_prob(distribution.component_distribution, distribution._pad(x)) + weights, dim=-1)
    inside = _is_inside(distribution, x)
    if inside.all():
        return distribution.log_prob(x)
    with torch.random.fork_rng():
        draw = distribution.sample()
    expanded = inside.reshape(inside.shape + (1,) * len(distribution.event_shape))
    return torch.where(inside, distribution.log_prob(torch.where(expanded, x, draw.to(x))), -inf)


def _is_inside(distribution: Any, x: torch.Tensor) -> torch.Tensor:
    """Whether points are in the support; of a transformed distribution, by the support of its base."""
    count = x.ndim - len(distribution.event_shape)
    if isinstance(distribution, d.Independent):
        return _all_beyond(_is_inside(distribution.base_dist, x), count)
    if isinstance(distribution, d.TransformedDistribution):
        inside = torch.ones((), dtype=torch.bool)
        for transform in reversed(distribution.transforms):
            inside = inside & _all_beyond(transform.codomain.check(x), count)
            x = transform.inv(x)  # pyright: ignore[reportAssignmentType]
        return inside & _all_beyond(_is_inside(distribution.base_dist, x), count)
    try:
        support = distribution.support
        # Vectors and matrices may be rounded draws in float32, whose norms or sums are 1 up to that rounding.
        return _all_beyond(support.check(x.float() if support.event_dim and x.is_floating_point() else x), count)
    except NotImplementedError:
        return torch.ones(x.shape[:count], dtype=torch.bool)


def _all_beyond(inside: torch.Tensor, count: int) -> torch.Tensor:
    return inside.flatten(count).all(dim=-1) if inside.ndim > count else inside


def _in_best_dtype(distribution: Any) -> tuple[Any, torch.dtype]:
    """A copy in float64 without validation, with its dtype; in the dtype of its draws if float64 is not supported."""
    twin = _without_validation(_in_float64(distribution))
    with torch.random.fork_rng(), torch.no_grad():
        draw = distribution.sample()
        try:
            wide = twin.sample()
            if twin.log_prob(wide.double() if wide.is_floating_point() else wide).dtype == torch.float64:
                return twin, torch.float64
        except NotImplementedError:
            return twin, torch.float64
        except (RuntimeError, TypeError):  # such as a flow whose modules are in float32
            pass
    return _without_validation(distribution), draw.dtype if draw.is_floating_point() else torch.get_default_dtype()


def _without_validation(distribution: Any) -> Any:
    """A copy that does not raise errors outside the support."""
    twin = copy(distribution)
    twin._validate_args = False
    for name, value in vars(distribution).items():
        if isinstance(value, d.Distribution):
            twin.__dict__[name] = _without_validation(value)
    return twin


def _in_float64(distribution: Any) -> Any:
    """A copy whose parameters are float64, so that its densities are computed in float64."""
    twin = copy(distribution)
    for name, value in vars(distribution).items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            twin.__dict__[name] = value.detach().double()
        elif isinstance(value, d.Distribution):
            twin.__dict__[name] = _in_float64(value)
        elif isinstance(value, torch.nn.Module):
            twin.__dict__[name] = deepcopy(value).double()
    if isinstance(distribution, d.TransformedDistribution):
        twin.__dict__["transforms"] = [_transform_in_float64(transform) for transform in distribution.transforms]
    if type(distribution).__name__ == "Categorical":  # its normalization was rounded in the original dtype
        probs = twin.__dict__.pop("probs", None)
        logits = probs.log() if probs is not None else twin.logits
        twin.__dict__["logits"] = logits - logits.logsumexp(dim=-1, keepdim=True)
    return twin


def _transform_in_float64(transform: Any) -> Any:
    """A copy of a transform whose tensors are float64."""
    if isinstance(transform, d.ComposeTransform):
        return d.ComposeTransform([_transform_in_float64(part) for part in transform.parts])
    if isinstance(transform, d.IndependentTransform):
        return d.IndependentTransform(
            _transform_in_float64(transform.base_transform), transform.reinterpreted_batch_ndims
        )
    tensors = {name: x.detach().double() for name, x in vars(transform).items() if _is_floating(x)}
    if not tensors:
        return transform
    twin = copy(transform)
    twin.__dict__.update(tensors)
    twin._inv, twin._cached_x_y = None, (None, None)
    return twin


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _anchors(distribution: Any, sampler: Sampler) -> tuple[tuple[float, float], ...]:
    """The median and half the interquartile range of the distribution, or of each of its components."""
    parts = getattr(distribution, "component_distribution", distribution)
    try:
        levels = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64, device=_device(distribution))
        quartiles = parts.icdf(levels.reshape(3, *[1] * len(parts.batch_shape)))
        lower, middle, upper = (value.detach().cpu().numpy().reshape(-1) for value in quartiles)
    except (NotImplementedError, AttributeError):
        draws = sampler.sample(4096, np.random.default_rng(0))  # pyright: ignore[reportOptionalCall]
        lower, middle, upper = (np.atleast_1d(value) for value in np.quantile(draws, [0.25, 0.5, 0.75]))
    widths = (upper - lower) / 2
    return tuple(
        (float(location), float(width) if width > 0 and isfinite(width) else 1.0)
        for location, width in zip(middle, widths, strict=True)
    )
