"""GRPO and RLOO by TRL, with the KL of the policy held at a budget."""

import copy
import functools
import logging
import math
import types
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from kullback.errors import BudgetError, MissingDependencyError

try:
    import torch
    from accelerate.utils import broadcast_object_list, gather_object
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_callback import ExportableState
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
    from trl.trainer.utils import create_model_from_path
except ModuleNotFoundError as error:
    if error.name not in ("torch", "transformers", "trl", "accelerate"):
        raise
    raise MissingDependencyError(f"{error.name} is missing: pip install 'kullback[train]'") from error

try:
    from trl.trainer.utils import FusedCausalLMOutput
except ImportError:  # TRL 1.14 has no fused output head
    FusedCausalLMOutput: Any = None

from torch import Tensor

from kullback.budget.controllers import (
    Controller,
    FixedBeta,
    controller_config,
    controller_from_dict,
    controller_to_dict,
)
from kullback.budget.kl_budget import KLBudget
from kullback.budget.step import BudgetStep, scaled_learning_rates
from kullback.doctor.forward_pass import CompletionBatch, base_model, preserve_training_state
from kullback.doctor.trl import doctor_batch
from kullback.integrations.deepspeed import ZeroWeights, require_supported_zero
from kullback.integrations.fsdp2 import Fsdp2Weights
from kullback.integrations.gathered_weights import canonical_name
from kullback.integrations.heldout_positions import HeldOutCompletions, prompt_fingerprints
from kullback.integrations.policy_weights import PolicyWeights, WholeWeights
from kullback.integrations.position_ids import counts_padding, ignore_padding, pass_position_ids
from kullback.integrations.transformers import (
    AnyHead,
    Completions,
    completion_entropy,
    completion_kl,
    completion_log_prob,
    decoder_of,
    decoder_output,
    last_hidden,
    model_head,
    recorded_hidden,
    require_embeddings,
)
from kullback.integrations.transformers_reference import copy_for_reference, evaluation_mode, has_half_precision
from kullback.integrations.trl_checkpoint import load_generations, save_generations
from kullback.result import Estimate
from kullback.runs.finite import require_finite_weights
from kullback.runs.metrics import kl_key
from kullback.samples.clustered_mean import kl_per_sequence, kl_per_token

__all__ = ["BudgetGRPOTrainer", "BudgetRLOOTrainer"]

_FORMER_CALLBACK = "_BudgetHolder"  # the key of the state in checkpoints that were saved before the class was renamed
_LARGEST_KL_AT_START = 1e-4  # nats; equal weights give exactly 0
_HELD_OUT_STEPS = 8  # the number of optimizer steps for which a held-out completion is used
_FINGERPRINT_TOKENS = 8  # whose log-probabilities identify a reference ...
_FINGERPRINT_ERROR = 0.01  # ... up to this difference in nats, which covers another device; tenfold for 16 bits
_CHANGING_INITIALIZATIONS = ("corda", "loftq", "lora_ga", "olora", "pissa")  # of LoRA: they change the frozen weights
# The KL is measured in evaluation mode where a model has dropout, of which `evaluation_hidden` warns.
_TOLERATED_FINDING = "dropout"

_logger = logging.getLogger(__name__)


class BudgetTrainer(Trainer):
    """The methods that hold KL(policy || reference) at a budget in a trainer of TRL, which is the second base class.

    They are described by `BudgetGRPOTrainer` and `BudgetRLOOTrainer`.
    """

    config_class: type[Any]
    is_loss_divided: bool
    """Whether TRL divides its loss by the number of accumulated micro-batches; otherwise transformers does so."""

    # Attributes of both trainers of TRL.
    temperature: float
    num_iterations: int
    _step: int
    _is_vlm: bool
    _metrics: dict[str, Any]

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: Any = None,
        *,
        budget: Controller | None,
        ref_model: Any = None,
        preflight: bool = True,
        resume_budget: Literal["refuse", "given", "saved"] = "refuse",
        **kwargs: Any,
    ) -> None:
        config = self.config_class.__name__
        if budget is not None and not (hasattr(budget, "beta") and hasattr(budget, "update")):
            raise BudgetError(f"expected budget to be a controller such as KLBudget(0.05), got {budget!r:.80}")
        args = copy.copy(args) if args is not None else self.config_class(type(self).__name__, beta=0.0)
        if args.beta != 0:
            default = ", which is its default" if args.beta == self.config_class.beta else ""
            raise BudgetError(
                f"expected {config}.beta = 0, got {args.beta}{default}: the budget sets the coefficient of the KL "
                "penalty; pass beta=0.0"
            )
        if args.sync_ref_model:
            raise BudgetError(f"expected {config}.sync_ref_model = False: a budget needs a reference that is fixed")
        if resume_budget not in ("refuse", "given", "saved"):
            raise BudgetError(f"expected resume_budget to be 'refuse', 'given' or 'saved', got {resume_budget!r}")
        if args.torch_compile:
            raise BudgetError(
                "expected torch_compile=False, got True: the KL is computed from the output layer of the model, which "
                "is called without its decoder"
            )
        if getattr(kwargs.get("peft_config"), "layer_replication", None):
            raise BudgetError(
                "expected a peft_config without layer_replication, which adds layers to the reference as well, so that "
                "the KL would not be relative to the model as it was given; apply get_peft_model before, and pass the "
                "result as model: it is then the reference"
            )
        if FusedCausalLMOutput is None and getattr(args, "use_liger_kernel", False):
            raise BudgetError(
                "expected use_liger_kernel=False with TRL 1.14, whose loss then multiplies the hidden states by the "
                "head's weight and omits other layers and scales of the head; install trl>=1.15 or set it to False"
            )
        trainer: Any = super()
        trainer.__init__(model, reward_funcs, args, **kwargs)
        if self._is_vlm or (self.is_fsdp_enabled and not self.accelerator.is_fsdp2):
            raise BudgetError(
                "expected a text model whose weights are whole on each process, sharded by FSDP2, or partitioned by "
                "DeepSpeed ZeRO; FSDP1 and image models are not supported, use fsdp_version: 2 or plain data "
                "parallelism"
            )
        self.budget, self.unit = budget, getattr(budget, "unit", "token")
        if self.unit not in ("token", "sequence"):
            raise BudgetError(f"expected a budget per 'token' or 'sequence' of completions, got {self.unit!r}")
        self.preflight, self.resume_budget = preflight, resume_budget
        policy: Any = self.accelerator.unwrap_model(self.model)
        require_embeddings(policy, self.processing_class)
        self.has_given_reference = ref_model is not None
        if ref_model is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise BudgetError(
                "expected no ref_model under FSDP2 and under DeepSpeed ZeRO: the reference is the policy with its "
                "initial weights"
            )
        if self.is_deepspeed_enabled:
            plugin: Any = self.accelerator.state.deepspeed_plugin
            require_supported_zero(plugin.deepspeed_config)
        elif self.is_fsdp_enabled:
            if self.accelerator.mixed_precision not in ("no", "bf16"):
                raise BudgetError(
                    f"expected mixed_precision: no or bf16 under FSDP2, got {self.accelerator.mixed_precision}; use "
                    "bf16=True"
                )
            is_float32 = all(w.dtype == torch.float32 for w in policy.parameters() if w.requires_grad)
            if self.accelerator.mixed_precision == "no" and not is_float32:
                raise BudgetError(
                    "expected trainable weights in float32 under FSDP2: load the model in torch.float32, or set "
                    "bf16=True, so that FSDP2 keeps them in float32"
                )
        else:
            self.ref_model = _reference_model(policy, ref_model)
        if self.ref_model is not None:
            self.ref_model = self.accelerator.prepare_model(self.ref_model, evaluation_mode=True)
        self._controller = _BudgetCallback(self)
        if kwargs.get("peft_config") is not None and not self.is_deepspeed_enabled:
            _require_neutral_adapter(self.accelerator.unwrap_model(self.model))
        self.add_callback(self._controller)
        _require_a_batch(self)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return the optimizer, which acts on float32 copies of trainable weights of lower precision."""
        optimizer = super().create_optimizer(model)
        self._controller.weights.replace_in(optimizer)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Store the reference of weights that DeepSpeed has partitioned before a checkpoint is loaded."""
        self._controller.place()
        return super().create_scheduler(num_training_steps, optimizer)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Store the reference of sharded weights before the weights of a checkpoint replace it."""
        self._controller.place()
        super()._load_from_checkpoint(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        """Note the checkpoint from which training continues, whatever the backend is."""
        self._controller.checkpoint = None if checkpoint is None else Path(checkpoint)
        super()._load_optimizer_and_scheduler(checkpoint)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return TRL's loss plus beta times the exact KL, and record the KL for the controller."""
        controller = self._controller
        policy = controller.policy
        controller.require_exact_padding(inputs)
        arguments: Any = self.args
        generate_every: int = arguments.steps_per_generation * self.num_iterations
        # The policy of a batch that a checkpoint restores, or that is used again, is not the present policy.
        if controller.needs_preflight and policy.training and self._step % generate_every == 0:
            controller.run_preflight(inputs)
        # The weights of the reference must not be exchanged between the forward and the backward pass of the policy.
        ref_hidden = controller.ref_hidden(inputs) if policy.training else None
        with recorded_hidden(policy) as states:
            loss: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if ref_hidden is not None:
            hidden = controller.evaluation_hidden(inputs, states[0])
            scored = controller.score(inputs, hidden, ref_hidden)
            controller.record(inputs, scored)
            if self.budget is not None:
                loss = loss + self.budget.beta * controller.penalty(inputs, scored, hidden)
            if self.accelerator.sync_gradients:
                controller.before_last_backward()
        return loss


def _require_a_batch(trainer: Any) -> None:
    """Raise BudgetError if a generation takes more prompts than there are; TRL would end without a step or an error."""
    arguments, data = trainer.args, trainer.train_dataset
    needed = arguments.generation_batch_size // arguments.num_generations
    if hasattr(data, "__len__") and len(data) < needed:
        raise BudgetError(
            f"expected at least {needed} prompts, as many as a generation takes (generation_batch_size="
            f"{arguments.generation_batch_size} completions, num_generations={arguments.num_generations} for each "
            f"prompt), got {len(data)}; add prompts, or lower generation_batch_size or per_device_train_batch_size"
        )


class BudgetGRPOTrainer(BudgetTrainer, GRPOTrainer):
    """TRL's `GRPOTrainer` with KL(policy || reference) held at a budget, by its exact value.

    Beta times the KL over the whole vocabulary at every sampled position is added to the loss. With a budget per token,
    the gradient is exact, with the prefixes held fixed. With a budget per sequence, it is the gradient of the KL of
    whole completions by their log-ratios, which includes the effect of each token on the KL of later tokens, and whose
    noise cancels the noise of the reward at the optimum. The budget sets beta and, after every step, the learning rate
    of the next step and the displacement of the weights from the reference.

    The reference is the model as it is passed, with its weights in memory. For a PEFT model of any kind, it is the same
    model with the initial values of all trainable weights, so that no second model is in memory; for other models, the
    trainable weights are copied. All trainable weights are measured and scaled.

    The KL is measured in evaluation mode. If training mode changes the hidden states (dropout), this takes another
    forward and backward pass for each batch; `disable_dropout=True` avoids it. The effect of a step on the KL is
    measured in float32, also under autocast and for weights in bfloat16, whose rounding would hide it. For trainable
    weights in bfloat16 or float16, the optimizer acts on float32 copies, so that steps and scalings smaller than a
    rounding accumulate.

    Six methods of the base class are wrapped: the constructor, `create_optimizer`, `create_scheduler`, `compute_loss`,
    `_load_from_checkpoint` and `_load_optimizer_and_scheduler`. The controller's state and the completions that later
    steps use are saved in the checkpoints, so that a resumed run equals an uninterrupted run.

    Args:
        model: As for `GRPOTrainer`.
        reward_funcs: As for `GRPOTrainer`.
        args: A `GRPOConfig` whose `beta` (the coefficient of TRL's own penalty) is 0 or not set.
        budget: The controller. None: the KL is measured but not controlled. A `KLBudget` sets beta and acts on the
            weights; other controllers set only beta, once per step, from the KL per token.
        ref_model: A reference model or its path, if it is not `model` itself. Its weights must have the names and
            shapes of the policy's trainable weights, or it must compute what `model` computes when it is passed.
        preflight: Whether the checks of `kullback.doctor` that need one batch run before the first step. An error is
            raised as BudgetError; a warning is logged.
        resume_budget: What happens when training resumes from a checkpoint whose budget differs from `budget`:
            "refuse" raises BudgetError, "given" continues with `budget` and with the measurements of the checkpoint,
            "saved" continues with the budget of the checkpoint. Budgets in different units are always refused.
        **kwargs: As for `GRPOTrainer`.

    Raises:
        BudgetError: The budget could not be held in this set-up: TRL's own penalty is on, the reference is updated, the
            weights are sharded by FSDP1, or by FSDP2 or DeepSpeed in float16, DeepSpeed changes weights outside of a
            step, the model takes images, or the adapter consists of prompts. Also raised by `train()`, for the findings
            of `preflight` and for a budget that differs from the checkpoint's.

    Example:
        >>> import tempfile
        >>> from datasets import Dataset
        >>> from transformers.trainer_callback import PrinterCallback
        >>> from kullback.train.demo.addition_task import exact_match, make_model, make_tokenizer, prompt_rows
        >>> settings = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 4}
        >>> settings |= {"max_steps": 1, "save_strategy": "no", "disable_tqdm": True}
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     tokenizer = make_tokenizer()
        ...     make_model(tokenizer).save_pretrained(directory)
        ...     args = GRPOConfig(directory, use_cpu=True, bf16=False, report_to="none", **settings)
        ...     data = Dataset.from_list(prompt_rows(2, seed=0))
        ...     data_and_tokenizer = {"train_dataset": data, "processing_class": tokenizer}
        ...     trainer = BudgetGRPOTrainer(directory, exact_match, args, budget=KLBudget(0.05), **data_and_tokenizer)
        ...     trainer.remove_callback(PrinterCallback)
        ...     _ = trainer.train()
        >>> trainer.state.global_step, round(trainer.budget.beta, 3), trainer.budget.status
        (1, 0.1, 'held')
    """

    config_class = GRPOConfig
    is_loss_divided = True


class BudgetRLOOTrainer(BudgetTrainer, RLOOTrainer):
    """TRL's `RLOOTrainer` with KL(policy || reference) held at a budget, by its exact value.

    The loss is TRL's REINFORCE loss with the leave-one-out baseline plus beta times the exact KL. TRL's own penalty,
    which subtracts a sampled KL from the rewards, is off. `BudgetGRPOTrainer` describes how the KL is measured
    and controlled, the reference, and the checks before the first step.

    Args:
        model: As for `RLOOTrainer`.
        reward_funcs: As for `RLOOTrainer`.
        args: An `RLOOConfig` with `beta=0.0`, which must be set, because its default is 0.05; or None.
        budget: The controller, as for `BudgetGRPOTrainer`.
        ref_model: The reference, as for `BudgetGRPOTrainer`.
        preflight: Whether the first batch is checked, as for `BudgetGRPOTrainer`.
        resume_budget: "refuse", "given" or "saved", as for `BudgetGRPOTrainer`.
        **kwargs: As for `RLOOTrainer`.

    Raises:
        BudgetError: As for `BudgetGRPOTrainer`.

    References:
        Ahmadian et al. (2024), "Back to Basics: Revisiting REINFORCE-Style Optimization for Learning from Human
        Feedback in LLMs".

    Example:
        >>> import tempfile
        >>> from datasets import Dataset
        >>> from transformers.trainer_callback import PrinterCallback
        >>> from kullback.train.demo.addition_task import exact_match, make_model, make_tokenizer, prompt_rows
        >>> settings = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 4}
        >>> settings |= {"max_steps": 1, "save_strategy": "no", "disable_tqdm": True}
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     tokenizer = make_tokenizer()
        ...     make_model(tokenizer).save_pretrained(directory)
        ...     args = RLOOConfig(directory, beta=0.0, use_cpu=True, bf16=False, report_to="none", **settings)
        ...     data = Dataset.from_list(prompt_rows(2, seed=0))
        ...     data_and_tokenizer = {"train_dataset": data, "processing_class": tokenizer}
        ...     trainer = BudgetRLOOTrainer(directory, exact_match, args, budget=KLBudget(0.05), **data_and_tokenizer)
        ...     trainer.remove_callback(PrinterCallback)
        ...     _ = trainer.train()
        >>> trainer.state.global_step, round(trainer.budget.beta, 3), trainer.budget.status
        (1, 0.1, 'held')
    """

    config_class = RLOOConfig
    is_loss_divided = False

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """Add the number of tokens of the completions of all processes, which TRL adds for GRPO only."""
        batch = super()._generate_and_score_completions(inputs)
        batch["num_items_in_batch"] = self.accelerator.gather(batch["completion_mask"].sum()).sum()  # type: ignore
        return batch


def _reference_model(policy: Any, given: Any) -> Any:
    """The separate model of the reference; None if it is the policy with its initial trainable weights."""
    if isinstance(given, str):
        attention = policy.config._attn_implementation
        given = create_model_from_path(given, dtype=policy.dtype, attn_implementation=attention)
    if given is not None:
        trained = {weight.data_ptr() for weight in policy.parameters() if weight.requires_grad}
        shared = [name for name, weight in given.named_parameters() if weight.data_ptr() in trained]
        if shared:
            raise BudgetError(
                f"expected a reference with weights of its own, got one that shares {shared[0]} with the policy and "
                "would change with it: pass copy.deepcopy(model) as ref_model"
            )
        return given.requires_grad_(False).eval()
    # The modules of a model on several devices have functions that move their inputs, which cannot be copied.
    is_on_one_device = len(set((getattr(policy, "hf_device_map", None) or {}).values())) < 2
    return copy_for_reference(policy) if is_on_one_device and base_model(policy) is policy else None


@torch.no_grad()
def _require_neutral_adapter(model: Any) -> None:
    """Raise BudgetError if a new adapter changes the model, whose KL would be relative to the changed model."""
    initialization = getattr(next(iter(model.peft_config.values())), "init_lora_weights", True)
    if str(initialization).startswith(_CHANGING_INITIALIZATIONS):
        return  # the adapter and the change of the frozen weights cancel
    ids = _fingerprint_ids(model)
    with (
        preserve_training_state(model),
        torch.autocast(model.device.type, enabled=False),
        warnings.catch_warnings(action="ignore"),  # of PEFT, on biases that have been trained
    ):
        model.eval()
        present = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
        with model.disable_adapter():
            given = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
    # The first process has all weights, also where the others receive theirs when FSDP2 shards the model.
    largest = _of_first_process(float((present - given).nan_to_num(nan=0.0).abs().max()))
    if largest > _FINGERPRINT_ERROR * (10 if has_half_precision(model) else 1):
        raise BudgetError(
            f"expected a new adapter that does not change the model, got one that changes a log-probability by "
            f"{largest:.3g} nats: the KL would be relative to the changed model; choose an initialization such as "
            "init_lora_weights=True, or pass peft.get_peft_model(model, peft_config) as the model"
        )


@torch.no_grad()
def _is_fused_head_exact(model: Any, temperature: float) -> bool:
    """Whether TRL's fused output head gives the log-probabilities of the model, for logits of any size.

    TRL takes the head as a `torch.nn.Linear` with the scale and the cap that it finds in the configuration. Where TRL
    has no fused head, it takes the log-probabilities from the model's logits.
    """
    if FusedCausalLMOutput is None:
        return True
    ids = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
    head = model_head(model)
    with evaluation_mode(model), torch.autocast(model.device.type, enabled=False):
        hidden = last_hidden(model, ids, torch.ones_like(ids))
        largest = float(head(hidden[0]).abs().max())
        for factor in (1.0, 1e3 / largest if largest > 0 else 1.0):
            logits = head(factor * hidden[0, :-1]).double() / temperature
            try:
                with decoder_output(model, factor * hidden):
                    fused = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs[0].double()
            # The last layer is no `torch.nn.Linear`, has another input, or the configured scale is not a number.
            except (RuntimeError, AttributeError, TypeError):
                return False
            tolerance = 64 * torch.finfo(model.dtype).eps * max(1.0, float(logits.abs().max()))
            if not bool(((fused - _log_probs(logits, ids[0, 1:])).abs() <= tolerance).all()):
                return False
    return True


def _of_first_process(value: Any) -> Any:
    """The value that the first process has."""
    values: Any = [value]
    return broadcast_object_list(values)[0]


def _fingerprint_ids(model: Any) -> Tensor:
    """The fixed tokens whose log-probabilities identify a model, shape (1, 9)."""
    size = model.config.get_text_config().vocab_size
    return torch.arange(1, _FINGERPRINT_TOKENS + 2, device=model.device)[None] % size


def _log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def _add_exact_head(model: Any, head_of_policy: Callable[[], AnyHead], temperature: float) -> None:
    """Replace TRL's fused output head, `forward(fused_lm_head=True)`, by a function that uses the model's own head."""
    former = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return former(*args, labels=labels, **kwargs)
        if kwargs.get("output_router_logits"):
            raise BudgetError("expected router_aux_loss_coef = 0 for a model whose output head is not linear")
        kwargs["use_cache"] = False
        hidden = decoder_of(self)(*args, **kwargs).last_hidden_state
        mask, head = labels[:, 1:] != -100, head_of_policy()
        log_probs = completion_log_prob(head, hidden, labels.clamp(min=0), mask, temperature=temperature)
        return FusedCausalLMOutput(
            loss=-log_probs.sum() / mask.sum().clamp(min=1),
            log_probs=log_probs,
            entropy=completion_entropy(head, hidden, mask, temperature=temperature),
            label_mask=mask,
        )

    model.forward = types.MethodType(forward, model)


class _BudgetCallback(TrainerCallback, ExportableState):
    """Measures the KL of each step, updates the controller, and applies its outputs to the optimizer and weights."""

    def __init__(self, trainer: BudgetTrainer) -> None:
        self.trainer = trainer
        model: Any = trainer.accelerator.unwrap_model(trainer.model)
        self.model, self.policy = model, base_model(model)
        if any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
            raise BudgetError(
                "expected an adapter of the weights, got prompts that are trained (prompt, prefix or P-tuning), "
                "which hidden states of the base model do not contain; use LoRA or another adapter of the weights"
            )
        if any(getattr(module, "merged_adapters", None) for module in model.modules()):
            raise BudgetError(
                "expected an adapter beside the weights, got one that is merged into them, so that it does not train; "
                "call unmerge_adapter(), or merge_and_unload() to train the merged weights"
            )
        if any(hasattr(module, "layers_are_rescaled") for module in self.policy.modules()):
            raise BudgetError(
                f"expected a model whose weights are the same in training and in evaluation mode, got "
                f"{type(self.policy).__name__}, whose evaluation mode rescales them"
            )
        if trainer.args.fp16 and any(w.dtype == torch.float16 for w in model.parameters() if w.requires_grad):
            raise BudgetError(
                "expected float32 weights with fp16=True, got float16, whose gradients cannot be unscaled; load the "
                "model in float32, and its forward pass runs in float16"
            )
        self.is_low_precision = trainer.accelerator.mixed_precision != "no" or has_half_precision(model)
        if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            require_finite_weights(model, step=0)
        # Whether the KL depends on the padding before a prompt, although the sampled tokens do not.
        self.counts_padding = False
        if not trainer.is_deepspeed_enabled:
            self._ignore_padding()
        self.weights = self._policy_weights()
        self.ref_log_probs: list[float] = []
        # The first process has all weights, also where the others receive theirs when FSDP2 shards the model.
        self.is_fused_head_exact: bool | None = None
        if not trainer.is_deepspeed_enabled:  # DeepSpeed may have partitioned the weights already
            self.is_fused_head_exact = _of_first_process(_is_fused_head_exact(self.policy, trainer.temperature))
        # Whether the hidden states in training mode are those in evaluation mode; None: not compared yet.
        self.has_one_mode: bool | None = None
        self.needs_preflight, self.has_trained = False, False
        self.checkpoint: Path | None = None
        self.step = BudgetStep(self.weights.scale_displacement, self)
        self.learning_rates = ExitStack()
        self.place()
        self.reset()

    def _policy_weights(self) -> PolicyWeights:
        """The weights of policy and reference, by where the processes store them."""
        trainer = self.trainer
        if trainer.is_fsdp_enabled:
            return Fsdp2Weights(self.model, trainer.accelerator.device)
        if trainer.is_deepspeed_enabled:
            return ZeroWeights(self.model, trainer.accelerator)
        separate: Any = None if trainer.ref_model is None else trainer.accelerator.unwrap_model(trainer.ref_model)
        return WholeWeights(self.model, separate, is_low_precision=self.is_low_precision)

    def _ignore_padding(self) -> None:
        """Pass position ids to policy and reference where they count the padding before a prompt.

        The first process has all weights, also where the others receive theirs when FSDP2 shards the model.
        """
        trainer: Any = self.trainer
        separate = None if trainer.ref_model is None else trainer.accelerator.unwrap_model(trainer.ref_model)
        for model in (self.policy, *([] if separate is None else [base_model(separate)])):
            self.counts_padding |= not ignore_padding(model, _of_first_process)

    @torch.no_grad()
    def _ignore_padding_of_partitions(self) -> None:
        """As `_ignore_padding`, by a copy of the model that gathers its weights from the partitions of DeepSpeed."""
        with self.weights.checked() as models:
            copied = base_model(models.policy)
            if counts_padding(copied):
                for model in (self.policy, copied):
                    pass_position_ids(model)
                self.counts_padding = counts_padding(copied)

    def require_exact_padding(self, inputs: Mapping[str, Any]) -> None:
        """Raise BudgetError for a batch with padding before a prompt if the KL depends on it."""
        if self.counts_padding and not bool(inputs["prompt_mask"].all()):
            raise BudgetError(
                f"expected prompts of one length for {type(self.policy).__name__}, got padding before a prompt: the "
                "model reads padding, whereas completions are sampled without it, so that the measured KL would not be "
                "the KL of the policy; batch prompts of equal length"
            )

    def place(self) -> None:
        """Store the values of the reference where the weights are, and complete what needs them."""
        self.model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        if not self.weights.place(self.model):
            return
        if self.trainer.is_deepspeed_enabled:
            self._ignore_padding_of_partitions()
        if self.is_fused_head_exact is None:
            self.is_fused_head_exact = self._is_gathered_fused_head_exact()
        if not self.is_fused_head_exact:
            _add_exact_head(self.policy, self.weights.head, self.trainer.temperature)
        self.ref_log_probs = self._ref_log_probs()

    @torch.no_grad()
    def _is_gathered_fused_head_exact(self) -> bool:
        """Whether TRL's fused output head is exact, by a copy of the model that gathers its weights."""
        with self.weights.checked() as models:
            copied = base_model(models.policy)
            layer: Any = self.weights.head(float32=True)
            copied.forward = types.MethodType(self.policy.forward.__func__, copied)
            copied.get_output_embeddings = lambda: layer  # TRL reads the weights of the layer without calling it
            try:
                return _is_fused_head_exact(copied, self.trainer.temperature)
            finally:
                del copied.forward, copied.get_output_embeddings

    @torch.no_grad()
    def _ref_log_probs(self) -> list[float]:
        """The reference's log-probabilities of fixed tokens, by which a checkpoint identifies its reference."""
        ids = _fingerprint_ids(self.policy)
        with evaluation_mode(self.policy):
            hidden = self.weights.ref_hidden(ids, torch.ones_like(ids))[0, :-1]
            return _log_probs(self.weights.ref_head()(hidden).float(), ids[0, 1:]).tolist()

    def reset(self) -> None:
        """Discard what was recorded."""
        self.batches: list[tuple[Tensor, Tensor, Tensor]] = []
        self.newest: HeldOutCompletions | None = None
        self.held_out: HeldOutCompletions | None = None
        self.added: HeldOutCompletions | None = None
        self.learning_rates.close()

    # -- measurements --

    def evaluation_hidden(self, inputs: Mapping[str, Any], hidden: Tensor) -> Tensor:
        """Return the policy's hidden states in evaluation mode, with gradient, from the hidden states in training mode.

        Where both modes compute the same, the given states are returned. This is tested on the first batch; a dropout
        layer may have no effect on it, as in an adapter that is still 0, and rules this out too.
        """
        if self.has_one_mode is None:
            self.has_one_mode = False if _has_dropout(self.model) else self._modes_agree(inputs, hidden)
            if self.has_one_mode is False:
                _logger.warning(
                    "Training mode changes the hidden states of the policy (dropout). The KL is measured in evaluation "
                    "mode, by another forward and backward pass for each batch; set disable_dropout=True to avoid it."
                )
        if not self.has_one_mode:
            ids, attention, _ = _completions(inputs)
            with self._autocast():
                hidden = self.weights.evaluation_hidden(ids, attention)
        return hidden

    def _modes_agree(self, inputs: Mapping[str, Any], hidden: Tensor) -> bool | None:
        """Whether evaluation mode gives the hidden states of training mode, up to the rounding of another kernel.

        All processes decide alike, because they take part in each other's forward passes. None if no token counts.
        """
        ids, attention, mask = _completions(inputs)
        with self._autocast(), torch.no_grad():
            other = self.weights.evaluation_hidden(ids, attention)
        counted = mask.bool()
        first, second = (states[:, -mask.shape[1] - 1 : -1][counted].detach().float() for states in (hidden, other))
        tolerance = 2 * torch.finfo(torch.bfloat16 if self.is_low_precision else hidden.dtype).eps
        agrees = bool((first - second).abs().max() <= tolerance * first.abs().max()) if first.numel() else None
        found = [each for each in gather_object([agrees]) if each is not None]
        return all(found) if found else None

    def ref_hidden(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the reference's hidden states on a batch, from the position before the first completion token."""
        ids, attention, mask = _completions(inputs)
        with self._autocast():
            return self.weights.ref_hidden(ids, attention)[:, -mask.shape[1] - 1 :]

    def reference_states(self, completions: Completions) -> tuple[AnyHead, Tensor]:
        """Return the output head of the reference and its last hidden states on completions, without autocast."""
        hidden = self.weights.ref_hidden(completions.ids, completions.attention)
        return self.weights.ref_head(), hidden[:, -completions.mask.shape[1] - 1 :]

    def score(self, inputs: Mapping[str, Any], hidden: Tensor, ref_hidden: Tensor) -> HeldOutCompletions:
        """Return the KL at every completion token of a batch, given the hidden states of policy and reference on it."""
        ids, attention, mask = _completions(inputs)
        weight = torch.ones(len(ids), dtype=torch.float64, device=ids.device)
        place = torch.arange(len(ids), device=ids.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trainer.unit == "token"):
            kl = self._kl(hidden, ref_hidden, mask)
        return HeldOutCompletions(ids, attention, mask, ref_hidden, kl, weight, place)

    def record(self, inputs: Mapping[str, Any], scored: HeldOutCompletions) -> None:
        """Keep the KL of a micro-batch, gathered from every process, until the optimizer steps."""
        gather = self.trainer.accelerator.gather
        prompts = prompt_fingerprints(inputs["prompt_ids"], inputs["prompt_mask"])
        kl, lengths = scored.kl.detach(), scored.mask.double().sum(dim=1)
        all_lengths: Any = gather(lengths)
        self.batches.append((gather(kl.double().sum(dim=1)), all_lengths, gather(prompts)))  # type: ignore[arg-type]
        if bool((all_lengths > 0).any()):
            self.newest = replace(scored, kl=kl)

    def penalty(self, inputs: Mapping[str, Any], scored: HeldOutCompletions, hidden: Tensor) -> Tensor:
        """Return this process's share of the mean KL over the global batch, in the budget's unit."""
        trainer: Any = self.trainer
        steps = trainer.current_gradient_accumulation_steps if trainer.is_loss_divided else 1
        if trainer.unit == "sequence":
            total = scored.kl.detach().sum() + self._score_function_term(scored, hidden)
            return total / (len(scored) * self._share_of_counted_sequences(scored) * steps)
        tokens = inputs["num_items_in_batch"].clamp(min=1.0) / trainer.accelerator.num_processes
        return scored.kl.sum() / (tokens * steps / trainer.args.steps_per_generation)

    def _share_of_counted_sequences(self, scored: HeldOutCompletions) -> float:
        """The share of the generated completions that are not masked in full; 1 if there is none."""
        trainer: Any = self.trainer
        if not trainer.mask_truncated_completions:
            return 1.0
        batches = [_completions(inputs)[2] for inputs in trainer._buffered_inputs or ()] or [scored.mask]
        counts = [sum(float(mask.any(dim=1).sum()) for mask in batches), float(sum(len(mask) for mask in batches))]
        counted, total = trainer.accelerator.reduce(scored.kl.new_tensor(counts), reduction="sum").tolist()
        return counted / total if counted else 1.0

    def _score_function_term(self, scored: HeldOutCompletions, hidden: Tensor) -> Tensor:
        """Return 0 with the gradient of the KL of whole completions, by their log-ratios.

        The gradient is E[(log policy - log reference - baseline) grad log policy] with sums over the tokens of a
        completion. Unlike the sum of the exact gradients of its tokens, it has the same noise as the gradient of the
        reward, with the opposite sign: at the optimum, reward - beta log(policy / reference) is constant.
        """
        states = scored.ids, scored.mask
        temperature = self.trainer.temperature
        with self._float32(), evaluation_mode(self.policy):
            with torch.no_grad():
                head = self.weights.ref_head()
                ref_log_prob = completion_log_prob(head, scored.ref_hidden, *states, temperature=temperature)
            log_prob = completion_log_prob(self.weights.head(), hidden, *states, temperature=temperature)
        log_ratio = (log_prob.detach() - ref_log_prob).sum(dim=1)
        accelerator: Any = self.trainer.accelerator
        excess = scored.centred(
            log_ratio,
            otherwise=getattr(self.trainer.budget, "filtered_kl", 0.0),
            first=len(scored) * accelerator.process_index,
            gather=accelerator.gather,
        )
        surrogate = (excess * log_prob.sum(dim=1)).sum()
        return surrogate - surrogate.detach()

    def measured(self) -> tuple[Estimate, Estimate] | None:
        """Return KL(policy || reference) per token and per sequence over the samples of one optimizer step.

        Completions without a token that counts are left out. None if there are no other completions.
        """
        sums, lengths, prompts = (torch.cat(column).cpu().numpy() for column in zip(*self.batches, strict=True))
        counted = lengths > 0
        if not counted.any():
            return None
        sums, lengths, prompts = sums[counted], lengths[counted], prompts[counted]
        return kl_per_token(sums, lengths, prompts), kl_per_sequence(sums, prompts)

    def with_present_kl(self, completions: HeldOutCompletions) -> HeldOutCompletions:
        """Return the same completions with their KL under the current weights, in float32."""
        ids, attention, mask = completions.ids, completions.attention, completions.mask
        with self._float32(), torch.no_grad():
            hidden = self.weights.float32_hidden(ids, attention)
            measured = replace(completions, kl=self._kl(hidden, completions.ref_hidden, mask, float32=True))
        self.weights.release()
        return measured

    def in_float32(self, completions: HeldOutCompletions) -> HeldOutCompletions:
        """Return the same completions with the reference's hidden states in float32."""
        if not self.is_low_precision:
            return completions
        with self._float32():
            ref_hidden = self.weights.ref_hidden(completions.ids, completions.attention, float32=True)
        return replace(completions, ref_hidden=ref_hidden[:, -completions.mask.shape[1] - 1 :])

    def remeasure(self) -> tuple[float, float, float]:
        """Return the held-out KL at the previous measurement, the KL now, and the relative error of their ratio.

        The completions that are about to be added are measured in the same forward pass, for the next change.
        """
        before = self.held_out
        assert before is not None
        if self.added is None:
            self.held_out = self.with_present_kl(before)
        else:
            measured, count = self.with_present_kl(self.added.concatenate(before)), len(self.added)
            self.added, self.held_out = measured.take(slice(count)), measured.take(slice(count, None))
        return self.change(before, self.held_out)

    def change(self, old: HeldOutCompletions, new: HeldOutCompletions) -> tuple[float, float, float]:
        """Return the mean KL of the same completions before and after, and the relative error of their ratio."""
        trainer, weight = self.trainer, old.weight
        before, after = (weight * completions.kl.double().sum(dim=1) for completions in (old, new))
        counts = weight * (old.mask.sum(dim=1) if trainer.unit == "token" else 1.0)
        sums: Any = torch.stack([before.sum(), after.sum(), counts.sum()])
        total_before, total_after, count = (float(x) for x in trainer.accelerator.reduce(sums, reduction="sum"))
        if total_before <= 0 or total_after <= 0:
            return total_before / count, total_after / count, math.nan
        residuals: Any = (after - before * (total_after / total_before)).square().sum()
        variance: Any = trainer.accelerator.reduce(residuals, reduction="sum")
        return total_before / count, total_after / count, math.sqrt(float(variance)) / total_after

    def _kl(self, hidden: Tensor, ref_hidden: Tensor, mask: Tensor, *, float32: bool = False) -> Tensor:
        with self._float32(), evaluation_mode(self.policy):
            if float32 and self.is_low_precision:
                hidden, ref_hidden = hidden.float(), ref_hidden.float()
            states = self.weights.head(float32=float32), hidden, self.weights.ref_head(float32=float32), ref_hidden
            return completion_kl(*states, mask, temperature=self.trainer.temperature)

    def _autocast(self) -> Any:
        """A context manager with the autocast of the trainer, whose cache would keep the weights of the policy."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.trainer.accelerator.mixed_precision)
        if dtype is None or self.trainer.is_deepspeed_enabled:  # DeepSpeed converts the weights instead
            return nullcontext()
        return torch.autocast(self.policy.device.type, dtype=dtype, cache_enabled=False)

    def _float32(self) -> Any:
        """A context manager without autocast."""
        if self.trainer.accelerator.mixed_precision == "no":
            return nullcontext()
        return torch.autocast(self.policy.device.type, enabled=False)

    # -- the checks before the first step --

    def run_preflight(self, inputs: Mapping[str, Any]) -> None:
        """Check the set-up on the first batch; raise BudgetError for an error, log a warning."""
        if not all(gather_object([bool(_completions(inputs)[2].any())])):
            return  # the next batch is checked
        self.needs_preflight = False
        trainer: Any = self.trainer
        found = [
            finding
            for finding in doctor_batch(trainer, self.weights.checked_batch(inputs))
            if not (finding.name == "wrong-reference" and self._is_continued_from_reference)
        ]
        for finding in found:
            if finding.severity == "warning":
                _logger.warning("%s", finding)
        errors = [str(f) for f in found if f.severity == "error" and f.name != _TOLERATED_FINDING]
        errors = list(dict.fromkeys(gather_object(errors)))
        if errors:
            raise BudgetError(
                "the check of the set-up before the first step found errors (in Python, preflight=False omits it):\n"
                + "\n".join(errors)
            )
        self._require_zero_kl(inputs)

    @torch.no_grad()
    def _require_zero_kl(self, inputs: Mapping[str, Any]) -> None:
        """Raise BudgetError unless the KL that the trainer measures is 0 before the first step."""
        if self.trainer.state.global_step > 0 or self.has_trained or self.trainer.has_given_reference:
            return
        ids, attention, _ = _completions(inputs)
        ref_hidden = self.ref_hidden(inputs)
        with self._autocast():
            hidden = self.weights.evaluation_hidden(ids, attention)
        largest = float(self.score(inputs, hidden, ref_hidden).kl.max())
        self.weights.release()
        if not largest <= _LARGEST_KL_AT_START:
            raise BudgetError(
                f"expected the KL between the policy and its reference to be 0 before the first step, got "
                f"{largest:.3g} nats at a token: the weights differ from the weights that the trainer was given"
            )

    @property
    def _is_continued_from_reference(self) -> bool:
        """Whether the displacement is measured from a reference that was passed, so that a KL above 0 is intended."""
        return self.trainer.has_given_reference and self.weights.is_displaced_from_given

    @torch.no_grad()
    def head_logits(self, batch: CompletionBatch) -> Tensor:
        """Return the logits of the policy as the KL is computed from: the head applied to recorded hidden states."""
        with self.weights.checked() as models, evaluation_mode(models.policy):
            hidden = last_hidden(base_model(models.policy), batch.ids, batch.attention_mask)
            head = self.weights.head()
            return torch.stack([head(row) for row in hidden[:, -batch.mask.shape[1] - 1 :]])

    # -- the trainer's events --

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.reset()
        self.place()
        self.needs_preflight, self.has_one_mode = self.trainer.preflight, None
        trained = {canonical_name(name) for name, weight in self.model.named_parameters() if weight.requires_grad}
        added = sorted(trained - set(self.weights.names))
        if added:
            raise BudgetError(
                f"expected the trainable weights that the policy had when the trainer was created, got {added[0]} too: "
                "its initial value is unknown; call requires_grad_ before the trainer is created"
            )
        states = state.stateful_callbacks
        saved = states.get(type(self).__name__, states.get(_FORMER_CALLBACK, {})).get("attributes", {})
        self._require_reference(saved.get("ref_log_probs"))
        if self.trainer.budget is not None and saved.get("budget"):
            former = controller_from_dict(saved["budget"])
            self.trainer.budget = _resumed_budget(self.trainer.budget, former, self.trainer.resume_budget)

        if self.checkpoint is not None:
            self.held_out = load_generations(self.trainer, self.checkpoint, kwargs["train_dataloader"])
            self.checkpoint = None

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        save_generations(self.trainer, Path(args.output_dir) / f"checkpoint-{state.global_step}", self.held_out)

    def _require_reference(self, saved: list[float] | None) -> None:
        """Raise BudgetError unless the reference gives the log-probabilities that a checkpoint has stored."""
        present = self.ref_log_probs
        close = _FINGERPRINT_ERROR * (10 if has_half_precision(self.policy) else 1)
        pairs = zip(saved or present, present, strict=False)
        largest = max(abs(first - second) for first, second in pairs)
        if largest > close or (saved and len(saved) != len(present)):
            raise BudgetError(
                f"expected the reference of the checkpoint, got another: its log-probabilities differ by {largest:.3g} "
                "nats; pass the model that the run started from as model, or as ref_model"
            )

    def before_last_backward(self) -> None:
        """Update the controller and the learning rates of the step, from the KL of all micro-batches.

        This is the moment before the step that exists for every backend, as DeepSpeed steps in the backward pass.
        """
        trainer: Any = self.trainer
        estimates = self.measured()
        self.batches.clear()
        log = trainer._metrics["train"]
        if estimates is None:
            _logger.warning(
                "Step %d: every completion is masked (mask_truncated_completions), so the KL was not measured; "
                "training continues, and the budget is unchanged.",
                trainer.state.global_step + 1,
            )
        else:
            for name, estimate in zip(("token", "sequence"), estimates, strict=True):
                log[kl_key(name)].append(estimate.value)
                log[f"{kl_key(name)}_std_error"].append(estimate.std_error)
        if trainer.budget is None:
            return
        log["beta"].append(trainer.budget.beta)
        if estimates is not None:
            estimate = estimates[trainer.unit == "sequence"]
            trainer.budget = trainer.budget.update(estimate.value, std_error=estimate.std_error, count=estimate.count)
        if isinstance(trainer.budget, KLBudget):
            scale = trainer.budget.learning_rate_scale
            self.learning_rates.enter_context(scaled_learning_rates(trainer.optimizer.param_groups, scale))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.weights.before_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        trainer = self.trainer
        self.has_trained = True
        self.weights.after_step()
        if not isinstance(trainer.budget, KLBudget):
            return
        self.learning_rates.close()
        log = trainer._metrics["train"]
        log["learning_rate_scale"].append(trainer.budget.learning_rate_scale)
        log["displacement_scale"].append(self._apply(trainer.budget))
        log["kl_filtered"].append(trainer.budget.filtered_kl)

    def _apply(self, budget: KLBudget) -> float:
        """Scale the displacement, with the brake if there are held-out completions, and return the factor.

        On average an eighth of the held-out completions, which are half a batch, is replaced in each step by
        completions of the newest batch. The KL of the newest batch before the step is not representative, because the
        step was taken on this batch. The effect of later steps on its KL is representative.
        """
        newest, self.newest = self.newest, None
        processes = self.trainer.accelerator.num_processes
        size = 0 if newest is None else (len(newest) * processes + 1) // 2
        if self.held_out is None:
            factor = budget.displacement_scale
            self.weights.scale_displacement(factor)
            if newest is not None:
                self.held_out = self.with_present_kl(self._sample(newest, size))
            return factor
        steps = self.trainer.state.global_step
        count = (steps + 1) * size // _HELD_OUT_STEPS - steps * size // _HELD_OUT_STEPS  # an eighth on average
        self.added = self._sample(newest, count) if newest is not None and count > 0 else None
        self.trainer.budget, factor = self.step.apply(budget)
        if self.added is not None:
            self.held_out, self.added = self.held_out.renewed(self.added, count, size), None
        return factor

    def _sample(self, completions: HeldOutCompletions, count: int) -> HeldOutCompletions:
        """Sample a number of completions from the completions of all processes, for measurements in float32."""
        accelerator = self.trainer.accelerator
        first = len(completions) * accelerator.process_index
        return self.in_float32(completions.sample_by_kl(count, first=first, gather=accelerator.gather))  # type: ignore[arg-type]

    def state(self) -> dict[str, Any]:
        """Return the controller's state, which is saved in every checkpoint."""
        budget = self.trainer.budget
        saved = {"budget": None if budget is None else controller_to_dict(budget), "ref_log_probs": self.ref_log_probs}
        return {"args": {}, "attributes": saved}


def _completions(inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The token ids and the attention mask of prompts and completions, and the mask of the tokens that count."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    return ids, attention, inputs["completion_mask"] * inputs.get("tool_mask", 1)


def _has_dropout(model: torch.nn.Module) -> bool:
    """Whether a model has a dropout layer that is active in training mode."""
    return any(isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0 for module in model.modules())


def _settings(controller: Any, unit: str) -> dict[str, Any]:
    """The settings of a controller, without values that it changes."""
    settings = controller_config(controller, unit=unit)
    if isinstance(controller, KLBudget):
        settings["step_limit"] = controller.step_limit
    elif not isinstance(controller, FixedBeta):
        del settings["beta"]
    return settings


def _resumed_budget(given: Any, saved: Any, choice: str) -> Any:
    """The controller with which training resumes: the saved controller, unless its settings differ from those given."""
    units = [getattr(budget, "unit", "token") for budget in (given, saved)]
    settings = [_settings(budget, unit) for budget, unit in zip((given, saved), units, strict=True)]
    if settings[0] == settings[1]:
        return saved
    described = f"the budget {settings[0]} differs from the checkpoint's {settings[1]}"
    if units[0] != units[1]:
        raise BudgetError(f"{described}: a KL per {units[1]} is not a KL per {units[0]}; start a new run")
    if choice == "refuse":
        raise BudgetError(
            f"{described}: pass resume_budget='given' to continue with the first, or 'saved' with the second"
        )
    if choice == "saved" or not (isinstance(given, KLBudget) and isinstance(saved, KLBudget)):
        return saved if choice == "saved" else given
    resumed = replace(
        saved,
        target=given.target,
        price=given.price,
        price_min=given.price_min,
        price_max=given.price_max,
        gain=given.gain,
        step_limit=given.step_limit,
        # Both are shares of the target.
        mean_log_kl_step=saved.mean_log_kl_step * min(1.0, saved.target / given.target),
        rms_kl_step=saved.rms_kl_step * saved.target / given.target,
    )
    return resumed.with_price(saved.price)
