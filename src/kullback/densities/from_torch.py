"""Densities and draws of torch.distributions, for those that have no record; PyTorch is not imported by this."""

import sys
from copy import copy
from math import inf, isfinite
from typing import Any

import numpy as np
from scipy.stats import genpareto

from kullback.densities.density import Density
from kullback.densities.from_scipy import of_frozen
from kullback.densities.gaussian_mixtures import Components, components
from kullback.errors import ShapeError
from kullback.numerics.arrays import Array, untracked
from kullback.samples.monte_carlo import Sampler

__all__ = ["components_of_torch", "of_torch", "sampler_of_torch"]


def of_torch(distribution: Any) -> Density | None:
    """The density of a distribution of one number, or None for one of vectors.

    Raises:
        ShapeError: It is a batch.
    """
    _require_one(distribution)
    torch = sys.modules["torch"]
    if type(distribution).__name__ == "GeneralizedPareto":  # its log_prob takes no float64
        shape = (distribution.concentration, distribution.loc, distribution.scale)
        return of_frozen(genpareto(*(float(parameter) for parameter in shape)))
    distribution = _double(distribution, torch)
    sampler = sampler_of_torch(distribution)
    if tuple(distribution.event_shape) or sampler is None:
        return None
    low, high = _ends(distribution.support)
    anchors = _anchors(distribution, sampler, torch)
    somewhere, device = anchors[0][0], _device(distribution, torch)

    def log_density(origin: Array, offset: Array) -> Array:
        x = np.asarray(origin + offset, dtype=np.float64)
        inside = (x >= low) & (x <= high)
        with torch.no_grad():
            logs = distribution.log_prob(torch.from_numpy(np.where(inside, x, somewhere)).to(device))
        return np.where(inside, logs.cpu().numpy().astype(np.float64), -inf)

    return Density(
        log_density,
        (low, high),
        anchors,
        discrete=bool(distribution.support.is_discrete),
        sample=sampler.sample,
    )


def sampler_of_torch(distribution: Any) -> Sampler | None:
    """Its draws, as arrays, and their log-densities; None if it does not know them."""
    _require_one(distribution)
    torch = sys.modules["torch"]
    with torch.random.fork_rng(), torch.no_grad():
        draw = distribution.sample()
        device = draw.device
        try:
            distribution.log_prob(draw)
        except NotImplementedError:  # as that of a map that is not invertible
            return None

    def sample(count: int, rng: Any) -> Array:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(int(rng.integers(2**62)))
            return distribution.sample((count,)).cpu().numpy()

    def log_density(x: Array) -> Array:
        with torch.no_grad():
            place = torch.from_numpy(x).to(device)
            if not distribution._validate_args:
                return distribution.log_prob(place).cpu().numpy()
            # What it validates, it refuses outside its support, where the density is 0.
            inside = distribution.support.check(place)
            safe = torch.where(inside.reshape(inside.shape + (1,) * draw.ndim), place, draw)
            return torch.where(inside, distribution.log_prob(safe), -inf).cpu().numpy()

    return Sampler(sample, log_density)


def components_of_torch(distribution: Any) -> Components | None:
    """The weights, means and covariances of a normal or a mixture of normals in several dimensions; None for others."""
    _require_one(distribution)
    weights, parts = np.ones(1), distribution
    if type(distribution).__name__ == "MixtureSameFamily":
        weights = untracked(distribution.mixture_distribution.probs).cpu().numpy()
        parts = distribution.component_distribution
    kind = type(parts).__name__
    if kind == "Independent" and type(parts.base_dist).__name__ == "Normal":
        kind = "diagonal"
    if kind not in ("MultivariateNormal", "LowRankMultivariateNormal", "diagonal") or len(parts.event_shape) != 1:
        return None
    locs = untracked(parts.mean).cpu().numpy().reshape(weights.size, -1)
    if kind == "diagonal":
        covariances = untracked(parts.variance).cpu().numpy().reshape(locs.shape)[:, :, None] * np.eye(locs.shape[1])
    else:
        covariances = untracked(parts.covariance_matrix).cpu().numpy().reshape(*locs.shape, -1)
    return components(weights, locs, covariances)


def _require_one(distribution: Any) -> None:
    if tuple(distribution.batch_shape):
        raise ShapeError(
            f"expected one distribution at a time, got {type(distribution).__name__} of batch shape "
            f"{tuple(distribution.batch_shape)}; measure each of them, or make it one event by Independent"
        )


def _device(distribution: Any, torch: Any) -> Any:
    with torch.random.fork_rng(), torch.no_grad():
        return distribution.sample().device


def _double(distribution: Any, torch: Any) -> Any:
    """The same with its parameters in float64, so that its densities are computed in that."""
    twin = copy(distribution)
    for name, value in vars(distribution).items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            twin.__dict__[name] = value.detach().double()
        elif isinstance(value, torch.distributions.Distribution):
            twin.__dict__[name] = _double(value, torch)
    if type(distribution).__name__ == "Categorical":  # whose sum was rounded
        probs = twin.__dict__.pop("probs", None)
        logits = probs.log() if probs is not None else twin.logits
        twin.__dict__["logits"] = logits - logits.logsumexp(dim=-1, keepdim=True)
    return twin


def _ends(support: Any) -> tuple[float, float]:
    """The interval that a constraint describes; the whole line where it describes none."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if type(support).__name__ == "_Boolean":
        return 0.0, 1.0
    low, high = getattr(support, "lower_bound", -inf), getattr(support, "upper_bound", inf)
    return float(np.min(np.asarray(low))), float(np.max(np.asarray(high)))


def _anchors(distribution: Any, sampler: Sampler, torch: Any) -> tuple[tuple[float, float], ...]:
    """The middle and the width of it, or of each of its components."""
    parts = getattr(distribution, "component_distribution", distribution)
    try:
        levels = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64, device=_device(distribution, torch))
        quartiles = parts.icdf(levels.reshape(3, *[1] * len(parts.batch_shape)))
        lower, middle, upper = (value.detach().cpu().numpy().reshape(-1) for value in quartiles)
    except (NotImplementedError, AttributeError):
        draws = sampler.sample(4096, np.random.default_rng(0))
        lower, middle, upper = (np.atleast_1d(value) for value in np.quantile(draws, [0.25, 0.5, 0.75]))
    widths = (upper - lower) / 2
    return tuple(
        (float(place), float(width) if width > 0 and isfinite(width) else 1.0)
        for place, width in zip(middle, widths, strict=True)
    )
