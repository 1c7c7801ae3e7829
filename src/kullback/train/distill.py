"""Distillation of a teacher into a student by TRL, with the exact divergence as the loss."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from kullback.errors import InputError
from kullback.integrations.transformers import load_model, load_tokenizer, require_embeddings
from kullback.integrations.trl_distillation import (
    DistillationConfig,
    ExactDistillationTrainer,
    require_same_vocabulary,
)
from kullback.policy.distillation import DISTILLATION_DIVERGENCES, WEIGHTED_DIVERGENCES, DistillationDivergence
from kullback.runs.finite import finite_outputs, require_finite_weights
from kullback.runs.input_hashes import hash_of_model, hash_of_rows
from kullback.runs.library_errors import library_errors
from kullback.runs.run_directory import RunDirectory, checkpoint_step, is_main_process, versions
from kullback.train.distill_evaluation import DistillationEvaluation, given_tokens
from kullback.train.lora import described_model, make_lora_config, save_model
from kullback.train.prompt_checks import positions_of, require_prompts_fit
from kullback.train.run_checks import messages_for, require_at_least, require_seed
from kullback.train.trainer_callbacks import (
    train_with_checkpoints,
)
from kullback.train.trl_settings import make_config

__all__ = ["DistillPlan", "train_distill"]

Row = dict[str, Any]

# TRL's key of each metric, and the key in metrics.jsonl.
_FROM_TRL = {
    **{key: key for key in ("loss", "entropy", "learning_rate")},
    "completions/mean_length": "completion_length",
    "completions/clipped_ratio": "truncated",
    "grad_norm": "gradient_norm",
    "step_time": "step_seconds",
}


@dataclass(frozen=True)
class DistillPlan:
    """The configuration of a distillation run.

    Args:
        model: The transformers directory of the student.
        teacher: The transformers directory of the teacher, which has the student's vocabulary.
        rows: The training prompts. Each row has a "prompt", and a "completion" if `off_policy`.
        steps: The number of optimizer steps.
        output: The run directory.
        divergence: A name of `kullback.policy.distillation.logit_divergence`.
        weight: w of `logit_divergence`; None is 1/2.
        off_policy: Whether the completions are given. Otherwise, the student generates them.
        seed: The seed of all random numbers.
        settings: Further fields of TRL's DistillationConfig.
        evaluation_rows: The prompts of the evaluations. If there are none, the first 128 of `rows` are used.
        evaluate_every: The number of steps between two evaluations. 0 evaluates only before and after training.
        named: Further entries of config.json, such as the file that the prompts came from.
        lora: The fields of PEFT's LoraConfig for an adapter that is trained; None trains all weights.

    Example:
        >>> plan = DistillPlan(Path("student"), Path("teacher"), [{"prompt": "1+2="}], 100, Path("run"))
        >>> plan.config()["divergence"], plan.config()["off_policy"], plan.config()["evaluation_prompts"]
        ('reverse', False, 1)
    """

    model: Path
    teacher: Path
    rows: Sequence[Row]
    steps: int
    output: Path
    divergence: DistillationDivergence = "reverse"
    weight: float | None = None
    off_policy: bool = False
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    evaluation_rows: Sequence[Row] = ()
    evaluate_every: int = 20
    named: Mapping[str, Any] = field(default_factory=dict)
    lora: Mapping[str, Any] | None = None

    def config(self) -> Row:
        """The contents of config.json.

        Returns:
            The settings of the run as JSON types, by name.
        """
        teacher = {key.replace("model", "teacher", 1): value for key, value in described_model(self.teacher).items()}
        copied = ("divergence", "off_policy", "steps", "seed", "evaluate_every")
        return {
            "kind": "distill",
            **described_model(self.model),
            **teacher,
            "lora": None if self.lora is None else dict(self.lora),
            "budget": None,
            "rewards": [],
            "watched": [],
            **{name: getattr(self, name) for name in copied},
            "weight": 0.5 if self.weight is None else self.weight,
            "settings": dict(self.settings),
            "evaluation_prompts": len(self.rows_to_evaluate()),
            "hashes": {
                "prompts": hash_of_rows(self.rows),
                "evaluation prompts": hash_of_rows(self.rows_to_evaluate()),
                "model": hash_of_model(self.model),
                "teacher": hash_of_model(self.teacher),
            },
            **self.named,
        }

    def rows_to_evaluate(self) -> Sequence[Row]:
        """The prompts of the evaluations.

        Returns:
            `evaluation_rows`, or the first 128 of `rows` if there are no evaluation rows.
        """
        return self.evaluation_rows or self.rows[:128]


def train_distill(
    plan: DistillPlan, *, resume: bool = False, overwrite: bool = False, console: Console | None = None
) -> bool:
    """Train a student on the divergence from its teacher, and write a run directory.

    Args:
        plan: The configuration of the run.
        resume: Whether to continue from the newest intact checkpoint in the run directory. A run that has already
            taken all steps is not changed.
        overwrite: Whether to replace a run in the run directory.
        console: The console that shows the progress, or None for no output.

    Returns:
        True if all steps were taken; False after an interrupt, which saves a checkpoint and evaluates the student.

    Raises:
        InputError: The plan is invalid, the vocabularies differ, the run directory does not allow the run to start or
            to continue, or a loss, a gradient or a weight is not finite.

    Example:
        >>> import tempfile
        >>> from kullback.train.demo.addition_task import make_model, make_tokenizer, prompt_rows
        >>> settings = {"per_device_train_batch_size": 4, "max_completion_length": 4}
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     models, output = [Path(directory) / name for name in ("student", "teacher")], Path(directory) / "run"
        ...     for path in models:
        ...         make_model(make_tokenizer()).save_pretrained(path)
        ...         _ = make_tokenizer().save_pretrained(path)
        ...     finished = train_distill(DistillPlan(*models, prompt_rows(4, seed=0), 1, output, settings=settings))
        ...     steps = [row["step"] for row in RunDirectory(output).evaluations()]
        >>> finished, steps
        (True, [0, 1])
    """
    run = RunDirectory(plan.output)
    _validate(plan)
    if overwrite:
        run.check_not_replaced("--model", plan.model)
        run.check_not_replaced("--teacher", plan.teacher)
    with run.open_for_training(plan.config(), resume=resume, overwrite=overwrite, main=is_main_process()):
        return (resume and run.is_finished(plan.steps)) or _train(plan, run, resume, console)


def _train(plan: DistillPlan, run: RunDirectory, resume: bool, console: Console | None) -> bool:
    """Train in a run directory that is locked; see `train_distill`."""
    args = make_config(
        DistillationConfig, plan.settings, output_dir=str(run.checkpoints), max_steps=plan.steps, seed=plan.seed
    )
    main = args.process_index == 0
    checkpoint = run.checkpoint_to_resume(main=main) if resume else None
    first_step = 0 if checkpoint is None else checkpoint_step(checkpoint)
    tokenizer, student = load_tokenizer(plan.model), load_model(plan.model)
    require_embeddings(student, tokenizer)
    with messages_for("--teacher"):
        teacher_tokenizer, teacher = load_tokenizer(plan.teacher), load_model(plan.teacher)
    with messages_for("--teacher", prefix=f"--teacher {plan.teacher}: "):
        require_finite_weights(teacher, step=0)
    with messages_for("--teacher", prefix=f"--teacher {plan.teacher}: "):
        require_same_vocabulary(tokenizer, teacher_tokenizer)
    sizes = [model.config.get_text_config().vocab_size for model in (student, teacher)]
    if sizes[1] < sizes[0]:
        raise InputError(
            f"--teacher {plan.teacher}: expected logits of at least {sizes[0]} tokens as of the student, got "
            f"{sizes[1]}; remove the padding of the student by resize_token_embeddings({sizes[1]})"
        )
    if sizes[1] > sizes[0]:  # the tokenizers are equal, so that the further rows are padding
        teacher.resize_token_embeddings(sizes[0])
    require_finite_weights(student, step=0)
    limit = args.max_completion_length or 256
    template_kwargs: Any = args.chat_template_kwargs
    _require_rows_fit(plan, tokenizer, (student, teacher), limit, template_kwargs)
    student.to(args.device)  # type: ignore[arg-type]
    with library_errors(ExactDistillationTrainer.__name__):
        trainer = ExactDistillationTrainer(
            student,
            teacher,
            args,
            divergence=plan.divergence,
            weight=plan.weight,
            off_policy=plan.off_policy,
            train_dataset=_dataset(plan),
            processing_class=tokenizer,
            peft_config=None if plan.lora is None else make_lora_config(plan.lora, student),
        )
    evaluation = DistillationEvaluation(
        plan.rows_to_evaluate(),
        tokenizer,
        max_new_tokens=limit,
        temperature=args.temperature,
        divergence=plan.divergence,
        weight=plan.weight,
        off_policy=plan.off_policy,
        rank=args.process_index,
        processes=args.world_size,
        seed=plan.seed,
        chat_template_kwargs=template_kwargs,
    )
    evaluate = _EvaluateRegularly(trainer, evaluation, run, plan.evaluate_every)
    if checkpoint is None:
        # The student is evaluated before anything is written, so that invalid prompts leave no files.
        before, samples = evaluate.row_and_samples(0)
        if main:
            packages = ("torch", "transformers", "trl", "accelerate", *(["peft"] if plan.lora else []))
            run.create({**plan.config(), "versions": versions(*packages), "learning_rate": args.learning_rate})
            run.remove_rows_after(-1)
            run.add_evaluation(before)
            run.set_samples("before", samples)
    elif main:
        run.remove_rows_after(first_step)
    args.distributed_state.wait_for_everyone()  # type: ignore[union-attr]

    def save(step: int) -> None:
        with finite_outputs(lambda: step):
            samples = evaluate.measure(step)
        if main:
            run.set_samples("after", samples)
            run.save_model(step, lambda directory: _write_model(trainer, tokenizer, plan.model, directory))
        trainer.accelerator.wait_for_everyone()

    if checkpoint is not None and first_step >= plan.steps:  # all steps were taken, but no model was saved
        trainer._load_from_checkpoint(str(checkpoint))
        save(first_step)
        return True
    if args.log_completions and main:  # TRL creates its directory before the run directory exists
        (run.checkpoints / "completions").mkdir(parents=True, exist_ok=True)
    trainer.pop_callback(PrinterCallback)
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


class _EvaluateRegularly(TrainerCallback):
    """Evaluates the student at regular steps, and stores the rows."""

    def __init__(self, trainer: Any, evaluation: DistillationEvaluation, run: RunDirectory, every: int) -> None:
        self.trainer, self.evaluation, self.run, self.every = trainer, evaluation, run, every
        self.latest: tuple[int, list[Row]] = (-1, [])

    def row_and_samples(self, step: int) -> tuple[Row, list[Row]]:
        """Evaluate the student."""
        models = [self.trainer.accelerator.unwrap_model(m) for m in (self.trainer.model, self.trainer.teacher_model)]
        return self.evaluation.measure(models[0], models[1], step=step)

    def measure(self, step: int) -> list[Row]:
        """Evaluate the student unless this step has been evaluated, and return the completions."""
        if self.latest[0] != step:
            row, samples = self.row_and_samples(step)
            self.latest = (step, samples)
            if self.trainer.is_world_process_zero():
                self.run.add_evaluation_once(row)
                if step < self.trainer.args.max_steps:  # the completions of the last step are written with the model
                    self.run.add_samples(step, samples)
        return self.latest[1]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self.every and state.global_step % self.every == 0:
            self.measure(state.global_step)


def _require_rows_fit(
    plan: DistillPlan, tokenizer: Any, models: Sequence[Any], limit: int, settings: Mapping[str, Any] | None
) -> None:
    """Raise InputError if a prompt with its completion is too long for a model, or cannot be encoded."""
    positions = min((count for model in models if (count := positions_of(model)) is not None), default=None)
    for option, rows in (("--prompts", plan.rows), ("--evaluate", plan.evaluation_rows)):
        if plan.off_policy and rows:
            require_prompts_fit(
                rows, tokenizer, positions=None, max_new_tokens=0, option=option, chat_template_kwargs=settings
            )
            for number, row in enumerate(rows, start=1):
                with messages_for(option, prefix=f"{option}, row {number}: "):
                    prompt, completion = given_tokens(tokenizer, row, settings)
                length = len(prompt) + min(limit, len(completion))
                if positions is not None and length > positions:
                    raise InputError(
                        f"{option}, row {number}: the prompt and its completion have {length} tokens, but the models "
                        f"have {positions} positions; shorten them, or lower --set max_completion_length"
                    )
        else:
            require_prompts_fit(
                rows,
                tokenizer,
                positions=positions,
                max_new_tokens=limit,
                option=option,
                chat_template_kwargs=settings,
            )


def _dataset(plan: DistillPlan) -> Dataset:
    """A dataset with the columns that the trainer reads."""
    columns = ("prompt", "completion") if plan.off_policy else ("prompt",)
    return Dataset.from_list([{name: row[name] for name in columns} for row in plan.rows])


def _write_model(trainer: Any, tokenizer: Any, base: Path, directory: Path) -> None:
    save_model(trainer.accelerator.unwrap_model(trainer.model), base, directory)
    tokenizer.save_pretrained(directory)


def _validate(plan: DistillPlan) -> None:
    """Raise InputError if the plan is invalid."""
    require_at_least("--steps", plan.steps, 1)
    require_at_least("--evaluate-every", plan.evaluate_every, 0)
    require_seed(plan.seed)
    if plan.divergence not in DISTILLATION_DIVERGENCES:
        raise InputError(f"--divergence: expected one of {', '.join(DISTILLATION_DIVERGENCES)}, got {plan.divergence}")
    if plan.weight is not None and plan.divergence not in WEIGHTED_DIVERGENCES:
        raise InputError(f"--weight: expected --divergence to be one of {', '.join(WEIGHTED_DIVERGENCES)}")
    if plan.weight is not None and not 0 < plan.weight < 1:
        raise InputError(f"--weight: expected a number between 0 and 1, got {plan.weight}")
    if plan.off_policy and not all("completion" in row for row in (*plan.rows, *plan.evaluation_rows)):
        raise InputError("--off-policy: expected rows with a completion, got rows without")
