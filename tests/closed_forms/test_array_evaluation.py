"""Closed forms without a compiled kernel: evaluated by NumPy for tensors and JAX arrays on a CPU, in blocks."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from kullback import families as f
from kullback import kl
from kullback.closed_forms.compiled_forms import compiled_kl
from kullback.compiled import elementwise, kernels
from kullback.errors import NoClosedFormError, ParameterError
from kullback.numerics.arrays import numpy_views

d = torch.distributions

PAIRS = {
    "Pareto to normal": (f.Pareto, f.Normal, lambda z: {"scale": np.exp(z), "alpha": 2.1 + np.exp(-z)}),
    "beta to gamma": (f.Beta, f.Gamma, lambda z: {"concentration1": np.exp(z), "concentration0": np.exp(-z)}),
    "normal to Gumbel": (f.Normal, f.Gumbel, lambda z: {"loc": z, "scale": np.exp(-z / 4)}),
    "gamma to normal": (f.Gamma, f.Normal, lambda z: {"concentration": np.exp(z), "rate": np.exp(z / 2)}),
}


def parameters(name, shape, dtype=np.float64):
    rng = np.random.default_rng(0)
    p_class, q_class, of_p = PAIRS[name]
    p = {key: value.astype(dtype) for key, value in of_p(rng.normal(size=shape)).items()}
    names = {f.Normal: ("loc", "scale"), f.Gumbel: ("loc", "scale"), f.Gamma: ("concentration", "rate")}[q_class]
    q = {key: np.exp(rng.normal(size=shape) / 4).astype(dtype) for key in names}
    return p_class, p, q_class, q


def value_of(library, p_class, p, q_class, q):
    sides = ({name: library(value) for name, value in side.items()} for side in (p, q))
    first, second = sides
    return kl(p_class(**first), q_class(**second))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
@pytest.mark.parametrize("name", PAIRS)
def test_tensors_arrays_and_jax_arrays_give_equal_bits(name, shape, dtype):
    pair = parameters(name, shape, dtype)
    expected = np.asarray(value_of(np.asarray, *pair))
    tensor = value_of(torch.tensor, *pair)
    assert tensor.dtype == (torch.float64 if dtype == np.float64 else torch.float32)
    assert tensor.shape == shape
    np.testing.assert_array_equal(tensor.numpy(), expected.astype(dtype))
    with jax.enable_x64(dtype == np.float64):
        array = value_of(jnp.asarray, *pair)
        assert array.dtype == dtype
        assert isinstance(array, jax.Array)
    np.testing.assert_array_equal(np.asarray(array), expected.astype(dtype))


@pytest.mark.parametrize("name", PAIRS)
def test_values_with_a_gradient_are_equal_to_rounding(name):
    pair = parameters(name, (50,))
    plain = value_of(torch.tensor, *pair)
    tracked = value_of(lambda x: torch.tensor(x, requires_grad=True), *pair)
    assert tracked.requires_grad
    torch.testing.assert_close(tracked.detach(), plain, rtol=1e-12, atol=1e-14)
    tracked.sum().backward()


@pytest.mark.parametrize("name", PAIRS)
def test_gradients_agree_with_their_differentiable_form(name):
    p_class, p, q_class, q = parameters(name, (4,))
    tensors = [torch.tensor(x, requires_grad=True) for x in (*p.values(), *q.values())]

    def value(*given):
        return kl(
            p_class(**dict(zip(p, given[: len(p)], strict=True))), q_class(**dict(zip(q, given[len(p) :], strict=True)))
        ).sum()

    plain = torch.autograd.grad(value(*tensors), tensors)
    recorded = torch.autograd.grad(value(*tensors), tensors, create_graph=True)  # by operations of PyTorch
    of_functions = torch.func.grad(value, argnums=tuple(range(len(tensors))))(*(x.detach() for x in tensors))
    for one, two, three in zip(plain, recorded, of_functions, strict=True):
        torch.testing.assert_close(one, two.detach(), rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(one, three, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("shapes", [((50_000,), (50_000,)), ((200, 1), (1, 250)), ((), (40_000,))])
@pytest.mark.parametrize("name", PAIRS)
def test_blocks_give_the_bits_of_single_entries(name, shapes):
    p_class, p, q_class, _ = parameters(name, shapes[0])
    _, _, _, q = parameters(name, shapes[1])
    value = value_of(np.asarray, p_class, p, q_class, q)
    assert value.shape == np.broadcast_shapes(*shapes)
    sides = [{key: np.broadcast_to(x, value.shape).ravel() for key, x in side.items()} for side in (p, q)]
    for index in (0, 1, 16_383, 16_384, 39_999):
        one, two = ({key: x[index : index + 1] for key, x in side.items()} for side in sides)
        np.testing.assert_allclose(
            value.ravel()[index], value_of(np.asarray, p_class, one, q_class, two)[0], rtol=4e-16
        )


def test_an_error_in_a_block_names_the_entry_of_the_whole_array():
    scale = np.ones(40_000)
    scale[39_000] = -1.0
    with pytest.raises(ParameterError, match=r"scale\[39000\] is -1\.0"):
        kl(f.Pareto(scale=scale, alpha=3.0), f.Normal(loc=0.0, scale=1.0))
    shape = np.ones(40_000)
    shape[39_000] = 2.0
    with pytest.raises(NoClosedFormError, match=r"concentration1\[39000\] is 2\.0"):
        kl(
            f.Kumaraswamy(concentration1=shape, concentration0=2.0),
            f.Kumaraswamy(concentration1=1.0, concentration0=3.0),
        )


def test_infinite_entries_among_finite_ones():
    loc = np.zeros(20_000)
    loc[[3, 19_999]] = -1e4  # e^1e4 is above the largest number
    value = kl(f.Normal(loc=loc, scale=1.0), f.Gumbel(loc=0.0, scale=1.0))
    assert np.flatnonzero(np.isinf(value)).tolist() == [3, 19_999]
    alone = kl(f.Normal(loc=0.0, scale=1.0), f.Gumbel(loc=0.0, scale=1.0))
    np.testing.assert_allclose(value[[0, 4, 19_998]], alone, rtol=4e-16)


def test_traced_tensors_are_not_read_by_numpy():
    def value(alpha):
        return kl(
            f.Pareto(scale=torch.tensor(1.0), alpha=alpha), f.Normal(loc=torch.tensor(0.0), scale=torch.tensor(1.0))
        )

    with pytest.raises(RuntimeError, match="tracing tensor"):  # instead of a graph with a constant
        make_fx(value)(torch.tensor(3.0))
    assert numpy_views([torch.ones(2), torch.ones(2, dtype=torch.float64)]) is None
    assert numpy_views([torch.ones(2, dtype=torch.bfloat16)]) is None
    assert numpy_views([torch.ones(2).to_sparse()]) is None
    assert numpy_views([1.0]) is None
    assert numpy_views([torch.ones(2, requires_grad=True)], differentiable=True) is None
    assert torch.vmap(lambda x: torch.tensor(float(numpy_views([x]) is None)))(torch.ones(3)).tolist() == [1.0] * 3


@pytest.fixture(params=kernels.instruction_sets() if kernels else [])
def instructions(request):
    fastest = kernels.instruction_sets()[-1]
    kernels.use_instruction_set(request.param)
    yield request.param
    kernels.use_instruction_set(fastest)


@pytest.mark.skipif(kernels is None, reason="the package was installed without a compiler")
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 3e-14), (np.float32, 1e-7)])
def test_compiled_functions_of_log_gamma(instructions, dtype, tolerance):
    a = np.exp(np.random.default_rng(0).uniform(-25, 25, 101)).astype(dtype)
    b = (a * np.exp(np.random.default_rng(1).uniform(-2, 2, 101))).astype(dtype)
    with mpmath.workdps(80):
        exact = {name: [] for name in ("binet", "slope", "curvature", "equal mean", "by b")}
        for x, y in zip(map(mpmath.mpf, map(float, a)), map(mpmath.mpf, map(float, b)), strict=True):
            half_log = mpmath.log(2 * mpmath.pi) / 2
            exact["binet"].append(mpmath.loggamma(x) - (x - mpmath.mpf("0.5")) * mpmath.log(x) + x - half_log)
            exact["slope"].append(mpmath.digamma(x) - mpmath.log(x) + 1 / (2 * x))
            exact["curvature"].append(mpmath.psi(1, x) - 1 / x - 1 / (2 * x * x))
            rest = mpmath.loggamma(y) - mpmath.loggamma(x) - (y - x) * mpmath.digamma(x)
            exact["equal mean"].append(rest - y * (x / y - 1 - mpmath.log(x / y)))
            exact["by b"].append(mpmath.digamma(y) - mpmath.digamma(x) - mpmath.log(y / x))
    h = (b.astype(float) - a.astype(float)).astype(dtype)
    found = {
        "binet": elementwise("binet", a),
        "slope": elementwise("binet_slope", a),
        "curvature": elementwise("binet_slope", a, derivative=0),
        "equal mean": elementwise("equal_mean", a, b, h),
        "by b": elementwise("equal_mean", a, b, h, derivative=1),
    }
    for name, value in found.items():
        np.testing.assert_allclose(value, np.array(exact[name], float), rtol=tolerance, err_msg=name)


@pytest.mark.skipif(kernels is None, reason="the package was installed without a compiler")
def test_arguments_that_the_compiled_functions_leave_to_the_general_implementation():
    assert elementwise("binet", np.array([1.0, 1e-95])) is None
    assert elementwise("binet_slope", np.array([1.0, 1e95]), derivative=0) is None
    assert elementwise("binet", np.array([1, 2])) is None
    assert elementwise("binet", np.empty(0)) is None
    assert elementwise("no such form", np.ones(1)) is None
    assert elementwise("binet", torch.ones(1)) is None
    transposed = np.arange(1.0, 13.0).reshape(3, 4).T
    np.testing.assert_array_equal(elementwise("binet", transposed), elementwise("binet", transposed.copy()))
    assert elementwise("binet", np.float64(2.0)).shape == ()


@pytest.mark.skipif(kernels is None, reason="the package was installed without a compiler")
def test_chi_squared_distributions_are_gamma_distributions():
    df = np.array([1.0, 2.5, 40.0])
    expected = kl(f.Gamma(concentration=df / 2, rate=0.5), f.Gamma(concentration=1.5, rate=0.5))
    np.testing.assert_array_equal(compiled_kl(f.ChiSquared(df=df), f.ChiSquared(df=3.0)), expected)
    np.testing.assert_array_equal(compiled_kl(f.ChiSquared(df=[1.0, 2.5, 40.0]), f.ChiSquared(df=3.0)), expected)
    tensor = torch.tensor(df, requires_grad=True)
    value = kl(d.Chi2(tensor), d.Chi2(torch.tensor(3.0, dtype=torch.float64)))
    np.testing.assert_array_equal(value.detach().numpy(), expected)
    [slope] = torch.autograd.grad(value.sum(), tensor)
    step = 1e-6
    ends = [kl(f.ChiSquared(df=df + sign * step), f.ChiSquared(df=3.0)) for sign in (1, -1)]
    np.testing.assert_allclose(slope.numpy(), (ends[0] - ends[1]) / (2 * step), rtol=1e-7)
