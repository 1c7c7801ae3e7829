"""Settings of all tests: checks of array shapes at every call, the Hypothesis profile, and a tiny language model."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxtyping
import pytest
from beartype import BeartypeConf, beartype
from hypothesis import settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# The modules in which the annotations of shapes and dtypes, such as Float[Tensor, "batch time"], are checked at every
# call. The hook must be installed before these modules are imported.
SHAPE_CHECKED = [
    "kullback.discrete.divergence",
    "kullback.discrete.entropy",
    "kullback.discrete.f_divergence",
    "kullback.discrete.kl",
    "kullback.discrete.log_ratios",
    "kullback.discrete.power_divergences",
    "kullback.policy",
    "kullback.tokens",
]


def check_after_the_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """The type checker for jaxtyping, which applies it to two signatures of each function.

    The first, with a result of type Any, is checked before the call, and is ignored here: the errors that the package
    raises for invalid arguments are tested. The second is checked after the call, for the arguments and the result.
    """
    if function.__annotations__.get("return", Any) is Any:
        return function
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)


jaxtyping.install_import_hook(SHAPE_CHECKED, f"sys.modules[{__name__!r}].check_after_the_call")

# A busy machine is no failure; pytest-timeout ends what hangs.
settings.register_profile("kullback", deadline=None)
settings.load_profile("kullback")


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Switch off the checks of array shapes, which torch.compile cannot trace."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Llama of a few thousand weights with the sums tokenizer, saved as a user's would be."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    from kullback.train.demo.addition_task import make_tokenizer

    logging.disable_progress_bar()  # or it ends up in what the tests read of stderr
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    directory = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(autouse=True)
def no_process_group_is_left() -> Iterator[None]:
    """Fail a test that leaves the variables of a process group, with which later tests would listen on its port."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ.get(name) for name in names}
    yield
    assert {name: os.environ.get(name) for name in names} == before


@pytest.fixture
def hangup_is_not_ignored() -> Iterator[None]:
    """Restore the default action of SIGHUP, which is ignored if the tests run under nohup."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, previous)
