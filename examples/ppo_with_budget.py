"""Train a policy by stable-baselines3's PPO with KL(old policy || policy) held at 0.01 nats in each update."""

from kullback import KLBudget
from kullback.integrations.sb3 import BudgetPPO

model = BudgetPPO(
    "MlpPolicy",
    "CartPole-v1",
    old_budget=KLBudget(0.01, unit="step"),
    clip=None,
    n_steps=512,
    seed=0,
    device="cpu",
)
print("update  KL(old policy || policy)  beta")
for update in range(1, 4):
    model.learn(512, reset_num_timesteps=False)
    logged = model.logger.name_to_value
    print(
        f"{update:6d}  {logged['train/kl_old_policy_per_step']:.5f} nats per step      {logged['train/beta_old']:.3f}"
    )
