"""A tiny Llama with a byte-level tokenizer, as a transformers directory and as GGUF files of the same weights."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HIDDEN, HEADS, LAYERS, POSITIONS, ROPE_THETA = 64, 2, 2, 256, 10000.0
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("e", "r"), ("a", "n"), ("an", "d"), ("Ġ", "and")]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 256 bytes, a few merges, and the tokens <s> and <|endoftext|>."""
    vocabulary = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for first, second in MERGES:
        vocabulary[first + second] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|endoftext|>")


def byte_model(directory: Path, *, seed: int = 0, scale: float = 0.15) -> LlamaForCausalLM:
    """Save a Llama with random weights and the byte-level tokenizer in a directory."""
    tokenizer = byte_tokenizer()
    vocabulary = tokenizer.get_vocab()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        initializer_range=scale,
        bos_token_id=vocabulary["<s>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a query or key matrix in the order of llama.cpp's rotary embedding."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, directory: Path, kind: str = "F32") -> dict[str, torch.Tensor]:
    """Write the model of a directory as GGUF.

    Args:
        path: The file.
        directory: The directory of `byte_model`.
        kind: The format of the matrices, such as "F32" or "Q8_0". Vectors are float32.

    Returns:
        The weights of the file, dequantised by the package gguf, under the names of transformers.
    """
    import gguf

    model = LlamaForCausalLM.from_pretrained(directory)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_vocab_size(len(tokenizer))
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(2 * HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    special = set(tokenizer.all_special_tokens)
    writer.add_token_list(tokens)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if token in special else kinds.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
    found: dict[str, torch.Tensor] = {}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, weight in model.state_dict().items():
        array: Any = weight.numpy()
        is_rotary = "q_proj" in name or "k_proj" in name
        if is_rotary:
            array = _permuted(array, HEADS)
        target = names.get_name(name, try_suffixes=(".weight",))
        assert target is not None, name
        if array.ndim < 2 or kind == "F32":
            writer.add_tensor(target, np.ascontiguousarray(array))
            found[name] = weight
            continue
        quantisation = gguf.GGMLQuantizationType[kind]
        packed = gguf.quants.quantize(array, quantisation)
        writer.add_tensor(target, packed, raw_dtype=quantisation)
        unpacked = gguf.quants.dequantize(packed, quantisation)
        if is_rotary:
            unpacked = unpacked.reshape(HEADS, -1, 2, HIDDEN).swapaxes(1, 2).reshape(unpacked.shape)
        found[name] = torch.from_numpy(np.ascontiguousarray(unpacked))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found
