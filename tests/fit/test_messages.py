"""Errors of fits name the cause, and a remedy that is sufficient."""

import pytest
from scipy import stats

from kullback import families as f
from kullback import fit_alpha, fit_forward, fit_reverse
from kullback.errors import ParameterError, SupportError

MIXTURE = f.NormalMixture(weights=[0.5, 0.5], locs=[0.0, 1.0], scales=[1.0, 1.0])


@pytest.mark.parametrize(
    "fit",
    [
        lambda **fixed: fit_forward(f.Binomial, samples=[1, 2, 3], **fixed),
        lambda **fixed: fit_forward(f.Binomial, target=f.Binomial(total_count=9, probs=0.3), **fixed),
        lambda **fixed: fit_reverse(f.Binomial, target=f.Poisson(rate=1.0), **fixed),
        lambda **fixed: fit_alpha(f.Binomial, target=f.Poisson(rate=1.0), alpha=0, **fixed),
    ],
)
def test_a_count_is_requested_without_a_start_and_is_sufficient(fit):
    with pytest.raises(ParameterError, match=r"a count cannot be fitted: pass total_count in fixed=$") as caught:
        fit()
    assert "start" not in str(caught.value)
    assert fit(fixed={"total_count": 9}).distribution.total_count == 9


def test_a_support_without_an_end_is_not_named_as_the_cause():
    with pytest.raises(SupportError, match="tails too heavy for the target; fit a family of lighter tails") as caught:
        fit_reverse(f.Cauchy, target=MIXTURE)
    assert "outside" not in str(caught.value)


def test_a_univariate_target_is_not_the_reason_that_categories_need_samples():
    with pytest.raises(
        ParameterError, match="got Categorical; draw samples from the target and fit the family to them"
    ):
        fit_forward(f.Categorical, target=stats.randint(0, 4))
    samples = stats.randint(0, 4).rvs(400, random_state=0)
    assert fit_forward(f.Categorical, samples=samples).distribution.probs == pytest.approx([0.25] * 4, abs=0.1)


@pytest.mark.parametrize(
    ("family", "samples"), [(f.Normal, [1.0]), (f.Dirichlet, [[0.4, 0.6]]), (f.MultivariateNormal, [[1.0, 2.0]])]
)
def test_one_sample_is_named(family, samples):
    with pytest.raises(SupportError, match=r"expected two or more samples.*, got one sample"):
        fit_forward(family, samples=samples)
    with pytest.raises(SupportError, match=r"differ|constant"):
        fit_forward(family, samples=samples * 3)
