"""Inputs for which other libraries return a wrong KL of distributions, with their result and the correct one."""

import math

import numpy as np
import pytest
import torch

from kullback import families as f
from kullback.distributions import kl, register_kl
from kullback.errors import NoClosedFormError

D = torch.distributions
torch_kl = D.kl_divergence


def test_probabilities_are_not_clamped():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([1e-30, 1.0])
    assert float(torch_kl(D.Categorical(probs=p), D.Categorical(probs=q))) == pytest.approx(7.28, abs=0.01)
    assert float(kl(f.Categorical(probs=p), f.Categorical(probs=q))) == pytest.approx(33.845629, rel=1e-7)
    logits = torch.tensor([0.0, 0.0]), torch.tensor([-200.0, 0.0])
    assert float(torch_kl(*(D.Categorical(logits=side) for side in logits))) == math.inf
    assert float(kl(*(f.Categorical(logits=side) for side in logits))) == pytest.approx(99.306853, rel=1e-7)
    # One distribution by probabilities, and one by logits.
    mixed = kl(f.Bernoulli(probs=torch.tensor(0.5)), f.Bernoulli(logits=torch.tensor(-200.0)))
    assert float(mixed) == pytest.approx(99.306853, rel=1e-7)


def test_large_dirichlets_in_float32():
    a = torch.full((100,), 1e4)
    b = 1.01 * a
    assert float(torch_kl(D.Dirichlet(a), D.Dirichlet(b))) < 0
    for library in (lambda x: x, lambda x: x.numpy()):
        got = kl(f.Dirichlet(concentration=library(a)), f.Dirichlet(concentration=library(b)))
        exact = kl(f.Dirichlet(concentration=np.float64(a.numpy())), f.Dirichlet(concentration=np.float64(b.numpy())))
        assert str(got.dtype) == ("torch.float32" if isinstance(got, torch.Tensor) else "float64")
        assert float(got) == pytest.approx(0.00246, abs=5e-6)
        assert float(got) == pytest.approx(float(exact), rel=1e-5)


def test_continuous_bernoullis_in_float32():
    probs = torch.tensor([0.499, 0.4999, 0.5, 0.50001, 0.3, 1e-6])
    others = torch.tensor([0.5, 0.501, 0.49999, 0.5, 0.30001, 1e-5])
    pairs = f.ContinuousBernoulli(probs=probs), f.ContinuousBernoulli(probs=others)
    got = kl(*pairs)
    exact = kl(*(f.ContinuousBernoulli(probs=d.probs.to(torch.float64)) for d in pairs))
    assert (got > 0).all()
    np.testing.assert_allclose(got, exact, rtol=2e-5)
    theirs = torch_kl(D.ContinuousBernoulli(probs=probs), D.ContinuousBernoulli(probs=others))
    assert (theirs <= 0).any() or not np.allclose(theirs, exact, rtol=1e-2)


def test_pairs_that_torch_does_not_support():
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    for theirs, ours in (
        (D.VonMises, f.VonMises),
        (D.Weibull, lambda a, b: f.Weibull(scale=a, concentration=b)),
    ):
        with pytest.raises(NotImplementedError):
            torch_kl(theirs(one, two), theirs(two, one))
        pair = [ours(loc=a, concentration=b) if ours is f.VonMises else ours(a, b) for a, b in ((one, two), (two, one))]
        assert 0 < float(kl(*pair)) < 10
    # A pair whose KL is finite.
    assert float(torch_kl(D.ContinuousBernoulli(one / 2), D.Uniform(-one, two))) == pytest.approx(math.log(3))


def test_non_injective_transforms_have_no_closed_form():
    absolute = [D.transforms.AbsTransform()]
    normals = (D.Normal(loc, torch.tensor(1.0)) for loc in torch.tensor([1.0, -1.0]))
    p, q = (D.TransformedDistribution(normal, absolute) for normal in normals)
    assert float(torch_kl(p, q)) == 2.0  # the true value is 0, because |x| has the same distribution under both
    bases = [f.Normal(loc=loc, scale=1.0) for loc in (1.0, -1.0)]
    with pytest.raises(NoClosedFormError, match="invertible"):
        kl(*(f.Transformed(base=base, transform=absolute[0]) for base in bases))
    squashed = D.transforms.TanhTransform()
    assert kl(*(f.Transformed(base=base, transform=squashed) for base in bases)) == 2.0
    assert kl(*(f.Transformed(base=base, transform="exp", invertible=True) for base in bases)) == 2.0
    with pytest.raises(NoClosedFormError, match="equal transforms"):
        kl(f.Transformed(base=bases[0], transform=squashed), f.Transformed(base=bases[1], transform=absolute[0]))


def test_register_kl_rejects_other_classes():
    D.kl.register_kl(int, int)(lambda p, q: 0)  # accepted
    del D.kl._KL_REGISTRY[int, int]
    D.kl._KL_MEMOIZE.clear()
    for kind in (int, object, np.ndarray, np.float64, 3, "Normal", f.Normal(loc=0.0, scale=1.0)):
        with pytest.raises(TypeError, match="expected two classes of distributions"):
            register_kl(kind, f.Normal)


def test_gumbel_to_normal():
    p, q = D.Gumbel(torch.tensor(0.5), torch.tensor(2.0)), D.Normal(torch.tensor(1.0), torch.tensor(3.0))
    x = torch.tensor(np.random.default_rng(0).gumbel(0.5, 2.0, 200_000))
    sampled = (p.log_prob(x) - q.log_prob(x)).mean()
    assert float(kl(f.Gumbel(loc=0.5, scale=2.0), f.Normal(loc=1.0, scale=3.0))) == pytest.approx(
        float(sampled), abs=5e-3
    )
