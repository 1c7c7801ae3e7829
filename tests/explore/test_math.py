"""Tests of math.js, run by Node, against the Python package."""

import itertools
import json
import shutil
import subprocess
from importlib.resources import files

import numpy as np
import pytest

from kullback import (
    best_of_n_policy,
    divergence,
    fit_forward,
    fit_reverse,
    kl_probs,
    kl_terms,
    measure,
    tilt,
    tilt_to_budget,
)
from kullback.families import Normal, NormalMixture
from kullback.optimum.mdp import MDP
from kullback.optimum.soft_value_iteration import soft_value_iteration
from kullback.optimum.trajectory_kl import trajectory_kl

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
STATIC_URL = f"file://{files('kullback.explore') / 'static'}"


def evaluate(expression: str, **given: object):
    """Evaluate a JavaScript expression with the functions of three modules and the values `given` in Node."""
    code = (
        f"import * as math from '{STATIC_URL}/math.js';\nimport * as bandit from '{STATIC_URL}/bandit.js';\n"
        f"import * as contours from '{STATIC_URL}/contours.js';\nObject.assign(globalThis, math, bandit, contours);\n"
        f"const given = {json.dumps(given)};\nconst replacer = (k, v) => v === Infinity ? 'inf' : v;\n"
        f"console.log(JSON.stringify({expression}, replacer));"
    )
    done = subprocess.run(["node", "--input-type=module", "-e", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def random_mixture(seed: int) -> NormalMixture:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 4))
    return NormalMixture(
        weights=rng.dirichlet(np.ones(count)), locs=rng.uniform(-10, 25, count), scales=rng.uniform(0.5, 6, count)
    )


def components(p: NormalMixture) -> list[dict]:
    """Return a mixture in the form of math.js."""
    columns = (np.asarray(column).tolist() for column in (p.weights, p.locs, p.scales))
    return [{"weight": w, "mean": m, "sd": s} for w, m, s in zip(*columns, strict=True)]


def test_phi_is_accurate_near_zero():
    d = [-40.0, -3.0, -0.031, -0.029, -1e-4, -1e-9, 0.0, 1e-12, 1e-5, 0.0299, 0.0301, 2.0, 30.0]
    exact = [
        float(np.expm1(np.longdouble(x)) - np.longdouble(x)) if abs(x) > 0.01 else x * x / 2 * (1 + x / 3 + x * x / 12)
        for x in d
    ]
    assert evaluate("given.d.map(phi)", d=d) == pytest.approx(exact, rel=3e-13, abs=0)


def test_forward_and_reverse_kl_of_densities():
    cases = [(random_mixture(seed), 20 * np.sin(seed), 0.4 + 12 * abs(np.cos(seed))) for seed in range(12)]
    computed = evaluate(
        "given.cases.map(([p, m, s]) => ['forward', 'reverse'].map((direction) => klTo(direction, p, m, s)))",
        cases=[(components(p), m, s) for p, m, s in cases],
    )
    for (p, m, s), (forward, reverse) in zip(cases, computed, strict=True):
        q = Normal(loc=m, scale=s)
        assert forward == pytest.approx(measure(p, q).value, rel=1e-6, abs=1e-9)
        assert reverse == pytest.approx(measure(q, p).value, rel=1e-6, abs=1e-9)


def test_all_local_minima_for_two_distant_modes_are_found():
    target = NormalMixture(weights=[0.5, 0.5], locs=[0.0, 20.0], scales=[2.0, 2.0])
    means, sds = np.linspace(-15, 35, 61).tolist(), (0.4 * 62.5 ** (np.arange(41) / 40)).tolist()
    expression = "localMinima('reverse', given.p, given.m, given.s, klMap('reverse', given.p, given.m, given.s))"
    found = evaluate(expression, p=components(target), m=means, s=sds)
    expected = fit_reverse(Normal, target=target).minima
    assert [minimum["kl"] for minimum in found] == pytest.approx([minimum.kl for minimum in expected], abs=1e-6)
    assert sorted(minimum["sd"] for minimum in found) == pytest.approx(
        sorted(minimum.distribution.scale for minimum in expected), rel=1e-4
    )
    end = evaluate("descend('forward', given.p, {mean: -12, sd: 1}).at(-1)", p=components(target))
    assert evaluate("descend('forward', given.p, {mean: -12, sd: 1})[0]", p=components(target)) == {
        "mean": -12,
        "sd": 1,
    }
    assert (end["mean"], end["sd"], end["kl"]) == pytest.approx((10.0, 10.198039027, 0.935901952), rel=1e-5)


@pytest.mark.parametrize(
    ("weights", "locs", "scales"),
    [
        ([0.5, 0.5], [-8.0, 28.0], [0.8, 0.8]),
        ([0.8, 0.2], [2.0, 16.0], [2.5, 1.2]),
        ([0.45, 0.35, 0.2], [2.0, 5.0, 11.0], [1.2, 2.2, 4.0]),
        ([1.0], [3.0], [2.0]),
    ],
)
def test_local_minima_of_other_mixtures(weights, locs, scales):
    target = NormalMixture(weights=weights, locs=locs, scales=scales)
    means, sds = np.linspace(-15, 35, 61).tolist(), (0.4 * 62.5 ** (np.arange(41) / 40)).tolist()
    expression = "localMinima('reverse', given.p, given.m, given.s, klMap('reverse', given.p, given.m, given.s))"
    found = evaluate(expression, p=components(target), m=means, s=sds)
    expected = sorted(minimum.kl for minimum in fit_reverse(Normal, target=target).minima)
    assert [minimum["kl"] for minimum in found] == pytest.approx(expected, rel=1e-6, abs=1e-9)
    forward = fit_forward(Normal, target=target).distribution
    fit = evaluate("forwardFit(given.p)", p=components(target))
    assert (fit["mean"], fit["sd"]) == pytest.approx((float(forward.loc), float(forward.scale)), rel=1e-9)


@pytest.mark.slow
def test_the_maps_are_accurate_to_two_percent():
    means, sds = np.linspace(-15, 35, 7).tolist(), (0.4 * 62.5 ** (np.arange(9) / 8)).tolist()
    for seed in range(4):
        target = random_mixture(seed)
        for direction in ("forward", "reverse"):
            rows = evaluate(f"klMap('{direction}', given.p, given.m, given.s)", p=components(target), m=means, s=sds)
            for row, sd in zip(rows, sds, strict=True):
                for kl, mean in zip(row, means, strict=True):
                    q = Normal(loc=mean, scale=sd)
                    exact = measure(target, q).value if direction == "forward" else measure(q, target).value
                    assert kl == pytest.approx(exact, rel=0.02, abs=0.01)


def test_contours_of_a_cone_are_circles():
    """The level 10 of the distance from a point, and an arc where the circle leaves the grid."""
    rows = [[float(np.hypot(x - 20, y - 15)) for x in range(41)] for y in range(31)]
    (loop,) = evaluate("contourLoops(given.rows, 10)", rows=rows)
    points = np.asarray(loop)
    assert np.hypot(points[:, 0] - 20, points[:, 1] - 15) == pytest.approx(10, abs=0.02)
    area = 0.5 * abs(np.sum(points[:, 0] * np.roll(points[:, 1], 1) - points[:, 1] * np.roll(points[:, 0], 1)))
    assert area == pytest.approx(np.pi * 100, rel=0.01)
    parts = evaluate("contourLoops(given.rows, 17).flatMap((loop) => insideParts(loop, 41, 31))", rows=rows)
    assert len(parts) == 2
    for part in np.asarray(parts[0]), np.asarray(parts[1]):
        assert np.hypot(part[:, 0] - 20, part[:, 1] - 15) == pytest.approx(17, abs=0.05)
    saddle = [[1.0, 0.0], [0.0, 1.0]]
    assert len(evaluate("contourLoops(given.rows, 0.5)", rows=saddle)) == 1, "the region is connected at a saddle"
    assert evaluate("contourLoops(given.rows, -1)", rows=saddle) == []


def test_the_terms_with_the_logarithm_of_the_ratio():
    rng = np.random.default_rng(4)
    p, q = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
    terms = evaluate("logRatioTerms(given.p, given.q)", p=p.tolist(), q=q.tolist())
    assert terms == pytest.approx((p * np.log(p / q)).tolist(), rel=1e-12)
    assert sum(terms) == pytest.approx(float(kl_probs(p, q)), rel=1e-12)
    assert evaluate("logRatioTerms([0, 1, 0], [0.5, 0.25, 0.25])") == pytest.approx([0, np.log(4), 0])
    assert evaluate("logRatioTerms([0.5, 0.5], [1, 0])")[1] == "inf"


def test_moments_of_the_estimators():
    rng = np.random.default_rng(5)
    p, q = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
    for name, values in (("k1", np.log(p / q)), ("k2", np.log(p / q) ** 2 / 2), ("k3", q / p - 1 - np.log(q / p))):
        found = evaluate(f"estimatorMoments('{name}', given.p, given.q)", p=p.tolist(), q=q.tolist())
        mean = p @ values
        assert found["mean"] == pytest.approx(mean, rel=1e-9)
        assert found["sd"] == pytest.approx(np.sqrt(p @ (values - mean) ** 2), rel=1e-9)


def test_the_kl_of_sequences_is_the_sum_over_all_sequences():
    rng = np.random.default_rng(6)
    p, q = rng.dirichlet(np.ones(3), 3), rng.dirichlet(np.ones(3), 3)
    total = 0.0
    for sequence in itertools.product(range(3), repeat=4):
        steps = list(zip((0, *sequence), sequence, strict=False))
        probability = np.prod([p[a, b] for a, b in steps])
        total += probability * sum(np.log(p[a, b] / q[a, b]) for a, b in steps)
    assert evaluate("sequenceKl(given.p, given.q, 0, 4)", p=p.tolist(), q=q.tolist()) == pytest.approx(total, rel=1e-9)


def test_gradients_of_the_penalty():
    rng = np.random.default_rng(7)
    logits, reference = rng.normal(size=5), rng.dirichlet(np.ones(5))

    def softmax(z: np.ndarray) -> np.ndarray:
        return np.exp(z) / np.exp(z).sum()

    for direction in ("forward", "reverse"):

        def kl(z: np.ndarray, direction: str = direction) -> float:
            return float(kl_probs(softmax(z), reference) if direction == "reverse" else kl_probs(reference, softmax(z)))

        gradient = evaluate(
            f"penaltyGradient('{direction}', given.p, given.r)", p=softmax(logits).tolist(), r=reference.tolist()
        )
        step = 1e-5 * np.eye(5)
        numeric = [(kl(logits + one) - kl(logits - one)) / 2e-5 for one in step]
        assert gradient == pytest.approx(numeric, abs=1e-8)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_learners_hold_the_budget(algorithm, direction):
    reference, reward = [0.3, 0.3, 0.3, 0.1], [0.0, 0.3, 0.6, 1.0]
    settings = json.dumps({"algorithm": algorithm, "direction": direction, "budget": 0.2})
    kls = evaluate(
        f"(() => {{ const learner = makeLearner(given.r, given.w, 3); const kls = []; for (let i = 0; i < 600; i += 1) "
        f"{{ learner.update({settings}); kls.push(penaltyKl('{direction}', learner.policy, given.r)); }} "
        "return kls; })()",
        r=reference,
        w=reward,
    )
    assert np.mean(kls[300:]) == pytest.approx(0.2, rel=0.1)


def test_discrete_divergences_and_sampling():
    rng = np.random.default_rng(1)
    p, q = rng.dirichlet(np.ones(7)), rng.dirichlet(np.ones(7))
    q[2], p[3] = 0.0, 0.0
    p, q = p / p.sum(), q / q.sum()
    assert evaluate("klTerms(given.p, given.q)", p=p.tolist(), q=q.tolist())[2] == "inf"
    r = rng.dirichlet(np.ones(7))
    assert evaluate("klTerms(given.p, given.q)", p=p.tolist(), q=r.tolist()) == pytest.approx(
        kl_terms(p, r).tolist(), rel=1e-12
    )
    assert evaluate("klProbs(given.p, given.q)", p=p.tolist(), q=r.tolist()) == pytest.approx(
        float(kl_probs(p, r)), rel=1e-12
    )
    js = float(divergence(p, q, "js"))
    assert evaluate("jensenShannon(given.p, given.q)", p=p.tolist(), q=q.tolist()) == pytest.approx(js, rel=1e-12)
    tempered = r**0.5 / (r**0.5).sum()
    assert evaluate("samplingDistribution(given.r, 2, 1)", r=r.tolist()) == pytest.approx(tempered.tolist(), rel=1e-12)
    order = np.argsort(-r)
    kept = order[: 1 + int(np.searchsorted(np.cumsum(r[order]), 0.8))]
    truncated = np.where(np.isin(np.arange(7), kept), r, 0) / r[kept].sum()
    assert evaluate("samplingDistribution(given.r, 1, 0.8)", r=r.tolist()) == pytest.approx(
        truncated.tolist(), rel=1e-12
    )


def test_optimal_policies_and_best_of_n():
    rng = np.random.default_rng(2)
    reference, reward = rng.dirichlet(np.ones(6)), np.asarray([0.1, 0.5, 0.5, 0.9, 0.0, 0.3])
    given = {"r": reference.tolist(), "w": reward.tolist()}
    for budget in (0.001, 0.1, 0.8):
        expected = tilt_to_budget(reference, reward, budget)
        computed = evaluate(f"tiltToBudget(given.r, given.w, {budget})", **given)
        assert computed["policy"] == pytest.approx(np.asarray(expected.policy).tolist(), rel=1e-9)
        assert (computed["kl"], computed["beta"]) == pytest.approx((budget, float(expected.beta)), rel=1e-9)
    assert evaluate("tilt(given.r, given.w, 1e-13).kl", **given) == pytest.approx(
        float(tilt(reference, reward, 1e-13).kl)
    )
    for n in (1, 3, 16):
        expected = np.asarray(best_of_n_policy(reference, reward, n).policy)
        assert evaluate(f"bestOfN(given.r, given.w, {n})", **given) == pytest.approx(expected.tolist(), rel=1e-9)


@pytest.mark.slow
def test_the_gridworld_policy_is_the_soft_optimum():
    """The policy and its KL equal the result of soft value iteration on the same gridworld as a finite-horizon MDP."""
    side, horizon, goal = 3, 5, 2
    world = {"side": side, "start": 6, "horizon": horizon, "terminal": [goal], "reward": [0, 0, 1, 0, 0.4, 0, 0, 0, 0]}
    computed = evaluate("softGrid(given.world, 0.5)", world=world)
    cells = side * side
    transitions, rewards = np.zeros((cells, 4, cells)), np.zeros((cells, 4))
    for cell in range(cells):
        for move in range(4):
            next_cell = cell if cell == goal else evaluate(f"nextCell({side}, {cell}, {move})")
            transitions[cell, move, next_cell] = 1
            rewards[cell, move] = 0 if cell == goal else world["reward"][next_cell]
    start = np.eye(cells)[world["start"]]
    mdp = MDP(transitions, rewards, horizon=horizon, initial=start)
    solved = soft_value_iteration(mdp, 0.5)
    for t in range(horizon):
        expected = np.asarray(solved.policy)[t]
        for cell in set(range(cells)) - {goal}:
            moves = [computed["policies"][t][str(4 * cell + move)] for move in range(4)]
            assert moves == pytest.approx(expected[cell].tolist(), rel=1e-9)
    uniform = np.full((cells, 4), 0.25)
    assert computed["kl"] == pytest.approx(float(trajectory_kl(mdp, solved.policy, uniform)), rel=1e-9)
    assert evaluate("gridToBudget(given.world, 1.25).kl", world=world) == pytest.approx(1.25, rel=1e-9)
