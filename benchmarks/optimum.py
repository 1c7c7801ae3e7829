"""Time reverse fits, tilted policies with a KL budget, and soft value iteration, with the error of each result.

    python benchmarks/optimum.py [--repeats 9] [--states 1000000]

Every time is processor time of one thread, a median over the repeats; soft value iteration runs once for each size. The
errors are against mpmath with 30 digits (fits), against extended precision (budgets), and against the fixed point
of the Bellman equation with SciPy's logsumexp (soft value iteration).
"""

import argparse
import cProfile
import pstats
import time
from collections.abc import Callable, Sequence
from statistics import median

import mpmath
import numpy as np
import results
from scipy import sparse, special

from kullback import fit_reverse, soft_value_iteration, tilt_to_budget
from kullback.families import Normal, NormalMixture
from kullback.optimum.mdp import MDP

TARGETS = {
    "0.5 N(0, 2) + 0.5 N(20, 2)": ([0.5, 0.5], [0.0, 20.0], [2.0, 2.0]),
    "0.3 N(-2, 1) + 0.7 N(2, 0.5)": ([0.3, 0.7], [-2.0, 2.0], [1.0, 0.5]),
}
ACTIONS, SUCCESSORS, DISCOUNT, BETA = 4, 3, 0.99, 1.0


def median_milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Return the median processor time of a call in milliseconds, after one call that is not timed."""
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(1e3 * (time.process_time() - start))
    return median(times)


def exact_kl(member: Normal, mixture: tuple[list[float], ...]) -> mpmath.mpf:
    """Return KL(member || mixture of normals) by mpmath."""
    with mpmath.workdps(30):
        loc, scale = mpmath.mpf(float(member.loc)), mpmath.mpf(float(member.scale))
        density = lambda x: mpmath.fsum(w * mpmath.npdf(x, m, s) for w, m, s in zip(*mixture, strict=True))  # noqa: E731

        def integrand(z: mpmath.mpf) -> mpmath.mpf:
            log_p = mpmath.log(mpmath.npdf(z)) - mpmath.log(scale)
            return mpmath.npdf(z) * (log_p - mpmath.log(density(loc + scale * z)))

        return mpmath.quad(integrand, list(range(-12, 13, 2)))


def fit_table(repeats: int) -> results.Table:
    """Return the time of reverse fits of a normal to two modes, and the error of the lowest KL."""
    rows = []
    for name, (weights, locs, scales) in TARGETS.items():
        target = NormalMixture(weights=weights, locs=locs, scales=scales)
        fit = fit_reverse(Normal, target=target)
        exact = exact_kl(fit.distribution, TARGETS[name])
        milliseconds = median_milliseconds(lambda target=target: fit_reverse(Normal, target=target), repeats)
        error = results.significant(float(abs(fit.kl / exact - 1)), 1)
        rows.append([name, str(len(fit.minima)), results.significant(milliseconds, 2), error])
        print(": ".join(rows[-1]), flush=True)
    return ["target", "minima", "median, ms", "relative error of KL"], rows


def tilt_table(repeats: int) -> results.Table:
    """Return the time of `tilt_to_budget` with 1e5 actions, and the error of the KL of its policy."""
    rng = np.random.default_rng(0)
    ref, reward = rng.dirichlet(np.ones(100_000)), rng.normal(size=100_000)
    rows = []
    for budget in (1e-3, 0.1, 1.0, 5.0):
        policy = tilt_to_budget(ref, reward, budget).policy
        milliseconds = median_milliseconds(lambda budget=budget: tilt_to_budget(ref, reward, budget), repeats)
        p, q = np.asarray(policy, np.longdouble), np.asarray(ref, np.longdouble)
        kl = (p * np.log(p / (q / q.sum())) - p + q / q.sum()).sum()
        error = results.significant(float(abs(kl / budget - 1)), 1)
        rows.append([f"{budget:g}", results.significant(milliseconds, 2), error])
        print(": ".join(rows[-1]), flush=True)
    return ["budget, nats", "median, ms", "relative error of KL"], rows


def random_mdp(states: int) -> MDP:
    """Return an MDP with 4 actions in each state and 3 random next states for each action."""
    rng, count = np.random.default_rng(0), ACTIONS * states
    columns, weights = rng.integers(0, states, (count, SUCCESSORS)), rng.dirichlet(np.ones(SUCCESSORS), count)
    starts = np.arange(0, SUCCESSORS * count + 1, SUCCESSORS)
    transitions = sparse.csr_array((weights.ravel(), columns.ravel(), starts), shape=(count, states))
    return MDP(transitions, rng.normal(size=(states, ACTIONS)), discount=DISCOUNT)


def value_iteration_table(sizes: Sequence[int]) -> results.Table:
    """Return the time of soft value iteration, and the part of it in products of a sparse matrix and a vector."""
    rows = []
    for states in sizes:
        mdp, profile = random_mdp(states), cProfile.Profile(time.process_time)
        best = profile.runcall(soft_value_iteration, mdp, BETA)
        calls = pstats.Stats(profile).stats.items()  # pyright: ignore[reportAttributeAccessIssue]
        total = max(row[3] for _, row in calls)
        products, seconds = next((row[1], row[2]) for (_, _, name), row in calls if "csr_matvec" in name)
        q = mdp.rewards + mdp.discount * (mdp.transitions @ best.value).reshape(mdp.rewards.shape)
        residual = abs(BETA * special.logsumexp(q / BETA, axis=-1) - best.value).max()
        gigabytes = products * 12e-9 * mdp.transitions.nnz
        rows.append(
            [
                f"{states:,}".replace(",", " "),
                str(best.iterations),
                str(products),
                results.significant(seconds, 2),
                results.significant(gigabytes / seconds, 2),
                results.significant(total, 2),
                results.significant(total / seconds, 2),
                results.significant(best.error, 1),
                results.significant(float(residual) / (1 - DISCOUNT), 1),
            ]
        )
        print(": ".join(rows[-1]), flush=True)
    columns = ["states", "updates", "products", "products, s", "GB/s", "total, s", "total / products"]
    return [*columns, "bound on the error", "Bellman residual / (1 - discount)"], rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--states", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    results.add_save_option(parser)
    options = parser.parse_args(arguments)
    tables = {
        "fits": fit_table(options.repeats),
        "budgets": tilt_table(options.repeats),
        "soft-value-iteration": value_iteration_table(options.states),
    }
    for table in tables.values():
        print(f"\n{results.markdown(table)}")
    if not options.no_save:
        results.save("optimum", tables, packages=("scipy",))


if __name__ == "__main__":
    main()
