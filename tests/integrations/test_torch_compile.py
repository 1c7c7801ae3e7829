"""kl inside torch.compile(fullgraph=True): values and gradients equal those without compilation."""

import inspect

import pytest
import torch
from torch import distributions as d

import kullback
from kullback import families as f
from kullback import kl
from kullback.errors import KullbackError
from kullback.integrations.torch import install, uninstall

FLOAT64 = {"dtype": torch.float64}


def real():
    return torch.randn(3, **FLOAT64)


def positive():
    return torch.rand(3, **FLOAT64) + 0.5


def probability():
    return 0.8 * torch.rand(3, **FLOAT64) + 0.1


def covariance():
    root = torch.randn(3, 3, **FLOAT64)
    return root @ root.T + torch.eye(3, **FLOAT64)


CASES = {
    "normal": (d.Normal, real, positive),
    "log-normal": (d.LogNormal, real, positive),
    "Laplace": (d.Laplace, real, positive),
    "gamma": (d.Gamma, positive, positive),
    "beta": (d.Beta, positive, positive),
    "exponential": (d.Exponential, positive),
    "Poisson": (d.Poisson, positive),
    "Bernoulli": (d.Bernoulli, probability),
    "Bernoulli of logits": (lambda logits: d.Bernoulli(logits=logits), real),
    "categorical": (d.Categorical, positive),
    "categorical of logits": (lambda logits: d.Categorical(logits=logits), real),
    "one-hot": (d.OneHotCategorical, positive),
    "Dirichlet": (d.Dirichlet, positive),
    "geometric": (d.Geometric, probability),
    "Gumbel": (d.Gumbel, real, positive),
    "Cauchy": (d.Cauchy, real, positive),
    "uniform": (lambda width: d.Uniform(-width, width), positive),
    "Pareto": (lambda alpha: d.Pareto(1.0 + 0 * alpha, alpha), positive),
    "inverse gamma": (d.InverseGamma, positive, positive),
    "chi-squared": (d.Chi2, positive),
    "continuous Bernoulli": (d.ContinuousBernoulli, probability),
    "low-rank multivariate normal": (
        lambda loc, cov, diagonal: d.LowRankMultivariateNormal(loc, cov[:, :1], diagonal),
        real,
        covariance,
        positive,
    ),
    "binomial": (lambda probs: d.Binomial(5, probs=probs), probability),
    "half-normal": (d.HalfNormal, positive),
    "Weibull": (d.Weibull, positive, positive),
    "Independent": (lambda loc, scale: d.Independent(d.Normal(loc, scale), 1), real, positive),
    "multivariate normal": (d.MultivariateNormal, real, covariance),
    "scale_tril": (
        lambda loc, cov: d.MultivariateNormal(loc, scale_tril=torch.linalg.cholesky(cov)),
        real,
        covariance,
    ),
    "record": (lambda loc, scale: f.Normal(loc=loc, scale=scale), real, positive),
    "record of independent components": (
        lambda loc, scale: f.Independent(base=f.Normal(loc=loc, scale=scale), event_dims=1),
        real,
        positive,
    ),
    "truncated normal": (
        lambda loc, scale: f.TruncatedNormal(loc=loc, scale=scale, low=-1.0, high=2.0),
        real,
        positive,
    ),
}
AOT = ("normal", "gamma", "categorical of logits", "multivariate normal", "record")


def assert_equal_without_compilation(function, parameters, backend):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)(*parameters)
    gradients = torch.autograd.grad(compiled.sum(), parameters)
    value = function(*parameters)
    torch.testing.assert_close(compiled, value, rtol=1e-13, atol=0)
    for gradient, expected in zip(gradients, torch.autograd.grad(value.sum(), parameters), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-13)


def drawn(kinds):
    torch.manual_seed(0)
    return [draw().requires_grad_() for draw in kinds]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "backend"), [*((case, "eager") for case in CASES), *((case, "aot_eager") for case in AOT)]
)
def test_equal_to_the_value_without_compilation(case, backend):
    make, *kinds = CASES[case]
    count = len(kinds)
    assert_equal_without_compilation(lambda *x: kl(make(*x[:count]), make(*x[count:])), drawn(kinds * 2), backend)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Python modules of the compiler that are deprecated
def test_inductor():
    parameters = drawn([real, positive])
    try:
        torch.compile(lambda x: x + 1, backend="inductor")(torch.ones(2))
    except Exception as error:
        pytest.skip(f"inductor needs a C++ compiler: {type(error).__name__}")
    assert_equal_without_compilation(
        lambda loc, scale: kl(d.Normal(loc, scale), d.Normal(torch.zeros_like(loc), 1.0)), parameters, "inductor"
    )


def test_distributions_from_outside_the_graph_and_constants():
    prior = d.Normal(torch.zeros(3, **FLOAT64), torch.ones(3, **FLOAT64))
    record = f.Normal(loc=0.0, scale=1.0)
    parameters = drawn([real, positive])
    assert_equal_without_compilation(lambda loc, scale: kl(d.Normal(loc, scale), prior), parameters, "eager")
    assert_equal_without_compilation(
        lambda loc, scale: kl(f.Normal(loc=loc, scale=scale), record), parameters, "aot_eager"
    )


@pytest.mark.slow
def test_two_families():
    parameters = drawn([real, positive])
    assert_equal_without_compilation(
        lambda loc, scale: kl(d.Laplace(loc, scale), d.Normal(loc + 1, scale)), parameters, "aot_eager"
    )
    assert_equal_without_compilation(
        lambda loc, scale: kl(d.Exponential(loc.exp()), d.Gamma(scale, scale)), parameters, "eager"
    )


@pytest.mark.parametrize("stable", [False, True])
def test_installed_kl_divergence(stable):
    parameters = drawn([real, positive])
    install(stable=stable)
    try:
        for make in (d.Normal, lambda loc, scale: d.StudentT(torch.full_like(loc, 3.0), loc, scale)):
            assert_equal_without_compilation(
                lambda loc, scale, make=make: d.kl_divergence(make(loc, scale), d.Normal(loc + 1, scale)),
                parameters,
                "eager",
            )
    finally:
        uninstall()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TorchDynamo warns of functions in the graphs around the interruption
def test_a_pair_without_an_operation_interrupts_the_graph():
    loc, scale = real(), positive()
    torch._dynamo.reset()
    outside = torch.compile(lambda loc, scale: kl(d.Normal(loc, scale), d.Uniform(loc, loc + scale)), backend="eager")
    assert (outside(loc, scale) == torch.inf).all()
    torch._dynamo.reset()
    with pytest.raises(KullbackError, match="closed form"):
        torch.compile(lambda loc, scale: kl(d.Normal(loc, scale), d.StudentT(scale)), backend="eager")(loc, scale)


# The functions without the checks of types that the tests add to them, which a graph cannot contain.
kl_probs, kl_log_probs, kl_logits, token_kl = map(
    inspect.unwrap, (kullback.kl_probs, kullback.kl_log_probs, kullback.kl_logits, kullback.token_kl)
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Python modules of the compiler that are deprecated
@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize(
    "function",
    [
        kl_logits,
        lambda p, q: kl_probs(p.softmax(-1), q.softmax(-1)),
        lambda p, q: kl_log_probs(p.log_softmax(-1), q.log_softmax(-1)),
        lambda p, q: token_kl(p, q, temperature=0.7),
        lambda p, q: kl(d.Categorical(logits=p), d.Categorical(logits=q)),
        lambda p, q: kl(d.Independent(d.Normal(p, 1.0), 1), d.Independent(d.Normal(q, 2.0), 1)),
    ],
)
def test_the_number_of_events_can_change(function, dynamic):
    torch.manual_seed(0)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for shape in ((3, 5), (4, 5), (7, 9), (2, 11)):
        parameters = [torch.randn(shape, **FLOAT64).requires_grad_() for _ in "pq"]
        value, expected = compiled(*parameters), function(*parameters)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-15)
        gradients = (torch.autograd.grad(kl.sum(), parameters) for kl in (value, expected))
        for gradient, right in zip(*gradients, strict=True):
            torch.testing.assert_close(gradient, right, rtol=1e-10, atol=1e-13)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Python modules of the compiler that are deprecated
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize(
    "function",
    [
        kl_logits,
        lambda p, q: kl_probs(p.softmax(-1), q.softmax(-1)),
        lambda p, q: kl_log_probs(p.log_softmax(-1), q.log_softmax(-1)),
        lambda p, q: kl_logits(p.mT, q.mT, axis=0),
        lambda p, q: kl_logits(p, q, where=torch.arange(8) < 6),
        lambda p, q: token_kl(p, q, temperature=0.7, mask=torch.tensor([True, False, True])),
        lambda p, q: kl_logits(1e300 * p, 1e300 * q) / 1e300,
        lambda p, q: kl_logits(p, p + 1e-2 * q),
    ],
)
def test_functions_of_arrays_are_one_operation(function, backend):
    torch.manual_seed(0)
    parameters = [torch.randn(3, 8, dtype=torch.float64).requires_grad_() for _ in "pq"]
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)(*parameters)
    gradients, value = torch.autograd.grad(compiled.sum(), parameters), function(*parameters)
    torch.testing.assert_close(compiled, value, rtol=1e-12, atol=1e-15)
    for gradient, expected in zip(gradients, torch.autograd.grad(value.sum(), parameters), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-13)
