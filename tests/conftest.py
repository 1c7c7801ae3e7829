"""What the tests of the training rooms share: a tiny real model on disk, and its prompts."""

from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is no failure; pytest-timeout ends what hangs.
settings.register_profile("kullback", deadline=None)
settings.load_profile("kullback")


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
