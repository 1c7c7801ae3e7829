"""The trainers of `frontier.py`: TRL's GRPO with five penalties, and a minimal PPO."""

import tempfile
from copy import deepcopy
from typing import Any

import torch
from datasets import Dataset
from frontier_task import MAX_TOKENS, PROMPTS, Task, make_tokenizer, reward, successors
from torch import Tensor
from transformers import LlamaForCausalLM, set_seed
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from kullback import KLBudget
from kullback.integrations.trl import BudgetGRPOTrainer
from kullback.policy.advantages import gae
from kullback.policy.losses import ppo_loss
from kullback.policy.penalty import KLPenalty

__all__ = ["PENALTIES", "PenaltyGRPOTrainer", "generate", "train"]

GENERATIONS = 32
RATE = 3e-3

BUDGET_ITERATIONS = 4  # optimizer steps of the budget's GRPO for each batch of completions ...
BUDGET_RATE = RATE / 2  # ... and their learning rate, as for the four epochs of PPO

PENALTIES = {
    "k1 in the reward": KLPenalty(estimator="k1", placement="reward", horizon="sequence"),
    "exact in the loss": KLPenalty(estimator="exact", placement="loss", horizon="token"),
    "exact with KL-to-go": KLPenalty(estimator="exact", placement="reward", horizon="sequence"),
}


class PenaltyGRPOTrainer(GRPOTrainer):
    """TRL's GRPO with a `KLPenalty` of fixed price in its loss or in its advantages; loss_type="dr_grpo" only."""

    penalty: KLPenalty
    price: float
    reference: LlamaForCausalLM

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        if self.penalty.placement == "reward":
            with torch.no_grad():
                cost = self.penalty.to_go(**self._penalty_inputs(self.model, batch))
            groups = cost.view(-1, GENERATIONS, cost.shape[1])
            excess = (groups - groups.mean(dim=1, keepdim=True)).view_as(
                cost
            )  # TRL subtracts the group mean of the rewards too
            batch["advantages"] = batch["advantages"][:, None] - self.price * excess
        return batch

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.penalty.placement == "loss":
            cost = self.penalty.loss(**self._penalty_inputs(model, inputs))
            loss = loss + self.price * cost.sum() / (len(cost) * MAX_TOKENS)
        return loss

    def _penalty_inputs(self, model: Any, batch: Any) -> dict[str, Tensor]:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        return penalty_inputs(model, self.reference, ids, batch["completion_mask"])


def train(task: Task, kind: str, value: float, *, steps: int, seed: int) -> LlamaForCausalLM:
    """Return the policy that a trainer obtains from the task's reference.

    Args:
        task: The task.
        kind: The trainer.
        value: A price in reward per nat, or the budget in nats per completion.
        steps: The number of batches of completions; half as many for PPO, which takes four steps on each.
        seed: The seed of training.
    """
    if kind == "PPO, k1 in the reward":
        return _ppo(task, value, steps=steps // 2, seed=seed)  # four epochs a step: about the same duration
    iterations = BUDGET_ITERATIONS if kind == "budget" else 1
    with tempfile.TemporaryDirectory() as directory:
        task.reference.save_pretrained(directory)  # TRL loads its reference from this directory
        policy = LlamaForCausalLM.from_pretrained(directory)
        args = GRPOConfig(
            directory,
            beta=value if kind == "k3 in the loss (TRL)" else 0.0,
            # With this loss and unscaled rewards, reward and penalty are sums over a completion, so that the optimum is
            # on the frontier.
            loss_type="dr_grpo",
            scale_rewards="none",
            learning_rate=BUDGET_RATE if kind == "budget" else RATE,
            lr_scheduler_type="linear",
            per_device_train_batch_size=len(PROMPTS) * GENERATIONS,
            num_generations=GENERATIONS,
            num_iterations=iterations,
            max_completion_length=MAX_TOKENS,
            max_steps=steps * iterations,
            shuffle_dataset=False,
            seed=seed,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            report_to="none",
            disable_tqdm=True,
            logging_steps=steps * iterations + 1,
            save_strategy="no",
        )
        rows = Dataset.from_list([{"prompt": prompt} for _ in range(100) for prompt in PROMPTS])
        common: dict[str, Any] = {"train_dataset": rows, "processing_class": make_tokenizer()}
        if kind == "budget":
            budget = KLBudget(value, unit="sequence")
            trainer: Any = BudgetGRPOTrainer(policy, reward, args, budget=budget, **common)
        elif kind == "k3 in the loss (TRL)":
            trainer = GRPOTrainer(policy, reward, args, **common)
        else:
            trainer = PenaltyGRPOTrainer(policy, reward, args, **common)
            trainer.penalty, trainer.price, trainer.reference = PENALTIES[kind], value, task.reference
        trainer.pop_callback(PrinterCallback)
        trainer.train()
    return policy


def _ppo(task: Task, beta: float, *, steps: int, seed: int, epochs: int = 4, clip: float = 0.2) -> LlamaForCausalLM:
    """PPO with a separate critic, rewards minus beta k1 at every token, and standardised advantages."""
    set_seed(seed)
    policy, critic = deepcopy(task.reference), deepcopy(task.reference)
    critic.lm_head = torch.nn.Linear(critic.config.hidden_size, 1)
    optimizer = torch.optim.Adam([*policy.parameters(), *critic.parameters()], lr=RATE / 2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    prompts = torch.arange(1, len(PROMPTS) + 1).repeat_interleave(GENERATIONS)[:, None]
    for _ in range(steps):
        ids, mask = generate(policy, prompts)
        with torch.no_grad():
            old = penalty_inputs(policy, task.reference, ids, mask)
            values = critic(input_ids=ids).logits[:, :-1, 0]
        earned = [successors(row[1:][kept].tolist(), int(row[0])) for row, kept in zip(ids, mask.bool(), strict=True)]
        rewards = beta * (old["ref_log_prob"] - old["log_prob"]) * mask
        rewards[:, -1] += torch.tensor(earned)
        advantages = gae(rewards, values, mask)
        returns, counts = advantages + values, mask.bool()
        scaled = (advantages - advantages[counts].mean()) / advantages[counts].std()
        for _ in range(epochs):
            log_prob = _log_prob(policy(input_ids=ids).logits[:, :-1], ids)
            loss = ppo_loss(log_prob=log_prob, old_log_prob=old["log_prob"], advantages=scaled, mask=mask, clip=clip)
            residual = critic(input_ids=ids).logits[:, :-1, 0] - returns
            optimizer.zero_grad()
            (loss + residual[counts].square().mean()).backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
        schedule.step()
    return policy


@torch.no_grad()
def generate(policy: LlamaForCausalLM, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Return prompts with sampled completions, and the mask of the completions (true up to the end token)."""
    ids, unfinished = prompts, torch.ones(len(prompts), dtype=torch.bool)
    mask = []
    for _ in range(MAX_TOKENS):
        token = torch.distributions.Categorical(logits=policy(input_ids=ids).logits[:, -1]).sample()
        mask.append(unfinished)
        ids, unfinished = torch.cat([ids, torch.where(unfinished, token, 0)[:, None]], dim=1), unfinished & (token != 0)
    return ids, torch.stack(mask, dim=1).long()


def penalty_inputs(policy: Any, reference: Any, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Return the arguments of `KLPenalty.loss` and `KLPenalty.to_go`."""
    tokens = slice(-mask.shape[1] - 1, -1)
    logits = policy(input_ids=ids).logits[:, tokens]
    with torch.no_grad():
        ref_logits = reference(input_ids=ids).logits[:, tokens]
    log_prob, ref_log_prob = _log_prob(logits, ids), _log_prob(ref_logits, ids)
    return {
        "log_prob": log_prob,
        "ref_log_prob": ref_log_prob,
        "logits": logits,
        "ref_logits": ref_logits,
        "mask": mask,
    }


def _log_prob(logits: Tensor, ids: Tensor) -> Tensor:
    """The log-probabilities of the last tokens of `ids`, as many as there are logits."""
    return logits.log_softmax(-1).gather(-1, ids[:, -logits.shape[1] :, None])[..., 0]
