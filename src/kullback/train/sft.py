"""Supervised fine-tuning of a language model by TRL, with forward KL and the entropy floor of its loss logged."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from kullback.errors import InputError
from kullback.integrations.transformers import load_model, load_tokenizer, require_embeddings
from kullback.integrations.transformers_forward_kl import ForwardKL
from kullback.runs.finite import finite_outputs, require_finite_weights
from kullback.runs.input_hashes import hash_of_model, hash_of_rows
from kullback.runs.library_errors import library_errors
from kullback.runs.run_directory import RunDirectory, checkpoint_step, is_main_process, versions
from kullback.train.lora import described_model, make_lora_config, save_model
from kullback.train.prompt_checks import positions_of, require_chat_template
from kullback.train.run_checks import require_at_least, require_seed
from kullback.train.trainer_callbacks import (
    train_with_checkpoints,
)
from kullback.train.trl_settings import make_config

__all__ = ["SFTPlan", "train_sft"]

Row = dict[str, Any]

# TRL's key of each metric, and the key in metrics.jsonl.
_FROM_TRL = {
    **{key: key for key in ("loss", "entropy", "learning_rate")},
    "mean_token_accuracy": "accuracy",
    "grad_norm": "gradient_norm",
}


@dataclass(frozen=True)
class SFTPlan:
    """The configuration of a supervised fine-tuning run.

    Args:
        model: A transformers directory, from which the model starts.
        rows: The training examples, each with a "prompt" and a "completion". The loss counts completion tokens only.
        steps: The number of optimizer steps.
        output: The run directory.
        seed: The seed of all random numbers.
        settings: Further fields of TRL's SFTConfig.
        evaluation_rows: Held-out examples, which may be empty.
        evaluate_every: The number of steps between two evaluations. 0 evaluates only before and after training.
        max_examples: The maximum number of examples of each set that the model is evaluated on.
        named: Further entries of config.json, such as the file that the examples came from.
        lora: The fields of PEFT's LoraConfig for an adapter that is trained; None trains all weights.

    Example:
        >>> rows = [{"prompt": "1+2=", "completion": "3"}, {"prompt": "3+4=", "completion": "7"}]
        >>> plan = SFTPlan(Path("model"), rows, 100, Path("run"), settings={"learning_rate": 1e-4})
        >>> plan.config()["settings"], plan.config()["examples"]
        ({'learning_rate': 0.0001}, 2)
    """

    model: Path
    rows: Sequence[Row]
    steps: int
    output: Path
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    evaluation_rows: Sequence[Row] = ()
    evaluate_every: int = 50
    max_examples: int = 1024
    named: Mapping[str, Any] = field(default_factory=dict)
    lora: Mapping[str, Any] | None = None

    def config(self) -> Row:
        """The contents of config.json.

        Returns:
            The settings of the run as JSON types, by name.
        """
        copied = ("steps", "seed", "evaluate_every", "max_examples")
        return {
            "kind": "sft",
            **described_model(self.model),
            "lora": None if self.lora is None else dict(self.lora),
            "budget": None,
            "rewards": [],
            "watched": [],
            **{name: getattr(self, name) for name in copied},
            "settings": dict(self.settings),
            "examples": len(self.rows),
            "evaluation_examples": len(self.evaluation_rows),
            "hashes": {
                "examples": hash_of_rows(self.rows),
                "evaluation examples": hash_of_rows(self.evaluation_rows),
                "model": hash_of_model(self.model),
            },
            **self.named,
        }


def train_sft(plan: SFTPlan, *, resume: bool = False, overwrite: bool = False, console: Console | None = None) -> bool:
    """Train a language model on examples, and write a run directory.

    Args:
        plan: The configuration of the run.
        resume: Whether to continue from the newest intact checkpoint in the run directory. A run that has already
            taken all steps is not changed.
        overwrite: Whether to replace a run in the run directory.
        console: The console that shows the progress, or None for no output.

    Returns:
        True if all steps were taken; False after an interrupt, which saves a checkpoint and evaluates the model.

    Raises:
        InputError: The plan is invalid, the run directory does not allow the run to start or to continue, or a loss, a
            gradient or a weight is not finite.

    Example:
        >>> import tempfile
        >>> from kullback.train.demo.addition_task import make_model, make_tokenizer
        >>> rows = [{"prompt": "1+2=", "completion": "3"}, {"prompt": "3+4=", "completion": "7"}]
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     model, output = Path(directory) / "model", Path(directory) / "run"
        ...     tokenizer = make_tokenizer()
        ...     make_model(tokenizer).save_pretrained(model)
        ...     _ = tokenizer.save_pretrained(model)
        ...     finished = train_sft(SFTPlan(model, rows, 1, output))
        ...     first, last = (row["train_forward_kl_per_token"] for row in RunDirectory(output).evaluations())
        >>> finished, 0 < last < first
        (True, True)
    """
    run = RunDirectory(plan.output)
    _validate(plan)
    if overwrite:
        run.check_not_replaced("--model", plan.model)
    with run.open_for_training(plan.config(), resume=resume, overwrite=overwrite, main=is_main_process()):
        return (resume and run.is_finished(plan.steps)) or _train(plan, run, resume, console)


def _train(plan: SFTPlan, run: RunDirectory, resume: bool, console: Console | None) -> bool:
    """Train in a run directory that is locked; see `train_sft`."""
    args = make_config(
        SFTConfig,
        plan.settings,
        output_dir=str(run.checkpoints),
        max_steps=plan.steps,
        seed=plan.seed,
        packing=False,
    )
    main = args.process_index == 0
    checkpoint = run.checkpoint_to_resume(main=main) if resume else None
    first_step = 0 if checkpoint is None else checkpoint_step(checkpoint)
    only_save = checkpoint is not None and first_step >= plan.steps  # all steps were taken, but no model was saved
    tokenizer, model = load_tokenizer(plan.model), load_model(plan.model)
    require_embeddings(model, tokenizer)
    require_finite_weights(model, step=0)
    for option, rows in (("--data", plan.rows), ("--evaluate", plan.evaluation_rows)):
        require_chat_template(rows, tokenizer, option)
    with library_errors(SFTTrainer.__name__):
        trainer = SFTTrainer(
            model,
            args,
            train_dataset=_dataset(plan.rows),
            eval_dataset=_dataset(plan.evaluation_rows) if plan.evaluation_rows else None,
            processing_class=tokenizer,
            peft_config=None if plan.lora is None else make_lora_config(plan.lora, model),
        )
    _require_examples_fit(plan, trainer, positions_of(model))
    if trainer.is_world_process_zero():
        _print_untrained_answers(plan)
    trainer.pop_callback(PrinterCallback)
    evaluate = _EvaluateRegularly(ForwardKL(trainer, max_examples=plan.max_examples), run, plan.evaluate_every)
    if checkpoint is None:
        # The model is evaluated before anything is written, so that invalid examples leave no files.
        before = evaluate.forward_kl.measure()
        if main:
            packages = ("torch", "transformers", "trl", "accelerate", *(["peft"] if plan.lora else []))
            run.create({**plan.config(), "versions": versions(*packages)})
            run.remove_rows_after(-1)
            run.add_evaluation({"step": 0, **before})
    elif main:
        run.remove_rows_after(first_step)

    def save(step: int) -> None:
        with finite_outputs(lambda: step):
            evaluate.measure(step)
        if main:
            run.save_model(step, lambda directory: _write_model(trainer, tokenizer, plan.model, directory))
        trainer.accelerator.wait_for_everyone()

    if only_save:
        trainer._load_from_checkpoint(str(checkpoint))
        save(first_step)
        return True
    finished = train_with_checkpoints(
        trainer, run, plan.steps, checkpoint=checkpoint, names=_FROM_TRL, callbacks=[evaluate], console=console
    )
    step = trainer.state.global_step
    if not finished:
        with suppress(KeyboardInterrupt):  # another interrupt omits the evaluation
            evaluate.measure(step)
        return False
    save(step)
    return True


def _require_examples_fit(plan: SFTPlan, trainer: SFTTrainer, positions: int | None) -> None:
    """Raise InputError if a set has no example with a token to learn, or an example that is too long for the model.

    TRL cuts examples at max_length, and drops those without a token of the completion before it.
    """
    limit = trainer.args.max_length  # type: ignore[union-attr]
    for option, rows, dataset in (
        ("--data", plan.rows, trainer.train_dataset),
        ("--evaluate", plan.evaluation_rows, trainer.eval_dataset),
    ):
        if not rows or dataset is None:
            continue
        lengths = [len(ids) for ids in dataset["input_ids"]]  # type: ignore[index]
        if not lengths:
            raise InputError(
                f"{option}: none of the {len(rows)} examples has a token of its completion within max_length={limit}; "
                "raise it by --set max_length=N, or shorten the prompts"
            )
        args: Any = trainer.args
        batch = args.train_batch_size * args.world_size
        if option == "--data" and args.dataloader_drop_last and len(lengths) < batch:
            raise InputError(
                f"{option}: expected at least {batch} examples, a batch, as dataloader_drop_last omits a batch with "
                f"fewer, got {len(lengths)}; remove --set dataloader_drop_last, or lower per_device_train_batch_size"
            )
        if positions is not None and max(lengths) > positions:
            row = f"row {1 + lengths.index(max(lengths))}: the" if len(lengths) == len(rows) else "an"
            raise InputError(
                f"{option}, {row} example has {max(lengths)} tokens, but the model has {positions} positions; shorten "
                f"it, or cut all examples by --set max_length={positions}"
            )
        if len(lengths) < len(rows) and trainer.is_world_process_zero():
            print(
                f"kullback: {option}: {len(rows) - len(lengths)} of {len(rows)} examples have no token of their "
                f"completion within max_length={limit}, and are not used",
                file=sys.stderr,
            )


def _print_untrained_answers(plan: SFTPlan) -> None:
    """State how many examples have messages of the assistant that are not the completion."""
    for option, rows in (("--data", plan.rows), ("--evaluate", plan.evaluation_rows)):
        prompts = [row["prompt"] for row in rows if isinstance(row["prompt"], list)]
        count = sum(any(message["role"] == "assistant" for message in prompt) for prompt in prompts)
        if count:
            print(
                f"kullback: {option}: {count} of {len(rows)} examples have several messages of the assistant; the last "
                "is the completion, and earlier ones are neither trained nor measured: add a row that ends with each",
                file=sys.stderr,
            )


def _write_model(trainer: SFTTrainer, tokenizer: Any, base: Path, directory: Path) -> None:
    save_model(trainer.accelerator.unwrap_model(trainer.model), base, directory)  # type: ignore[arg-type]
    tokenizer.save_pretrained(directory)


class _EvaluateRegularly(TrainerCallback):
    """Measures forward KL at regular steps, and stores the rows."""

    def __init__(self, forward_kl: ForwardKL, run: RunDirectory, every: int) -> None:
        self.forward_kl, self.run, self.every = forward_kl, run, every
        self.latest_step = 0

    def measure(self, step: int) -> None:
        """Evaluate the model unless this step has been evaluated."""
        if self.latest_step != step:
            row = self.forward_kl.measure()
            self.latest_step = step
            if self.forward_kl.trainer.is_world_process_zero():
                self.run.add_evaluation_once({"step": step, **row})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self.every and state.global_step % self.every == 0:
            self.measure(state.global_step)


def _dataset(rows: Sequence[Row]) -> Dataset:
    """A dataset with the two columns that SFTTrainer expects."""
    return Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows])


def _validate(plan: SFTPlan) -> None:
    """Raise InputError if the plan is invalid."""
    require_at_least("--steps", plan.steps, 1)
    require_at_least("--evaluate-every", plan.evaluate_every, 0)
    require_at_least("--max-examples", plan.max_examples, 1)
    require_seed(plan.seed)
