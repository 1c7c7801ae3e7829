"""A short GRPO run within a KL budget, on one process or on several processes of one machine without a GPU.

    python distributed_grpo.py OUT BACKEND [--resume]
    python -m torch.distributed.run --nproc-per-node 2 distributed_grpo.py OUT BACKEND [--resume]

BACKEND is "ddp", "fsdp2" or "zero": DeepSpeed, by the settings of `accelerate launch` or of --deepspeed. The
completions depend on the prompt and on their place in the group only, so that runs on any number of processes see the
same batches. OUT receives `rows.json` (the metrics of each step), `seen.json` (a checksum of the weights that each
generation receives) and `weights.safetensors` (the whole weights at the end).
"""

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

_PROMPTS = 16
_ROWS_PER_STEP = 8


def use_gloo() -> None:
    """Let accelerate use gloo for the settings of accelerators, which it ignores on machines without an accelerator."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType
    from transformers import training_args

    def set_device(self: Any) -> None:
        self.device = torch.device("cpu")

    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)  # type: ignore[method-assign]
    PartialState.set_device = set_device  # type: ignore[method-assign]
    training_args.is_torch_bf16_gpu_available = lambda: True


def use_deepspeed_without_gpu() -> None:
    """Let DeepSpeed partition over gloo, on one process too, without compiling its own collectives."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ |= {"DS_ACCELERATOR": "cpu", **({} if "LOCAL_RANK" in os.environ else alone)}
    import deepspeed  # noqa: F401

    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    use_gloo()


def use_fsdp2_without_gpu() -> None:
    """Let accelerate shard by FSDP2 over gloo."""
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
    }
    use_gloo()


def whole(weight: torch.Tensor) -> torch.Tensor:
    """The whole weight, gathered from all processes if it is sharded."""
    if hasattr(weight, "ds_tensor"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]):
            return weight.detach().clone()
    return (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach().clone()


def number_of_characters(completions: list[str], **_: Any) -> list[float]:
    """A reward that differs between the completions of a group."""
    return [len(set(text)) + 0.1 * len(text) for text in completions]


def main() -> None:
    """Train for 6 steps, or to the end from the checkpoint of step 3."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("backend", choices=["ddp", "fsdp2", "zero"])
    parser.add_argument("--tied", action="store_true")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--accumulated", type=int, default=1)
    parser.add_argument("--recomputed", action="store_true")
    parser.add_argument("--masked", action="store_true")
    parser.add_argument("--two-passes", action="store_true")
    parser.add_argument("--efficient-loading", action="store_true")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--bf16-weights", action="store_true")
    parser.add_argument("--twice", action="store_true")
    parser.add_argument("--ignored-scale", action="store_true")
    parser.add_argument("--schedule", default="constant")
    parser.add_argument("--path", action="store_true")
    parser.add_argument("--unit", choices=["token", "sequence"], default="token")
    parser.add_argument("--generations", type=int, default=2)
    parser.add_argument("--deepspeed", type=json.loads, default=None)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if options.backend == "fsdp2":
        use_fsdp2_without_gpu()
    if options.efficient_loading:
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "true"
    if options.backend == "zero":
        use_deepspeed_without_gpu()
    if options.recomputed:
        os.environ["FSDP_ACTIVATION_CHECKPOINTING"] = "true"

    from accelerate.utils import gather_object
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl import GRPOConfig

    from kullback.budget.kl_budget import KLBudget
    from kullback.integrations.gathered_weights import canonical_name
    from kullback.integrations.trl import BudgetGRPOTrainer
    from kullback.train.demo.addition_task import make_model, make_tokenizer, prompt_rows

    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model: Any = make_model(tokenizer)
    if options.efficient_loading and os.environ["RANK"] != "0":
        for weight in model.parameters():
            weight.data.fill_(torch.nan)  # transformers loads the weights on the first process only
    if options.two_passes:
        model.unused = torch.nn.Dropout(0.1)  # so that the KL is measured by another pass, in evaluation mode
    if options.bf16_weights:
        model.to(torch.bfloat16)
    if options.ignored_scale:
        model.config.logit_scale = 2.0  # TRL's output head takes the scale from here, and the model does not
    if options.tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    if options.lora:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(1)
        model = get_peft_model(model, LoraConfig(r=4, lora_dropout=options.dropout, target_modules="all-linear"))
    seen: list[float] = []

    def generate(prompts: list[str], trainer: Any) -> dict[str, Any]:
        policy = trainer.accelerator.unwrap_model(trainer.model)
        if options.backend == "fsdp2":  # TRL sends `full_tensor()` of each weight to vLLM
            assert all(isinstance(weight, DTensor) for weight in policy.parameters())
        seen.append(float(sum(whole(weight).double().square().sum() for weight in policy.parameters())))
        # The completions of a prompt may be on several processes.
        of_processes: list[list[str]] = gather_object([prompts])
        counts = Counter(chain.from_iterable(of_processes[: trainer.accelerator.process_index]))
        completions = []
        for prompt in prompts:
            place = counts[prompt]
            counts[prompt] += 1
            noise = hashlib.sha256(f"{prompt} {place}".encode()).digest()
            completions.append([2 + byte % 10 for byte in noise[: 2 + noise[9] % 3]] + [tokenizer.eos_token_id])
            if options.masked and hashlib.sha256(prompt.encode()).digest()[0] % 2:
                completions[-1] = completions[-1][:-1]  # all completions of this prompt are truncated
        return {
            "prompt_ids": [tokenizer(prompt)["input_ids"] for prompt in prompts],
            "completion_ids": completions,
            "logprobs": None,
        }

    arguments = GRPOConfig(
        str(options.output / "checkpoints"),
        use_cpu=options.backend == "ddp",
        deepspeed=options.deepspeed,
        bf16=options.bf16,
        report_to="none",
        per_device_train_batch_size=_ROWS_PER_STEP // processes // options.accumulated,
        gradient_accumulation_steps=options.accumulated,
        num_generations=options.generations,
        max_completion_length=4,
        mask_truncated_completions=options.masked,
        max_steps=options.steps,
        learning_rate=3e-2 if options.lora else 1e-3,
        lr_scheduler_type=options.schedule,
        logging_steps=1,
        save_steps=3,
        disable_tqdm=True,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
    )
    if options.path:  # ZeRO-3 partitions the weights while they are loaded
        model.save_pretrained(options.output / "model")
        torch.distributed.barrier()
        model = str(options.output / "model")
    trainer = BudgetGRPOTrainer(
        model,
        number_of_characters,
        arguments,
        # A completion has 2 to 5 tokens.
        budget=KLBudget(0.01) if options.unit == "token" else KLBudget(0.04, unit="sequence"),
        train_dataset=Dataset.from_list(prompt_rows(_PROMPTS, seed=0)),
        processing_class=tokenizer,
        rollout_func=generate,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=options.resume or None)
    if options.twice:
        trainer.train()
    weights = {
        canonical_name(name): whole(weight)
        for name, weight in trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    }
    if trainer.accelerator.is_main_process:
        rows = [row for row in trainer.state.log_history if "beta" in row]
        (options.output / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        (options.output / "seen.json").write_text(json.dumps(seen), encoding="utf-8")
        save_file(weights, options.output / "weights.safetensors")
    if torch.distributed.is_initialized():
        # The threads of gloo and of autograd sometimes abort a process while Python shuts down, so Python is left out.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
