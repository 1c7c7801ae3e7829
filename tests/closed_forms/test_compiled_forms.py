"""The compiled closed forms: values and gradients against mpmath, and where the general implementation takes over."""

import math
import subprocess
import sys
from itertools import product

import mpmath
import numpy as np
import pytest
import torch

from kullback import families as f
from kullback import kl
from kullback.closed_forms import compiled_forms
from kullback.closed_forms.compiled_forms import compiled_kl
from kullback.closed_forms.registry import FORMS
from kullback.compiled import kernels
from kullback.errors import ParameterError, ShapeError

pytestmark = pytest.mark.skipif(kernels is None, reason="the package was installed without a compiler")
SETS = kernels.instruction_sets() if kernels else ()
d = torch.distributions


@pytest.fixture(params=SETS)
def instructions(request):
    kernels.use_instruction_set(request.param)
    yield request.param
    kernels.use_instruction_set(SETS[-1])


# KL as the textbooks write it, in extended precision.


def normal(loc1, scale1, loc2, scale2):
    return mpmath.log(scale2 / scale1) + ((scale1**2 + (loc1 - loc2) ** 2) / scale2**2 - 1) / 2


def exponential(rate1, rate2):
    return mpmath.log(rate1 / rate2) + rate2 / rate1 - 1


def poisson(rate1, rate2):
    return rate1 * mpmath.log(rate1 / rate2) - rate1 + rate2


def bernoulli(p, q):
    return p * mpmath.log(p / q) + (1 - p) * mpmath.log((1 - p) / (1 - q))


def laplace(loc1, scale1, loc2, scale2):
    distance = abs(loc1 - loc2)
    return mpmath.log(scale2 / scale1) + distance / scale2 + scale1 / scale2 * mpmath.exp(-distance / scale1) - 1


def gamma(k1, r1, k2, r2):
    return (
        (k1 - k2) * mpmath.digamma(k1)
        - mpmath.loggamma(k1)
        + mpmath.loggamma(k2)
        + k2 * mpmath.log(r1 / r2)
        + k1 * (r2 / r1 - 1)
    )


def dirichlet(a, b):
    total_a, total_b = mpmath.fsum(a), mpmath.fsum(b)
    return (
        mpmath.loggamma(total_a)
        - mpmath.loggamma(total_b)
        + mpmath.fsum(
            mpmath.loggamma(y) - mpmath.loggamma(x) + (x - y) * (mpmath.digamma(x) - mpmath.digamma(total_a))
            for x, y in zip(a, b, strict=True)
        )
    )


def gumbel(loc1, scale1, loc2, scale2):
    ratio = scale1 / scale2
    mass = mpmath.exp((loc2 - loc1) / scale2) * mpmath.gamma(1 + ratio)
    return mpmath.log(scale2 / scale1) + mpmath.euler * (ratio - 1) + (loc1 - loc2) / scale2 + mass - 1


def cauchy(loc1, scale1, loc2, scale2):
    return mpmath.log(((scale1 + scale2) ** 2 + (loc1 - loc2) ** 2) / (4 * scale1 * scale2))


def sigmoid(x):
    return 1 / (1 + mpmath.exp(-x))


# For each form: the family, its parameters, the truth, and how parameters are drawn, as `drawn` describes.
CASES = {
    "normal": (f.Normal, ("loc", "scale"), normal, "rp"),
    "normal by log_scale": (
        f.Normal,
        ("loc", "log_scale"),
        lambda loc1, log1, loc2, log2: normal(loc1, mpmath.exp(log1), loc2, mpmath.exp(log2)),
        "rr",
    ),
    "log-normal": (f.LogNormal, ("loc", "scale"), normal, "rp"),
    "half-normal": (f.HalfNormal, ("scale",), lambda a, b: normal(0, a, 0, b), "p"),
    "exponential": (f.Exponential, ("rate",), exponential, "p"),
    "Poisson": (f.Poisson, ("rate",), poisson, "p"),
    "Bernoulli": (f.Bernoulli, ("probs",), bernoulli, "u"),
    "Bernoulli by logits": (f.Bernoulli, ("logits",), lambda a, b: bernoulli(sigmoid(a), sigmoid(b)), "r"),
    "geometric": (f.Geometric, ("probs",), lambda p, q: bernoulli(p, q) / p, "u"),
    "Laplace": (f.Laplace, ("loc", "scale"), laplace, "rp"),
    "Pareto": (
        f.Pareto,
        ("scale", "alpha"),
        lambda m1, a, m2, b: mpmath.log(a / b) + b / a - 1 + b * mpmath.log(m1 / m2),
        "dp",
    ),
    "uniform": (
        f.Uniform,
        ("low", "high"),
        lambda low1, high1, low2, high2: mpmath.log((high2 - low2) / (high1 - low1)),
        "dw",
    ),
    "gamma": (f.Gamma, ("concentration", "rate"), gamma, "pp"),
    "inverse gamma": (f.InverseGamma, ("concentration", "rate"), gamma, "pp"),
    "beta": (
        f.Beta,
        ("concentration1", "concentration0"),
        lambda a1, a0, b1, b0: dirichlet([a1, a0], [b1, b0]),
        "pp",
    ),
    "Gumbel": (f.Gumbel, ("loc", "scale"), gumbel, "rs"),
    "Cauchy": (f.Cauchy, ("loc", "scale"), cauchy, "rp"),
    "binomial": (f.Binomial, ("total_count", "probs"), lambda n, p, _, q: n * bernoulli(p, q), "nu"),
    "binomial by logits": (
        f.Binomial,
        ("total_count", "logits"),
        lambda n, a, _, b: n * bernoulli(sigmoid(a), sigmoid(b)),
        "nr",
    ),
}


def drawn(rng, kinds, delta, dtype, count=7):
    """Parameters of p, and of q at about the distance `delta`: "r" real, "p" positive, "u" probabilities."""
    p, q = [], []
    for kind in kinds:
        noise = delta * rng.normal(size=count)
        if kind == "r":
            p.append(2 * rng.normal(size=count))
            q.append(p[-1] + noise)
        elif kind == "n":  # a count, equal in q
            p.append(rng.integers(0, 50, size=count).astype(float))
            q.append(p[-1])
        elif kind == "d":  # positive, and smaller in q
            p.append(np.exp(rng.normal(size=count)))
            q.append(p[-1] * np.exp(-abs(noise)))
        elif kind == "w":  # above the parameter before it, and larger in q
            p.append(p[-1] + np.exp(rng.normal(size=count)))
            q.append(p[-1] * np.exp(abs(noise)))
        elif kind == "s":  # positive, with a ratio of at most e, so that the KL does not exceed about e^20
            p.append(np.exp(0.5 * rng.normal(size=count)))
            q.append(p[-1] * np.exp(np.clip(noise, -1, 1)))
        elif kind == "p":
            p.append(np.exp(1.5 * rng.normal(size=count)))
            q.append(p[-1] * np.exp(noise))
        else:
            p.append(rng.uniform(0.02, 0.98, size=count))
            q.append(1 / (1 + (1 / p[-1] - 1) * np.exp(noise)))
    return [values.astype(dtype) for values in p], [values.astype(dtype) for values in q]


@pytest.mark.parametrize("delta", [2.0, 0.1, 1e-3, 1e-6])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 2e-14), (np.float32, 2e-6)])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(instructions, name, dtype, tolerance, delta):
    family, names, truth, kinds = CASES[name]
    of_p, of_q = drawn(np.random.default_rng(7), kinds, delta, dtype)
    tensors = [torch.tensor(values, requires_grad=True) for values in (*of_p, *of_q)]
    half = len(names)
    p, q = (family(**dict(zip(names, side, strict=True))) for side in (tensors[:half], tensors[half:]))
    value = compiled_kl(p, q)
    gradients = torch.autograd.grad(value.sum(), tensors)
    value = value.detach()
    arrays = compiled_kl(*(family(**dict(zip(names, side, strict=True))) for side in (of_p, of_q)))
    assert arrays.dtype == dtype
    assert (arrays == value.numpy()).all()
    with mpmath.workdps(60):
        for i in range(len(of_p[0])):
            at = [mpmath.mpf(float(values[i])) for values in (*of_p, *of_q)]
            exact = truth(*at)
            assert abs(float(value[i]) - exact) <= tolerance * abs(exact)
            # Each derivative is compared with the largest derivative by the logarithm of a parameter.
            slopes = [
                mpmath.diff(lambda x, k=k, at=at: truth(*at[:k], x, *at[k + 1 :]), at[k], h=mpmath.mpf(10) ** -20)
                for k in range(2 * half)
            ]
            scale = max(abs(slope) for slope in slopes)
            for gradient, slope in zip(gradients, slopes, strict=True):
                assert abs(float(gradient[i]) - slope) <= 8 * tolerance * scale + 1e-18


@pytest.mark.slow
@pytest.mark.parametrize("delta", [2.0, 0.1, 1e-5])
@pytest.mark.parametrize("spread", [0.5, 4.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 2e-14), (np.float32, 2e-6)])
def test_dirichlet(instructions, dtype, tolerance, spread, delta):
    rng = np.random.default_rng(3)
    a = np.exp(spread * rng.normal(size=(4, 5)))
    b = a * np.exp(delta * rng.normal(size=a.shape))
    a, b = (torch.tensor(side.astype(dtype), requires_grad=True) for side in (a, b))
    value = compiled_kl(f.Dirichlet(concentration=a), f.Dirichlet(concentration=b))
    gradients = torch.autograd.grad(value.sum(), (a, b))
    value = value.detach()
    with mpmath.workdps(60):
        for i in range(4):
            sides = [[mpmath.mpf(float(x)) for x in side[i].detach()] for side in (a, b)]
            assert float(value[i]) == pytest.approx(float(dirichlet(*sides)), rel=tolerance)
            for k in range(2):

                def along(x, j, k=k, sides=sides):
                    changed = [list(side) for side in sides]
                    changed[k][j] = x
                    return dirichlet(*changed)

                slopes = [
                    mpmath.diff(lambda x, j=j: along(x, j), sides[k][j], h=sides[k][j] * mpmath.mpf(10) ** -15)
                    for j in range(5)
                ]
                exact = np.array([float(slope) for slope in slopes])
                assert np.abs(gradients[k][i].numpy() - exact).max() <= 1e3 * tolerance * np.abs(exact).max()


@pytest.mark.parametrize("name", CASES)
def test_the_general_implementation_agrees(name):
    family, names, _, kinds = CASES[name]
    of_p, of_q = drawn(np.random.default_rng(11), kinds, 0.5, np.float64, 50)
    p, q = (family(**dict(zip(names, side, strict=True))) for side in (of_p, of_q))
    np.testing.assert_allclose(compiled_kl(p, q), FORMS[family, family](p, q), rtol=2e-13)


@pytest.mark.parametrize("name", CASES)
def test_second_derivatives_are_those_of_the_general_implementation(name):
    family, names, _, kinds = CASES[name]
    of_p, of_q = drawn(np.random.default_rng(12), kinds, 0.5, np.float64, 3)
    # Counts are not differentiated, because numbers near a count are not counts.
    tensors = [
        torch.tensor(side, requires_grad=kind != "n") for kind, side in zip(2 * kinds, (*of_p, *of_q), strict=True)
    ]

    def value(*tensors):
        half = len(names)
        p, q = (family(**dict(zip(names, side, strict=True))) for side in (tensors[:half], tensors[half:]))
        return kl(p, q)

    assert torch.autograd.gradcheck(value, tensors)
    assert torch.autograd.gradgradcheck(value, tensors)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (d.Normal(torch.zeros(3), torch.ones(3)), d.Normal(torch.ones(3), 2 * torch.ones(3))),
        (d.Independent(d.Laplace(torch.zeros(2, 3), 1.0), 1), d.Independent(d.Laplace(torch.ones(2, 3), 2.0), 1)),
        (d.Beta(torch.tensor(2.0), torch.tensor(3.0)), d.Beta(torch.tensor(3.0), torch.tensor(1.5))),
        (d.Bernoulli(logits=torch.randn(4)), d.Bernoulli(logits=torch.randn(4))),
        (d.Bernoulli(probs=torch.rand(4)), d.Bernoulli(probs=torch.rand(4))),
        (d.LogNormal(torch.zeros(2), torch.ones(2)), d.LogNormal(torch.ones(2), torch.ones(2))),
        (d.Gamma(torch.ones(2), 3.0), d.Gamma(torch.ones(2), 1.0)),
    ],
)
def test_objects_of_torch_agree_with_torch(p, q):
    value = kl(p, q)
    assert compiled_kl(p, q) is not None
    torch.testing.assert_close(value, d.kl_divergence(p, q), rtol=1e-5, atol=1e-6)
    assert value.dtype == torch.float32


def test_the_parameter_that_was_given_is_read():
    p, q = d.Bernoulli(probs=torch.tensor(0.25)), d.Bernoulli(logits=torch.tensor(1.0))
    for side in (p, q):  # PyTorch caches the other parameter, which must not change the result
        before = kl(side, side.__class__(probs=torch.tensor(0.5)))
        _ = side.logits, side.probs
        assert kl(side, side.__class__(probs=torch.tensor(0.5))) == before


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        ((0.0, 1.0, 1.0, 2.0), ()),
        ((np.zeros(3), 1.0, 1.0, 2.0), (3,)),
        ((np.zeros((3, 1)), np.ones(4), 1.0, 2.0), (3, 4)),
        ((np.zeros(1), 1.0, np.zeros((1, 1)), 2.0), (1, 1)),
        ((np.zeros((0, 2)), 1.0, 0.0, 2.0), (0, 2)),
        ((np.zeros(6)[::2], np.ones(3), 1, 2), (3,)),
        ((np.broadcast_to(0.0, (2, 3)), 1.0, 1.0, np.asfortranarray(np.ones((2, 3)))), (2, 3)),
    ],
)
def test_shapes_are_those_of_broadcasting(values, shape):
    loc1, scale1, loc2, scale2 = values
    value = kl(f.Normal(loc=loc1, scale=scale1), f.Normal(loc=loc2, scale=scale2))
    assert np.shape(value) == shape
    assert isinstance(value, np.float64 if shape == () else np.ndarray)
    tensors = [torch.tensor(np.array(side, np.float64)) for side in values]
    assert kl(d.Normal(*tensors[:2]), d.Normal(*tensors[2:])).shape == shape


def unaligned(values):
    """The values in memory that starts one byte after an address that is a multiple of 8."""
    values = np.asarray(values, float)
    memory = np.zeros(values.nbytes + 1, np.uint8)
    array = memory[1:].view(float).reshape(values.shape)
    array[...] = values
    assert not array.flags.aligned
    return array


@pytest.mark.parametrize(
    ("family", "names"), [(f.Normal, ("loc", "scale")), (f.Beta, ("concentration1", "concentration0"))]
)
def test_unaligned_memory(family, names):
    p, q = ({name: np.array(values) for name in names} for values in ([1.0, 2.0], [3.0, 1.5]))
    expected = kl(family(**p), family(**q))
    assert np.array_equal(kl(family(**{k: unaligned(v) for k, v in p.items()}), family(**q)), expected)
    tensors = {name: torch.from_numpy(unaligned(values)).requires_grad_() for name, values in p.items()}
    value = kl(family(**tensors), family(**{name: torch.tensor(values) for name, values in q.items()}))
    value.sum().backward()
    assert np.array_equal(value.detach().numpy(), expected)


def test_unaligned_concentrations():
    p, q = np.array([[1.0, 2.0], [0.5, 3.0]]), np.array([2.0, 2.0])
    expected = kl(f.Dirichlet(concentration=p), f.Dirichlet(concentration=q))
    got = kl(f.Dirichlet(concentration=unaligned(p)), f.Dirichlet(concentration=unaligned(q)))
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("name", CASES)
def test_equal_parameters_give_positive_zero(name):
    family, names, _, kinds = CASES[name]
    of_p, _ = drawn(np.random.default_rng(3), kinds, 0.5, np.float64)
    p = family(**dict(zip(names, of_p, strict=True)))
    value = kl(p, p)
    assert not value.any()
    assert not np.signbit(value).any()


def test_gradients_of_broadcast_parameters():
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    loc = torch.randn(5, dtype=torch.float64)
    value = kl(f.Normal(loc=loc, scale=1.0 + 0 * loc), f.Normal(loc=0 * loc, scale=scale))
    [gradient] = torch.autograd.grad(value.sum(), scale)
    assert gradient.shape == ()
    assert float(gradient) == pytest.approx(float((1 / scale - (1 + loc**2) / scale**3).sum().detach()), rel=1e-14)


@pytest.mark.parametrize(
    "pair",
    [
        lambda x: (d.Normal(x, x.exp()), d.Normal(2 * x, x.exp())),
        lambda x: (d.Laplace(x, x.exp()), d.Laplace(x**2, 1 + x)),
        lambda x: (d.Gamma(x, x), d.Gamma(x.exp(), x)),
        lambda x: (d.Poisson(x), d.Poisson(x**2)),
        lambda x: (d.Bernoulli(logits=x), d.Bernoulli(logits=-2 * x)),
        lambda x: (d.Dirichlet(x), d.Dirichlet(x.exp())),
    ],
)
def test_derivatives_where_parameters_depend_on_each_other(pair):
    def derivatives(kl_of):
        x = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
        [first] = torch.autograd.grad(kl_of(*pair(x)).sum(), x, create_graph=True)
        return first, torch.autograd.grad(first.square().sum(), x)[0]

    torch.testing.assert_close(derivatives(kl), derivatives(d.kl_divergence))


def test_invalid_and_extreme_parameters_reach_the_general_implementation():
    with pytest.raises(ParameterError):
        kl(d.Normal(torch.tensor(0.0), torch.tensor(-1.0), validate_args=False), d.Normal(0.0, 1.0))
    with pytest.raises(ParameterError):
        kl(d.Gamma(torch.tensor(math.nan), torch.tensor(1.0), validate_args=False), d.Gamma(1.0, 1.0))
    with pytest.raises(ShapeError):
        kl(f.Normal(loc=np.zeros(2), scale=1.0), f.Normal(loc=np.zeros(3), scale=1.0))
    assert kl(f.Poisson(rate=0.0), f.Poisson(rate=2.0)) == 2.0
    assert kl(f.Bernoulli(probs=[0.0, 1.0]), f.Bernoulli(probs=[0.5, 0.0]))[1] == math.inf
    assert kl(f.Normal(loc=0.0, scale=1e200), f.Normal(loc=0.0, scale=1e200)) == 0
    huge, half = f.Normal(loc=0.0, scale=1e-300), f.Normal(loc=0.0, scale=2e-300)
    assert kl(huge, half) == pytest.approx(kl(f.Normal(loc=0.0, scale=1.0), f.Normal(loc=0.0, scale=2.0)), rel=1e-14)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # from torch.func.jvp
def test_transformed_calls_reach_the_general_implementation():
    loc = torch.randn(4, dtype=torch.float64)

    def value(x):
        return kl(f.Normal(loc=x, scale=torch.ones_like(x)), f.Normal(loc=0 * x, scale=torch.ones_like(x))).sum()

    torch.testing.assert_close(torch.func.grad(value)(loc), loc)
    torch.testing.assert_close(torch.func.vmap(value)(loc[:, None]), loc**2 / 2)
    torch.testing.assert_close(torch.func.jvp(value, (loc,), (loc,))[1], (loc**2).sum())
    assert torch.allclose(torch.func.hessian(value)(loc), torch.eye(4, dtype=torch.float64))


def test_the_first_call_gives_the_bits_of_every_call():
    code = (
        "import torch\nfrom kullback import kl\nd = torch.distributions\n"
        "p, q = d.Gamma(torch.tensor(0.3), torch.tensor(1.1)), d.Gamma(torch.tensor(0.7), torch.tensor(0.2))\n"
        "print(*(float(kl(p, q)).hex() for _ in range(3)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(set(done.stdout.split())) == 1


def test_empty_and_single_rows_of_concentrations():
    a = np.ones((0, 3))
    assert kl(f.Dirichlet(concentration=a), f.Dirichlet(concentration=np.ones(3))).shape == (0,)
    rows = np.exp(np.random.default_rng(1).normal(size=(2, 4, 3)))
    one = kl(f.Dirichlet(concentration=rows), f.Dirichlet(concentration=np.ones(3)))
    for i, j in product(range(2), range(4)):
        assert one[i, j] == kl(f.Dirichlet(concentration=rows[i, j]), f.Dirichlet(concentration=np.ones(3)))


@pytest.mark.parametrize(
    "arguments",
    [
        (-1, np.ones(2), np.ones(2), np.ones(2)),
        (99, np.ones(2), np.ones(2), np.ones(2)),
        (1, np.ones(2), np.ones(3), np.ones(3)),
        (1, np.ones(2), np.ones(2, np.float32), np.ones(2)),
        (1, np.ones(2), np.ones(2), np.ones(3)),
        (1, np.ones(2), np.ones(2), np.broadcast_to(1.0, 2)),
        (1, np.ones(2, int), np.ones(2, int), np.ones(2)),
        (1, np.ones(2), np.ones(2)),
        (1, [1.0], [1.0], np.ones(1)),
    ],
)
def test_wrong_arguments_of_the_compiled_functions(arguments):
    with pytest.raises((TypeError, ValueError, BufferError)):
        kernels.form_value(*arguments)
    with pytest.raises((TypeError, ValueError, BufferError)):
        kernels.form_gradient(*arguments)


def test_every_form_has_a_family():
    used = {form for form, _ in compiled_forms._FAMILIES.values()}
    used |= {form for forms in compiled_forms._ALTERNATIVES.values() for form, _ in forms.values()}
    used |= set(compiled_forms._PAIRS.values())
    functions = {"binet", "binet_slope", "equal_mean"}  # of the closed forms that are computed by array operations
    assert used | functions == {*kernels.form_names(), *compiled_forms._KINDS}
