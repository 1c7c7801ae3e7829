"""Generation by vLLM: TRL sends the weights to vLLM after the displacement from the reference has been scaled.

vLLM does not run on the machines of the tests. Its place is taken by a model that receives its weights only as TRL
sends them, and that samples the completions; the trainer and TRL's synchronisation are the real ones.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig
from trl.generation import vllm_generation

from kullback.budget.kl_budget import KLBudget
from kullback.integrations.trl import BudgetGRPOTrainer
from kullback.train.demo.addition_task import make_model, make_tokenizer, prompt_rows

pytestmark = pytest.mark.slow


class Engine:
    """A model that samples completions by the weights that it has received."""

    model: Any
    received: list[dict[str, torch.Tensor]]

    def __init__(self, **settings: Any) -> None:
        self.temperature = 1.0
        self.has_reset = False

    # -- as a client of a server --

    def init_communicator(self, device: Any) -> None:
        pass

    def get_server_info(self) -> dict[str, Any]:
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def update_named_params(self, metadata: list[Any], weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        sent = {name: weight.detach().clone() for name, weight in weights}
        assert [name for name, _, _ in metadata] == list(sent)
        self.load_weights(list(sent.items()))

    def reset_prefix_cache(self) -> None:
        self.received.append(copy.deepcopy(self.model.state_dict()))

    def generate(self, prompts: list[Any], **options: Any) -> Any:
        if "sampling_params" in options:
            prompts = [prompt["prompt_token_ids"] for prompt in prompts]
            return self._request_outputs(prompts, [self._sample(ids) for ids in prompts])
        sampled = [self._sample(ids) for ids in prompts for _ in range(options["n"])]
        return {
            "prompt_ids": prompts,
            "completion_ids": [ids for ids, _ in sampled],
            "logprobs": [[[value] for value in values] for _, values in sampled],
        }

    # -- as an engine in the process --

    @property
    def llm_engine(self) -> Any:
        runner = SimpleNamespace(model_runner=SimpleNamespace(model=self))
        return SimpleNamespace(model_executor=SimpleNamespace(driver_worker=runner))

    def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, weight in weights:
                own[name].copy_(weight)

    @torch.no_grad()
    def _sample(self, prompt: list[int]) -> tuple[list[int], list[float]]:
        ids, log_probs = list(prompt), []
        while len(log_probs) < 4 and (not log_probs or ids[-1] != self.model.config.eos_token_id):
            values = self.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            token = int(torch.multinomial(values.exp(), 1))
            ids.append(token)
            log_probs.append(float(values[token]))
        return ids[len(prompt) :], log_probs

    def _request_outputs(self, prompts: list[Any], sampled: list[Any]) -> list[Any]:
        return [
            SimpleNamespace(
                prompt_token_ids=prompt,
                outputs=[
                    SimpleNamespace(
                        token_ids=ids,
                        logprobs=[
                            {token: SimpleNamespace(rank=1, logprob=value)}
                            for token, value in zip(ids, values, strict=True)
                        ],
                    )
                ],
            )
            for prompt, (ids, values) in zip(prompts, sampled, strict=True)
        ]


@pytest.mark.parametrize("mode", ["server", "colocate"])
@pytest.mark.parametrize("has_adapter", [False, True])
def test_vllm_receives_the_weights_after_the_scaling(
    mode: str, has_adapter: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model: Any = make_model(tokenizer)
    Engine.model, Engine.received = copy.deepcopy(model).eval(), []
    for weight in Engine.model.parameters():
        weight.data.fill_(torch.nan)  # a completion before the first synchronisation would be invalid
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda *_, **__: True)
    for name in ("VLLMClient", "LLM"):
        monkeypatch.setattr(vllm_generation, name, Engine, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", lambda **settings: settings, raising=False)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        # TRL sets these variables. Only a variable that monkeypatch has set is removed again after the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    arguments = GRPOConfig(
        str(tmp_path),
        use_vllm=True,
        vllm_mode=mode,
        use_cpu=True,
        bf16=False,
        report_to="none",
        per_device_train_batch_size=8,
        num_generations=2,
        max_completion_length=4,
        max_steps=3,
        learning_rate=3e-2 if has_adapter else 3e-3,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = BudgetGRPOTrainer(
        model,
        lambda completions, **_: [len(set(text)) + 0.1 * len(text) for text in completions],
        arguments,
        budget=KLBudget(0.01),
        train_dataset=Dataset.from_list(prompt_rows(16, seed=0)),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear") if has_adapter else None,
    )
    scaled: list[dict[str, torch.Tensor]] = []
    scale, factors = trainer._controller.weights.scale_displacement, []

    def noting(factor: float) -> None:
        scale(factor)
        factors.append(factor)
        policy: Any = copy.deepcopy(trainer.model)
        policy = policy.merge_and_unload() if has_adapter else policy
        scaled[trainer.state.global_step :] = [dict(policy.state_dict())]

    trainer._controller.weights.scale_displacement = noting
    trainer._controller.step.scale_displacement = noting
    trainer.train()
    assert min(factors) < 1.0
    assert len(Engine.received) == len(scaled) == 3
    # The weights of the generation after a step are the weights after the last scaling of this step.
    for received, after in zip(Engine.received[1:], scaled[:-1], strict=True):
        for name, weight in received.items():
            torch.testing.assert_close(weight, after[name], rtol=0, atol=1e-6 if has_adapter else 0)
