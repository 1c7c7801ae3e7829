"""torch.distributions: every class as a family, with KL and gradients, and install for kl_divergence."""

import copy
import math
import warnings
from itertools import product

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributions as d
from torch.distributions import transforms as t
from torch.distributions.kl import _KL_REGISTRY, _dispatch_kl

from kullback import families as f
from kullback.closed_forms import FORMS
from kullback.densities.from_torch import FAMILIES
from kullback.densities.resolve import as_family
from kullback.distributions import kl, register_kl
from kullback.errors import ArrayTypeError, NoClosedFormError, ParameterError, ShapeError
from kullback.integrations.torch import install, uninstall
from kullback.measure import measure

from ..oracles import families as oracle
from ..oracles.reference_cases import cases, record_class, relative_error, tolerance

inf = math.inf
OF_RECORD = {record: kind for kind, record in FAMILIES.items()}
CLASSES = [kind for kind in vars(d).values() if isinstance(kind, type) and issubclass(kind, d.Distribution)]
REFERENCE_FAMILIES = {
    "beta", "binomial", "cauchy", "dirichlet", "exponential", "gamma", "geometric", "gumbel", "half_normal",
    "inverse_gamma", "kumaraswamy", "laplace", "log_normal", "multivariate_normal", "negative_binomial", "normal",
    "pareto", "poisson", "student_t", "uniform", "von_mises", "weibull", "wishart",
}  # fmt: skip


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def of_record(record):
    """The distribution of PyTorch with these parameters."""
    parameters = {name: double(value) for name, value in vars(record).items() if value is not None}
    return OF_RECORD[type(record)](**parameters)


@pytest.fixture(autouse=True)
def _as_it_was():
    before = dict(_KL_REGISTRY)
    yield
    uninstall()
    assert before == _KL_REGISTRY


# Values.


@pytest.mark.parametrize(("p_family", "q_family", "p", "q", "truth", "delta"), cases(REFERENCE_FAMILIES))
def test_reference_values(p_family, q_family, p, q, truth, delta):
    classes = record_class(p_family), record_class(q_family)
    has_form = oracle.has_closed_form(*classes, p, q)
    p, q = (
        OF_RECORD[kind](**{name: double(v) for name, v in side.items()})
        for kind, side in zip(classes, (p, q), strict=True)
    )
    if not has_form:
        with pytest.raises(NoClosedFormError, match="measure"):
            kl(p, q)
        return
    got = kl(p, q)
    assert got.dtype == torch.float64
    assert relative_error(got, truth) < tolerance(delta)


# Pairs with a function of their own in PyTorch; functions for generic classes are tested separately.
PYTORCH = [pair for pair in _KL_REGISTRY if set(pair) <= set(FAMILIES)]


def drawn(pair, seed):
    records = tuple(FAMILIES[kind] for kind in pair)
    rng = np.random.default_rng(seed)
    if records in FORMS and set(records) <= set(oracle.FAMILIES):
        p, q = oracle.draw(*records, rng)
        if pair[0] is d.Poisson and pair[1] is not d.Poisson:  # PyTorch returns inf here, see below
            p = f.Poisson(rate=1.0)
        return of_record(p), of_record(q)
    if set(records) <= set(oracle.FAMILIES):
        return tuple(of_record(kind(**oracle.FAMILIES[kind].parameters(rng))) for kind in records)
    return tuple(vector(kind, rng) for kind in pair)


def vector(kind, rng):
    """A batch of 2 distributions of 3 dimensions, or over 3 categories."""
    root = double(rng.normal(size=(2, 3, 5)))
    loc, shapes = double(rng.normal(size=(2, 3))), double(rng.uniform(0.5, 3, size=(2, 3)))
    match kind:
        case d.MultivariateNormal:
            return kind(loc, root @ root.mT)
        case d.LowRankMultivariateNormal:
            return kind(loc, root[..., :2], shapes)
        case d.Dirichlet:
            return kind(shapes)
        case _:
            return kind(logits=loc)


@pytest.mark.parametrize("pair", PYTORCH, ids=lambda pair: f"{pair[0].__name__}-{pair[1].__name__}")
def test_kl_matches_pytorch_at_moderate_parameters(pair):
    p, q = drawn(pair, 5)
    theirs = d.kl_divergence(p, q)
    ours = kl(p, q)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)


def differentiable(distribution, keys):
    """A copy whose parameters are leaf tensors with gradients, and these tensors."""
    leaves = {key: getattr(distribution, key).detach().clone().requires_grad_() for key in keys}
    return type(distribution)(**leaves), list(leaves.values())


# Pairs with a correct gradient in PyTorch: elsewhere it is nan, or the value is clamped.
SMOOTH = [
    (pair, keys)
    for pair, *keys in [
        ((d.Normal, d.Normal), ("loc", "scale"), ("loc", "scale")),
        ((d.Gamma, d.Gamma), ("concentration", "rate"), ("concentration", "rate")),
        ((d.Beta, d.Beta), ("concentration1", "concentration0"), ("concentration1", "concentration0")),
        ((d.Dirichlet, d.Dirichlet), ("concentration",), ("concentration",)),
        ((d.Categorical, d.Categorical), ("logits",), ("logits",)),
        ((d.OneHotCategorical, d.OneHotCategorical), ("logits",), ("logits",)),
        ((d.Bernoulli, d.Bernoulli), ("probs",), ("probs",)),
        ((d.Geometric, d.Geometric), ("probs",), ("probs",)),
        ((d.Poisson, d.Poisson), ("rate",), ("rate",)),
        ((d.Laplace, d.Laplace), ("loc", "scale"), ("loc", "scale")),
        ((d.Gumbel, d.Gumbel), ("loc", "scale"), ("loc", "scale")),
        ((d.Cauchy, d.Cauchy), ("loc", "scale"), ("loc", "scale")),
        ((d.MultivariateNormal, d.MultivariateNormal), ("loc", "scale_tril"), ("loc", "scale_tril")),
        ((d.Pareto, d.Pareto), ("scale", "alpha"), ("scale", "alpha")),
        ((d.Uniform, d.Uniform), ("low", "high"), ("low", "high")),
        ((d.Beta, d.Normal), ("concentration1", "concentration0"), ("loc", "scale")),
        ((d.Gamma, d.Exponential), ("concentration", "rate"), ("rate",)),
        ((d.Normal, d.Laplace), ("loc", "scale"), ("loc", "scale")),
        ((d.Gumbel, d.Normal), ("loc", "scale"), ("loc", "scale")),
        ((d.Uniform, d.Gumbel), ("low", "high"), ("loc", "scale")),
    ]
]


@pytest.mark.parametrize(("pair", "keys"), SMOOTH, ids=lambda x: x[0].__name__ if isinstance(x[0], type) else "")
def test_gradients_match_pytorch(pair, keys):
    p, q = drawn(pair, 7)
    (p, p_leaves), (q, q_leaves) = differentiable(p, keys[0]), differentiable(q, keys[1])
    if pair == (d.Pareto, d.Pareto):
        (q, q_leaves) = differentiable(d.Pareto(p.scale.detach() / 2, q.alpha.detach()), keys[1])
    ours = torch.autograd.grad(kl(p, q).sum(), [*p_leaves, *q_leaves], retain_graph=True)
    theirs = torch.autograd.grad(d.kl_divergence(p, q).sum(), [*p_leaves, *q_leaves])
    if "scale_tril" in keys[0]:  # PyTorch gives a gradient to p's entries above the diagonal, 0 by their place
        theirs = [torch.tril(g) if g.ndim == 3 else g for g in theirs]
    for mine, yours in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    one = torch.ones((), dtype=dtype)
    assert kl(d.Normal(0 * one, one), d.Normal(one, 2 * one)).dtype == dtype
    assert kl(d.Categorical(logits=one.expand(3)), d.Categorical(logits=torch.arange(3).to(dtype))).dtype == dtype


def test_batch_shapes_match_pytorch():
    p, q = d.Normal(torch.zeros(4, 1, 3), 1.0), d.Normal(torch.zeros(5, 1), torch.ones(3))
    assert kl(p, q).shape == (4, 5, 3)
    assert kl(d.Independent(p, 1), d.Independent(q, 1)).shape == (4, 5)
    assert kl(d.Normal(0.0, 1.0).expand((2, 3)), d.Normal(0.0, 1.0)).shape == (2, 3)
    wishart = d.Wishart(torch.tensor([4.0, 5.0]), torch.eye(3))
    assert kl(wishart, wishart.expand((6, 2))).shape == (6, 2)


# Composite distributions.


def test_kl_of_independent_components_is_the_sum():
    p, q = d.Normal(torch.zeros(2, 3), 1.0), d.Normal(torch.ones(2, 3), 2.0)
    whole = kl(d.Independent(p, 2), d.Independent(q, 2))
    torch.testing.assert_close(whole, d.kl_divergence(p, q).sum())
    torch.testing.assert_close(kl(d.Independent(d.Independent(p, 1), 1), d.Independent(q, 2)), whole)
    torch.testing.assert_close(kl(d.Independent(p, 0), q), d.kl_divergence(p, q))
    with pytest.raises(ShapeError):
        kl(d.Independent(p, 1), q)
    with pytest.raises(NoClosedFormError, match="measure"):
        kl(d.Independent(d.Laplace(p.loc, 1.0), 1), d.MultivariateNormal(torch.zeros(3), torch.eye(3)))


def test_different_event_shapes_raise():
    p, q = (d.Independent(d.Normal(torch.zeros(size), 1.0), 1) for size in (1, 3))
    assert d.kl_divergence(p, q).shape == ()  # PyTorch broadcasts the event axis
    with pytest.raises(ShapeError, match=r"expected equal event shapes, got \(1,\) of p and \(3,\) of q"):
        kl(p, q)


ONCE = [
    t.ExpTransform(),
    t.TanhTransform(),
    t.TanhTransform(cache_size=1),
    t.SigmoidTransform(),
    t.SoftplusTransform(),
    t.AffineTransform(1.0, -3.0),
    t.ComposeTransform([t.AffineTransform(double([1.0, 2.0]), 2.0), t.TanhTransform()]),
    [t.TanhTransform(), t.AffineTransform(0.0, 2.0)],
    [t.ExpTransform(), t.PowerTransform(double(2.0))],
    t.IndependentTransform(t.SigmoidTransform(), 1),
    t.ExpTransform().inv.inv,
    [t.ReshapeTransform((2,), (1, 2))],
    t.StickBreakingTransform(),
]


@pytest.mark.parametrize("transform", ONCE, ids=str)
def test_kl_is_invariant_under_invertible_transforms(transform):
    p, q = (d.Normal(double([loc, loc]), double(scale)) for loc, scale in ((0.3, 1.0), (-0.5, 2.0)))
    images = [d.TransformedDistribution(base, copy.deepcopy(transform)) for base in (p, q)]
    got, parts = kl(*images), d.kl_divergence(p, q)
    torch.testing.assert_close(got, parts if got.ndim else parts.sum(), rtol=1e-14, atol=0)


def test_equivalent_compositions_of_transforms():
    base = d.Independent(d.Normal(double([0.0, 1.0]), double(1.0)), 1)
    other = d.Normal(double([1.0, 1.0]), double(2.0))
    steps = [t.TanhTransform(), t.AffineTransform(0.0, 2.0)]
    p = d.TransformedDistribution(base, steps)
    nested = d.TransformedDistribution(d.TransformedDistribution(other, steps[:1]), t.ComposeTransform(steps[1:]))
    torch.testing.assert_close(kl(p, d.Independent(nested, 1)), d.kl_divergence(base, d.Independent(other, 1)))


NOT_ONCE = [
    t.AbsTransform(),
    t.SoftmaxTransform(),
    # PyTorch declares the square bijective, but a normal variable takes both roots.
    t.PowerTransform(double(2.0)),
    [t.AffineTransform(0.0, 1.0), t.PowerTransform(double(2.0))],
    t.AffineTransform(0.0, 0.0),
    t.AffineTransform(double([0.0, 0.0]), double([1.0, 0.0])),
    t.StackTransform([t.PowerTransform(double(2.0)), t.ExpTransform()], dim=-1),
]


@pytest.mark.parametrize("transform", NOT_ONCE, ids=str)
def test_non_injective_transforms_raise(transform):
    p, q = (d.Normal(double([loc, 0.0]), double(1.0)) for loc in (1.0, -1.0))
    with pytest.raises(NoClosedFormError, match=r"invertible transform.*kullback\.measure"):
        kl(d.TransformedDistribution(p, transform), d.TransformedDistribution(q, transform))


def test_different_transforms_raise():
    for first, second in [
        (t.AffineTransform(0.0, 2.0), t.AffineTransform(0.0, 3.0)),
        (t.TanhTransform(), t.SigmoidTransform()),
        (t.TanhTransform(), t.AffineTransform(0.0, 1.0)),
    ]:
        with pytest.raises(NoClosedFormError, match="measure"):
            kl(*(d.TransformedDistribution(d.Normal(0.0, 1.0), each) for each in (first, second)))


def test_named_and_transformed_distributions_agree():
    normal, laplace = d.Normal(double(0.2), double(1.0)), d.Laplace(double(0.0), double(1.5))
    squashed = d.TransformedDistribution(normal, t.TanhTransform())
    log_normal = d.TransformedDistribution(normal, t.ExpTransform())
    gamma = d.Gamma(double(2.0), double(1.0))
    assert isinstance(as_family(squashed), f.TanhNormal)
    assert kl(squashed, f.TanhNormal(loc=double(0.2), scale=double(1.0))) == 0
    assert kl(log_normal, gamma) == kl(d.LogNormal(normal.loc, normal.scale), gamma)
    torch.testing.assert_close(
        kl(d.LogNormal(normal.loc, normal.scale), d.TransformedDistribution(laplace, t.ExpTransform())),
        d.kl_divergence(normal, laplace),
    )


def test_logistic_normal_is_a_transformed_normal():
    p, q = (d.LogisticNormal(double([loc, 1.0]), double([1.0, 2.0])) for loc in (0.0, 1.0))
    torch.testing.assert_close(kl(p, q), double(0.5))


def test_mixture_of_normals_has_a_record():
    mixture = d.MixtureSameFamily(
        d.Categorical(logits=double([0.0, 1.0])), d.Normal(double([0.0, 20.0]), double([2.0, 1.0]))
    )
    record = as_family(mixture)
    assert isinstance(record, f.NormalMixture)
    torch.testing.assert_close(record.weights, torch.softmax(double([0.0, 1.0]), -1))
    assert record.scales.tolist() == [2.0, 1.0]
    with pytest.raises(NoClosedFormError, match="measure"):
        kl(mixture, mixture)
    with pytest.raises(NoClosedFormError, match="MixtureSameFamily"):
        as_family(d.MixtureSameFamily(d.Categorical(logits=torch.zeros(2)), d.Poisson(torch.ones(2))))


# Given and derived parameters.

HALF = double([0.5, 0.5])
HALF_TO_1E_30 = (30 * math.log(10) - math.log(4)) / 2


def looked_at(distribution):
    """PyTorch derives the parameters that were not given and caches them."""
    return distribution, distribution.probs, distribution.logits


@pytest.mark.parametrize("use", [lambda q: q, lambda q: looked_at(q)[0], lambda q: looked_at(q)[0].expand((2,))])
@pytest.mark.parametrize(
    ("q", "p", "truth"),
    [
        (lambda: d.Categorical(probs=double([1e-30, 1.0])), d.Categorical(probs=HALF), HALF_TO_1E_30),
        (lambda: d.Categorical(logits=double([-200.0, 0.0])), d.Categorical(probs=HALF), (200 - math.log(4)) / 2),
        (lambda: d.Bernoulli(probs=double(1e-30)), d.Bernoulli(probs=double(0.5)), HALF_TO_1E_30),
        (lambda: d.Bernoulli(logits=double(200.0)), d.Bernoulli(probs=double(0.5)), (200 - math.log(4)) / 2),
        (lambda: d.Geometric(probs=double(1e-30)), d.Geometric(probs=double(0.5)), 2 * HALF_TO_1E_30),
        (lambda: d.Binomial(2, probs=double(1e-30)), d.Binomial(2, probs=double(0.5)), 2 * HALF_TO_1E_30),
    ],
)
def test_given_parameter_is_used_and_not_the_clamped_one(q, p, truth, use):
    got = kl(p, use(q()))
    torch.testing.assert_close(got, torch.full_like(got, truth), rtol=1e-8, atol=0)


def test_expanded_logits_that_underflow_as_probs():
    q = looked_at(d.Bernoulli(logits=double([-800.0, 0.5])))[0].expand((3, 2))
    torch.testing.assert_close(kl(d.Bernoulli(probs=HALF), q)[:, 0], double([399.3068528] * 3))


@pytest.mark.parametrize("way", ["covariance_matrix", "precision_matrix", "scale_tril"])
def test_alternative_covariance_parameters(way):
    root = torch.tril(double([[1.0, 0.0], [0.5, 2.0]]))
    given = {"covariance_matrix": root @ root.mT, "precision_matrix": torch.inverse(root @ root.mT), "scale_tril": root}
    p = d.MultivariateNormal(double([0.0, 1.0]), **{way: given[way]})
    q = d.MultivariateNormal(double([0.0, 0.0]), 3 * torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(kl(p, q), d.kl_divergence(p, q))
    assert p.covariance_matrix is not None
    assert getattr(as_family(p), way) is not None
    wisharts = [d.Wishart(double(5.0), **{way: given[way]}), d.Wishart(double(4.0), torch.eye(2, dtype=torch.float64))]
    torch.testing.assert_close(kl(*wisharts), d.kl_divergence(*wisharts))


def test_parameters_are_the_same_tensors():
    loc = torch.zeros(3, requires_grad=True)
    kl(d.Normal(loc, 1.0), d.Normal(torch.ones(3), 2.0)).sum().backward()
    assert loc.grad.tolist() == [-0.25] * 3


class Mine(d.Normal):
    """A user-defined class."""


class Odd(d.Distribution):
    arg_constraints = {}  # noqa: RUF012


class Pair(d.Distribution):
    arg_constraints = {}  # noqa: RUF012


def test_user_defined_classes():
    assert kl(Mine(0.0, 1.0), d.Normal(1.0, 1.0)) == 0.5
    with pytest.raises(NoClosedFormError, match=r"Odd.*kullback\.measure"):
        kl(Odd(validate_args=False), d.Normal(0.0, 1.0))
    register_kl(Pair, Pair)(lambda p, q: torch.tensor(3.0))
    try:
        assert kl(Pair(validate_args=False), Pair(validate_args=False)) == 3
    finally:
        del FORMS[Pair, Pair]


@pytest.mark.parametrize("kind", [d.GeneralizedPareto(0.0, 1.0, 0.1)], ids=repr)
def test_distributions_without_a_record_are_named(kind):
    with pytest.raises(NoClosedFormError, match=type(kind).__name__):
        kl(kind, kind)


def test_objects_that_are_not_distributions_raise():
    with pytest.raises(TypeError, match=r"Tensor; for arrays of probabilities see kullback\.kl_probs"):
        kl(torch.ones(2) / 2, torch.ones(2) / 2)
    with pytest.raises(ParameterError, match="scale"):
        kl(d.Normal(0.0, -1.0, validate_args=False), d.Normal(0.0, 1.0))


def test_mixed_libraries():
    got = kl(d.Normal(0.0, 1.0), f.Normal(loc=1.0, scale=2.0))
    assert isinstance(got, torch.Tensor)
    assert got.item() == pytest.approx(0.4431472, rel=1e-6)
    assert kl(f.Normal(loc=0.0, scale=1.0), d.Laplace(double(0.0), double(1.0))).dtype == torch.float64
    assert kl(stats.norm(0.0, 1.0), d.Normal(1.0, 1.0)) == 0.5
    with pytest.raises(
        ArrayTypeError, match="arrays of one library, got arrays of numpy and torch; convert one of them"
    ):
        kl(stats.norm(np.zeros(3), 1.0), d.Normal(1.0, 1.0))


# torch.distributions.kl_divergence.


def test_install_adds_missing_pairs():
    p, q = d.StudentT(double(5.0)), d.Normal(double(0.0), double(1.0))
    with pytest.raises(NotImplementedError):
        d.kl_divergence(p, q)
    weibulls = d.Weibull(double(2.0), double(1.5)), d.Weibull(double(1.0), double(0.7))
    with pytest.raises(NotImplementedError):
        d.kl_divergence(*weibulls)
    install()
    assert d.kl_divergence(p, q).item() == pytest.approx(0.12476919412361, rel=1e-12)
    assert d.kl_divergence(*weibulls) == kl(*weibulls)
    assert d.kl_divergence(d.Independent(weibulls[0].expand((3,)), 1), d.Independent(weibulls[1].expand((3,)), 1)) > 0
    assert d.kl_divergence(d.VonMises(0.0, 1.0), d.VonMises(1.0, 1.0)) > 0
    assert d.kl_divergence(d.Cauchy(0.0, 1.0), d.LogNormal(0.0, 1.0)) == inf
    with pytest.raises(NotImplementedError, match="measure"):
        d.kl_divergence(d.StudentT(5.0), d.StudentT(4.0))
    uninstall()
    with pytest.raises(NotImplementedError):
        d.kl_divergence(p, q)


def test_install_keeps_pairs_of_pytorch():
    before = dict(_KL_REGISTRY)
    install()
    assert before.items() <= _KL_REGISTRY.items()
    assert len(_KL_REGISTRY) > len(before) + 100


def test_stable_replaces_every_pair_with_a_closed_form():
    theirs = set(PYTORCH)
    install(stable=True)
    assert all(_KL_REGISTRY[pair] is kl for pair in theirs)
    p, q = d.Dirichlet(torch.full((100,), 1e4)), d.Dirichlet(torch.full((100,), 1.01e4))
    assert d.kl_divergence(p, q).item() == pytest.approx(0.00246, abs=1e-5)
    install()
    assert d.kl_divergence(p, q) < 0


@pytest.mark.parametrize("stable", [False, True])
def test_no_pair_becomes_ambiguous(stable):
    install(stable=stable)
    heirs = [type("Heir", (kind,), {}) for kind in CLASSES]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for p, q in product(CLASSES, CLASSES):
            _dispatch_kl(p, q)
        for p, q in product(CLASSES, heirs):
            _dispatch_kl(p, q)
            _dispatch_kl(q, p)


def test_user_registration_is_kept():
    install()
    try:
        d.register_kl(d.StudentT, d.Normal)(lambda p, q: torch.tensor(7.0))
        uninstall()
        assert d.kl_divergence(d.StudentT(5.0), d.Normal(0.0, 1.0)) == 7
        install()
        assert d.kl_divergence(d.StudentT(5.0), d.Normal(0.0, 1.0)) == 7
    finally:
        uninstall()
        del _KL_REGISTRY[d.StudentT, d.Normal]


# Cases where PyTorch is inaccurate.


def single(*values):
    return torch.tensor(values, dtype=torch.float32)


# True values from formulas and from the reference.
E = 3 * 2.0**-20
WRONG = {
    "probs of 1e-30": (d.Categorical(probs=single(0.5, 0.5)), d.Categorical(probs=single(1e-30, 1.0)), HALF_TO_1E_30),
    "geometric": (d.Geometric(probs=single(0.5)), d.Geometric(probs=single(1e-30)), 2 * HALF_TO_1E_30),
    "large": (d.Dirichlet(torch.full((100,), 1e4)), d.Dirichlet(torch.full((100,), 1.01e4)), 0.00245870526818),
    "rate 0, one": (d.Poisson(single(0.0)), d.Bernoulli(probs=single(0.5)), math.log(2)),
    "rate 0, three": (d.Poisson(single(0.0)), d.Binomial(3, probs=single(0.5)), 3 * math.log(2)),
    "near gammas": (d.Gamma(single(1.0), 1.0), d.Gamma(single(1.0), 1.0 + E), E * E / 2 * (1 - 2 / 3 * E)),
}


@pytest.mark.parametrize("name", WRONG)
def test_cases_where_pytorch_is_inaccurate(name):
    p, q, truth = WRONG[name]
    assert not torch.allclose(d.kl_divergence(p, q), torch.tensor(truth), rtol=1e-2, atol=0)
    torch.testing.assert_close(kl(p, q).reshape(()), torch.tensor(truth), rtol=2e-6, atol=0)


def test_extreme_logits_in_double_precision():
    # pytorch#15288: PyTorch returns inf.
    p, q = d.Categorical(logits=double([0.0, 0.0])), d.Categorical(logits=double([-200.0, 0.0]))
    assert kl(p, q).item() == pytest.approx(99.30685281944005, rel=1e-14)


def test_masked_category_has_zero_gradient():
    logits = single(0.0, 1.0, -inf).requires_grad_()
    p, q = d.Categorical(logits=logits), d.Categorical(logits=single(1.0, 1.0, -inf))
    (theirs,) = torch.autograd.grad(d.kl_divergence(p, q), logits, retain_graph=True)
    (ours,) = torch.autograd.grad(kl(p, q), logits, retain_graph=True)
    assert torch.isnan(theirs).any()
    assert ours[2] == 0
    (two,) = torch.autograd.grad(kl(d.Categorical(logits=logits[:2]), d.Categorical(logits=single(1.0, 1.0))), logits)
    torch.testing.assert_close(ours, two)
    assert kl(p, p) == 0


def test_folded_normals_agree():
    # |N(1, 1)| and |N(-1, 1)| are the same; the KL of the bases is 2.
    p, q = (d.TransformedDistribution(d.Normal(double(loc), double(1.0)), t.AbsTransform()) for loc in (1.0, -1.0))
    assert d.kl_divergence(p, q) == 2
    with pytest.raises(NoClosedFormError, match=r"kullback\.measure"):
        kl(p, q)
    install(stable=True)
    with pytest.raises(NotImplementedError):
        d.kl_divergence(p, q)


def test_register_kl_accepts_classes_only():
    d.register_kl(int, int)(lambda p, q: 0)  # PyTorch's check of the classes never raises
    del _KL_REGISTRY[int, int]
    with pytest.raises(TypeError, match="two classes of distributions, got int"):
        register_kl(int, int)


@pytest.mark.parametrize("other", ["full", "low-rank"])
def test_independent_normals_against_a_multivariate_normal(other: str) -> None:
    torch.manual_seed(0)
    loc, scale = torch.randn(3, dtype=torch.double, requires_grad=True), torch.rand(2, 3, dtype=torch.double) + 0.3
    parts, vector = d.Independent(d.Normal(loc, scale), 1), d.MultivariateNormal(loc, torch.diag_embed(scale**2))
    factor, far = torch.randn(3, 2, dtype=torch.double), torch.ones(3, dtype=torch.double)
    full = d.MultivariateNormal(far, factor @ factor.mT + torch.eye(3, dtype=torch.double))
    q = full if other == "full" else d.LowRankMultivariateNormal(far, factor, far)
    for ours, theirs in (((parts, q), (vector, q)), ((q, parts), (q, vector))):
        expected = d.kl_divergence(*theirs)
        torch.testing.assert_close(kl(*ours), expected, rtol=1e-12, atol=1e-13)
        gradients = [torch.autograd.grad(value.sum(), loc)[0] for value in (kl(*ours), expected)]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_univariate_against_multivariate_normal_raises() -> None:
    q = d.MultivariateNormal(torch.zeros(2), torch.eye(2))
    with pytest.raises(ShapeError):
        kl(d.Independent(d.Normal(torch.zeros(3), 1.0), 1), q)


def test_generalized_pareto_without_float64_support() -> None:
    p, q = (d.GeneralizedPareto(0.0, scale, shape) for scale, shape in ((1.0, 0.25), (2.0, 0.5)))
    estimate = measure(p, q)
    # mpmath's quadrature of p log(p/q), p = (1 + x/4)^-5 and q = (1 + x/4)^-3 / 2.
    with mpmath.workdps(30):
        truth = mpmath.quad(
            lambda x: (1 + x / 4) ** -5 * (mpmath.log(2) - 2 * mpmath.log(1 + x / 4)), [0, 1, 10, 100, mpmath.inf]
        )
    assert estimate.status == "bounded"
    assert abs(mpmath.mpf(estimate.value) - truth) <= estimate.error < 1e-10
