"""Configurations of DeepSpeed that a budget accepts; the training itself is tested in tests/deepspeed."""

import copy
from typing import Any

import pytest

from kullback.errors import BudgetError
from kullback.integrations.deepspeed import require_supported_zero

SUPPORTED = {
    "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "none"}, "offload_param": None},
    "bf16": {"enabled": True},
    "fp16": {"enabled": False},
}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_is_supported(stage: int) -> None:
    require_supported_zero({**SUPPORTED, "zero_optimization": {**SUPPORTED["zero_optimization"], "stage": stage}})


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        ("zero_optimization", {"stage": 0}, "stage 1, 2 or 3, got 0"),
        ("zero_optimization", {"offload_optimizer": {"device": "cpu"}}, "no offload_optimizer .* got device cpu"),
        ("zero_optimization", {"offload_param": {"device": "nvme"}}, "no offload_param .* got device nvme"),
        ("zero_optimization", {"zero_quantized_weights": True}, "without zero_quantized_weights"),
        ("zero_optimization", {"zero_hpz_partition_size": 8}, "without zero_hpz_partition_size, got 8"),
        ("zero_optimization", {"mics_shard_size": 4}, "without mics_shard_size, got 4"),
        ("zero_optimization", {"zenflow": {"topk_ratio": 0.1}}, "without zenflow"),
        ("fp16", {"enabled": True}, "without fp16: steps that overflow"),
        ("torch_autocast", {"enabled": True}, "without torch_autocast"),
        ("amp", {"enabled": True}, "without amp"),
        ("bf16", {"bf16_master_weights_and_grads": True}, "float32 weights in DeepSpeed's optimizer"),
    ],
)
def test_what_cannot_be_held_is_refused_by_name(part: str, settings: dict[str, Any], message: str) -> None:
    configuration: dict[str, Any] = copy.deepcopy(SUPPORTED)
    configuration[part] = {**configuration.get(part, {}), **settings}
    with pytest.raises(BudgetError, match=message):
        require_supported_zero(configuration)
