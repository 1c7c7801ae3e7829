"""Laws of KL for every univariate registered pair and every library.

The laws are the data processing inequality for merged values, the chain rule, and joint convexity. The reference values
come from SciPy's cumulative probabilities and densities; only KL itself is computed by the package.
"""

import jax
import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, rel_entr

from kullback import families as f
from kullback.closed_forms import FORMS
from kullback.distributions import kl

from ..oracles import families as oracle
from ..oracles.univariate_densities import (
    distribution_of,
    edges_between,
    log_densities,
    masses,
    nodes_and_weights,
    resolved_edges,
)

SEEDS = st.integers(0, 2**32 - 1)
LIBRARIES = {
    "numpy": np.asarray,
    "torch": lambda values: torch.tensor(values, dtype=torch.float64),
    "jax": lambda values: jax.numpy.asarray(values),
}
COUNT_PARAMETERS = {"total_count"}


def draw_zipf(rng):
    p, q = rng.uniform(4, 6, 2)
    return f.Zipf(exponent=float(p)), f.Zipf(exponent=float(q))


def draw_zipfian(rng):
    p, q = rng.uniform(0.5, 2, 2)
    return f.Zipfian(exponent=float(p), total_count=50.0), f.Zipfian(exponent=float(q), total_count=50.0)


ADDITIONAL_PAIRS = {(f.Zipf, f.Zipf): draw_zipf, (f.Zipfian, f.Zipfian): draw_zipfian}
UNIVARIATE = [pair for pair in FORMS if {*pair} <= oracle.FAMILIES.keys()] + list(ADDITIONAL_PAIRS)


def name_of(pair):
    return f"{pair[0].__name__}-{pair[1].__name__}"


def draw(pair, rng):
    p, q = ADDITIONAL_PAIRS[pair](rng) if pair in ADDITIONAL_PAIRS else oracle.draw(*pair, rng)
    if pair == (f.Bernoulli, f.Binomial):  # JAX compiles the sum over the counts once for each number of counts
        q = f.Binomial(total_count=5.0, probs=q.probs)
    if pair == (
        f.Pareto,
        f.Weibull,
    ):  # the moment in the KL exists, and its integrand decays within the range of floats
        q = f.Weibull(scale=q.scale, concentration=min(q.concentration, p.alpha / 2))
    return p, q


def interpolate(one, other, share):
    """Interpolate between the parameters of two members of a family, except for counts."""
    values = {name: value for name, value in vars(one).items() if value is not None}
    towards = {
        name: value if name in COUNT_PARAMETERS else (1 - share) * value + share * getattr(other, name)
        for name, value in values.items()
    }
    return type(one)(**towards)


def draw_two(pair, seed, share):
    """Two distributions p and two distributions q; a smaller share moves the second closer to the first."""
    rng = np.random.default_rng(seed)
    first, other = draw(pair, rng), draw(pair, rng)
    second = [interpolate(one, towards, share) for one, towards in zip(first, other, strict=True)]
    return [first[0], second[0]], [first[1], second[1]]


def by_every_library(p_two, q_two):
    """KL of both pairs at once, from the arrays of each library."""

    def together(two, library):
        names = [name for name, value in vars(two[0]).items() if value is not None]
        return type(two[0])(**{name: library([getattr(one, name) for one in two]) for name in names})

    with jax.enable_x64(True):
        return [np.asarray(kl(together(p_two, library), together(q_two, library))) for library in LIBRARIES.values()]


def expected_log_ratio(log_p, log_q):
    """p log(p/q), and 0 where p = 0."""
    some = log_p > -np.inf
    ratio = np.where(some, log_p, 0.0) - np.where(some, log_q, 0.0)
    return np.where(some, np.exp(log_p) * ratio, 0.0)


def kinks(records):
    return [record.loc for record in records if isinstance(record, f.Laplace)] + [
        end
        for record in records
        if isinstance(record, f.Uniform | f.TruncatedNormal)
        for end in (record.low, record.high)
    ]


def laws(function):
    """Parametrise a test over every univariate pair, with a few random parameters."""
    tested = given(seed=SEEDS, share=st.sampled_from([0.05, 1.0]), data=st.data())(function)
    tested = settings(max_examples=3, phases=[Phase.generate])(tested)  # shrinking would take minutes
    return pytest.mark.parametrize("pair", UNIVARIATE, ids=name_of)(tested)


@laws
def test_data_processing_inequality_for_merged_values(pair, seed, share, data):
    (p, *_), (q, *_) = sides = draw_two(pair, seed, share)
    distributions = distribution_of(p), distribution_of(q)
    finest = np.unique([*edges_between(*distributions), *kinks([p, q])])  # no bin contains a kink in its interior
    fine = resolved_edges(distributions[1], finest)
    kept = data.draw(st.lists(st.integers(0, fine.size - 1), min_size=1, max_size=6, unique=True))
    coarse = fine[np.sort(kept)]
    values = [
        float(rel_entr(*(masses(distribution, edges) for distribution in distributions)).sum())
        for edges in (coarse, fine)
    ]
    assert -1e-12 <= values[0] <= values[1] + 1e-12
    with np.errstate(all="ignore"):
        tails_are_resolved = distributions[0].counts or distributions[1].cdf(finest[0]) > 1e-280 < distributions[1].sf(
            finest[-1]
        )
    for whole, _ in by_every_library(*sides):
        assert values[1] <= whole * (1 + 1e-9) + 1e-12
        # The finest bins lose little, so that a KL that is too large fails as well.
        assert not tails_are_resolved or values[1] >= 0.97 * whole - 1e-12


@laws
def test_chain_rule_and_joint_convexity(pair, seed, share, data):
    weight = data.draw(st.floats(0.1, 0.9))
    p_pair, q_pair = draw_two(pair, seed, share)
    by_library = by_every_library(p_pair, q_pair)
    distributions = [distribution_of(record) for record in (*p_pair, *q_pair)]
    x, weights = nodes_and_weights(distributions, kinks([*p_pair, *q_pair]))
    logs = log_densities(distributions, x)
    has_mass = logs[:2].max(axis=0) > -700  # p has no mass elsewhere
    logs, weights = logs[:, has_mass], weights[has_mass]
    for other in (weight, data.draw(st.floats(0.1, 0.9))):
        w, v = np.asarray([weight, 1 - weight]), np.asarray([other, 1 - other])
        log_p, log_q = np.log(w)[:, None] + logs[:2], np.log(v)[:, None] + logs[2:]
        both_p, both_q = logsumexp(log_p, axis=0), logsumexp(log_q, axis=0)
        mixtures = float(weights @ expected_log_ratio(both_p, both_q))
        given_x = expected_log_ratio(log_p - both_p, log_q - both_q).sum(axis=0)
        labels = float(weights @ (np.exp(both_p) * given_x))
        for each in by_library:
            joint = w @ each + rel_entr(w, v).sum()
            assert mixtures + labels == pytest.approx(joint, rel=1e-7, abs=1e-9)
            if other == weight:
                assert mixtures <= w @ each + 1e-9
