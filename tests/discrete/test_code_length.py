"""KL is the excess code length of a code for the wrong distribution, measured with an arithmetic coder."""

from pathlib import Path

import constriction
import numpy as np
import pytest

from kullback import entropy, kl_probs, nats_to_bits

TEXT = (Path(__file__).parents[2] / "README.md").read_bytes() * 20


def coded_bits(symbols: np.ndarray, probs: np.ndarray) -> int:
    """The length in bits of the output of a range coder, after checking that it decodes to the same symbols."""
    model = constriction.stream.model.Categorical(probs, perfect=False)
    encoder = constriction.stream.queue.RangeEncoder()
    encoder.encode(symbols.astype(np.int32), model)
    words = encoder.get_compressed()
    decoded = constriction.stream.queue.RangeDecoder(words).decode(model, len(symbols))
    assert np.array_equal(decoded, symbols)
    return 32 * len(words)


def test_excess_code_length_equals_kl() -> None:
    symbols = np.frombuffer(TEXT, np.uint8)
    p = np.bincount(symbols, minlength=256) / len(symbols)
    # A model with large probabilities for frequent English letters and a positive probability for every byte.
    q = np.full(256, 0.2 / 256)
    for letter in b" etaoinshrdlu":
        q[letter] += 0.8 / 13
    own, wrong = coded_bits(symbols, p), coded_bits(symbols, q)
    # The coder uses 32-bit words and 24-bit probabilities.
    assert own / len(symbols) == pytest.approx(float(nats_to_bits(entropy(p))), rel=1e-3)
    assert (wrong - own) / len(symbols) == pytest.approx(float(nats_to_bits(kl_probs(p, q))), rel=1e-3)
