"""The statistics that llama.cpp prints with `--kl-divergence`, under its names and by its definitions."""

from math import fsum, nan, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kullback.compare.llama_cpp import EncodedRows, as_model_log_probs
from kullback.errors import ShapeError, SupportError

__all__ = ["LlamaCppStatistic", "LlamaCppTokens", "llama_cpp_statistics", "llama_cpp_tokens"]

_DROPPED = np.float32(-16)  # llama.cpp omits base log-probabilities up to this value, in nats
_FEWEST = 11  # llama.cpp computes uncertainties from this number of tokens
_KLD = ((0.999, "99.9%"), (0.99, "99.0%"), (0.95, "95.0%"), (0.9, "90.0%"), (0.5, "Median"))
_KLD += ((0.1, "10.0%"), (0.05, "5.0%"), (0.01, "1.0%"), (0.001, "0.1%"))
_DELTA_P = (*_KLD[:4], (0.75, "75.0%"), _KLD[4], (0.25, "25.0%"), *_KLD[5:])


class LlamaCppTokens(NamedTuple):
    """The values of each token from which llama.cpp computes its statistics.

    Args:
        nll: -log q(target) of the model in nats, shape (n,).
        nll_base: -log p(target) of the base in nats, shape (n,).
        kld: llama.cpp's KL divergence of the base from the model in nats, shape (n,).
        delta_p: q(target) - p(target), shape (n,).
        same_top: Whether the most probable token is the same, shape (n,).
    """

    nll: NDArray[np.float32]
    nll_base: NDArray[np.float32]
    kld: NDArray[np.float32]
    delta_p: NDArray[np.float32]
    same_top: NDArray[np.bool_]


class LlamaCppStatistic(NamedTuple):
    """One line of llama.cpp's output.

    Args:
        name: The name, such as "Mean KLD".
        value: The value; in percent if the unit is "%".
        uncertainty: The standard error as if tokens were independent, in the unit of the value; None where llama.cpp
            prints none, and nan for fewer than 11 tokens, for which llama.cpp prints 0.
        unit: "", "nats" or "%".
    """

    name: str
    value: float
    uncertainty: float | None
    unit: str


def llama_cpp_tokens(rows: EncodedRows, targets: ArrayLike, log_probs: ArrayLike) -> LlamaCppTokens:
    """The values of each token by the definitions of llama.cpp, for rows of a file and a model.

        kld = sum of p_v (log p_v - log q_v) over the tokens v with log p_v > -16, with log p_v from the codes

    The probabilities p_v do not sum to 1, and `kld` can be negative. `kl_bounds` gives a lower bound of the KL
    divergence instead. The arithmetic is in float32 with sums in float64.

    Args:
        rows: n rows of a file.
        targets: The token ids that the rows predict, shape (n,).
        log_probs: The log-probabilities of the model for the same positions in nats, shape (n, V).

    Returns:
        The values. Where two tokens have the same largest probability, the smaller token id counts as the top.

    Raises:
        ArrayTypeError: The log-probabilities are not an array of real numbers.
        ShapeError: The shapes differ.
        SupportError: A target is not in the vocabulary.

    Example:
        >>> from kullback.compare.llama_cpp import encode_rows
        >>> base, model = np.log([[0.7, 0.2, 0.1]]), np.log([[0.6, 0.3, 0.1]])
        >>> tokens = llama_cpp_tokens(encode_rows(base), [1], model)
        >>> f"{tokens.kld[0]:.4f} {tokens.delta_p[0]:.4f} {tokens.same_top[0]}"
        '0.0268 0.1000 True'
    """
    log_q = as_model_log_probs(rows, log_probs).astype(np.float32, copy=False)
    ids = np.asarray(targets)
    if ids.shape != (len(log_q),) or ids.dtype.kind not in "iu":
        raise ShapeError(f"expected one token id for each of the {len(log_q)} rows, got shape {ids.shape}")
    if ids.size and (ids.min() < 0 or ids.max() >= log_q.shape[1]):
        raise SupportError(f"expected targets from 0 to {log_q.shape[1] - 1}, got {ids.min()} to {ids.max()}")
    log_p = rows.scale[:, None] * rows.codes.astype(np.float32) + rows.min_log_prob[:, None]
    # A dropped token contributes 0, also where the model has probability 0.
    terms = np.exp(log_p) * (log_p - np.where(log_p > _DROPPED, log_q, log_p))
    positions = np.arange(len(ids))
    nll, nll_base = -log_q[positions, ids], -log_p[positions, ids]
    return LlamaCppTokens(
        nll,
        nll_base,
        terms.sum(1, dtype=np.float64).astype(np.float32),
        np.exp(-nll) - np.exp(-nll_base),
        log_q.argmax(1) == log_p.argmax(1),
    )


def llama_cpp_statistics(tokens: LlamaCppTokens) -> tuple[LlamaCppStatistic, ...]:
    """The statistics that llama.cpp prints with `--kl-divergence`, in its order.

    With the means m and s of -log q(target) and -log p(target), "Mean PPL(Q)" is exp(m), "Mean PPL(base)" is exp(s),
    and the statistics of both follow from m, s, their standard errors and their covariance to first order. Percentiles
    are interpolated linearly between order statistics. The uncertainties hold for independent tokens, and are too
    small where the tokens of a document are correlated.

    The sums are rounded once, so that the result does not depend on the order of the tokens.

    Args:
        tokens: The values of all tokens.

    Returns:
        The statistics. llama.cpp prints them for 100 tokens or more.

    Raises:
        ShapeError: The arrays are empty or differ in shape.
        SupportError: A value is nan.

    Example:
        >>> from kullback.compare.llama_cpp import encode_rows
        >>> base, model = np.log([[0.7, 0.2, 0.1]] * 20), np.log([[0.6, 0.3, 0.1]] * 20)
        >>> statistics = llama_cpp_statistics(llama_cpp_tokens(encode_rows(base), [0, 1] * 10, model))
        >>> {line.name: f"{line.value:.4f} {line.uncertainty:.4f}" for line in statistics[:2]}
        {'Mean PPL(Q)': '2.3570 0.1874', 'Mean PPL(base)': '2.6726 0.3841'}
    """
    arrays = [np.asarray(part, np.float64) for part in tokens]
    count = arrays[0].size
    if not count or any(part.shape != (count,) for part in arrays):
        raise ShapeError(f"expected values of one token or more, got shapes {', '.join(str(a.shape) for a in arrays)}")
    for name, part in zip(LlamaCppTokens._fields, arrays, strict=True):
        if np.isnan(part).any():
            raise SupportError(f"expected {name} to be a number, got nan at token {int(np.isnan(part).argmax())}")
    nll, nll_base, kld, delta_p, same_top = arrays
    log_ppl, log_ppl_error = _mean(nll)
    log_base, log_base_error = _mean(nll_base)
    covariance = _covariance(nll, nll_base)
    ppl, base = np.exp(log_ppl), np.exp(log_base)
    ratio = log_ppl - log_base
    ratio_error = _root(log_ppl_error**2 + log_base_error**2 - 2 * covariance)
    difference_error = _root((ppl * log_ppl_error) ** 2 + (base * log_base_error) ** 2 - 2 * ppl * base * covariance)
    correlation = covariance / (log_ppl_error * log_base_error) if log_ppl_error * log_base_error else nan
    kld_mean, kld_error = _mean(kld)
    delta_mean, delta_error = _mean(delta_p)
    square, square_error = _mean(delta_p**2)
    top = fsum(same_top) / count
    top_error = sqrt(top * (1 - top) / (count - 1)) if count > 1 else nan
    lines = [
        ("Mean PPL(Q)", ppl, ppl * log_ppl_error, ""),
        ("Mean PPL(base)", base, base * log_base_error, ""),
        ("Cor(ln(PPL(Q)), ln(PPL(base)))", 100 * correlation, None, "%"),
        ("Mean ln(PPL(Q)/PPL(base))", ratio, ratio_error, "nats"),
        ("Mean PPL(Q)/PPL(base)", np.exp(ratio), np.exp(ratio) * ratio_error, ""),
        ("Mean PPL(Q)-PPL(base)", ppl - base, difference_error, ""),
        ("Mean KLD", kld_mean, kld_error, "nats"),
        *[(f"{name} KLD", value, None, "nats") for name, value in _order_statistics(tokens.kld, _KLD)],
        ("Mean Δp", 100 * delta_mean, 100 * delta_error, "%"),
        *[(f"{name} Δp", 100 * value, None, "%") for name, value in _order_statistics(tokens.delta_p, _DELTA_P)],
        ("RMS Δp", 100 * sqrt(square), 50 * square_error / sqrt(square) if square else nan, "%"),
        ("Same top p", 100 * top, 100 * top_error, "%"),
    ]
    return tuple(
        LlamaCppStatistic(name, float(value), None if error is None else float(error), unit)
        for name, value, error, unit in lines
    )


def _mean(values: NDArray[np.float64]) -> tuple[float, float]:
    """The mean and its standard error for independent tokens: sqrt((mean of squares - squared mean) / (n - 1))."""
    if not np.isfinite(values).all():
        return float(values.sum()) / values.size, nan
    mean = fsum(values) / values.size
    variance = fsum((values - mean) ** 2) / values.size
    return mean, sqrt(variance / (values.size - 1)) if values.size >= _FEWEST else nan


def _covariance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """The covariance of two means for independent tokens."""
    if not (np.isfinite(first).all() and np.isfinite(second).all()) or first.size < _FEWEST:
        return nan
    deviations = (first - fsum(first) / first.size) * (second - fsum(second) / second.size)
    return fsum(deviations) / first.size / (first.size - 1)


def _root(variance: float) -> float:
    """The square root of a variance, which may be negative by rounding where two models are nearly equal."""
    return sqrt(variance) if variance > 0 else nan if variance != variance else 0.0


def _order_statistics(values: ArrayLike, quantiles: tuple[tuple[float, str], ...]) -> list[tuple[str, float]]:
    """The maximum, the quantiles and the minimum; positions are in float32, as in llama.cpp."""
    ordered = np.sort(np.asarray(values, np.float32))
    last, found = len(ordered) - 1, [("Maximum", float(ordered[-1]))]
    for fraction, name in quantiles:
        if fraction == 0.5:
            found.append((name, 0.5 * (float(ordered[last // 2]) + float(ordered[(last + 1) // 2]))))
            continue
        position = np.float32(fraction) * np.float32(last)
        below = int(position)
        weight = float(position - np.float32(below))
        above = float(ordered[min(below + 1, last)])
        found.append((name, (1 - weight) * float(ordered[below]) + weight * above if weight else float(ordered[below])))
    return [*found, ("Minimum", float(ordered[0]))]
