"""Repeat the ablation of Schulman et al. (2017), table 1, on three small tasks: clip, KL penalties and KL budgets.

    .venv/bin/python benchmarks/ppo.py --quick                           one seed and short runs, as a check; not stored
    .venv/bin/python benchmarks/ppo.py --only clip-0.2 budget-0.01       some variants; existing runs are read
    .venv/bin/python benchmarks/ppo.py                                   15 variants, 3 tasks, 5 seeds: two hours
    .venv/bin/python benchmarks/ppo.py --table                           the table of the existing runs
    .venv/bin/python benchmarks/ppo.py --only adaptive-0.01 --equal-kl   this rule, and budgets with the KL of its runs

The score of a run is the mean return of its last 100 episodes. On each task the scores are shifted and scaled such that
the random policy has 0 and the best run 1; then they are averaged over tasks and seeds, as in the paper. The paper's
scores are for seven MuJoCo tasks and 1e6 steps, so that only the order of the variants is comparable. "KL relative to
target" is the mean of KL(old || policy) after the first fifth of the updates, relative to the target. An interrupted
run is continued.

--equal-kl compares the scores at equal KL: for each run of another rule that penalises the KL, it trains two budgets
with the KL of that run, on the same task and with the same seed: of the KL of each update, and of its mean over the
updates. It stores a table of the differences for each variant of the command. With --budget-decay, it trains one budget
of the mean with this decay, whose KL is the mean of the run over all updates, and stores one table of all variants.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

import gymnasium
import results
from rich.console import Console
from scipy.stats import spearmanr

from kullback.budget.controllers import PPO2017, Controller, FixedBeta
from kullback.budget.kl_budget import KLBudget
from kullback.runs.run_directory import RunDirectory
from kullback.train.ppo import PPOPlan, train_ppo

# For each variant: the clip, the controller of KL(old || policy), and the paper's score. Adaptive betas start at 1 in
# the paper.
VARIANTS: dict[str, tuple[float | None, Controller | None, float | None]] = {
    "none": (None, None, -0.39),
    **{f"clip-{clip}": (clip, None, paper) for clip, paper in ((0.1, 0.76), (0.2, 0.82), (0.3, 0.70))},
    **{f"adaptive-{d}": (None, PPO2017(d), paper) for d, paper in ((0.003, 0.68), (0.01, 0.74), (0.03, 0.71))},
    **{f"fixed-{b}": (None, FixedBeta(b), paper) for b, paper in ((0.3, 0.62), (1.0, 0.71), (3.0, 0.72), (10.0, 0.69))},
    **{f"budget-{d}": (None, KLBudget(d, unit="step"), None) for d in (0.003, 0.01, 0.03)},
    "budget-0.01-clip-0.2": (0.2, KLBudget(0.01, unit="step"), None),
}

# The paper's settings, except for a shorter horizon, and for the discount and the learning rate of Pendulum.
SETTINGS = {"n_steps": 512, "n_envs": 4, "batch_size": 64, "n_epochs": 10, "save_every": 5, "learning_rate": 3e-4}
TASKS = {
    "CartPole-v1": (40_000, {}),
    "Acrobot-v1": (40_000, {}),
    "Pendulum-v1": (80_000, {"gamma": 0.9, "learning_rate": 1e-3}),
}
_SCORED = 100  # episodes
KL_COLUMNS = ["KL(old || policy)", "KL relative to target"]
_OF_BUDGET = ["KL of the budget", "return of the budget", "difference of the returns", "standard error", "seeds"]
EQUAL_KL_COLUMNS = ["task", "rule", KL_COLUMNS[0], "return", "budget of", *_OF_BUDGET]
BUDGETS = {"each update": False, "the mean": True}
_OF_DECAY = "the mean, with decay"

Key = tuple[str, int, str]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark-ppo"))
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="variants")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, help="environment steps of every run (default: the number of the task)")
    parser.add_argument("--quick", action="store_true", help="one seed, 8192 steps")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--equal-kl", action="store_true", help="train budgets with the KLs of the runs of other rules")
    parser.add_argument("--budget-decay", type=float, metavar="P", help="with --equal-kl: the decay of the budgets")
    results.add_save_option(parser)
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.steps = options.seeds[:1], options.steps or 8192
    runs = {}
    for task in options.tasks:
        for seed in options.seeds:
            for variant in options.only:
                run = _run(options, task, seed, variant, *VARIANTS[variant][:2])
                if run is not None:
                    runs[task, seed, variant] = run
                    if not options.table:
                        print(f"{task} seed {seed} {variant}: {_score(run):.1f}", flush=True)
    scores, kls = {key: _score(run) for key, run in runs.items()}, {key: _late_kl(run) for key, run in runs.items()}
    if options.equal_kl and options.budget_decay is not None:
        kls = {key: _mean_kl(run) for key, run in runs.items()}
        rules = {key: (kls[key], scores[key]) for key in runs}
        trained = _runs_at_equal_kl(options, kls, _OF_DECAY)
        rows = equal_kl_rows(rules, {key: (_mean_kl(run), _score(run)) for key, run in trained.items()}, _OF_DECAY)
        table = (EQUAL_KL_COLUMNS, sorted(rows, key=lambda row: row[:2]))
        tables = {f"equal-kl-decay-{options.budget_decay:g}": table}
    elif options.equal_kl:
        rules = {key: (kls[key], scores[key]) for key in runs}
        rows = []
        for name in BUDGETS:
            trained = _runs_at_equal_kl(options, kls, name)
            rows += equal_kl_rows(rules, {key: (_late_kl(run), _score(run)) for key, run in trained.items()}, name)
        rows.sort(key=lambda row: row[:2])
        by_rule = {rule: [row for row in rows if row[1] == rule] for rule in options.only}
        tables = {f"equal-kl-{rule}": (EQUAL_KL_COLUMNS, found) for rule, found in by_rule.items() if found}
    else:
        tables = score_tables(scores, kls)
    for table in tables.values():
        print(f"\n{results.markdown(table)}")
    if runs and not (options.quick or options.no_save):
        results.save("ppo", tables, packages=("torch", "gymnasium", "stable-baselines3"))


def _runs_at_equal_kl(options: argparse.Namespace, kls: Mapping[Key, float], name: str) -> dict[Key, RunDirectory]:
    """Train a budget with the KL of each run of a rule that penalises the KL; return its run under the same key."""
    runs, decay = {}, options.budget_decay if name == _OF_DECAY else 0.0
    is_mean = BUDGETS.get(name, True)
    for (task, seed, variant), kl in kls.items():
        rule, target = VARIANTS[variant][1], float(f"{kl:.3g}")
        if rule is None or isinstance(rule, KLBudget):
            continue
        of_budget = f"budget-{target:g}{'-mean' if is_mean else ''}{f'-decay-{decay:g}' if decay else ''}"
        controller = KLBudget(target, unit="step")
        run = _run(options, task, seed, of_budget, None, controller, mean_over_updates=is_mean, budget_decay=decay)
        if run is not None:
            runs[task, seed, variant] = run
            if not options.table:
                print(f"{task} seed {seed} {of_budget} for {variant}: {_score(run):.1f}", flush=True)
    return runs


def _run(
    options: argparse.Namespace,
    task: str,
    seed: int,
    variant: str,
    clip: float | None,
    controller: Controller | None,
    *,
    mean_over_updates: bool = False,
    budget_decay: float = 0.0,
) -> RunDirectory | None:
    """Train or continue a run unless it is finished; None with --table if it is not finished."""
    steps, settings = TASKS[task]
    steps = options.steps or steps
    run = RunDirectory(options.output / f"{task}-{steps}-{seed}-{variant}")
    if run.model.is_dir():
        return run
    if options.table:
        return None
    plan = PPOPlan(
        task,
        steps,
        run.path,
        budget=controller,
        mean_over_updates=mean_over_updates,
        budget_decay=budget_decay,
        clip=clip,
        seed=seed,
        settings={**SETTINGS, **settings},
        evaluate_every=0,
    )
    resume = run.last_checkpoint() is not None
    if not resume:
        shutil.rmtree(run.path, ignore_errors=True)
    if not train_ppo(plan, resume=resume, console=Console(quiet=True)):
        raise KeyboardInterrupt
    return run


def _score(run: RunDirectory) -> float:
    """The mean return of the last 100 episodes; each rollout is weighted by its number of these episodes."""
    total, count = 0.0, 0
    for row in reversed(run.metrics()):
        taken = min(row["episodes"], _SCORED - count)
        if taken:
            total, count = total + taken * row["rewards/return"], count + taken
    return total / count


def _random_score(task: str) -> float:
    """The mean return of the uniformly random policy over 100 episodes."""
    env, returns = gymnasium.make(task), []
    env.action_space.seed(0)
    for episode in range(_SCORED):
        env.reset(seed=episode)
        total, over = 0.0, False
        while not over:
            _, reward, ended, cut, _ = env.step(env.action_space.sample())
            total, over = total + float(reward), ended or cut
        returns.append(total)
    return fmean(returns)


def score_tables(scores: Mapping[Key, float], kls: Mapping[Key, float]) -> dict[str, results.Table]:
    """Return the table of the variants, and the rank correlation of the scores with the paper's.

    Args:
        scores: The score of each run, by task, seed and variant.
        kls: The late mean of KL(old || policy) of each run.
    """
    tasks = list(dict.fromkeys(task for task, _, _ in scores))
    random = {task: _random_score(task) for task in tasks}
    best = {task: max(score for (of, _, _), score in scores.items() if of == task) for task in tasks}
    scaled = {
        (task, seed, variant): (score - random[task]) / (best[task] - random[task])
        for (task, seed, variant), score in scores.items()
    }
    rows, pairs = [], []
    for variant in dict.fromkeys(variant for _, _, variant in scores):
        of_variant = [score for key, score in scaled.items() if key[2] == variant]
        by_task = [[score for key, score in scaled.items() if (key[0], key[2]) == (task, variant)] for task in tasks]
        kl = fmean(kls[key] for key in scores if key[2] == variant)
        _, controller, paper = VARIANTS[variant]
        target = getattr(controller, "target", None)
        rows.append(
            [
                variant,
                f"{fmean(of_variant):.2f}",
                f"{stdev(of_variant) / len(of_variant) ** 0.5:.2f}" if len(of_variant) > 1 else "-",
                "-" if paper is None else f"{paper:.2f}",
                *(f"{fmean(some):.2f}" if some else "-" for some in by_task),
                f"{kl:.2g}",
                "-" if target is None else f"{100 * kl / target - 100:+.0f}%",
                str(len(of_variant)),
            ]
        )
        if paper is not None:
            pairs.append((fmean(of_variant), paper))
    columns = ["variant", "score", "standard error", "score in the paper", *tasks, *KL_COLUMNS, "runs"]
    tables: dict[str, results.Table] = {"ablation": (columns, rows)}
    if len(pairs) > 2:
        correlation = spearmanr(*zip(*pairs, strict=True)).statistic
        row = [str(len(pairs)), f"{correlation:.2f}"]
        tables["rank-correlation"] = (["variants in the paper", "rank correlation of the scores"], [row])
    return tables


def equal_kl_rows(
    of_rules: Mapping[Key, tuple[float, float]], of_budgets: Mapping[Key, tuple[float, float]], budget: str
) -> list[list[str]]:
    """Return the KL and the score of each rule and of the budgets at its KL, and the mean difference of the scores.

    Args:
        of_rules: The late mean of KL(old || policy) and the score of each run, by task, seed and variant.
        of_budgets: The same of the budget with the KL of that run, under the key of that run.
        budget: What is held at the budget.
    """
    rows = []
    for task, variant in dict.fromkeys((task, variant) for task, _, variant in of_budgets):
        keys = [key for key in of_budgets if (key[0], key[2]) == (task, variant)]
        differences = [of_budgets[key][1] - of_rules[key][1] for key in keys]
        error = f"{stdev(differences) / len(differences) ** 0.5:.2g}" if len(differences) > 1 else "-"
        means = [
            [f"{fmean(runs[key][0] for key in keys):.2g}", f"{fmean(runs[key][1] for key in keys):.1f}"]
            for runs in (of_rules, of_budgets)
        ]
        difference = f"{fmean(differences):+.1f}"
        rows.append([task, variant, *means[0], budget, *means[1], difference, error, str(len(keys))])
    return rows


def _mean_kl(run: RunDirectory) -> float:
    """The mean of KL(old || policy) over all updates."""
    return fmean(row["kl_old_policy_per_step"] for row in run.metrics())


def _late_kl(run: RunDirectory) -> float:
    """The mean of KL(old || policy) after the first fifth of the updates."""
    kls = [row["kl_old_policy_per_step"] for row in run.metrics()]
    return fmean(kls[len(kls) // 5 :])


if __name__ == "__main__":
    main()
