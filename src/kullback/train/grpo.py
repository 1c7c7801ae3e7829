"""Training of a language-model policy by GRPO or RLOO with a KL budget."""

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from pyarrow import ArrowException
from rich.console import Console
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, RLOOConfig

from kullback.budget.controllers import Controller, controller_config
from kullback.budget.kl_budget import KLBudget
from kullback.errors import InputError, RewardError
from kullback.integrations.transformers import load_model, load_tokenizer
from kullback.integrations.trl import BudgetGRPOTrainer, BudgetRLOOTrainer, BudgetTrainer
from kullback.runs.finite import finite_outputs, require_finite_weights
from kullback.runs.input_hashes import hash_of_function, hash_of_model, hash_of_rows
from kullback.runs.library_errors import library_errors
from kullback.runs.metrics import kl_key
from kullback.runs.run_directory import RunDirectory, checkpoint_step, is_main_process, versions
from kullback.train.evaluation import Evaluation
from kullback.train.lora import described_model, make_lora_config, save_model
from kullback.train.prompt_checks import positions_of, require_prompts_fit
from kullback.train.rewards import Reward, reward_name, with_output_check
from kullback.train.run_checks import require_at_least, require_seed
from kullback.train.trainer_callbacks import (
    train_with_checkpoints,
)
from kullback.train.trl_settings import make_config

__all__ = ["GRPOPlan", "train_grpo"]

Row = dict[str, Any]

_TRAINERS: Mapping[str, tuple[type[Any], type[Any]]] = {
    "grpo": (GRPOConfig, BudgetGRPOTrainer),
    "rloo": (RLOOConfig, BudgetRLOOTrainer),
}

# TRL's key of each metric, and the key in metrics.jsonl.
_FROM_TRL = {
    "reward": "reward",
    "reward_std": "reward_std",
    "kl_policy_ref_per_token": "kl_policy_ref_per_token",
    "kl_policy_ref_per_token_std_error": "kl_policy_ref_per_token_std_error",
    "kl_policy_ref_per_sequence": "kl_policy_ref_per_sequence",
    "kl_policy_ref_per_sequence_std_error": "kl_policy_ref_per_sequence_std_error",
    "kl_filtered": "kl_filtered",
    "beta": "beta",
    "learning_rate_scale": "learning_rate_scale",
    "displacement_scale": "displacement_scale",
    "entropy": "entropy",
    "completions/mean_length": "completion_length",
    "completions/clipped_ratio": "truncated",
    "learning_rate": "learning_rate",
    "grad_norm": "gradient_norm",
    "loss": "loss",
    "num_tokens": "tokens",
    "step_time": "step_seconds",
}


_ARROW_ERRORS = (ArrowException, OverflowError, TypeError, ValueError)
_MAX_WITHOUT_REWARDS = 3  # generations in succession


@dataclass(frozen=True)
class GRPOPlan:
    """The configuration of a GRPO or RLOO run.

    Args:
        model: A transformers directory, which may be a snapshot in the cache of the Hugging Face hub. The policy starts
            from this model, and it is the reference.
        rows: The training prompts. Each row has a "prompt" and the columns that the rewards take.
        rewards: Reward functions in TRL's format, whose sum, with the setting `reward_weights`, is maximised.
        budget: The controller of KL(policy || reference), for example a `KLBudget`; other controllers act on nats per
            token. None leaves the KL unconstrained.
        steps: The number of optimizer steps.
        output: The run directory.
        watched: Reward functions that are logged and not optimised.
        seed: The seed of all random numbers.
        settings: Further fields of TRL's GRPOConfig or RLOOConfig.
        evaluation_rows: The prompts of the evaluations. If there are none, the first 128 of `rows` are used.
        evaluate_every: The number of steps between two evaluations. 0 evaluates only before and after training.
        named: Further entries of config.json, such as the files that the prompts and rewards came from.
        lora: The fields of PEFT's LoraConfig for an adapter that is trained; None trains all weights.
        algorithm: "grpo" (advantages relative to the group) or "rloo" (REINFORCE with the leave-one-out baseline).

    Example:
        >>> from kullback.train.demo.addition_task import exact_match, prompt_rows
        >>> rows = prompt_rows(1000, seed=0)
        >>> plan = GRPOPlan(Path("reference"), rows, [exact_match], KLBudget(0.05), 200, Path("run"))
        >>> plan.unit, plan.config()["rewards"], plan.config()["evaluation_prompts"]
        ('token', ['exact_match'], 128)
    """

    model: Path
    rows: Sequence[Row]
    rewards: Sequence[Reward]
    budget: Controller | None
    steps: int
    output: Path
    watched: Sequence[Reward] = ()
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    evaluation_rows: Sequence[Row] = ()
    evaluate_every: int = 20
    named: Mapping[str, Any] = field(default_factory=dict)
    algorithm: Literal["grpo", "rloo"] = "grpo"
    lora: Mapping[str, Any] | None = None

    def config(self) -> Row:
        """The contents of config.json.

        Returns:
            The settings of the run as JSON types, by name.
        """
        rewards = (*self.rewards, *self.watched)
        names = [reward_name(reward) for reward in rewards]
        return {
            "kind": self.algorithm,
            **described_model(self.model),
            "lora": None if self.lora is None else dict(self.lora),
            "budget": None if self.budget is None else controller_config(self.budget, unit=self.unit),
            "rewards": names[: len(self.rewards)],
            "watched": names[len(self.rewards) :],
            "steps": self.steps,
            "seed": self.seed,
            "settings": dict(self.settings),
            "evaluate_every": self.evaluate_every,
            "evaluation_prompts": len(self.rows_to_evaluate()),
            "hashes": {
                "prompts": hash_of_rows(self.rows),
                "evaluation prompts": hash_of_rows(self.rows_to_evaluate()),
                "model": hash_of_model(self.model),
                **{f"reward {reward_name(reward)}": hash_of_function(reward) for reward in rewards},
            },
            **self.named,
        }

    def reward_weights(self) -> list[float]:
        """The weights of the rewards in the sum that is maximised.

        Returns:
            The setting `reward_weights`, or 1 for each reward.
        """
        return list(self.settings.get("reward_weights") or [1.0] * len(self.rewards))

    @property
    def unit(self) -> str:
        """The unit of the budget: "token" or "sequence"."""
        return getattr(self.budget, "unit", "token")

    def rows_to_evaluate(self) -> Sequence[Row]:
        """The prompts of the evaluations.

        Returns:
            `evaluation_rows`, or the first 128 of `rows` if there are no evaluation rows.
        """
        return self.evaluation_rows or self.rows[:128]


def train_grpo(
    plan: GRPOPlan, *, resume: bool = False, overwrite: bool = False, console: Console | None = None
) -> bool:
    """Train a policy by the algorithm of the plan, GRPO or RLOO, and write a run directory.

    The reference is evaluated before anything is written, so that invalid inputs and failing rewards leave no files.

    Args:
        plan: The configuration of the run.
        resume: Whether to continue from the newest intact checkpoint in the run directory, including the controller's
            state. A run that has already taken all steps is not changed.
        overwrite: Whether to replace a run in the run directory.
        console: The console that shows the progress, or None for no output.

    Returns:
        True if all steps were taken; False after an interrupt, which saves a checkpoint and evaluates the policy.

    Raises:
        InputError: The plan is invalid, the run directory does not allow the run to start or to continue, or a loss, a
            gradient or a weight is not finite.
        RewardError: A reward function raised an exception, or returned anything but one number per completion.

    Example:
        >>> import tempfile
        >>> from kullback.train.demo.addition_task import exact_match, make_model, make_tokenizer, prompt_rows
        >>> settings = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 4}
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     model, output = Path(directory) / "model", Path(directory) / "run"
        ...     tokenizer = make_tokenizer()
        ...     make_model(tokenizer).save_pretrained(model)
        ...     _ = tokenizer.save_pretrained(model)
        ...     rows = prompt_rows(2, seed=0)
        ...     plan = GRPOPlan(model, rows, [exact_match], KLBudget(0.05), 1, output, settings=settings)
        ...     finished = train_grpo(plan)
        ...     steps = [row["step"] for row in RunDirectory(output).evaluations()]
        >>> finished, steps
        (True, [0, 1])
    """
    run = RunDirectory(plan.output)
    _validate(plan)
    if overwrite:
        run.check_not_replaced("--model", plan.model)
    with run.open_for_training(plan.config(), resume=resume, overwrite=overwrite, main=is_main_process()):
        return (resume and run.is_finished(plan.steps)) or _train(plan, run, resume, console)


def _train(plan: GRPOPlan, run: RunDirectory, resume: bool, console: Console | None) -> bool:
    """Train in a run directory that is locked; see `train_grpo`."""
    rewards = [with_output_check(reward) for reward in (*plan.rewards, *plan.watched)]
    config_class, trainer_class = _TRAINERS[plan.algorithm]
    args = make_config(
        config_class,
        plan.settings,
        output_dir=str(run.checkpoints),
        max_steps=plan.steps,
        seed=plan.seed,
        beta=0.0,
        reward_weights=plan.reward_weights() + [0.0] * len(plan.watched),
    )
    main = args.process_index == 0
    checkpoint = run.checkpoint_to_resume(main=main) if resume else None
    first_step = 0 if checkpoint is None else checkpoint_step(checkpoint)
    tokenizer, policy = load_tokenizer(plan.model), load_model(plan.model)
    require_finite_weights(policy, step=0)
    template_kwargs: Any = args.chat_template_kwargs
    for option, rows in (("--prompts", plan.rows), ("--evaluate", plan.evaluation_rows)):
        require_prompts_fit(
            rows,
            tokenizer,
            positions=positions_of(policy),
            max_new_tokens=args.max_completion_length or 256,
            option=option,
            chat_template_kwargs=template_kwargs,
        )
    policy.to(args.device)  # type: ignore[arg-type]
    evaluation = Evaluation(
        plan.rows_to_evaluate(),
        rewards,
        tokenizer,
        max_new_tokens=args.max_completion_length or 256,
        temperature=args.temperature,
        rank=args.process_index,
        processes=args.world_size,
        seed=plan.seed,
        chat_template_kwargs=template_kwargs,
    )
    _require_enough_prompts(plan, args)
    dataset = _dataset(plan.rows)
    # The trainer, which checks the settings, is constructed before the evaluation, which takes longer.
    with library_errors(trainer_class.__name__):
        trainer = trainer_class(
            policy,
            list(rewards),
            args,
            budget=plan.budget,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=None if plan.lora is None else make_lora_config(plan.lora, policy),
        )
    controller = trainer._controller
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise InputError(
            "expected whole weights on each process, got FSDP or DeepSpeed, whose sharded policy this command cannot "
            f"evaluate; use plain data parallelism, or kullback.integrations.trl.{trainer_class.__name__} in a script"
        )
    if checkpoint is None:
        # The reference is evaluated before anything is written, so that a failing reward leaves no files.
        before, samples = evaluation.measure(controller.policy, controller.reference_states, step=0)
        if main:
            run.create(
                {
                    **plan.config(),
                    "versions": versions(
                        "torch", "transformers", "trl", "accelerate", *(["peft"] if plan.lora else [])
                    ),
                    "learning_rate": args.learning_rate,
                }
            )
            run.remove_rows_after(-1)
            run.add_evaluation(before)
            run.set_samples("before", samples)
    elif main:
        run.remove_rows_after(first_step)
    args.distributed_state.wait_for_everyone()  # type: ignore[union-attr]
    if checkpoint is not None and first_step >= plan.steps:  # all steps were taken, but no model was saved
        trainer._load_from_checkpoint(str(checkpoint))
        row, samples = evaluation.measure(controller.policy, controller.reference_states, step=first_step)
        if main:
            run.add_evaluation_once(row)
            _save(run, first_step, samples, trainer, tokenizer, plan.model)
        args.distributed_state.wait_for_everyone()  # type: ignore[union-attr]
        return True

    if args.log_completions and main:  # TRL creates its directory before the run directory exists
        (run.checkpoints / "completions").mkdir(parents=True, exist_ok=True)
    trainer.pop_callback(PrinterCallback)
    evaluate = _EvaluateRegularly(trainer, evaluation, run, plan)
    finished = train_with_checkpoints(
        trainer,
        run,
        plan.steps,
        checkpoint=checkpoint,
        names=_FROM_TRL | {f"rewards/{name}/mean": f"rewards/{name}" for name in evaluation.names},
        callbacks=[_StopWithoutRewards([reward_name(reward) for reward in plan.rewards]), evaluate],
        console=console,
        target=getattr(plan.budget, "target", None),
        unit=plan.unit,
    )
    if not finished:
        with suppress(KeyboardInterrupt):  # another interrupt omits the evaluation
            evaluate.measure()
        return False
    with finite_outputs(lambda: trainer.state.global_step):
        samples = evaluate.measure()
    if main:
        _save(run, trainer.state.global_step, samples, trainer, tokenizer, plan.model)
    trainer.accelerator.wait_for_everyone()
    return True


def _require_enough_prompts(plan: GRPOPlan, args: Any) -> None:
    """Raise InputError if a generation takes more prompts than there are; TRL would not take any step."""
    batch, group = args.generation_batch_size, args.num_generations
    if len(plan.rows) < batch // group:
        raise InputError(
            f"--prompts: expected at least {batch // group} prompts, as many as a generation takes "
            f"(generation_batch_size={batch} completions, num_generations={group} for each prompt), got "
            f"{len(plan.rows)}; add prompts, or lower --set generation_batch_size or per_device_train_batch_size"
        )


def _dataset(rows: Sequence[Row]) -> Dataset:
    """The prompts as a data set; InputError names the column that Apache Arrow cannot store."""
    try:
        return Dataset.from_list([dict(row) for row in rows])
    except _ARROW_ERRORS as error:
        message = " ".join(str(error).split())[:200]
        names = [f'"{key}"' for key in rows[0] if not _is_storable([row[key] for row in rows])]
        raise InputError(
            f"--prompts: expected values of one type in each column, in nested values too, and integers of at most 64 "
            f"bits, but the column {' and '.join(names)} cannot be stored: {message}; convert its values to text"
        ) from error


def _is_storable(column: list[Any]) -> bool:
    try:
        Dataset.from_dict({"column": column})
    except _ARROW_ERRORS:
        return False
    return True


def _save(run: RunDirectory, step: int, samples: list[Row], trainer: Any, tokenizer: Any, base: Path) -> None:
    """Store the completions after training, and the trained policy or its adapter, with the tokenizer."""

    def write(directory: Path) -> None:
        save_model(trainer.accelerator.unwrap_model(trainer.model), base, directory)
        tokenizer.save_pretrained(directory)

    run.set_samples("after", samples)
    run.save_model(step, write)


class _StopWithoutRewards(TrainerCallback):
    """Raises RewardError when all rewards are None in several generations in succession, which train nothing.

    Args:
        names: The names of the rewards that are optimised.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.keys = [f"rewards/{name}/mean" for name in names]
        self.generations = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        if not logs or not all(key in logs for key in self.keys):
            return  # this step reuses earlier completions, or the logs are not of a step
        self.generations = self.generations + 1 if all(logs[key] is None for key in self.keys) else 0
        if self.generations == 1 and state.is_world_process_zero:
            print(
                f"kullback: step {state.global_step}: every reward of every completion is None, so that this step does "
                "not train the policy",
                file=sys.stderr,
            )
        if self.generations == _MAX_WITHOUT_REWARDS:
            raise RewardError(
                f"step {state.global_step}: every reward of every completion was None in {_MAX_WITHOUT_REWARDS} "
                "generations in succession; expected a number for completions that the reward applies to"
            )


class _EvaluateRegularly(TrainerCallback):
    """Evaluates the policy at regular steps, stores the row, and updates the budget with the measured KL."""

    def __init__(self, trainer: BudgetTrainer, evaluation: Evaluation, run: RunDirectory, plan: GRPOPlan) -> None:
        self.trainer, self.evaluation, self.run, self.every = trainer, evaluation, run, plan.evaluate_every
        self.latest: tuple[int, list[Row]] = (-1, [])

    def measure(self) -> list[Row]:
        """Evaluate the policy unless this step has been evaluated, and return the sampled completions."""
        step = self.trainer.state.global_step
        if self.latest[0] != step:
            controller = self.trainer._controller
            row, samples = self.evaluation.measure(controller.policy, controller.reference_states, step=step)
            self.latest = (step, samples)
            if self.trainer.accelerator.is_main_process:
                self.run.add_evaluation_once(row)
                if step < self.trainer.args.max_steps:  # the completions of the last step are written with the model
                    self.run.add_samples(step, samples)
            self._update_budget(row)
        return self.latest[1]

    def _update_budget(self, row: Row) -> None:
        budget = self.trainer.budget
        if isinstance(budget, KLBudget):
            name = kl_key(budget.unit)
            self.trainer.budget = budget.update_evaluation(row[name], std_error=row[f"{name}_std_error"])

    def on_step_end(self, args, state, control, **kwargs) -> None:  # noqa: ARG002
        if self.every and state.global_step % self.every == 0:
            self.measure()


def _validate(plan: GRPOPlan) -> None:
    """Raise InputError if the plan is invalid."""
    names = [reward_name(reward) for reward in (*plan.rewards, *plan.watched)]
    if len(set(names)) < len(names):
        raise InputError(
            f"expected rewards of different names, got {', '.join(names)}: each reward needs a metric of its own"
        )
    require_at_least("--steps", plan.steps, 1)
    require_at_least("--evaluate-every", plan.evaluate_every, 0)
    require_seed(plan.seed)
    weights: Any = plan.reward_weights()
    are_numbers = all(isinstance(weight, int | float) and math.isfinite(weight) for weight in weights)
    if len(weights) != len(plan.rewards) or not are_numbers:
        raise InputError(
            f"--set reward_weights={weights}: expected one finite number for each --reward, which are "
            f"{', '.join(names[: len(plan.rewards)])}; a reward of --watch has weight 0"
        )
