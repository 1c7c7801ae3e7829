"""References and policies of BudgetPPO: VecNormalize, action masks, recurrent states, plain PPO files, all spaces."""

import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.distributions import (
    MaskableBernoulliDistribution,
    MaskableCategoricalDistribution,
    MaskableMultiCategoricalDistribution,
)
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.distributions import CategoricalDistribution, MultiCategoricalDistribution
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from torch.distributions import kl_divergence

from kullback.budget.controllers import FixedBeta
from kullback.budget.kl_budget import KLBudget
from kullback.errors import BudgetError, InputError
from kullback.integrations.sb3 import BudgetPPO
from kullback.integrations.sb3_policies import policy_kl
from kullback.integrations.sb3_saved import load_policy, make_environments

SMALL: dict[str, Any] = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu"}


class Shifted(gymnasium.Env):
    """Observations with a mean and a scale of their own; eight steps, in which larger actions earn more."""

    def __init__(self, observations: spaces.Space | None = None, actions: spaces.Space | None = None) -> None:
        self.observation_space = observations or spaces.Box(-np.inf, np.inf, (3,))
        self.action_space = actions or spaces.Discrete(3)
        self.left = 0

    def _observe(self) -> Any:
        def draw(space: spaces.Space) -> Any:
            if isinstance(space, spaces.Box) and not np.issubdtype(space.dtype, np.integer):
                return (4.0 + 3.0 * self.np_random.standard_normal(space.shape)).astype(np.float32)
            return space.sample()

        space = self.observation_space
        return {key: draw(one) for key, one in space.items()} if isinstance(space, spaces.Dict) else draw(space)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.left = 8
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        return self._observe(), float(np.mean(action)), self.left == 0, False, {}


def logged(model: Any) -> dict[str, float]:
    return {key.removeprefix("train/"): value for key, value in model.logger.name_to_value.items()}


def normalised(observations: spaces.Space | None = None, *, copies: int = 2, **settings: Any) -> VecNormalize:
    return VecNormalize(DummyVecEnv([lambda: Shifted(observations)] * copies), **settings)


class Recorder(VecNormalize):
    """VecNormalize that keeps every observation before and after normalisation, independently of the algorithm."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.pairs: list[tuple[Any, Any]] = []
        super().__init__(*args, **kwargs)

    def step_wait(self) -> Any:
        result = super().step_wait()
        self.pairs.append((self.get_original_obs(), result[0]))
        return result

    def reset(self) -> Any:
        result = super().reset()
        self.pairs.append((self.get_original_obs(), result))
        return result


def true_kl(policy: Any, policy_obs: Any, reference: Any, reference_obs: Any) -> float:
    """The mean of PyTorch's KL(policy || reference), each at the observations as that policy sees them."""
    with torch.no_grad():
        p = policy.get_distribution(policy.obs_to_tensor(policy_obs)[0]).distribution.logits.double()
        q = reference.get_distribution(reference.obs_to_tensor(reference_obs)[0]).distribution.logits.double()
    return float(
        kl_divergence(torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)).mean()
    )


DICT = spaces.Dict({"a": spaces.Box(-np.inf, np.inf, (2,)), "b": spaces.Discrete(3)})


@pytest.mark.parametrize("kind", ["other statistics", "no statistics", "frozen", "dictionary", "clipped"])
def test_the_reference_acts_on_observations_normalised_by_its_own_statistics(kind: str) -> None:
    space = DICT if kind == "dictionary" else None
    keys: dict[str, Any] = {"norm_obs_keys": ["a"]} if kind == "dictionary" else {}
    name = "MultiInputPolicy" if kind == "dictionary" else "MlpPolicy"
    theirs = normalised(space, **keys)
    reference = PPO(name, theirs, learning_rate=0.01, **SMALL).learn(256)
    kwargs = keys | ({"clip_obs": 0.5} if kind == "clipped" else {})
    env: Any = Recorder(DummyVecEnv([lambda: Shifted(space)] * 2), training=kind != "frozen", **kwargs)
    if kind == "no statistics":
        env = Recorder(DummyVecEnv([Shifted] * 2), norm_obs=False)
    with pytest.warns(UserWarning, match="normalises their observations differently"):
        model = BudgetPPO(name, env, reference=reference, budget=FixedBeta(0.1), **SMALL)
    statistics = theirs.obs_rms["a"] if isinstance(theirs.obs_rms, dict) else theirs.obs_rms
    mean = np.array(statistics.mean)
    start = {key: value.clone() for key, value in model.policy.state_dict().items()}
    model.learn(2 * 64)
    before = PPO(name, normalised(space, **keys), **SMALL).policy
    before.load_state_dict(start)
    pairs = env.pairs[:64]  # the observations from which the steps of the first rollout were taken
    expected = np.mean([true_kl(before, seen, reference.policy, theirs.normalize_obs(raw)) for raw, seen in pairs])
    assert logged(model)["kl_policy_ref_per_step"] == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-4
    assert np.array_equal(mean, statistics.mean)


def test_equal_frozen_statistics_start_at_a_kl_of_0(recwarn: pytest.WarningsRecorder, tmp_path: Path) -> None:
    theirs = normalised()
    reference = PPO("MlpPolicy", theirs, **SMALL).learn(256)
    theirs.save(str(tmp_path / "statistics.pkl"))
    env = VecNormalize.load(str(tmp_path / "statistics.pkl"), DummyVecEnv([Shifted] * 2))
    env.training = False
    model = BudgetPPO("MlpPolicy", env, reference=reference, budget=KLBudget(0.01, unit="step"), **SMALL).learn(128)
    assert logged(model)["kl_policy_ref_per_step"] == 0.0
    assert not [w for w in recwarn if "VecNormalize" in str(w.message)]


def test_a_reference_without_an_environment_is_refused_under_vecnormalize(tmp_path: Path) -> None:
    theirs = normalised()
    reference = PPO("MlpPolicy", theirs, **SMALL).learn(128)
    reference.save(tmp_path / "model.zip")
    for given in (reference.policy, PPO.load(tmp_path / "model.zip", device="cpu")):
        with pytest.raises(BudgetError, match="expected a reference_env"):
            BudgetPPO("MlpPolicy", normalised(), reference=given, **SMALL)
        model = BudgetPPO("MlpPolicy", theirs, reference=given, reference_env=theirs, **SMALL).learn(128)
        assert math.isfinite(logged(model)["kl_policy_ref_per_step"])


def test_observations_changed_after_vecnormalize_are_refused() -> None:
    theirs = normalised()
    reference = PPO("MlpPolicy", VecFrameStack(theirs, 2), **SMALL)
    with pytest.warns(UserWarning, match="differently"):
        model = BudgetPPO("MlpPolicy", VecFrameStack(normalised(clip_obs=2.0), 2), reference=reference, **SMALL)
    with pytest.raises(BudgetError, match="VecNormalize as the outermost wrapper"):
        model.learn(128)


def test_the_fixed_states_are_observations_before_normalisation() -> None:
    theirs = normalised()
    reference = PPO("MlpPolicy", theirs, **SMALL).learn(256)
    states = torch.as_tensor(np.random.default_rng(0).normal(4.0, 3.0, (50, 3)).astype(np.float32))
    env = normalised(training=False)
    with pytest.warns(UserWarning, match="differently"):
        model = BudgetPPO(
            "MlpPolicy", env, reference=reference, budget=FixedBeta(0.0), reference_states=states, **SMALL
        ).learn(128)
    seen = [np.asarray(one.normalize_obs(states.numpy()), np.float32) for one in (env, theirs)]
    expected = true_kl(model.policy, seen[0], reference.policy, seen[1])
    assert logged(model)["kl_policy_ref_per_reference_step"] == pytest.approx(expected, rel=1e-4)


def test_a_saved_model_keeps_the_statistics_of_its_reference(tmp_path: Path) -> None:
    theirs = normalised()
    reference = PPO("MlpPolicy", theirs, **SMALL).learn(256)
    with pytest.warns(UserWarning, match="differently"):
        model = BudgetPPO("MlpPolicy", normalised(), reference=reference, budget=FixedBeta(0.1), **SMALL).learn(128)
    model.save(tmp_path / "model.zip")
    loaded: Any = BudgetPPO.load(tmp_path / "model.zip", env=normalised(), device="cpu")
    running: Any = theirs.obs_rms
    assert np.array_equal(loaded.reference_statistics.moments[None][0], running.mean)
    for ours, saved in zip(loaded.reference.parameters(), reference.policy.parameters(), strict=True):
        assert torch.equal(ours, saved)


# -- sb3-contrib --


class Masked(gymnasium.Env):
    """An environment in which some actions are not allowed."""

    def __init__(self, actions: spaces.Space | None = None) -> None:
        self.action_space = actions or spaces.Discrete(4)
        self.observation_space = spaces.Box(-1, 1, (3,))

    def action_masks(self) -> np.ndarray:
        sizes = {spaces.Discrete: 4, spaces.MultiDiscrete: 5, spaces.MultiBinary: 6}[type(self.action_space)]
        masks = np.ones(sizes, dtype=bool)
        masks[0] = False
        return masks

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = 5
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), 1.0, self.left == 0, False, {}


@pytest.mark.parametrize("actions", [spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)])
def test_a_masked_reference_is_refused(actions: spaces.Space) -> None:
    reference = MaskablePPO("MlpPolicy", Masked(actions), **SMALL)
    for given in (reference, reference.policy):
        with pytest.raises(BudgetError, match="reference without action masks, got MaskableActorCriticPolicy"):
            BudgetPPO("MlpPolicy", Masked(actions), reference=given, budget=FixedBeta(1.0), **SMALL)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1"])
def test_a_recurrent_reference_is_refused(env: str) -> None:
    reference = RecurrentPPO("MlpLstmPolicy", env, **SMALL)
    for given in (reference, reference.policy):
        with pytest.raises(BudgetError, match=r"reference without a recurrent state.*VecFrameStack"):
            BudgetPPO("MlpPolicy", env, reference=given, **SMALL)


@pytest.mark.parametrize("lstm_hidden_size", [4, 256])
def test_files_of_masked_and_recurrent_policies_are_refused_without_unpickling(
    tmp_path: Path, lstm_hidden_size: int
) -> None:
    recurrent = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", policy_kwargs={"lstm_hidden_size": lstm_hidden_size})
    masked = MaskablePPO("MlpPolicy", Masked(spaces.Discrete(2)), **SMALL)
    for model, said in ((masked, "a reference without action masks"), (recurrent, "a reference without a recurrent")):
        model.save(tmp_path / "saved.zip")
        with pytest.raises(InputError, match=f"saved.zip: expected {said}"):
            load_policy(tmp_path / "saved.zip", make_environments("CartPole-v1", 1))


@pytest.mark.parametrize("arguments", ["", "bad=None", "render_mode=None"])
def test_the_constructor_of_an_environment_needs_no_render_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"plain_{arguments.partition('=')[0]}"
    (tmp_path / f"{name}.py").write_text(
        "import gymnasium\nfrom gymnasium.envs.classic_control import CartPoleEnv\n\n"
        f"class Plain(CartPoleEnv):\n    def __init__(self, {arguments}):\n        super().__init__()\n\n"
        f"gymnasium.register('{name.replace('_', '-')}-v0', Plain)\n"
    )
    environments = make_environments(f"{name}:{name.replace('_', '-')}-v0", 2)
    assert environments.num_envs == 2
    assert environments.reset().shape == (2, 4)


def test_a_reference_that_acts_otherwise_with_the_same_weights_is_refused() -> None:
    relu = PPO("MlpPolicy", "Pendulum-v1", policy_kwargs={"activation_fn": torch.nn.ReLU}, **SMALL)
    with pytest.raises(BudgetError, match=r"with the same weights the KL of their actions is .*activation_fn"):
        BudgetPPO("MlpPolicy", "Pendulum-v1", reference=relu, **SMALL)
    exploring = {**SMALL, "use_sde": True}
    squashed = PPO("MlpPolicy", "Pendulum-v1", policy_kwargs={"squash_output": True}, **exploring)
    with pytest.raises(BudgetError, match="the policy's kind of action distribution"):
        BudgetPPO("MlpPolicy", "Pendulum-v1", reference=squashed, **exploring)
    other = PPO("MlpPolicy", Shifted(actions=spaces.Discrete(3, start=2)), **SMALL)
    with pytest.raises(BudgetError, match="the policy's action space"):
        BudgetPPO("MlpPolicy", Shifted(), reference=other, **SMALL)
    damaged = PPO("MlpPolicy", "Pendulum-v1", **SMALL)
    with torch.no_grad():
        damaged.policy.action_net.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="the reference: expected finite weights, got nan"):
        BudgetPPO("MlpPolicy", "Pendulum-v1", reference=damaged, **SMALL)


def test_a_policy_of_another_kind_is_refused() -> None:
    masked: Any = MaskablePPO("MlpPolicy", Masked(), **SMALL).policy_class
    recurrent: Any = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", **SMALL).policy_class
    with pytest.raises(BudgetError, match="policy without action masks"):
        BudgetPPO(masked, Masked(), budget=FixedBeta(1.0), **SMALL)
    with pytest.raises(BudgetError, match="policy without a recurrent state"):
        BudgetPPO(recurrent, "CartPole-v1", budget=FixedBeta(1.0), **SMALL)
    with pytest.raises(BudgetError, match="ActorCriticPolicy of stable-baselines3, as PPO and A2C have, got DQNPolicy"):
        BudgetPPO("MlpPolicy", "CartPole-v1", reference=DQN("MlpPolicy", "CartPole-v1", device="cpu"), **SMALL)


@pytest.mark.parametrize("kind", ["MaskablePPO", "RecurrentPPO"])
def test_a_file_of_another_algorithm_is_refused(kind: str, tmp_path: Path) -> None:
    made = {
        "MaskablePPO": lambda: MaskablePPO("MlpPolicy", Masked(), **SMALL),
        "RecurrentPPO": lambda: RecurrentPPO("MlpLstmPolicy", "CartPole-v1", **SMALL),
    }[kind]()
    made.save(tmp_path / "model.zip")
    with pytest.raises(BudgetError, match="policy without"):
        BudgetPPO.load(tmp_path / "model.zip", budget=FixedBeta(1.0), device="cpu")


def masked_pair(kind: str, p_masks: Any, q_masks: Any) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    """Two masked distributions, and the probabilities of all actions under each by enumeration in float64."""
    generator = torch.Generator().manual_seed(1)
    sizes = {"categorical": [4], "multi": [2, 3], "bernoulli": [2, 2]}[kind]
    found: list[Any] = []
    tables = []
    for masks in (p_masks, q_masks):
        logits = torch.randn(2, sum(sizes), dtype=torch.float64, generator=generator)
        match kind:
            case "categorical":
                one: Any = MaskableCategoricalDistribution(4).proba_distribution(logits)
            case "multi":
                one = MaskableMultiCategoricalDistribution(sizes).proba_distribution(logits)
            case _:
                one = MaskableBernoulliDistribution(2).proba_distribution(logits)
        kept = np.ones(sum(sizes), bool) if masks is None else np.array(masks, bool)
        if masks is not None:
            one.apply_masking(np.tile(kept, (2, 1)))
        table, start = np.ones((2, 1)), 0
        for size in sizes:
            weight = np.exp(logits.numpy()[:, start : start + size]) * kept[start : start + size]
            weight = weight / weight.sum(-1, keepdims=True)
            table = (table[:, :, None] * weight[:, None, :]).reshape(2, -1)
            start += size
        found.append(one)
        tables.append(table)
    return (*found, *tables)


@pytest.mark.parametrize(
    ("kind", "p_masks", "q_masks"),
    [
        ("categorical", [1, 0, 1, 1], [1, 0, 1, 1]),
        ("categorical", [1, 0, 1, 0], [1, 1, 1, 0]),
        ("categorical", [1, 0, 1, 0], None),
        ("categorical", [1, 1, 1, 0], [1, 0, 1, 0]),
        ("categorical", None, [1, 0, 1, 0]),
        ("categorical", [1, 0, 0, 0], [1, 0, 0, 0]),
        ("multi", [1, 1, 0, 1, 1], [1, 1, 0, 1, 1]),
        ("multi", [1, 0, 0, 1, 1], [1, 1, 1, 1, 1]),
        ("multi", [1, 1, 1, 1, 1], [1, 1, 0, 1, 1]),
        ("bernoulli", [1, 1, 0, 1], [1, 1, 0, 1]),
        ("bernoulli", [1, 1, 1, 1], [1, 1, 0, 1]),
    ],
)
def test_the_kl_of_masked_policies_is_the_sum_over_the_allowed_actions(kind: str, p_masks: Any, q_masks: Any) -> None:
    p, q, p_table, q_table = masked_pair(kind, p_masks, q_masks)
    got = policy_kl(p, q).numpy()
    if ((p_table > 0) & (q_table == 0)).any():
        assert (got == math.inf).all()
        return
    positive = p_table > 0
    ratio = np.log(np.where(positive, p_table, 1.0) / np.where(positive, q_table, 1.0))
    np.testing.assert_allclose(got, (p_table * ratio).sum(-1), rtol=1e-10, atol=1e-15)


def test_masked_and_plain_distributions_have_a_kl() -> None:
    logits, masks = torch.randn(3, 5), np.array([[1, 0, 1, 1, 1]] * 3, bool)
    masked = MaskableCategoricalDistribution(5).proba_distribution(logits)
    masked.apply_masking(masks)
    plain = CategoricalDistribution(5).proba_distribution(logits)
    mass = torch.softmax(logits, -1)[:, 1]
    torch.testing.assert_close(policy_kl(masked, plain), -torch.log1p(-mass))
    assert (policy_kl(plain, masked) == math.inf).all()
    several = MaskableMultiCategoricalDistribution([2, 3]).proba_distribution(logits)
    several.apply_masking(masks)
    unmasked = MultiCategoricalDistribution([2, 3]).proba_distribution(logits)
    assert (policy_kl(unmasked, several) == math.inf).all()
    assert torch.isfinite(policy_kl(several, unmasked)).all()


# -- files of PPO --


@pytest.mark.parametrize("kind", ["budget", "old budget", "both", "rule", "none", "A2C", "VecNormalize"])
def test_a_file_of_ppo_is_loaded_with_its_policy_as_the_reference(kind: str, tmp_path: Path) -> None:
    step: Any = {"unit": "step"}
    arguments: dict[str, dict[str, Any]] = {
        "budget": {"budget": KLBudget(0.01, **step)},
        "old budget": {"old_budget": KLBudget(0.01, **step), "clip": None},
        "both": {"budget": KLBudget(0.01, **step), "old_budget": KLBudget(0.01, **step)},
        "rule": {"budget": FixedBeta(1.0), "clip": 0.1},
        "A2C": {"budget": KLBudget(0.01, **step)},
        "VecNormalize": {"budget": KLBudget(0.01, **step)},
    }
    env = normalised(copies=1) if kind == "VecNormalize" else DummyVecEnv([lambda: gymnasium.make("CartPole-v1")])
    algorithm: Any = A2C if kind == "A2C" else PPO
    settings = {"seed": 0, "device": "cpu", "n_steps": 64} if kind == "A2C" else SMALL
    plain = algorithm("MlpPolicy", env, **settings).learn(128)
    plain.save(tmp_path / "plain.zip")
    model: Any = BudgetPPO.load(tmp_path / "plain.zip", env=env, device="cpu", **arguments.get(kind, {}))
    for ours, saved in zip(model.policy.parameters(), plain.policy.parameters(), strict=True):
        assert torch.equal(ours, saved)
    has_reference = kind not in ("none", "old budget")
    assert (model.reference is not None) == has_reference
    if has_reference:
        for ours, saved in zip(model.reference.parameters(), plain.policy.parameters(), strict=True):
            assert torch.equal(ours, saved)
    if kind in ("old budget", "rule"):
        assert model.clip_range(1.0) == (math.inf if kind == "old budget" else 0.1)
    model.learn(64, log_interval=None)
    if has_reference and kind != "VecNormalize":
        assert logged(model)["kl_policy_ref_per_step"] == 0.0
    model.save(tmp_path / "again.zip")
    again = BudgetPPO.load(tmp_path / "again.zip", env=env, device="cpu")
    assert again.budget == model.budget
    assert again.old_budget == model.old_budget


def test_a_given_reference_replaces_the_saved_reference(tmp_path: Path) -> None:
    first = PPO("MlpPolicy", "CartPole-v1", **{**SMALL, "seed": 1})
    second = PPO("MlpPolicy", "CartPole-v1", **{**SMALL, "seed": 2})
    BudgetPPO("MlpPolicy", "CartPole-v1", reference=first, budget=FixedBeta(1.0), **SMALL).save(tmp_path / "one.zip")
    first.save(tmp_path / "two.zip")
    for name in ("one.zip", "two.zip"):
        env = gymnasium.make("CartPole-v1")
        model: Any = BudgetPPO.load(tmp_path / name, env=env, reference=second, budget=FixedBeta(1.0), device="cpu")
        for ours, given in zip(model.reference.parameters(), second.policy.parameters(), strict=True):
            assert torch.equal(ours, given)
        for ours, saved in zip(model.policy.parameters(), first.policy.parameters(), strict=True):
            assert torch.equal(ours, saved)


def test_a_loaded_file_obeys_the_rules_of_the_constructor(tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1", **SMALL).save(tmp_path / "plain.zip")
    for budgets in ({"budget": KLBudget(0.1)}, {"old_budget": KLBudget(0.1, unit="image")}):
        with pytest.raises(BudgetError, match="budget per 'step'"):
            BudgetPPO.load(tmp_path / "plain.zip", env=gymnasium.make("CartPole-v1"), device="cpu", **budgets)


# -- spaces --

OBSERVATIONS = {
    "box": spaces.Box(-1, 1, (3,)),
    "dictionary": spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(3), "c": spaces.MultiBinary(2)}),
    "images": spaces.Dict({"image": spaces.Box(0, 255, (3, 36, 36), np.uint8), "a": spaces.Box(-1, 1, (2,))}),
    "discrete": spaces.Discrete(5),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(4),
}
ACTIONS = {
    "discrete": spaces.Discrete(4),
    "multi-discrete": spaces.MultiDiscrete([2, 3, 2]),
    "multi-binary": spaces.MultiBinary(3),
    "box": spaces.Box(-1, 1, (2,)),
}


@pytest.mark.parametrize(
    ("observations", "actions"),
    [(name, "discrete") for name in OBSERVATIONS] + [("dictionary", name) for name in ACTIONS if name != "discrete"],
)
def test_both_budgets_are_measured_in_every_space(observations: str, actions: str, tmp_path: Path) -> None:
    space = OBSERVATIONS[observations]
    env = DummyVecEnv([lambda: Shifted(space, ACTIONS[actions])] * 2)
    name = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    budgets = {"budget": KLBudget(0.02, unit="step"), "old_budget": KLBudget(0.005, unit="step")}
    model: Any = BudgetPPO(name, env, clip=None, learning_rate=1e-3, **budgets, **SMALL)
    model.learn(3 * 128, log_interval=None)
    obs: Any = model.rollout_buffer.observations
    parts = obs if isinstance(obs, dict) else {"obs": obs}
    states = {key: torch.as_tensor(np.asarray(values)) for key, values in parts.items()}
    chosen: Any = states if isinstance(obs, dict) else states["obs"]
    with torch.no_grad():
        p, q = (one.get_distribution(chosen) for one in (model.old, model.policy))
        pairs = zip(
            *(d.distribution if isinstance(d.distribution, list) else [d.distribution] for d in (p, q)), strict=True
        )
        each = [kl_divergence(a, b) for a, b in pairs]
    kl = torch.stack([(one if one.ndim == 1 else one.sum(-1)).double() for one in each]).sum(0)
    got = logged(model)
    assert got["kl_old_policy_per_step"] == pytest.approx(float(kl.mean()), rel=2e-3, abs=1e-7)
    assert 0 < got["kl_old_policy_per_step"] < 1.021 * 0.005
    assert 0 < got["kl_policy_ref_per_step"] < 0.05
    model.save(tmp_path / "model.zip")
    loaded: Any = BudgetPPO.load(tmp_path / "model.zip", env=env, device="cpu")
    loaded.learn(128, log_interval=None)
    assert math.isfinite(logged(loaded)["kl_policy_ref_per_step"])
