"""The PPO paper's ablation (its table 1) on three small tasks, and ours beside it: clip, KL penalties, budgets.

    .venv/bin/python benchmarks/ppo.py --quick                           one seed, short runs: to see that it works
    .venv/bin/python benchmarks/ppo.py --only clip-0.2 budget-0.01       a part; what is under --output is only read
    .venv/bin/python benchmarks/ppo.py                                   15 arms, 3 tasks, 5 seeds: two hours
    .venv/bin/python benchmarks/ppo.py --table                           the table of what is there

A run is scored by the mean return of its last 100 episodes. On each task the scores are shifted and scaled so that the
random policy has 0 and the best run 1, and averaged over tasks and seeds, as in the paper. Its own figures, of seven
MuJoCo tasks and 1e6 steps, stand beside ours: the order is what can be compared. "held" is the mean of
KL(old || policy) over the target, after the first fifth of the updates. An interrupted run is continued.
"""

import argparse
import shutil
from pathlib import Path
from statistics import fmean, stdev

import gymnasium
from rich.console import Console
from scipy.stats import spearmanr

from kullback.budget.controllers import PPO2017, Controller, FixedBeta
from kullback.budget.kl_budget import KLBudget
from kullback.runs.run_directory import RunDirectory
from kullback.train.ppo import PPOPlan, train_ppo

# Each with its clip, its controller towards the old policy, and what the paper has for it. Its betas start at 1.
ARMS: dict[str, tuple[float | None, Controller | None, float | None]] = {
    "none": (None, None, -0.39),
    **{f"clip-{clip}": (clip, None, paper) for clip, paper in ((0.1, 0.76), (0.2, 0.82), (0.3, 0.70))},
    **{f"adaptive-{d}": (None, PPO2017(d), paper) for d, paper in ((0.003, 0.68), (0.01, 0.74), (0.03, 0.71))},
    **{f"fixed-{b}": (None, FixedBeta(b), paper) for b, paper in ((0.3, 0.62), (1.0, 0.71), (3.0, 0.72), (10.0, 0.69))},
    **{f"budget-{d}": (None, KLBudget(d, unit="step"), None) for d in (0.003, 0.01, 0.03)},
    "budget-0.01-clip-0.2": (0.2, KLBudget(0.01, unit="step"), None),
}

# The paper's settings but for the horizon, which is cut to the tasks' size, and the discount of the short-sighted one.
SETTINGS = {"n_steps": 512, "n_envs": 4, "batch_size": 64, "n_epochs": 10, "save_every": 5, "learning_rate": 3e-4}
TASKS = {
    "CartPole-v1": (40_000, {}),
    "Acrobot-v1": (40_000, {}),
    "Pendulum-v1": (80_000, {"gamma": 0.9, "learning_rate": 1e-3}),
}
_SCORED = 100  # episodes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark-ppo"))
    parser.add_argument("--only", nargs="+", choices=list(ARMS), default=list(ARMS), help="arms")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, help="of every run, in place of the tasks' own")
    parser.add_argument("--quick", action="store_true", help="one seed, 8192 steps")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.steps = options.seeds[:1], options.steps or 8192
    runs = {}
    for task in options.tasks:
        for seed in options.seeds:
            for arm in options.only:
                run = _run(options, task, seed, arm)
                if run is not None:
                    runs[task, seed, arm] = run
                    if not options.table:
                        print(f"{task} seed {seed} {arm}: {_score(run):.1f}", flush=True)
    print("\n".join(_table(runs, options)))


def _run(options: argparse.Namespace, task: str, seed: int, arm: str) -> RunDirectory | None:
    """The finished run, trained or continued where it is not; None where nothing is to be trained."""
    steps, settings = TASKS[task]
    steps = options.steps or steps
    clip, controller, _ = ARMS[arm]
    run = RunDirectory(options.output / f"{task}-{steps}-{seed}-{arm}")
    if run.model.is_dir():
        return run
    if options.table:
        return None
    plan = PPOPlan(
        task,
        steps,
        run.path,
        budget=controller,
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
    """The mean return of the last 100 episodes, each rollout weighing what it has of them."""
    total, count = 0.0, 0
    for row in reversed(run.metrics()):
        taken = min(row["episodes"], _SCORED - count)
        if taken:
            total, count = total + taken * row["rewards/return"], count + taken
    return total / count


def _random_score(task: str) -> float:
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


def _table(runs: dict[tuple[str, int, str], RunDirectory], options: argparse.Namespace) -> list[str]:
    scores = {key: _score(run) for key, run in runs.items()}
    zero = {task: _random_score(task) for task in options.tasks}
    best = {task: max((s for (t, _, _), s in scores.items() if t == task), default=1.0) for task in options.tasks}
    scaled = {key: (score - zero[key[0]]) / (best[key[0]] - zero[key[0]]) for key, score in scores.items()}
    header = f"| arm | score | standard error | paper | {' | '.join(options.tasks)} | KL(old, policy) | held | runs |"
    rows = [header, "|---" * (header.count("|") - 1) + "|"]
    told = []
    for arm in options.only:
        ours = [score for key, score in scaled.items() if key[2] == arm]
        if not ours:
            continue
        each = [[score for key, score in scaled.items() if key[0] == task and key[2] == arm] for task in options.tasks]
        kls = [_late_kl(run) for key, run in runs.items() if key[2] == arm]
        target = getattr(ARMS[arm][1], "target", None)
        paper = ARMS[arm][2]
        cells = [
            arm,
            f"{fmean(ours):.2f}",
            f"{stdev(ours) / len(ours) ** 0.5:.2f}" if len(ours) > 1 else "-",
            "-" if paper is None else f"{paper:.2f}",
            *(f"{fmean(some):.2f}" if some else "-" for some in each),
            f"{fmean(kls):.2g}",
            "-" if target is None else f"{100 * fmean(kls) / target - 100:+.0f}%",
            str(len(ours)),
        ]
        rows.append("| " + " | ".join(cells) + " |")
        if paper is not None:
            told.append((fmean(ours), paper))
    if len(told) > 2:
        agree = spearmanr(*zip(*told, strict=True)).statistic
        rows += ["", f"Rank correlation of the scores with the paper's over {len(told)} arms: {agree:.2f}."]
    return rows


def _late_kl(run: RunDirectory) -> float:
    kls = [row["kl_old_policy_per_step"] for row in run.metrics()]
    return fmean(kls[len(kls) // 5 :])


if __name__ == "__main__":
    main()
