"""`report_to`: the event files of TensorBoard have the metrics of the budget under the names of docs/metrics.md."""

import re
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from kullback import KLBudget
from kullback.explore.run_logs import RunLog
from kullback.integrations.trl import BudgetGRPOTrainer
from kullback.runs.metrics import REPORTED_METRICS

event_files = pytest.importorskip(
    "tensorboard.backend.event_processing.event_file_loader", reason="tensorboard is not installed"
)
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_tensorboard_gets_the_metrics_of_the_budget(tiny_model, tmp_path):
    output = tmp_path / "output"
    config = GRPOConfig(
        str(output),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=4,
        max_steps=3,
        learning_rate=1e-3,
        beta=0.0,
        bf16=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="tensorboard",
        disable_tqdm=True,
        logging_steps=1,
        save_steps=3,
    )
    trainer = BudgetGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        lambda completions, **_: [float(len(text)) for text in completions],
        config,
        budget=KLBudget(0.05),
        train_dataset=Dataset.from_list([{"prompt": f"{a}+{a + 1}="} for a in range(20)]),
        processing_class=AutoTokenizer.from_pretrained(tiny_model, padding_side="left"),
    )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(history) == 3

    (path,) = (Path(trainer.args.logging_dir) if getattr(trainer.args, "logging_dir", None) else output).rglob(
        "*tfevents*"
    )
    logged: dict[str, dict[int, float]] = {}
    for event in event_files.EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            if value.tensor.float_val:
                logged.setdefault(value.tag, {})[event.step] = value.tensor.float_val[0]
    for name in REPORTED_METRICS:
        expected = {entry["step"]: entry[name] for entry in history}
        assert logged[f"train/{name}"] == pytest.approx(expected, rel=1e-6), name
        assert re.search(rf"`{name}`", DOCUMENTATION.read_text(encoding="utf-8"))

    # The page of runs reads the same files, from the directory of the run and from its checkpoint.
    for source in (path.parent, output / "checkpoint-3"):
        log = RunLog(source)
        log.refresh()
        last = history[-1]
        assert log.metrics.last("kl_filtered") == pytest.approx((3, last["kl_filtered"]), rel=1e-6)
        assert log.metrics.column("tokens").max() == last["num_tokens"]
