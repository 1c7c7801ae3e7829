"""scipy.stats: frozen distributions, and those of its new kind, as records."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from kullback import families as f
from kullback.errors import NoClosedFormError
from kullback.numerics.arrays import ArrayLike

__all__ = ["as_record"]

_Maker = Callable[..., f.Distribution]


def as_record(distribution: Any) -> f.Distribution:
    """The record of a frozen distribution of scipy.stats, or of one of its new kind, such as scipy.stats.Normal().

    Args:
        distribution: Of a family that has a record here; a sum with numbers, a multiple, exp and log of a variable, and
            a mixture of normals too.

    Returns:
        The record, of the parameters as they were given.

    Raises:
        NoClosedFormError: There is no record, as of a gamma variable with loc != 0; `kullback.measure` needs none.
        TypeError: It is no frozen distribution.

    Example:
        >>> as_record(stats.lognorm(s=0.5, scale=1.0))
        LogNormal(loc=np.float64(0.0), scale=0.5)
        >>> as_record(stats.Normal(mu=1.0, sigma=2.0) + 1.0)
        Normal(loc=np.float64(2.0), scale=np.float64(2.0))
    """
    if hasattr(distribution, "dist"):
        family = distribution.dist
        shapes, loc, scale = family._parse_args(*distribution.args, **distribution.kwds)
        return _classic(family, shapes, loc, scale)
    if maker := _VECTORS.get(type(getattr(distribution, "_dist", None))):
        return maker(distribution)
    if isinstance(distribution, stats.rv_continuous | stats.rv_discrete):
        if isinstance(distribution, stats.rv_histogram) or hasattr(distribution, "xk"):
            return _classic(distribution, (), 0.0, 1.0)
        raise TypeError(
            f"expected a frozen distribution, got scipy.stats.{distribution.name} itself; "
            f"give it its parameters, scipy.stats.{distribution.name}(...)"
        )
    if hasattr(distribution, "logpdf") and hasattr(distribution, "support"):
        return _new_kind(distribution)
    name = type(distribution).__name__
    if hasattr(distribution, "logpdf") or hasattr(distribution, "logpmf"):
        raise _no_record(name)
    raise TypeError(f"expected a distribution of scipy.stats, got {name}; for arrays see kl_probs and kl_logits")


def _no_record(what: str) -> NoClosedFormError:
    return NoClosedFormError(f"{what} has no closed form here; kullback.measure(p, q) bounds or estimates the KL")


def _classic(family: Any, shapes: tuple[ArrayLike, ...], loc: ArrayLike, scale: ArrayLike) -> f.Distribution:
    """Of a family of the old kind, in its place: loc + scale x."""
    kind, name = type(family), f"scipy.stats.{family.name}"
    if kind in _ANYWHERE:
        return _ANYWHERE[kind](*shapes, loc, scale)
    if kind in _FROM_ZERO:
        _require(loc, 0, f"{name} with loc other than 0")
        return _FROM_ZERO[kind](*shapes, scale)
    if kind in _FIXED or hasattr(family, "xk"):
        _require(loc, 0, f"{name} with loc other than 0")
        _require(scale, 1, f"{name} with scale other than 1")
        return _FIXED[kind](*shapes) if kind in _FIXED else _values(family)
    raise _no_record(name)


def _require(value: ArrayLike, expected: float, otherwise: str) -> None:
    if np.any(np.asarray(value) != expected):
        raise _no_record(otherwise)


def _new_kind(variable: Any) -> f.Distribution:
    name = type(variable).__name__
    if name == "Mixture":
        return _mixture(variable)
    if name == "MonotonicTransformedDistribution":
        return _image(variable)
    base, loc, scale = variable, 0.0, 1.0
    if name == "ShiftedScaledDistribution":
        base, loc, scale = variable._dist, variable.loc, variable.scale
    if type(base).__name__ == "Uniform":
        ends = loc + scale * base.a, loc + scale * base.b
        return f.Uniform(low=np.minimum(*ends), high=np.maximum(*ends))
    family, shapes, inner_loc, inner_scale = _standard(base)
    loc, scale = loc + scale * inner_loc, scale * inner_scale
    if np.any(scale < 0):
        if type(family) not in _MIRRORED:
            raise _no_record(f"the negative of scipy.stats.{family.name}")
        family, scale = _MIRRORED[type(family)], np.negative(scale)
    return _classic(family, shapes, loc, scale)


def _standard(variable: Any) -> tuple[Any, tuple[ArrayLike, ...], ArrayLike, ArrayLike]:
    """The family of the old kind that a variable of the new is of; its shapes, loc and scale."""
    match type(variable).__name__:
        case "Normal" | "StandardNormal":
            return stats.norm, (), variable.mu, variable.sigma
        case "Logistic":
            return stats.logistic, (), 0.0, 1.0
        case "Binomial":
            return stats.binom, (variable.n, variable.p), 0.0, 1.0
    # What scipy.stats.make_distribution makes keeps the formulas of the old kind.
    owners = (getattr(value, "__self__", None) for value in vars(type(variable)).values())
    family = next((owner for owner in owners if isinstance(owner, stats.rv_continuous | stats.rv_discrete)), None)
    if family is None:
        raise _no_record(type(variable).__name__)
    names = [shape.strip() for shape in (family.shapes or "").split(",") if shape.strip()]
    return family, tuple(getattr(variable, shape) for shape in names), 0.0, 1.0


def _mixture(variable: Any) -> f.Distribution:
    parts = [as_record(component) for component in variable.components]
    if not all(isinstance(part, f.Normal) for part in parts):
        raise _no_record("a mixture of other than normals")
    locs, scales = ([getattr(part, name) for part in parts] for name in ("loc", "scale"))
    return f.NormalMixture(weights=variable.weights, locs=np.stack(locs, -1), scales=np.stack(scales, -1))


def _image(variable: Any) -> f.Distribution:
    name = {np.exp: "exp", np.log: "log"}.get(variable._g)
    if name is None:
        raise _no_record(repr(variable))
    base = as_record(variable._dist)
    if name == "exp" and isinstance(base, f.Normal):
        return f.LogNormal(loc=base.loc, scale=base.scale)
    return f.Transformed(base=base, transform=(name,), invertible=True)


def _values(family: Any) -> f.Distribution:
    """Of what scipy.stats.rv_discrete makes of values and their probabilities."""
    return f.Transformed(
        base=f.Categorical(probs=family.pk), transform=("values", *family.xk.tolist()), invertible=True
    )


def _located(kind: type) -> _Maker:
    return lambda loc, scale: kind(loc=loc, scale=scale)


def _von_mises(kappa: ArrayLike, loc: ArrayLike, scale: ArrayLike) -> f.Distribution:
    _require(scale, 1, "scipy.stats.vonmises with scale other than 1")
    return f.VonMises(loc=loc, concentration=kappa)


def _gumbel_left(loc: ArrayLike, scale: ArrayLike) -> f.Distribution:
    right = f.Gumbel(loc=np.negative(loc), scale=scale)
    return f.Transformed(base=right, transform=("negative",), invertible=True)


def _geometric(p: ArrayLike, loc: ArrayLike, _scale: ArrayLike) -> f.Distribution:
    """SciPy counts the draws and ours the failures, one less."""
    record = f.Geometric(probs=p)
    if np.all(np.asarray(loc) == -1):
        return record
    _require(loc, 0, "scipy.stats.geom with loc other than 0 and -1")
    return f.Transformed(base=record, transform=("one more",), invertible=True)


def _negative_binomial(n: ArrayLike, p: ArrayLike) -> f.Distribution:
    """p is the probability of a failure; where it is small, 1 - p has lost its digits."""
    p = np.asarray(p)
    if np.all(p >= 0.5):
        return f.NegativeBinomial(total_count=n, probs=1 - p)
    with np.errstate(divide="ignore", invalid="ignore"):
        return f.NegativeBinomial(total_count=n, logits=np.log1p(-p) - np.log(p))


_ANYWHERE: dict[type, _Maker] = {
    type(stats.cauchy): _located(f.Cauchy),
    type(stats.geom): _geometric,
    type(stats.gumbel_l): _gumbel_left,
    type(stats.gumbel_r): _located(f.Gumbel),
    type(stats.laplace): _located(f.Laplace),
    type(stats.logistic): _located(f.Logistic),
    type(stats.norm): _located(f.Normal),
    type(stats.t): lambda df, loc, scale: f.StudentT(df=df, loc=loc, scale=scale),
    type(stats.uniform): lambda loc, scale: f.Uniform(low=loc, high=np.add(loc, scale)),
    type(stats.vonmises): _von_mises,
}

# Families whose negatives are families too.
_MIRRORED: dict[type, Any] = {
    **{type(family): family for family in (stats.cauchy, stats.laplace, stats.logistic, stats.norm, stats.t)},
    type(stats.gumbel_l): stats.gumbel_r,
    type(stats.gumbel_r): stats.gumbel_l,
}

_FROM_ZERO: dict[type, _Maker] = {
    type(stats.chi2): lambda df, scale: f.Gamma(concentration=np.divide(df, 2), rate=np.divide(0.5, scale)),
    type(stats.erlang): lambda a, scale: f.Gamma(concentration=a, rate=np.divide(1.0, scale)),
    type(stats.expon): lambda scale: f.Exponential(rate=np.divide(1.0, scale)),
    type(stats.gamma): lambda a, scale: f.Gamma(concentration=a, rate=np.divide(1.0, scale)),
    type(stats.halfcauchy): lambda scale: f.HalfCauchy(scale=scale),
    type(stats.halfnorm): lambda scale: f.HalfNormal(scale=scale),
    type(stats.invgamma): lambda a, scale: f.InverseGamma(concentration=a, rate=scale),
    type(stats.invgauss): lambda mu, scale: f.InverseGaussian(mean=np.multiply(mu, scale), shape=scale),
    type(stats.levy): lambda scale: f.InverseGamma(concentration=0.5, rate=np.divide(scale, 2)),
    type(stats.lognorm): lambda s, scale: f.LogNormal(loc=np.log(scale), scale=s),
    type(stats.maxwell): lambda scale: f.Maxwell(scale=scale),
    type(stats.pareto): lambda b, scale: f.Pareto(scale=scale, alpha=b),
    type(stats.rayleigh): lambda scale: f.Rayleigh(scale=scale),
    type(stats.wald): lambda scale: f.InverseGaussian(mean=scale, shape=scale),
    type(stats.weibull_min): lambda c, scale: f.Weibull(scale=scale, concentration=c),
}

_FIXED: dict[type, _Maker] = {
    type(stats.arcsine): lambda: f.Beta(concentration1=0.5, concentration0=0.5),
    type(stats.bernoulli): lambda p: f.Bernoulli(probs=p),
    type(stats.beta): lambda a, b: f.Beta(concentration1=a, concentration0=b),
    type(stats.binom): lambda n, p: f.Binomial(total_count=n, probs=p),
    type(stats.f): lambda dfn, dfd: f.F(df1=dfn, df2=dfd),
    type(stats.hypergeom): lambda M, n, N: f.Hypergeometric(population=M, successes=n, draws=N),
    type(stats.nbinom): _negative_binomial,
    type(stats.poisson): lambda mu: f.Poisson(rate=mu),
    type(stats.powerlaw): lambda a: f.Beta(concentration1=a, concentration0=1.0),
    type(stats.zipf): lambda a: f.Zipf(exponent=a),
    type(stats.zipfian): lambda a, n: f.Zipfian(exponent=a, total_count=n),
}

_VECTORS: dict[type, Callable[[Any], f.Distribution]] = {
    type(stats.dirichlet): lambda x: f.Dirichlet(concentration=x.alpha),
    type(stats.invwishart): lambda x: f.InverseWishart(df=x.df, scale_matrix=x.scale),
    type(stats.matrix_normal): lambda x: f.MatrixNormal(
        loc=x.mean, row_covariance=x.rowcov, column_covariance=x.colcov
    ),
    type(stats.multinomial): lambda x: f.Multinomial(total_count=x.n, probs=x.p),
    type(stats.multivariate_normal): lambda x: f.MultivariateNormal(loc=x.mean, covariance_matrix=x.cov),
    type(stats.vonmises_fisher): lambda x: f.VonMisesFisher(mean_direction=x.mu, concentration=x.kappa),
    type(stats.wishart): lambda x: f.Wishart(df=x.df, covariance_matrix=x.scale),
}
