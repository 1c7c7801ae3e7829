"""What KL means: the bits that a code for the wrong distribution costs, measured with a real arithmetic coder."""

from pathlib import Path

import constriction
import numpy as np
import pytest

from kullback import entropy, kl_probs, nats_to_bits

TEXT = (Path(__file__).parents[2] / "README.md").read_bytes() * 20


def coded_bits(symbols: np.ndarray, probs: np.ndarray) -> int:
    """The length of the range coder's output, which decodes to the same symbols."""
    model = constriction.stream.model.Categorical(probs, perfect=False)
    encoder = constriction.stream.queue.RangeEncoder()
    encoder.encode(symbols.astype(np.int32), model)
    words = encoder.get_compressed()
    decoded = constriction.stream.queue.RangeDecoder(words).decode(model, len(symbols))
    assert np.array_equal(decoded, symbols)
    return 32 * len(words)


def test_the_extra_length_of_a_code_for_the_wrong_bytes_is_the_kl() -> None:
    symbols = np.frombuffer(TEXT, np.uint8)
    p = np.bincount(symbols, minlength=256) / len(symbols)
    # A model that knows English letters a little, and gives every byte something.
    q = np.full(256, 0.2 / 256)
    for letter in b" etaoinshrdlu":
        q[letter] += 0.8 / 13
    own, wrong = coded_bits(symbols, p), coded_bits(symbols, q)
    # The coder works in 32-bit words and with probabilities of 24 bits.
    assert own / len(symbols) == pytest.approx(float(nats_to_bits(entropy(p))), rel=1e-3)
    assert (wrong - own) / len(symbols) == pytest.approx(float(nats_to_bits(kl_probs(p, q))), rel=1e-3)
