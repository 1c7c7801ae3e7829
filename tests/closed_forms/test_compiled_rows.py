"""The compiled forms of categorical, Dirichlet and multivariate normal distributions, against mpmath and NumPy."""

from functools import cache

import mpmath
import numpy as np
import pytest
import torch

from kullback import families as f
from kullback import kl
from kullback.closed_forms.compiled_forms import compiled_kl
from kullback.closed_forms.low_rank import low_rank_kl
from kullback.closed_forms.registry import FORMS
from kullback.compiled import kernels
from kullback.errors import NotNormalizedError, ParameterError, ShapeError, SupportError

pytestmark = pytest.mark.skipif(kernels is None, reason="the package was installed without a compiler")
SETS = kernels.instruction_sets() if kernels else ()
d = torch.distributions
TYPES = [(np.float64, 1e-15), (np.float32, 5e-7)]


@pytest.fixture(params=SETS)
def instructions(request):
    kernels.use_instruction_set(request.param)
    yield request.param
    kernels.use_instruction_set(SETS[-1])


def unaligned(values):
    """The values in memory that starts one byte after an address that is a multiple of 8."""
    memory = np.zeros(values.nbytes + 1, np.uint8)
    array = memory[1:].view(values.dtype).reshape(values.shape)
    array[...] = values
    assert not array.flags.aligned
    return array


def strided(values):
    """The values in memory that is not contiguous."""
    array = np.zeros((*values.shape, 2), values.dtype)[..., 0]
    array[...] = values
    return array


# Categorical distributions.


def exact_categorical(p, q, kind):
    """KL and its derivatives with respect to the rows p and q of probabilities or logits, with 40 digits."""
    with mpmath.workdps(40):
        sides = [[mpmath.mpf(float(x)) for x in side] for side in (p, q)]
        weights = [[mpmath.exp(x) for x in side] for side in sides] if kind == "logits" else sides
        p, q = ([x / mpmath.fsum(side) for x in side] for side in weights)
        value = mpmath.fsum(x * mpmath.log(x / y) for x, y in zip(p, q, strict=True))
        by_p = [mpmath.log(x / y) - value for x, y in zip(p, q, strict=True)]
        by_q = [1 - x / y for x, y in zip(p, q, strict=True)]
        scales = (p, q) if kind == "logits" else [[1 / mpmath.fsum(side)] * len(side) for side in weights]
        slopes = [[float(s * x) for s, x in zip(*pair, strict=True)] for pair in zip(scales, (by_p, by_q), strict=True)]
        return float(value), *map(np.array, slopes)


def naive_gradients(tensors, kind):
    """The derivatives of sum p (log p - log q) by automatic differentiation."""
    twins = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    logs = [x.log_softmax(-1) if kind == "logits" else (x / x.sum(-1, keepdim=True)).log() for x in twins]
    (logs[0].exp() * (logs[0] - logs[1])).sum().backward()
    return [twin.grad for twin in twins]


@cache
def categorical_case(kind, dtype, size, delta):
    """Rows of p and of q, and for each pair KL and its derivatives."""
    rng = np.random.default_rng(size)
    logits = rng.normal(size=(2, size))
    rows = [logits, logits + delta * rng.normal(size=logits.shape)]
    if kind == "probs":
        rows = [np.exp(side) / np.exp(side).sum(-1, keepdims=True) for side in rows]
    rows = [side.astype(dtype) for side in rows]
    return rows, [exact_categorical(*pair, kind) for pair in zip(*rows, strict=True)]


@pytest.mark.parametrize("delta", [1.0, 1e-3])
@pytest.mark.parametrize("size", [1, 2, 7, 17])
@pytest.mark.parametrize(("dtype", "epsilon"), TYPES)
@pytest.mark.parametrize("kind", ["probs", "logits"])
def test_categorical(instructions, kind, dtype, epsilon, size, delta):
    rows, truth = categorical_case(kind, dtype, size, delta)
    tensors = [torch.tensor(side, requires_grad=True) for side in rows]
    value = compiled_kl(*(f.Categorical(**{kind: tensor}) for tensor in tensors))
    assert value is not None
    gradients = torch.autograd.grad(value.sum(), tensors)
    naive = naive_gradients(tensors, kind)
    for i, (exact, *slopes) in enumerate(truth):
        assert float(value[i].detach()) == pytest.approx(exact, rel=4 * epsilon, abs=1e-300)
        for gradient, other, slope in zip(gradients, naive, slopes, strict=True):
            largest = np.abs(slope).max()
            error = np.abs(gradient[i].numpy() - slope).max()
            assert error <= 6 * epsilon * largest
            assert error <= np.abs(other[i].numpy() - slope).max() + 4 * epsilon * largest


def test_the_objects_of_torch_and_records_give_equal_bits():
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 9)
    for kind, sides in (("logits", logits), ("probs", logits.softmax(-1))):
        objects = [d.Categorical(**{kind: side}) for side in sides]
        values = [side._param.numpy() for side in objects]
        expected = compiled_kl(*(f.Categorical(**{kind: side}) for side in values))
        assert np.array_equal(kl(*objects).numpy(), expected)
        one_hot = [d.OneHotCategorical(**{kind: side}) for side in sides]
        assert np.array_equal(kl(*one_hot).numpy(), expected)
        for changed in (unaligned, strided):
            again = kl(*(f.Categorical(**{kind: changed(side)}) for side in values))
            assert np.array_equal(again, expected)


@pytest.mark.parametrize("kind", ["probs", "logits"])
def test_a_single_row_of_categories_and_no_rows(kind):
    torch.manual_seed(0)
    rows, row = torch.randn(4, 6, dtype=torch.double).softmax(-1), torch.randn(6, dtype=torch.double).softmax(-1)
    rows, row = (side.log() if kind == "logits" else side for side in (rows, row))
    rows.requires_grad_(), row.requires_grad_()
    for pair in ((rows, row), (row, rows)):
        value = compiled_kl(*(f.Categorical(**{kind: side}) for side in pair))
        whole = [side.expand(4, 6) for side in pair]
        expected = FORMS[f.Categorical, f.Categorical](*(f.Categorical(**{kind: side}) for side in whole))
        torch.testing.assert_close(value, expected, rtol=1e-14, atol=0)
        gradients, others = (torch.autograd.grad(side.sum(), pair) for side in (value, expected))
        for gradient, other in zip(gradients, others, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-12, atol=1e-15)
    assert kl(f.Categorical(**{kind: rows[:0].detach()}), f.Categorical(**{kind: row.detach()})).shape == (0,)


@pytest.mark.parametrize("kind", ["probs", "logits"])
def test_zeros_among_probabilities_reach_the_general_gradient(kind):
    p = torch.tensor([0.5, 0.5, 0.0], dtype=torch.double)
    q = torch.tensor([0.25, 0.5, 0.25], dtype=torch.double)
    sides = [(side.log() if kind == "logits" else side).requires_grad_() for side in (p, q)]
    value = kl(*(d.Categorical(**{kind: side}) for side in sides))
    value.backward()
    assert float(value.detach()) == pytest.approx(np.log(2) / 2, rel=1e-15)
    assert all(torch.isfinite(side.grad).all() for side in sides)


@pytest.mark.parametrize("kind", ["probs", "logits"])
def test_second_derivatives_of_categories(kind):
    torch.manual_seed(1)
    sides = [torch.randn(2, 3, dtype=torch.double, requires_grad=True) for _ in range(2)]

    def value(*logits):
        given = [x.softmax(-1) for x in logits] if kind == "probs" else logits
        return kl(*(d.Categorical(**{kind: side}) for side in given))

    assert torch.autograd.gradcheck(value, sides)
    assert torch.autograd.gradgradcheck(value, sides)


def test_invalid_categories_raise_the_errors_of_the_general_implementation():
    good = f.Categorical(probs=np.array([0.5, 0.5]))
    with pytest.raises(NotNormalizedError):
        kl(d.Categorical(probs=torch.tensor([0.5, 0.5])), _replaced(d.Categorical, "_param", torch.tensor([0.5, 0.6])))
    with pytest.raises(SupportError):
        kl(d.Categorical(logits=torch.zeros(2)), _replaced(d.Categorical, "_param", torch.tensor([torch.nan, 0.0])))
    with pytest.raises(ShapeError):
        kl(good, f.Categorical(probs=np.array([0.5, 0.25, 0.25])))


def _replaced(kind, name, value):
    """A distribution whose parameter was replaced after it was validated."""
    made = kind(probs=torch.full((2,), 0.5)) if not torch.isnan(value).any() else kind(logits=torch.zeros(2))
    setattr(made, name, value)
    setattr(made, "probs" if "probs" in vars(made) else "logits", value)
    return made


# Dirichlet distributions: rows of at most 8 categories and longer rows have different loops.


def exact_dirichlet(a, b):
    total_a, total_b = mpmath.fsum(a), mpmath.fsum(b)
    terms = [
        mpmath.loggamma(y) - mpmath.loggamma(x) + (x - y) * (mpmath.digamma(x) - mpmath.digamma(total_a))
        for x, y in zip(a, b, strict=True)
    ]
    return mpmath.loggamma(total_a) - mpmath.loggamma(total_b) + mpmath.fsum(terms)


@cache
def dirichlet_case(dtype, rows, size, delta):
    """Rows of concentrations of p and of q, and KL of each pair."""
    rng = np.random.default_rng(size)
    a = np.exp(2 * rng.normal(size=(rows, size))).astype(dtype)
    b = (a * np.exp(delta * rng.normal(size=a.shape))).astype(dtype)
    with mpmath.workdps(50):
        pairs = [[[mpmath.mpf(float(x)) for x in side[i]] for side in (a, b)] for i in range(rows)]
        return a, b, [float(exact_dirichlet(*pair)) for pair in pairs]


@pytest.mark.parametrize("delta", [1.0, 1e-4])
@pytest.mark.parametrize(("rows", "size"), [(1, 1), (9, 2), (2, 8), (2, 9), (2, 21)])
@pytest.mark.parametrize(("dtype", "epsilon"), TYPES)
def test_dirichlet_sizes(instructions, dtype, epsilon, rows, size, delta):
    a, b, truth = dirichlet_case(dtype, rows, size, delta)
    value = compiled_kl(f.Dirichlet(concentration=a), f.Dirichlet(concentration=b))
    for i in range(rows):
        assert float(value[i]) == pytest.approx(truth[i], rel=20 * epsilon, abs=1e-300)
        alone = compiled_kl(f.Dirichlet(concentration=a[i]), f.Dirichlet(concentration=b[i]))
        assert alone == value[i]
    general = FORMS[f.Dirichlet, f.Dirichlet]
    tensors = [torch.tensor(side.astype(float), requires_grad=True) for side in (a, b)]
    pair = [f.Dirichlet(concentration=side) for side in tensors]
    slopes = [torch.autograd.grad(kind(*pair).sum(), tensors) for kind in (compiled_kl, general)]
    for slope, other in zip(*slopes, strict=True):
        torch.testing.assert_close(slope, other, rtol=1e-9, atol=1e-12 * float(other.abs().max()))
    for changed in (unaligned, strided):
        again = compiled_kl(*(f.Dirichlet(concentration=changed(side)) for side in (a, b)))
        assert np.array_equal(again, value)


# Multivariate normal distributions.

MATRICES = ["covariance_matrix", "scale_tril"]


def normals(n, delta, name, seed=0, batch=()):
    """The parameters of two normals of n components at about the distance `delta`."""
    rng = np.random.default_rng(seed)
    root, noise = rng.normal(size=(2, *batch, n, n))
    covariance = root @ np.swapaxes(root, -1, -2) / n + np.eye(n)
    change = noise @ np.swapaxes(noise, -1, -2) / n if delta >= 1 else (noise + np.swapaxes(noise, -1, -2)) / (8 * n)
    loc = rng.normal(size=(*batch, n))
    matrices = [covariance, covariance + delta * change]
    if name == "scale_tril":
        matrices = [np.linalg.cholesky(matrix) for matrix in matrices]
    return [loc, matrices[0], loc + delta * rng.normal(size=loc.shape), matrices[1]]


@cache
def multivariate_case(name, dtype, n, delta):
    """The parameters of a pair, and KL and its derivatives in both directions."""
    values = [value.astype(dtype) for value in normals(n, delta, name)]
    return values, [exact_multivariate(*side, name) for side in (values, values[2:] + values[:2])]


def exact_multivariate(loc1, matrix1, loc2, matrix2, name):
    """KL, and its derivatives with respect to loc1 and to the two matrices."""
    n = len(loc1)
    with mpmath.workdps(50):
        shift = mpmath.matrix([mpmath.mpf(float(x)) - mpmath.mpf(float(y)) for x, y in zip(loc1, loc2, strict=True)])
        given = [mpmath.matrix(matrix.astype(float).tolist()) for matrix in (matrix1, matrix2)]
        p, q = (matrix * matrix.T for matrix in given) if name == "scale_tril" else given
        inverse_p, inverse_q = p**-1, q**-1
        mean = inverse_q * shift
        trace = mpmath.fsum((inverse_q * p)[i, i] for i in range(n))
        square = mpmath.fsum(shift[i] * mean[i] for i in range(n))
        value = (trace - n + square + mpmath.log(mpmath.det(q) / mpmath.det(p))) / 2
        slopes = [(inverse_q - inverse_p) / 2, (inverse_q - inverse_q * p * inverse_q - mean * mean.T) / 2]
        if name == "scale_tril":
            slopes = [2 * slope * factor for slope, factor in zip(slopes, given, strict=True)]
        found = [np.array(slope.tolist(), float) for slope in slopes]
    found = [np.tril(slope) for slope in found] if name == "scale_tril" else found
    return float(value), np.array([float(x) for x in mean]), *found


@pytest.mark.parametrize("delta", [30.0, 1.0, 0.1, 1e-4])
@pytest.mark.parametrize("n", [1, 2, 9])
@pytest.mark.parametrize(("dtype", "epsilon"), TYPES)
@pytest.mark.parametrize("name", MATRICES)
def test_multivariate_normal(instructions, name, dtype, epsilon, n, delta):
    values, truth = multivariate_case(name, dtype, n, delta)
    tensors = [torch.tensor(value, requires_grad=True) for value in values]
    for parts, (exact, mean, *slopes) in zip((tensors, tensors[2:] + tensors[:2]), truth, strict=True):
        value = compiled_kl(*(f.MultivariateNormal(loc=x, **{name: y}) for x, y in (parts[:2], parts[2:])))
        assert value is not None
        gradients = torch.autograd.grad(value, parts)
        assert float(value.detach()) == pytest.approx(exact, rel=30 * epsilon)
        for gradient, slope in zip(gradients, (mean, slopes[0], -mean, slopes[1]), strict=True):
            assert np.abs(gradient.numpy() - slope).max() <= 100 * epsilon * np.abs(slope).max()


def test_the_error_of_covariances_is_at_most_the_error_of_textbook_formula(instructions):
    parts = normals(6, 1e-5, "covariance_matrix")
    exact = exact_multivariate(*parts, "covariance_matrix")[0]
    loc1, p, loc2, q = parts
    solved, shift = np.linalg.solve(q, p), loc1 - loc2
    logs = np.linalg.slogdet(q)[1] - np.linalg.slogdet(p)[1]
    naive = (np.trace(solved) - 6 + shift @ np.linalg.solve(q, shift) + logs) / 2
    value = compiled_kl(
        f.MultivariateNormal(loc=loc1, covariance_matrix=p), f.MultivariateNormal(loc=loc2, covariance_matrix=q)
    )
    assert abs(value / exact - 1) < 1e-13 < abs(naive / exact - 1)


@pytest.mark.parametrize("delta", [1.0, 1e-3])
@pytest.mark.parametrize("n", [17, 64, 67])
@pytest.mark.parametrize("name", MATRICES)
def test_the_general_implementation_agrees_for_larger_matrices(instructions, name, n, delta):
    tensors = [torch.tensor(value, requires_grad=True) for value in normals(n, delta, name, seed=1)]
    pair = [f.MultivariateNormal(loc=x, **{name: y}) for x, y in (tensors[:2], tensors[2:])]
    values = [compiled_kl(*pair), FORMS[f.MultivariateNormal, f.MultivariateNormal](*pair)]
    torch.testing.assert_close(*values, rtol=1e-13, atol=0)
    slopes = [torch.autograd.grad(value, tensors) for value in values]
    for slope, other in zip(*slopes, strict=True):
        torch.testing.assert_close(slope, other, rtol=1e-9, atol=1e-12 * float(other.abs().max()))


@pytest.mark.parametrize("name", MATRICES)
def test_batches_of_multivariate_normals(name):
    loc1, matrix1, loc2, matrix2 = (torch.tensor(x) for x in normals(3, 0.5, name, batch=(2, 4)))
    cases = [
        (loc1, matrix1, loc2, matrix2),
        (loc1, matrix1[0, 0], loc2[0, 0], matrix2),
        (loc1[0, 0], *normals(3, 0.5, name, seed=5)[1:]),
    ]
    cases += [(loc1[:, :1], matrix1[:1], loc2, matrix2[0]), (loc1[:0], matrix1[0, 0], loc2[0, 0], matrix2[0, 0])]
    for case in cases:
        tensors = [torch.as_tensor(value).clone().requires_grad_() for value in case]
        pair = [f.MultivariateNormal(loc=x, **{name: y}) for x, y in (tensors[:2], tensors[2:])]
        values = [compiled_kl(*pair), FORMS[f.MultivariateNormal, f.MultivariateNormal](*pair)]
        assert values[0] is not None
        torch.testing.assert_close(*values, rtol=1e-13, atol=0)
        slopes = [torch.autograd.grad(value.sum(), tensors) for value in values]
        for slope, other in zip(*slopes, strict=True):
            torch.testing.assert_close(slope, other, rtol=1e-11, atol=1e-13)


def low_rank(loc, factor, diagonal):
    return f.LowRankMultivariateNormal(loc=loc, cov_factor=factor, cov_diag=diagonal)


@pytest.mark.parametrize("ranks", [(2, 2), (1, 3), (2, 0)])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (0,)])
def test_low_rank_covariances(batch, ranks):
    rng = np.random.default_rng(0)
    sides = (
        [rng.normal(size=(*batch, 5)), rng.normal(size=(5, ranks[0])), rng.uniform(0.2, 1.0, size=(*batch, 5))],
        [rng.normal(size=5), rng.normal(size=(*batch, 5, ranks[1])), rng.uniform(0.2, 1.0, size=5)],
    )
    tensors = [torch.tensor(value, requires_grad=True) for side in sides for value in side]
    pair = low_rank(*tensors[:3]), low_rank(*tensors[3:])
    values = [compiled_kl(*pair), FORMS[f.LowRankMultivariateNormal, f.LowRankMultivariateNormal](*pair)]
    torch.testing.assert_close(*values, rtol=1e-13, atol=0)
    assert np.array_equal(compiled_kl(low_rank(*sides[0]), low_rank(*sides[1])), values[0].detach().numpy())
    slopes = [
        torch.autograd.grad((value * torch.arange(1.0, value.numel() + 1).reshape(batch)).sum(), tensors)
        for value in values
    ]
    for slope, other in zip(*slopes, strict=True):
        torch.testing.assert_close(slope, other, rtol=1e-11, atol=1e-13)


def test_low_rank_covariances_in_float32():
    rng = np.random.default_rng(1)
    loc, factor, diagonal = rng.normal(size=(3, 6)), rng.normal(size=(3, 6, 2)), rng.uniform(0.2, 1.0, size=(3, 6))
    pair = [[x.astype(np.float32) for x in (loc, factor, diagonal)]]
    pair.append([x * np.float32(1.001) for x in pair[0]])
    value = kl(*(d.LowRankMultivariateNormal(*map(torch.tensor, side)) for side in pair))
    assert value.dtype == torch.float32
    form = FORMS[f.LowRankMultivariateNormal, f.LowRankMultivariateNormal]
    exact = form(*(low_rank(*(x.astype(float) for x in side)) for side in pair))
    np.testing.assert_allclose(value.numpy(), exact, rtol=3e-7)


@pytest.mark.parametrize(("dtype", "epsilon"), TYPES)
@pytest.mark.parametrize("distance", [3.0, 0.1, 1e-3])
@pytest.mark.parametrize(("n", "ranks"), [(70, (2, 3)), (128, (10, 10)), (65, (1, 0))])
def test_low_rank_covariances_of_many_components(n, ranks, distance, dtype, epsilon):
    rng = np.random.default_rng(0)
    p = [rng.normal(size=(2, n)), rng.normal(size=(2, n, ranks[0])), rng.uniform(0.1, 1.1, size=(2, n))]
    q = [rng.normal(size=n), rng.normal(size=(2, n, ranks[1])), rng.uniform(0.1, 1.1, size=n)]
    if ranks[0] == ranks[1] and distance < 3:
        q = [value * np.exp(distance * rng.normal(size=value.shape)) for value in p]
    values = [value.astype(dtype) for value in (*p, *q)]
    tensors = [torch.tensor(value, requires_grad=True) for value in values]
    exact = [torch.tensor(value.astype(np.float64), requires_grad=True) for value in values]
    found = compiled_kl(low_rank(*tensors[:3]), low_rank(*tensors[3:]))
    form = FORMS[f.LowRankMultivariateNormal, f.LowRankMultivariateNormal]  # which forms the covariance matrices
    expected = form(low_rank(*exact[:3]), low_rank(*exact[3:]))
    assert found.dtype == tensors[0].dtype
    torch.testing.assert_close(found.double(), expected, rtol=max(2e-13, epsilon), atol=0)
    slopes = torch.autograd.grad(found.sum(), tensors)
    for slope, other in zip(slopes, torch.autograd.grad(expected.sum(), exact), strict=True):
        tolerance = max(1e-9, 30 * epsilon) * float(other.abs().max()) if other.numel() else 0
        torch.testing.assert_close(slope.double(), other, rtol=0, atol=tolerance)


def test_the_form_without_covariance_matrices_is_used_only_where_its_terms_do_not_cancel():
    rng = np.random.default_rng(0)
    p = [rng.normal(size=100), rng.normal(size=(100, 3)), rng.uniform(0.1, 1.1, size=100)]
    far = [rng.normal(size=100), rng.normal(size=(100, 3)), rng.uniform(0.1, 1.1, size=100)]
    near = [value * (1 + 1e-6 * rng.normal(size=value.shape)) for value in p]
    assert low_rank_kl([*p, *far], 1e-13) is not None
    assert low_rank_kl([*p, *near], 1e-13) is None
    singular = [p[0], 1e6 * (p[1][:, :1] + 1e-5 * p[1]), p[2]]
    assert low_rank_kl([*far, *singular], 1e-13) is None
    value = compiled_kl(low_rank(*p), low_rank(*near))
    exact = FORMS[f.LowRankMultivariateNormal, f.LowRankMultivariateNormal](low_rank(*p), low_rank(*near))
    assert value == pytest.approx(exact, rel=1e-12)
    assert compiled_kl(low_rank(*p), low_rank(*p)) == 0


@pytest.mark.parametrize("size_p", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("size_q", [1e-9, 1.0, 1e9])
def test_the_form_without_covariance_matrices_against_extended_precision(size_p, size_q):
    rng = np.random.default_rng(0)
    p, q = (
        [rng.normal(size=12), size * rng.normal(size=(12, 2)), rng.uniform(0.1, 1.1, size=12)]
        for size in (size_p, size_q)
    )
    found = low_rank_kl([*p, *q], 1e-13)
    with mpmath.workdps(80):
        (loc1, w1, d1), (loc2, w2, d2) = ([mpmath.matrix(value.tolist()) for value in side] for side in (p, q))
        covariance1, covariance2 = w1 * w1.T + mpmath.diag(list(d1)), w2 * w2.T + mpmath.diag(list(d2))
        inverse, shift = covariance2**-1, loc1 - loc2
        trace = mpmath.fsum((inverse * covariance1)[i, i] for i in range(12))
        logs = mpmath.log(mpmath.det(covariance2) / mpmath.det(covariance1))
        exact = float((trace - 12 + (shift.T * inverse * shift)[0] + logs) / 2)
    assert found == pytest.approx(exact, rel=2e-15)


def test_low_rank_covariances_with_invalid_parts():
    good = low_rank(np.zeros(2), np.ones((2, 1)), np.ones(2))
    bad = d.LowRankMultivariateNormal(torch.zeros(2), torch.ones(2, 1), torch.ones(2), validate_args=False)
    bad.cov_diag = torch.tensor([1.0, -0.1])
    other = d.LowRankMultivariateNormal(torch.zeros(2), torch.ones(2, 1), torch.ones(2))
    assert compiled_kl(bad, other) is None
    with pytest.raises(ParameterError, match="cov_diag"):
        kl(bad, other)
    assert compiled_kl(good, low_rank(np.zeros(3), np.ones((3, 1)), np.ones(3))) is None


@pytest.mark.parametrize("name", MATRICES)
def test_memory_of_multivariate_normals(name):
    parts = normals(3, 0.5, name, batch=(5,))
    expected = kl(*(f.MultivariateNormal(loc=x, **{name: y}) for x, y in (parts[:2], parts[2:])))
    for changed in (unaligned, strided, np.asfortranarray):
        again = [changed(part) for part in parts]
        value = kl(*(f.MultivariateNormal(loc=x, **{name: y}) for x, y in (again[:2], again[2:])))
        assert np.array_equal(value, expected)
    objects = [
        d.MultivariateNormal(*map(torch.tensor, side[:1]), **{name: torch.tensor(side[1])})
        for side in (parts[:2], parts[2:])
    ]
    assert compiled_kl(*objects) is not None
    assert np.array_equal(kl(*objects).numpy(), expected)


@pytest.mark.parametrize("name", MATRICES)
def test_second_derivatives_of_multivariate_normals(name):
    tensors = [torch.tensor(value, requires_grad=True) for value in normals(2, 0.5, name)]

    def value(loc1, matrix1, loc2, matrix2):
        sides = [matrix1.tril(), matrix2.tril()] if name == "scale_tril" else [matrix1, matrix2]
        sides = sides if name == "scale_tril" else [(side + side.mT) / 2 for side in sides]
        return kl(*(f.MultivariateNormal(loc=x, **{name: y}) for x, y in zip((loc1, loc2), sides, strict=True)))

    assert torch.autograd.gradcheck(value, tensors)
    assert torch.autograd.gradgradcheck(value, tensors)


@pytest.mark.parametrize(
    ("name", "matrix"),
    [
        ("covariance_matrix", [[1.0, 2.0], [2.0, 1.0]]),
        ("covariance_matrix", [[1.0, 0.5], [0.0, 1.0]]),
        ("scale_tril", [[1.0, 0.5], [0.0, 1.0]]),
        ("scale_tril", [[1.0, 0.0], [0.5, -1.0]]),
    ],
)
def test_invalid_matrices_are_refused(name, matrix):
    good = d.MultivariateNormal(torch.zeros(2), **{name: torch.eye(2)})
    bad = d.MultivariateNormal(torch.zeros(2), **{name: torch.eye(2)})
    setattr(bad, name, torch.tensor(matrix))
    for pair in ((good, bad), (bad, good)):
        assert compiled_kl(*pair) is None
        with pytest.raises(ParameterError):
            kl(*pair)


def test_the_matrix_that_was_given_is_read():
    covariance = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    given = d.MultivariateNormal(torch.zeros(2), covariance_matrix=covariance)
    _ = given.scale_tril, given.precision_matrix
    other = d.MultivariateNormal(torch.ones(2), covariance_matrix=torch.eye(2))
    assert compiled_kl(given, other) is not None
    precise = d.MultivariateNormal(torch.zeros(2), precision_matrix=covariance)
    assert compiled_kl(precise, precise) is None
    assert compiled_kl(given, d.MultivariateNormal(torch.zeros(2), scale_tril=torch.eye(2))) is None


@pytest.mark.parametrize(
    "arguments",
    [
        (True, np.zeros(2), np.eye(2), np.zeros(2), np.eye(3), np.zeros(1)),
        (True, np.zeros(2), np.eye(2), np.zeros(2), np.eye(2, dtype=np.float32), np.zeros(1)),
        (True, np.zeros(0), np.eye(0), np.zeros(0), np.eye(0), np.zeros(1)),
        (True, np.zeros((3, 2)), np.eye(2), np.zeros(2), np.eye(2), np.zeros(2)),
        (True, np.zeros(2), np.eye(2), np.zeros(2), np.eye(2)),
        (True, np.zeros(2), np.eye(2), np.zeros(2), np.eye(2), np.broadcast_to(0.0, 1)),
    ],
)
def test_wrong_arguments_of_the_compiled_functions(arguments):
    with pytest.raises((TypeError, ValueError, BufferError)):
        kernels.multivariate_rows(*arguments)
    with pytest.raises((TypeError, ValueError, BufferError)):
        kernels.multivariate_gradient_rows(*arguments, np.zeros(2), None, None, np.zeros(3))
    with pytest.raises((TypeError, ValueError, BufferError)):
        kernels.kl_probs_gradient_rows(*arguments[1:3], np.zeros(1), None, np.zeros(7))
    with pytest.raises((TypeError, ValueError, BufferError)):
        kernels.dirichlet_rows(np.zeros((2, 0)), np.zeros((2, 0)), np.zeros(2))
