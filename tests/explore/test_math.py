"""The explorer's mathematics, run by Node, against Python's on cases that Python makes up and solves."""

import json
import shutil
import subprocess
from importlib.resources import files

import numpy as np
import pytest

from kullback import best_of_n_policy, divergence, fit_reverse, kl_probs, kl_terms, measure, tilt, tilt_to_budget
from kullback.families import Normal, NormalMixture
from kullback.optimum.mdp import MDP
from kullback.optimum.soft_value_iteration import soft_value_iteration
from kullback.optimum.trajectory_kl import trajectory_kl

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
MODULE = str(files("kullback.explore") / "static" / "math.js")


def ask(expression: str, **given: object):
    """What an expression of the module's functions comes to in Node."""
    names = "phi,klTo,descend,mapOf,minimaOf,softmax,termsOf,klOf,jensenShannon,sampled,tilt,tiltToBudget,bestOfN"
    code = (
        f"import {{{names},softGrid,gridToBudget,moved}} from {json.dumps('file://' + MODULE)};\n"
        f"const given = {json.dumps(given)};\nconst Infinite = (k, v) => v === Infinity ? 'inf' : v;\n"
        f"console.log(JSON.stringify({expression}, Infinite));"
    )
    done = subprocess.run(["node", "--input-type=module", "-e", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def mixture(seed: int) -> NormalMixture:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 4))
    return NormalMixture(
        weights=rng.dirichlet(np.ones(count)), locs=rng.uniform(-10, 25, count), scales=rng.uniform(0.5, 6, count)
    )


def parts(p: NormalMixture) -> list[dict]:
    columns = (np.asarray(column).tolist() for column in (p.weights, p.locs, p.scales))
    return [{"weight": w, "mean": m, "width": s} for w, m, s in zip(*columns, strict=True)]


def test_phi_keeps_its_digits():
    d = [-40.0, -3.0, -0.031, -0.029, -1e-4, -1e-9, 0.0, 1e-12, 1e-5, 0.0299, 0.0301, 2.0, 30.0]
    exact = [
        float(np.expm1(np.longdouble(x)) - np.longdouble(x)) if abs(x) > 0.01 else x * x / 2 * (1 + x / 3 + x * x / 12)
        for x in d
    ]
    assert ask("given.d.map(phi)", d=d) == pytest.approx(exact, rel=3e-13, abs=0)


def test_kl_of_densities_both_ways():
    cases = [(mixture(seed), 20 * np.sin(seed), 0.4 + 12 * abs(np.cos(seed))) for seed in range(12)]
    told = ask(
        "given.cases.map(([p, m, s]) => ['forward', 'reverse'].map((way) => klTo(way, p, m, s)))",
        cases=[(parts(p), m, s) for p, m, s in cases],
    )
    for (p, m, s), (forward, reverse) in zip(cases, told, strict=True):
        q = Normal(loc=m, scale=s)
        assert forward == pytest.approx(measure(p, q).value, rel=1e-6, abs=1e-9)
        assert reverse == pytest.approx(measure(q, p).value, rel=1e-6, abs=1e-9)


def test_the_map_shows_every_minimum_of_the_two_far_modes():
    two = NormalMixture(weights=[0.5, 0.5], locs=[0.0, 20.0], scales=[2.0, 2.0])
    means, widths = np.linspace(-15, 35, 61).tolist(), (0.4 * 62.5 ** (np.arange(41) / 40)).tolist()
    expression = "minimaOf('reverse', given.p, given.m, given.w, mapOf('reverse', given.p, given.m, given.w))"
    told = ask(expression, p=parts(two), m=means, w=widths)
    ours = fit_reverse(Normal, target=two).minima
    assert [one["kl"] for one in told] == pytest.approx([one.kl for one in ours], abs=1e-6)
    assert sorted(one["width"] for one in told) == pytest.approx(
        sorted(one.distribution.scale for one in ours), rel=1e-4
    )
    end = ask("descend('forward', given.p, {mean: -12, width: 1}).at(-1)", p=parts(two))
    assert (end["mean"], end["width"], end["kl"]) == pytest.approx((10.0, 10.198039027, 0.935901952), rel=1e-5)


def test_tables():
    rng = np.random.default_rng(1)
    p, q = rng.dirichlet(np.ones(7)), rng.dirichlet(np.ones(7))
    q[2], p[3] = 0.0, 0.0
    p, q = p / p.sum(), q / q.sum()
    assert ask("termsOf(given.p, given.q)", p=p.tolist(), q=q.tolist())[2] == "inf"
    r = rng.dirichlet(np.ones(7))
    assert ask("termsOf(given.p, given.q)", p=p.tolist(), q=r.tolist()) == pytest.approx(
        kl_terms(p, r).tolist(), rel=1e-12
    )
    assert ask("klOf(given.p, given.q)", p=p.tolist(), q=r.tolist()) == pytest.approx(float(kl_probs(p, r)), rel=1e-12)
    js = float(divergence(p, q, "js"))
    assert ask("jensenShannon(given.p, given.q)", p=p.tolist(), q=q.tolist()) == pytest.approx(js, rel=1e-12)
    heated = r**0.5 / (r**0.5).sum()
    assert ask("sampled(given.r, 2, 1)", r=r.tolist()) == pytest.approx(heated.tolist(), rel=1e-12)
    order = np.argsort(-r)
    kept = order[: 1 + int(np.searchsorted(np.cumsum(r[order]), 0.8))]
    cut = np.where(np.isin(np.arange(7), kept), r, 0) / r[kept].sum()
    assert ask("sampled(given.r, 1, 0.8)", r=r.tolist()) == pytest.approx(cut.tolist(), rel=1e-12)


def test_the_optimum_and_best_of_n():
    rng = np.random.default_rng(2)
    reference, reward = rng.dirichlet(np.ones(6)), np.asarray([0.1, 0.5, 0.5, 0.9, 0.0, 0.3])
    given = {"r": reference.tolist(), "w": reward.tolist()}
    for budget in (0.001, 0.1, 0.8):
        ours = tilt_to_budget(reference, reward, budget)
        told = ask(f"tiltToBudget(given.r, given.w, {budget})", **given)
        assert told["policy"] == pytest.approx(np.asarray(ours.policy).tolist(), rel=1e-9)
        assert (told["kl"], told["beta"]) == pytest.approx((budget, float(ours.beta)), rel=1e-9)
    assert ask("tilt(given.r, given.w, 1e-13).kl", **given) == pytest.approx(float(tilt(reference, reward, 1e-13).kl))
    for n in (1, 3, 16):
        ours = np.asarray(best_of_n_policy(reference, reward, n).policy)
        assert ask(f"bestOfN(given.r, given.w, {n})", **given) == pytest.approx(ours.tolist(), rel=1e-9)


def test_the_gridworld_is_the_soft_optimum():
    """Against soft value iteration on the same world as an MDP with a horizon."""
    side, horizon, goal = 3, 5, 2
    world = {"side": side, "start": 6, "horizon": horizon, "stops": [goal], "reward": [0, 0, 1, 0, 0.4, 0, 0, 0, 0]}
    told = ask("softGrid(given.world, 0.5)", world=world)
    cells = side * side
    transitions, rewards = np.zeros((cells, 4, cells)), np.zeros((cells, 4))
    for cell in range(cells):
        for move in range(4):
            there = cell if cell == goal else ask(f"moved({side}, {cell}, {move})")
            transitions[cell, move, there] = 1
            rewards[cell, move] = 0 if cell == goal else world["reward"][there]
    start = np.eye(cells)[world["start"]]
    mdp = MDP(transitions, rewards, horizon=horizon, initial=start)
    solved = soft_value_iteration(mdp, 0.5)
    for t in range(horizon):
        ours = np.asarray(solved.policy)[t]
        for cell in set(range(cells)) - {goal}:
            assert told["policies"][t][cell] == pytest.approx(ours[cell].tolist(), rel=1e-9)
    uniform = np.full((cells, 4), 0.25)
    assert told["kl"] == pytest.approx(float(trajectory_kl(mdp, solved.policy, uniform)), rel=1e-9)
    assert ask("gridToBudget(given.world, 1.25).kl", world=world) == pytest.approx(1.25, rel=1e-9)
