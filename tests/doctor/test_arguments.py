"""`kullback.doctor` refuses wrong arguments by one line before it calls a model, and converts arrays and lists."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from kullback.doctor.models import doctor
from kullback.errors import ArrayTypeError, InputError, KullbackError, ShapeError, SupportError

SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
T5_SIZES = {"d_model": 8, "d_kv": 8, "d_ff": 8, "num_layers": 1, "num_heads": 1}
CONFIG = LlamaConfig(vocab_size=8, **SIZES)
IDS = [[1, 2, 3], [4, 5, 6]]
ONES = [[1, 1, 1], [1, 1, 1]]


def k2(log_prob: torch.Tensor, ref_log_prob: torch.Tensor) -> torch.Tensor:
    return (log_prob - ref_log_prob) ** 2 / 2


def arguments(**changes: Any) -> dict[str, Any]:
    """Correct arguments with the given changes; a change of None in the batch removes the key."""
    torch.manual_seed(0)
    policy = LlamaForCausalLM(CONFIG)
    batch = {
        "prompt_ids": torch.tensor(IDS),
        "prompt_mask": torch.tensor(ONES),
        "completion_ids": torch.tensor(IDS),
        "completion_mask": torch.tensor(ONES),
    }
    if isinstance(changes.get("batch"), dict):
        changes["batch"] = {**batch, **changes["batch"]}
    return {"policy": policy, "reference": deepcopy(policy), "batch": batch, **changes}


def recorded() -> torch.Tensor:
    """The log-probabilities of the completions by the policy of `arguments`."""
    policy = arguments()["policy"].eval()
    ids = torch.tensor([row + row for row in IDS])
    with torch.no_grad():
        log_p = policy(input_ids=ids).logits.log_softmax(-1)
    return log_p[:, 2:-1].gather(-1, torch.tensor(IDS)[..., None])[..., 0]


def in_batch(**changes: Any) -> dict[str, Any]:
    return {"batch": changes}


WRONG_BATCHES = [
    ({"batch": None}, InputError, "expected batch to be a mapping with .*, got None"),
    ({"batch": [IDS, ONES]}, InputError, "expected batch to be a mapping"),
    ({"batch": "batch.pt"}, InputError, "expected batch to be a mapping .*, got 'batch.pt'"),
    (in_batch(old_logprob=recorded()), InputError, "got 'old_logprob'; did you mean 'old_log_prob'"),
    (in_batch(ref_logprobs=recorded()), InputError, "got 'ref_logprobs'; did you mean 'ref_log_prob'"),
    (in_batch(toolmask=torch.ones(2, 3)), InputError, "got 'toolmask'; did you mean 'tool_mask'"),
    (in_batch(zzz=1), InputError, "got 'zzz'; leave it out"),
    ({"batch": {0: torch.ones(2, 3)}}, InputError, "got 0; leave it out"),
    (in_batch(prompt_ids=None), InputError, "got none of prompt_ids"),
    (in_batch(completion_ids=torch.rand(2, 3)), ArrayTypeError, "completion_ids to be integers, got torch.float32"),
    (in_batch(prompt_ids=np.ones((2, 3))), ArrayTypeError, "prompt_ids to be integers, got torch.float64"),
    (in_batch(completion_ids=torch.ones(2, 3) > 0), ArrayTypeError, "completion_ids to be integers, got torch.bool"),
    (in_batch(completion_ids=[["a", "b", "c"]] * 2), ArrayTypeError, "completion_ids"),
    (in_batch(completion_ids=[[1, 2], [3]]), ShapeError, "row"),
    (in_batch(completion_ids=torch.ones(2, 3).to_sparse()), ArrayTypeError, "completion_ids to be a dense tensor"),
    (in_batch(completion_ids=torch.ones(2, 3, device="meta")), ArrayTypeError, "completion_ids .* device meta"),
    (in_batch(completion_ids=object()), ArrayTypeError, "completion_ids"),
    (in_batch(completion_ids=torch.tensor([[1, 2, -100]] * 2)), InputError, "at least 0, got -100; .*labels"),
    (in_batch(prompt_ids=[[-1, 2, 3]] * 2), InputError, "prompt_ids of at least 0, got -1"),
    (in_batch(completion_mask=torch.full((2, 3), 0.5)), ArrayTypeError, "completion_mask: expected a mask .*got 0.5"),
    (in_batch(prompt_mask=torch.full((2, 3), 2.0)), ArrayTypeError, "prompt_mask: expected a mask .*got 2"),
    (in_batch(tool_mask=torch.full((2, 3), torch.nan)), ArrayTypeError, "tool_mask: expected a mask .*got nan"),
    (in_batch(completion_mask="all"), ArrayTypeError, "completion_mask"),
    (in_batch(tool_mask=torch.ones(2, 2)), ShapeError, r"tool_mask of shape \(2, 3\)"),
    (in_batch(tool_mask=True), ShapeError, r"tool_mask of shape \(2, 3\).*got \(\)"),
    (in_batch(prompt_ids=IDS[0], prompt_mask=ONES[0]), ShapeError, r"\(batch, time\), got prompts \(3,\)"),
    (in_batch(completion_ids=[IDS], completion_mask=[ONES]), ShapeError, r"completions \(1, 2, 3\)"),
    (in_batch(prompt_mask=[[0, 1, 1], [0, 0, 0]]), ShapeError, "a prompt of at least one token .* in row 1"),
    (in_batch(prompt_ids=torch.ones(2, 0).long(), prompt_mask=torch.ones(2, 0)), ShapeError, "at least one token"),
    (in_batch(completion_ids=torch.ones(2, 0).long(), completion_mask=torch.ones(2, 0)), ShapeError, "got none: check"),
    (in_batch(kl="0"), ArrayTypeError, "kl"),
    (in_batch(kl=True), ArrayTypeError, "kl to be real numbers in nats, got booleans"),
    (in_batch(kl=1j), ArrayTypeError, "kl"),
    (in_batch(kl=[0.1, 0.2]), ShapeError, "one logged KL, or one of shape"),
    (in_batch(old_log_prob=torch.ones(2, 3) > 0), ArrayTypeError, "old_log_prob to be real numbers in nats"),
    (in_batch(old_log_prob=torch.ones(2, 3) * 1j), ArrayTypeError, "old_log_prob to be a tensor of real numbers"),
    (in_batch(sampling_per_token_logps="x"), ArrayTypeError, "sampling_per_token_logps"),
    (in_batch(ref_log_prob=[[0.0] * 3]), ShapeError, r"ref_log_prob of shape \(2, 3\)"),
]

WRONG_MODELS = [
    ({"policy": None}, InputError, "expected policy .*, got None; load it with AutoModelForCausalLM"),
    ({"policy": "base"}, InputError, "expected policy .*, got 'base'; load it with AutoModelForCausalLM"),
    ({"policy": LlamaForCausalLM}, InputError, "expected policy .*, got the class LlamaForCausalLM"),
    ({"policy": torch.nn.Linear(2, 2)}, InputError, "expected policy .*, got Linear without an output layer"),
    ({"policy": torch.nn.DataParallel(LlamaForCausalLM(CONFIG))}, InputError, "wrapper, policy.module"),
    ({"policy": LlamaModel(CONFIG)}, InputError, "got LlamaModel without an output layer"),
    ({"policy": BertModel(BertConfig(vocab_size=8, **SIZES))}, InputError, "got BertModel without an output layer"),
    ({"policy": T5ForConditionalGeneration(T5Config(vocab_size=8, **T5_SIZES))}, InputError, "an encoder with a decod"),
    ({"reference": "base"}, InputError, "expected reference .*, got 'base'"),
    ({"reference": LlamaModel(CONFIG)}, InputError, "expected reference .* got LlamaModel without"),
]


class Processor:
    tokenizer = "a tokenizer"


WRONG_OPTIONS = [
    ({"tokenizer": "base"}, InputError, "expected tokenizer .*, got 'base'; load it with AutoTokenizer"),
    ({"tokenizer": Processor()}, InputError, "pass tokenizer.tokenizer"),
    ({"ref_tokenizer": 3}, InputError, "expected ref_tokenizer .*, got 3"),
    ({"temperature": "1"}, SupportError, "positive finite temperature, got '1'"),
    ({"temperature": 0}, SupportError, "positive finite temperature, got 0"),
    ({"temperature": None}, SupportError, "positive finite temperature, got None"),
    ({"autocast": "bf16"}, InputError, "autocast to be torch.bfloat16, torch.float16 or None, got 'bf16'"),
    ({"autocast": True}, InputError, "expected autocast .*, got True"),
    ({"autocast": torch.int8}, InputError, "expected autocast .*, got torch.int8"),
    ({"optimizer": "adam"}, InputError, "expected optimizer .*, got 'adam'"),
    ({"optimizer": torch.optim.SGD}, InputError, "expected optimizer"),
    ({"at_start": "no"}, InputError, "at_start to be True or False, got 'no'"),
    ({"on_policy": None}, InputError, "on_policy to be True or False, got None"),
    ({"penalty": "k3"}, InputError, "penalty to be a function of .log_prob, ref_log_prob. or None, got 'k3'"),
    ({"penalty": lambda log_prob: log_prob}, InputError, "penalty .* too many positional arguments"),
    ({"penalty": lambda lp, rf: None}, ArrayTypeError, "penalty to return a tensor of real numbers, got None"),
    ({"penalty": lambda lp, rf: 0.0}, ArrayTypeError, "penalty to return a tensor of real numbers, got 0.0"),
    ({"penalty": lambda lp, rf: k2(lp, rf).sum(-1)}, ShapeError, r"penalty .* got shape \(2,\)"),
    ({"penalty": lambda lp, rf: k2(lp, rf) * 1j}, ArrayTypeError, "penalty .* got a tensor of torch.complex64"),
    ({"as_reference": "ref"}, InputError, r"as_reference to be a function of \(\) or None, got 'ref'"),
    ({"as_reference": torch.nn.Linear(2, 2)}, InputError, "as_reference .*pass the function itself"),
    ({"as_reference": contextmanager(iter)([0])}, InputError, "as_reference .*pass the function itself"),
    ({"as_reference": lambda: 3, "reference": None}, InputError, "as_reference to return a context manager, got 3"),
    ({"head_logits": 1}, InputError, "head_logits to be a function of .batch. or None, got 1"),
    ({"head_logits": lambda batch: None}, ArrayTypeError, "head_logits to return a tensor .*, got None"),
    ({"head_logits": lambda batch: batch.ids}, ArrayTypeError, "head_logits to return a tensor .*, got torch.int64"),
    ({"head_logits": lambda batch: torch.ones(batch.mask.shape)}, ShapeError, r"\(2, 4, vocabulary\), got \(2, 3\)"),
]


def without_models(changes: dict[str, Any]) -> dict[str, Any]:
    """Arguments whose models fail when they are called."""

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was called")

    given = arguments(**changes)
    for name in ("policy", "reference"):
        if isinstance(given[name], LlamaForCausalLM):
            given[name].register_forward_pre_hook(fail)
    return given


@pytest.mark.parametrize(("changes", "error", "message"), WRONG_BATCHES + WRONG_MODELS + WRONG_OPTIONS)
def test_wrong_arguments_are_refused_by_one_line(
    changes: dict[str, Any], error: type[KullbackError], message: str
) -> None:
    returns_later = set(changes) & {"head_logits", "as_reference"}  # their results are checked at their first call
    given = arguments(**changes) if returns_later else without_models(changes)
    with pytest.raises(error, match=message) as raised:
        doctor(**given)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_a_reference_tokenizer_without_a_tokenizer_is_refused(tiny_model: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    with pytest.raises(InputError, match="expected tokenizer beside ref_tokenizer, got None"):
        doctor(**arguments(ref_tokenizer=tokenizer))


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, torch.Tensor.tolist, lambda x: x.numpy()[:, ::-1][:, ::-1]])
def test_arrays_and_lists_give_the_findings_of_tensors(convert: Any) -> None:
    for log_prob, expected in ((recorded(), []), (recorded() - 1, ["stale-policy"])):
        batch = {**arguments()["batch"], "old_log_prob": log_prob, "tool_mask": torch.tensor(ONES)}
        for values in (batch, {name: convert(value) for name, value in batch.items()}):
            assert [found.name for found in doctor(**arguments(batch=values))] == expected


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64])
def test_token_ids_of_every_integer_dtype_are_accepted(dtype: torch.dtype) -> None:
    assert (
        doctor(**arguments(batch={name: torch.tensor(IDS, dtype=dtype) for name in ("prompt_ids", "completion_ids")}))
        == []
    )


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
def test_masks_of_booleans_integers_and_floats_are_equal(dtype: torch.dtype) -> None:
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]], dtype=dtype)
    assert doctor(**arguments(batch={"prompt_mask": mask, "completion_mask": mask})) == []
    right = doctor(**arguments(batch={"prompt_mask": mask.flip(1)}))
    assert [found.name for found in right] == ["padding-side"]


@pytest.mark.parametrize("kl", [1, np.float32(1), np.array(1.0), torch.tensor(1.0), [[1.0] * 3] * 2, np.ones((2, 3))])
def test_a_logged_kl_may_be_a_number_or_an_array(kl: Any) -> None:
    assert [found.name for found in doctor(**arguments(batch={"kl": kl}))] == ["logged-kl-unknown"]


def test_correct_options_are_accepted() -> None:
    @contextmanager
    def as_reference() -> Iterator[None]:
        yield

    given = arguments(batch={"advantages": torch.ones(2), "num_items_in_batch": torch.tensor(6), "tool_mask": None})
    optimizer = torch.optim.SGD(given["policy"].parameters(), lr=0.1)
    options = {
        "optimizer": optimizer,
        "penalty": k2,
        "temperature": 2,
        "at_start": np.True_,
        "autocast": torch.bfloat16,
    }
    assert doctor(**given, **options) == []
    assert doctor(**{**given, "reference": None}, as_reference=as_reference) == []
    assert doctor(**{**given, "reference": None}, penalty=lambda lp, rf: k2(lp, rf).mean()) == []
