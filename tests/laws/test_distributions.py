"""Laws of KL between distributions, for every registered pair and framework: merging values never raises it, what it is
of pairs of values is the sum of what it is of the first and of the second given the first, and it is jointly convex.

SciPy's cumulative probabilities and densities judge; nothing here but KL itself is the package's.
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
from ..oracles.densities_on_the_line import edges_between, line_of, log_densities, masses, places_and_weights, resolved

SEEDS = st.integers(0, 2**32 - 1)
LIBRARIES = {
    "numpy": np.asarray,
    "torch": lambda values: torch.tensor(values, dtype=torch.float64),
    "jax": lambda values: jax.numpy.asarray(values),
}
COUNTED = {"total_count"}


def draw_zipf(rng):
    p, q = rng.uniform(4, 6, 2)
    return f.Zipf(exponent=float(p)), f.Zipf(exponent=float(q))


def draw_zipfian(rng):
    p, q = rng.uniform(0.5, 2, 2)
    return f.Zipfian(exponent=float(p), total_count=50.0), f.Zipfian(exponent=float(q), total_count=50.0)


MORE = {(f.Zipf, f.Zipf): draw_zipf, (f.Zipfian, f.Zipfian): draw_zipfian}
ON_THE_LINE = [pair for pair in FORMS if {*pair} <= oracle.FAMILIES.keys()] + list(MORE)


def name_of(pair):
    return f"{pair[0].__name__}-{pair[1].__name__}"


def draw(pair, rng):
    p, q = MORE[pair](rng) if pair in MORE else oracle.draw(*pair, rng)
    if pair == (f.Bernoulli, f.Binomial):  # JAX compiles the sum over its counts anew for every other number of them
        q = f.Binomial(total_count=5.0, probs=q.probs)
    if pair == (f.Pareto, f.Weibull):  # the moment that KL asks for exists, and is seen as far out as floats reach
        q = f.Weibull(scale=q.scale, concentration=min(q.concentration, p.alpha / 2))
    return p, q


def moved(one, other, share):
    """From one record towards the other: every set of parameters is convex, but for counts."""
    values = {name: value for name, value in vars(one).items() if value is not None}
    towards = {
        name: value if name in COUNTED else (1 - share) * value + share * getattr(other, name)
        for name, value in values.items()
    }
    return type(one)(**towards)


def two_of(pair, seed, share):
    """Two of p and two of q, the second nearer to the first as the share is smaller."""
    rng = np.random.default_rng(seed)
    first, other = draw(pair, rng), draw(pair, rng)
    second = [moved(one, towards, share) for one, towards in zip(first, other, strict=True)]
    return [first[0], second[0]], [first[1], second[1]]


def by_every_library(p_two, q_two):
    """KL of both at once, from each library's arrays."""

    def together(two, library):
        names = [name for name, value in vars(two[0]).items() if value is not None]
        return type(two[0])(**{name: library([getattr(one, name) for one in two]) for name in names})

    with jax.enable_x64(True):
        return [np.asarray(kl(together(p_two, library), together(q_two, library))) for library in LIBRARIES.values()]


def expected_log_ratio(log_p, log_q):
    """p log(p/q), and 0 where p is."""
    some = log_p > -np.inf
    ratio = np.where(some, log_p, 0.0) - np.where(some, log_q, 0.0)
    return np.where(some, np.exp(log_p) * ratio, 0.0)


def kinks(records):
    return [record.loc for record in records if isinstance(record, f.Laplace)] + [
        end for record in records if isinstance(record, f.Uniform) for end in (record.low, record.high)
    ]


def laws(function):
    """For every pair on the line, at a few random parameters."""
    tested = given(seed=SEEDS, share=st.sampled_from([0.05, 1.0]), data=st.data())(function)
    tested = settings(max_examples=3, phases=[Phase.generate])(tested)  # to find simpler ones would take minutes
    return pytest.mark.parametrize("pair", ON_THE_LINE, ids=name_of)(tested)


@laws
def test_data_processing_merging_values_never_raises_it(pair, seed, share, data):
    (p, *_), (q, *_) = sides = two_of(pair, seed, share)
    lines = line_of(p), line_of(q)
    finest = np.unique([*edges_between(*lines), *kinks([p, q])])  # a bin that holds a kink hides what is beside it
    fine = resolved(lines[1], finest)
    kept = data.draw(st.lists(st.integers(0, fine.size - 1), min_size=1, max_size=6, unique=True))
    coarse = fine[np.sort(kept)]
    values = [float(rel_entr(*(masses(line, edges) for line in lines)).sum()) for edges in (coarse, fine)]
    assert -1e-12 <= values[0] <= values[1] + 1e-12
    with np.errstate(all="ignore"):
        whole_is_seen = lines[0].counts or lines[1].cdf(finest[0]) > 1e-280 < lines[1].sf(finest[-1])
    for whole, _ in by_every_library(*sides):
        assert values[1] <= whole * (1 + 1e-9) + 1e-12
        # The finest bins lose next to nothing: a KL that is too large is noticed as well.
        assert not whole_is_seen or values[1] >= 0.97 * whole - 1e-12


@laws
def test_chain_rule_and_joint_convexity(pair, seed, share, data):
    weight = data.draw(st.floats(0.1, 0.9))
    p_pair, q_pair = two_of(pair, seed, share)
    by_library = by_every_library(p_pair, q_pair)
    lines = [line_of(record) for record in (*p_pair, *q_pair)]
    x, weights = places_and_weights(lines, kinks([*p_pair, *q_pair]))
    logs = log_densities(lines, x)
    held = logs[:2].max(axis=0) > -700  # nowhere else has p mass
    logs, weights = logs[:, held], weights[held]
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
