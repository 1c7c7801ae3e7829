"""PPO runs: KL budgets are met, resumed runs are identical, and saved references are read without unpickling."""

import base64
import io
import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO

from kullback.budget.controllers import PPO2017
from kullback.budget.kl_budget import KLBudget
from kullback.errors import InputError
from kullback.integrations.sb3_saved import load_policy, make_environments
from kullback.runs.checkpoint import load_weights
from kullback.runs.run_directory import RunDirectory
from kullback.train.ppo import PPOPlan, train_ppo
from kullback.train.ppo_checkpoint import derived_seed
from kullback.train.ppo_evaluation import EpisodeEvaluation
from kullback.train.ppo_settings import parse_ppo_settings

pytestmark = pytest.mark.slow

SMALL = {"n_steps": 128, "n_epochs": 4, "save_every": 2}
FAST = {"n_envs": 4, "n_steps": 128, "batch_size": 64, "n_epochs": 6}


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A partly trained policy for each environment."""
    base = tmp_path_factory.mktemp("references")
    for env, discount in (("CartPole-v1", 0.98), ("Pendulum-v1", 0.9)):
        settings = {**FAST, "gamma": discount, "learning_rate": 1e-3}
        assert train_ppo(PPOPlan(env, 6144, base / env, seed=1, settings=settings, evaluate_every=0))
    return {env: base / env for env in ("CartPole-v1", "Pendulum-v1")}


def without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def make_plan(kind: str, output: Path, references: dict[str, Path]) -> PPOPlan:
    plan = PPOPlan("CartPole-v1", 128 * 7, output, seed=4, settings=SMALL, evaluate_every=2, evaluation_episodes=4)
    reference = references["CartPole-v1"]
    match kind:
        case "plain":
            return plan
        case "old":
            return replace(plan, budget=KLBudget(1e-3, unit="step"), clip=None)
        case "reference":
            return replace(plan, budget=KLBudget(0.01, unit="step"), constrain="reference", reference=reference)
        case "states":
            budget = KLBudget(0.01, unit="step")
            return replace(plan, budget=budget, constrain="reference", states="reference", reference=reference)
        case "rule":
            return replace(plan, budget=PPO2017(0.01), constrain="reference", reference=reference)
        case _:
            return replace(plan, env="Pendulum-v1", settings={**SMALL, "use_sde": True, "n_envs": 2, "n_steps": 64})


@pytest.mark.parametrize("kind", ["plain", "old", "reference", "states", "rule", "sde"])
def test_a_resumed_run_is_identical_to_an_uninterrupted_run(
    kind: str, tmp_path: Path, references: dict[str, Path]
) -> None:
    uninterrupted, resumed = (
        make_plan(kind, tmp_path / "uninterrupted", references),
        make_plan(kind, tmp_path / "resumed", references),
    )
    assert train_ppo(uninterrupted)
    assert train_ppo(replace(resumed, steps=128 * 4))
    first = RunDirectory(resumed.output)
    # A killed process leaves rows after the last checkpoint, and an incomplete last line.
    first.add_metrics({"step": 640, "seconds": 9.0})
    with (resumed.output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 76')
    assert train_ppo(resumed, resume=True)
    runs = [RunDirectory(plan.output) for plan in (uninterrupted, resumed)]
    assert len(runs[0].metrics()) == 7
    assert without_seconds(runs[0].metrics()) == without_seconds(runs[1].metrics())
    assert without_seconds(runs[0].evaluations()) == without_seconds(runs[1].evaluations())
    weights = [load_weights(run.model / "model.safetensors") for run in runs]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert {path.name for path in runs[0].checkpoints.iterdir()} == {"checkpoint-768", "checkpoint-896"}
    files = [path for path in uninterrupted.output.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".jsonl", ".safetensors"}


def test_resuming_without_a_run_or_with_other_settings_is_rejected(tmp_path: Path, references: dict[str, Path]) -> None:
    plan = make_plan("old", tmp_path / "run", references)
    with pytest.raises(InputError, match="expected a run directory"):
        train_ppo(plan, resume=True)
    assert train_ppo(replace(plan, steps=256))
    with pytest.raises(InputError, match="already exists"):
        train_ppo(plan)
    for change in ({"budget": KLBudget(2e-3, unit="step")}, {"clip": 0.2}, {"seed": 5}, {"env": "Acrobot-v1"}):
        with pytest.raises(InputError, match=f"was started with {next(iter(change))}"):
            train_ppo(replace(plan, **change), resume=True)


@pytest.mark.parametrize(("env", "target"), [("CartPole-v1", 0.01), ("Pendulum-v1", 0.003)])
def test_the_budget_of_the_old_policy_is_met(env: str, target: float, tmp_path: Path) -> None:
    settings = {**FAST, "n_epochs": 10, "gamma": 0.98 if env == "CartPole-v1" else 0.9, "learning_rate": 1e-3}
    plan = PPOPlan(
        env,
        512 * 12,
        tmp_path / "run",
        budget=KLBudget(target, unit="step"),
        clip=None,
        settings=settings,
        evaluate_every=0,
    )
    assert train_ppo(plan)
    kls = np.array([row["kl_old_policy_per_step"] for row in RunDirectory(plan.output).metrics()])
    assert kls.max() < 1.021 * target  # the KL of every update is exact
    assert kls[5:].mean() == pytest.approx(target, rel=0.1)


def test_the_budget_of_the_reference_is_met(tmp_path: Path, references: dict[str, Path]) -> None:
    target, env = 0.02, "CartPole-v1"
    settings = {**FAST, "gamma": 0.98, "learning_rate": 1e-3}
    plan = PPOPlan(
        env,
        512 * 20,
        tmp_path / "run",
        budget=KLBudget(target, unit="step"),
        constrain="reference",
        reference=references[env],
        clip=None,
        settings=settings,
        evaluate_every=2,
    )
    assert train_ppo(plan)
    run = RunDirectory(plan.output)
    rollout_kls = np.array([row["kl_policy_ref_per_step"] for row in run.metrics()[8:]])
    # The rollouts are independent: the tolerance of the mean is 10% plus two standard errors.
    assert abs(rollout_kls.mean() / target - 1) < 0.1 + 2 * rollout_kls.std(ddof=1) / target / len(rollout_kls) ** 0.5
    evaluations = [row for row in run.evaluations() if row["step"] > 512 * 8]
    kls = np.array([row["kl_policy_ref_per_step"] for row in evaluations])
    assert abs(kls.mean() / target - 1) < 0.1 + 2 * kls.std(ddof=1) / target / len(kls) ** 0.5
    unconstrained = replace(plan, output=tmp_path / "unconstrained", budget=None, steps=512 * 8, evaluate_every=0)
    assert train_ppo(unconstrained)
    assert (
        RunDirectory(unconstrained.output).evaluations()[-1]["kl_policy_ref_per_step"] > 2 * target
    )  # the budget is binding


@pytest.mark.parametrize(("env", "rate"), [("CartPole-v1", 2e-3), ("Pendulum-v1", 2e-3)])
def test_the_budget_at_the_reference_states_is_met_in_every_update(
    env: str, rate: float, tmp_path: Path, references: dict[str, Path]
) -> None:
    target = 0.02
    plan = PPOPlan(
        env,
        512 * 10,
        tmp_path / "run",
        budget=KLBudget(target, unit="step"),
        constrain="reference",
        states="reference",
        reference=references[env],
        settings={**FAST, "gamma": 0.98 if env == "CartPole-v1" else 0.9, "learning_rate": rate},
        evaluate_every=3,
    )
    assert train_ppo(plan)
    run = RunDirectory(plan.output)
    for rows in (run.metrics()[4:], [row for row in run.evaluations() if row["step"] > 512 * 4]):
        kls = np.array([row["kl_policy_ref_per_reference_step"] for row in rows])
        np.testing.assert_allclose(kls, target, rtol=0.1)
    # The KL by PyTorch at the same states, which the reference visits.
    config = json.loads((run.path / "config.json").read_text())
    assert config["budget"]["states"] == "reference"
    environments = make_environments(env, plan.evaluation_episodes)
    policies = [load_policy(path, environments)[0] for path in (run.path, references[env])]
    states = EpisodeEvaluation(environments, seed=derived_seed(plan.seed, -1)).states_of(policies[1], 1024)
    assert isinstance(states, torch.Tensor)
    with torch.no_grad():
        distributions = [policy.get_distribution(states).distribution for policy in policies]
        kl = torch.distributions.kl_divergence(*distributions)  # pyright: ignore[reportArgumentType]
    expected = float((kl if kl.ndim == 1 else kl.sum(-1)).double().mean())
    assert run.evaluations()[-1]["kl_policy_ref_per_reference_step"] == pytest.approx(expected, rel=1e-4)
    environments.close()


def test_the_reference_states_require_the_constraint_on_the_reference(tmp_path: Path) -> None:
    plan = PPOPlan("CartPole-v1", 128, tmp_path / "run", budget=KLBudget(0.01, unit="step"), states="reference")
    with pytest.raises(InputError, match="--states reference: expected --constrain reference"):
        train_ppo(plan)


def test_a_run_with_a_reference_starts_at_the_reference(tmp_path: Path, references: dict[str, Path]) -> None:
    plan = make_plan("reference", tmp_path / "run", references)
    assert train_ppo(replace(plan, steps=256))
    run = RunDirectory(plan.output)
    assert run.evaluations()[0]["kl_policy_ref_per_step"] == 0.0
    assert run.metrics()[0]["kl_policy_ref_per_step"] == 0.0
    assert run.metrics()[1]["kl_policy_ref_per_step"] > 0.0
    first, second = (
        load_weights(path / "model.safetensors")
        for path in (references["CartPole-v1"] / "model", run.path / "reference")
    )
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


# -- references on disk --


class CreatesDirectory:
    """An object that creates a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.path,)


def replace_members(source: Path, target: Path, **members: bytes) -> Path:
    """Copy a zip file with some of its members replaced; the keyword has underscores in place of dots."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, members.get(name.replace(".", "_"), old.read(name)))
    return target


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("CartPole-v1", {}),
        ("CartPole-v1", {"policy_kwargs": {"net_arch": [16], "activation_fn": torch.nn.ReLU}}),
        ("CartPole-v1", {"policy_kwargs": {"net_arch": {"pi": [8], "vf": [16, 16]}, "ortho_init": False}}),
        ("Pendulum-v1", {"use_sde": True, "policy_kwargs": {"log_std_init": -1.0}}),
    ],
)
def test_a_zip_file_is_loaded_without_its_pickles(env: str, settings: dict[str, Any], tmp_path: Path) -> None:
    saved = PPO("MlpPolicy", env, seed=2, device="cpu", **settings)
    saved.save(tmp_path / "model.zip")
    envs = make_environments(env, 1)
    state = torch.random.get_rng_state()
    policy, _ = load_policy(tmp_path / "model.zip", envs)
    assert torch.equal(state, torch.random.get_rng_state())
    states = torch.randn(7, envs.observation_space.shape[0])
    loaded, original = policy.get_distribution(states).distribution, saved.policy.get_distribution(states).distribution
    for name in ("logits",) if env == "CartPole-v1" else ("loc", "scale"):
        assert torch.equal(getattr(loaded, name), getattr(original, name))


def test_pickles_in_a_zip_file_are_not_loaded(tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "good.zip")
    envs, created = make_environments("CartPole-v1", 1), tmp_path / "created"
    payload = pickle.dumps(CreatesDirectory(created))
    with zipfile.ZipFile(tmp_path / "good.zip") as archive:
        data = json.loads(archive.read("data"))
    for value in data.values():
        if isinstance(value, dict) and ":serialized:" in value:
            value[":serialized:"] = base64.b64encode(payload).decode()
    changed = replace_members(tmp_path / "good.zip", tmp_path / "changed.zip", data=json.dumps(data).encode())
    load_policy(changed, envs)  # the JSON is read, the pickles in it are not
    stored = io.BytesIO()
    torch.save({"weight": CreatesDirectory(created)}, stored)
    for name, content in (("torch.zip", stored.getvalue()), ("raw.zip", payload), ("damaged.zip", b"PK")):
        bad = replace_members(tmp_path / "good.zip", tmp_path / name, policy_pth=content)
        with pytest.raises(InputError, match="damaged or contains more than weights"):
            load_policy(bad, envs)
    assert not created.exists()
    pickle.loads(payload)  # noqa: S301  unpickling does create the directory
    assert created.exists()


def test_invalid_references_are_rejected(tmp_path: Path, references: dict[str, Path]) -> None:
    envs = make_environments("CartPole-v1", 1)
    (tmp_path / "text.zip").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a", "b")
    (tmp_path / "empty").mkdir()
    without_shape = tmp_path / "without_shape"
    without_shape.mkdir()
    (without_shape / "policy.json").write_text("{}")
    PPO("MlpPolicy", "CartPole-v1", device="cpu", policy_kwargs={"features_extractor_kwargs": {}}).save(
        tmp_path / "own.zip"
    )
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "policy.json").write_text((references["CartPole-v1"] / "model" / "policy.json").read_text())
    (damaged / "model.safetensors").write_bytes(b"\x00" * 40)
    for path, message in (
        (tmp_path / "absent", "no such file or directory"),
        (tmp_path / "text.zip", "expected a model saved by stable-baselines3"),
        (tmp_path / "other.zip", "expected a model saved by stable-baselines3"),
        (tmp_path / "empty", r"expected model/policy\.json"),
        (without_shape, 'expected an object "shape" in its policy.json'),
        (tmp_path / "own.zip", "features_extractor_kwargs, which cannot be read without unpickling"),
        (damaged, "does not load"),
        (references["Pendulum-v1"], "in the reference and"),
    ):
        with pytest.raises(InputError, match=message):
            load_policy(path, envs)


def test_a_policy_of_a2c_is_accepted(tmp_path: Path) -> None:
    A2C("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "a2c.zip")
    load_policy(tmp_path / "a2c.zip", make_environments("CartPole-v1", 1))


# -- inputs --


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env": "CartPole-v9"}, "--env CartPole-v9"),
        ({"env": "Nothing-v0"}, "--env Nothing-v0"),
        ({"env": "no/such:Thing-v0"}, "--env no/such:Thing-v0"),
        ({"steps": 0}, "--steps: expected 1 or more, got 0"),
        ({"seed": -1}, "--seed: expected an integer from 0"),
        ({"evaluate_every": -1}, "--evaluate-every"),
        ({"clip": 0.0}, r"--clip: expected a finite number > 0, or none, got 0\.0"),
        ({"clip": float("nan")}, "--clip: expected a finite number > 0"),
        ({"clip": float("inf")}, "--clip: expected a finite number > 0"),
        ({"settings": {"gamma": -1.0}}, "--set gamma: expected a number from 0 to 1"),
        ({"settings": {"gae_lambda": 1.5}}, "--set gae_lambda: expected a number from 0 to 1"),
        ({"settings": {"max_grad_norm": 0.0}}, "--set max_grad_norm: expected a number > 0"),
        ({"settings": {"batch_size": 100}}, r"batch_size=100: expected a divisor of n_steps \* n_envs = 2048"),
        ({"settings": {"n_steps": 0}}, "--set n_steps: expected 1 or more"),
        ({"settings": {"activation_fn": "Softmax"}}, "expected activation_fn of Tanh"),
        ({"settings": {"device": "abacus"}}, "--set device=abacus: expected a device that PyTorch has"),
        ({"settings": {"use_sde": True}}, "PPO rejects these settings: generalized State-Dependent Exploration"),
        (
            {"constrain": "reference", "budget": KLBudget(0.1, unit="step")},
            "--constrain reference: expected --reference",
        ),
        ({"budget": KLBudget(0.1)}, "budget per 'step', got 'token'"),
        ({"reference": Path("absent")}, "--reference absent: no such"),
        ({"settings": {"device": "cuda:99"}}, "--set device=cuda:99: expected a device that PyTorch has"),
    ],
)
def test_invalid_plans_leave_no_files(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    plan = PPOPlan("CartPole-v1", 128, tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        train_ppo(replace(plan, **change))
    assert not (tmp_path / "run").exists()


class DictActions(gymnasium.Env):
    """An environment whose action space PPO does not support."""

    action_space = spaces.Dict({"a": spaces.Discrete(2)})
    observation_space = spaces.Box(-1, 1, (3,))

    def __init__(self, render_mode: str | None = None) -> None: ...


def test_unsupported_action_spaces_are_rejected(tmp_path: Path) -> None:
    gymnasium.register("DictActions-v0", DictActions)
    try:
        with pytest.raises(InputError, match=r"PPO rejects these settings: .*action spaces"):
            train_ppo(PPOPlan("DictActions-v0", 128, tmp_path / "run"))
    finally:
        del gymnasium.registry["DictActions-v0"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("learning_rate", "expected key=value"),
        ("learning_rat=1", "PPO has no learning_rat; the nearest is learning_rate"),
        ("n_steps=1.5", "expected a value like 2048, got 1.5"),
        ("n_steps=true", "expected a value like 2048, got true"),
        ("gamma=high", r"expected a value like 0\.99, got high"),
        ("log_std_init=1e400", r"expected a value like 0\.0, got 1e400"),
        ("gamma=NaN", r"expected a value like 0\.99, got NaN"),
        ("use_sde=1", "expected a value like false, got 1"),
        ("net_arch=64", r"expected a value like \[64, 64\], got 64"),
        ("net_arch=[64,0]", r"expected a value like \[64, 64\]"),
        ("clip_range=0.1", "cannot be set with --set, see --clip"),
        ("seed=1", "cannot be set with --set, see --seed"),
    ],
)
def test_invalid_settings_are_rejected(word: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_ppo_settings([word])


def test_settings_are_parsed_to_the_type_of_the_default() -> None:
    words = ["gamma=1", "n_steps=64", "normalize_advantage=false", "net_arch=[]", "activation_fn=ReLU"]
    assert parse_ppo_settings(words) == {
        "gamma": 1.0,
        "n_steps": 64,
        "normalize_advantage": False,
        "net_arch": [],
        "activation_fn": "ReLU",
    }


def test_a_reference_with_state_dependent_exploration_needs_continuous_actions(tmp_path: Path) -> None:
    PPO("MlpPolicy", "Pendulum-v1", use_sde=True, device="cpu").save(tmp_path / "model.zip")
    with pytest.raises(
        InputError, match=r"--reference .*: expected an environment with continuous actions, .* Discrete"
    ):
        load_policy(tmp_path / "model.zip", make_environments("CartPole-v1", 1))
