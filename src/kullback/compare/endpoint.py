"""Comparisons with models behind OpenAI-compatible servers, from the log-probabilities of their most probable tokens.

At each position a server states the k largest probabilities. The other tokens are one event, the tail, and the KL
divergence of these events is a lower bound of KL(base || model) by the data-processing inequality. By the chain rule,

    KL(p || q) = KL(events) + P KL(p given the tail || q given the tail),

where P is the probability of the tail under p. Where single tokens of the tail can be scored, the second term is
estimated without bias from tokens v ~ p:

    1[v in the tail] phi(log (q_v / Q) - log (p_v / P)),  phi(d) = e^d - 1 - d.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import exp, inf, log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kullback.compare.arguments import checked_arguments
from kullback.compare.bounds import (
    BoundComparison,
    BoundModel,
    Progress,
    compute_parts,
    earlier_sums,
    require_single_process,
)
from kullback.compare.comparison import read_result
from kullback.compare.corpus import Corpus, Document, Window, encode, read_documents, windows
from kullback.compare.models import LoadedModel, load
from kullback.compare.preflight import require_positions, require_same_vocabulary, tokenizer_hash, vocabulary_size
from kullback.compare.runner import choose_device
from kullback.compare.sources import ModelSource, find_source, gguf_warning, weights_hash
from kullback.compare.statistics import ModelStatistics
from kullback.errors import InputError, NotNormalizedError
from kullback.integrations.openai_server import Position, Server, is_endpoint, parse_endpoint
from kullback.integrations.transformers import Head, load_config, load_tokenizer
from kullback.numerics.phi import phi
from kullback.runs.run_directory import versions
from kullback.tokens.topk import TopKTokenKL, bounds_of_events

__all__ = ["compare_with_endpoint"]

_DEFAULT_CONTEXT = 2048
_ROWS = 64  # positions whose logits are in memory at a time
_ROUNDED_EXCESS = 1e-4  # log of a sum above 1 that rounding does not explain
_LEAST_TAIL = 1e-5
"""Servers round log-probabilities in float32, which changes the tail by about 1e-6. Tokens are moved to a smaller tail,
the least probable first, which leaves the KL of the events a lower bound."""

_NATS = "nats per token"
_UNITS = {
    "kl": _NATS,
    "kl_estimate": _NATS,
    "kl_upper": _NATS,
    "reverse_kl": _NATS,
    "reverse_kl_upper": _NATS,
    "missing_mass_base": "",
    "missing_mass": "",
    "nll_base": _NATS,
    "nll": _NATS,
}
_LABELS = {
    "kl": "KL(base || model), lower bound",
    "kl_estimate": "KL(base || model), sampled estimate",
    "kl_upper": "KL(base || model), upper bound",
    "reverse_kl": "KL(model || base), lower bound",
    "reverse_kl_upper": "KL(model || base), upper bound",
    "missing_mass_base": "mass of the base outside the known tokens",
    "missing_mass": "mass of the model outside the known tokens",
    "nll_base": "-log p(token) of the base",
    "nll": "-log q(token) of the model",
}
_WAYS = {
    "prompt_logprobs": "prompt_logprobs",
    "echo": "echo with logprobs",
    "steps": "one request for each token",
}


@dataclass(frozen=True)
class _Side:
    """The base or a model: a server, or a model in memory."""

    name: str
    server: Server | None = None
    source: ModelSource | None = None


@dataclass(frozen=True)
class _Settings:
    context: int
    stride: int | None
    rate: float
    seed: int
    parallel: int


@checked_arguments
def compare_with_endpoint(
    base: str,
    models: Sequence[str],
    *,
    text: str | Path | Sequence[str],
    top: int = 20,
    sampled_positions: int = 256,
    tokenizer: str | None = None,
    context: int | None = None,
    stride: int | None = None,
    bos: str = "auto",
    form: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    batch_size: int = 4,
    timeout: float = 60.0,
    seed: int = 0,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    against: str | Path | None = None,
    progress: Progress | None = None,
) -> BoundComparison:
    """Compare a base with models, where the base, or each model, is behind an OpenAI-compatible server.

    The KL divergences are lower bounds from the `top` largest probabilities of the server, with the missing mass. An
    unbiased estimate of KL(base || model) adds sampled tokens of the base, if the model states their probabilities.

    Args:
        base: openai:URL#MODEL, or a model as `kullback.compare` takes it.
        models: Models like `base`; if the base is not an endpoint, all of them must be endpoints.
        text: The corpus, or the texts of documents.
        top: The number of log-probabilities at each position, up to the limit of the server.
        sampled_positions: The expected number of positions at which a token of the base is sampled; 0: no estimate.
        tokenizer: A directory or name of a model whose tokenizer the servers have; required if all are endpoints.
        context: The number of tokens of a window; None: 2048, or the positions of the local models minus 1 if these are
            fewer. Servers generate one token more.
        stride: The distance between the starts of windows; None: as large as possible.
        bos: Whether windows begin with a BOS token: "auto", "always" or "never".
        form: "text", "jsonl" or "chat"; None: by the suffix of each file.
        dtype: The dtype of local models.
        device: The device of local models.
        batch_size: The number of simultaneous requests.
        timeout: The seconds after which a request fails.
        seed: The seed of the sampled positions and of the tokens that a local base samples.
        output: The run directory for `resume` and result.json; None: nothing is stored.
        resume: Whether the interrupted comparison in `output` is continued.
        overwrite: Whether a comparison in `output` may be replaced.
        against: The result.json of an earlier comparison with the same base and text, or None.
        progress: A function that is called with finished tokens, all tokens and the name of the model.

    Returns:
        The results, with intervals clustered by document. The estimate is unbiased if the server states its softmax
        over the vocabulary at temperature 1 and, where the base is an endpoint, samples from it.

    Raises:
        InputError: An argument, a model or the text is not valid, a server fails, or the run directory cannot be used.

    Example:
        >>> server = "openai:http://localhost:8000/v1#llama"
        >>> comparison = compare_with_endpoint("base", [server], text="corpus")  # doctest: +SKIP
        >>> comparison[server].metrics["kl_estimate"].interval  # doctest: +SKIP
        (0.0017, 0.0021)
    """
    require_single_process()
    names: list[str] = [base, *models]
    if not models:
        raise InputError("expected a model to compare with the base: MODEL")
    if not is_endpoint(base) and (local := next((name for name in models if not is_endpoint(name)), None)):
        raise InputError(
            f"MODEL {local}: expected an endpoint, because {base} and another MODEL are not both endpoints; compare "
            "local models with a local base in another run, where the KL is exact"
        )
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"expected each model once, got {twice} twice")
    for option, value, least in (
        ("--top", top, 1),
        ("--sampled-positions", sampled_positions, 0),
        ("--batch-size", batch_size, 1),
        ("--seed", seed, 0),
    ):
        if value < least:
            raise InputError(f"{option}: expected {least} or more, got {value}")
    if not 0 < timeout < inf:
        raise InputError(f"--timeout: expected a finite number of seconds above 0, got {timeout}")
    parsed = {name: parse_endpoint(name, "BASE" if name == base else "MODEL") for name in names if is_endpoint(name)}
    sources = {
        name: find_source(name, "BASE" if name == base else "MODEL", dtype=dtype)
        for name in names
        if not is_endpoint(name)
    }
    encoder = _tokenizer(sources, tokenizer)
    size = vocabulary_size(encoder)
    limits = {
        name: getattr(load_config(one.directory), "max_position_embeddings", None) for name, one in sources.items()
    }
    if context is None:
        # Servers generate one token after a window, which must have a position too.
        context = min([_DEFAULT_CONTEXT, *(int(limit) - 1 for limit in limits.values() if limit)])
    for name, limit in limits.items():
        require_positions(limit, context, name)
    if isinstance(text, str | Path):
        documents = list(read_documents(text, form=form))
    else:
        documents = [Document(f"text {number}", one) for number, one in enumerate(text)]
    corpus = encode(documents, encoder, bos=bos)
    all_windows = [
        [w for w in windows(len(document.ids), context, stride, prefix=len(corpus.prefix)) if w.end > w.first]
        for document in corpus.documents
    ]
    sides = {
        name: _Side(
            name,
            Server(name, *parsed[name], size, lambda token: encoder.decode([token]), top, timeout)
            if name in parsed
            else None,
            sources.get(name),
        )
        for name in names
    }
    longest = max(range(len(corpus.documents)), key=lambda index: len(corpus.documents[index].ids))
    sample = _prompt(corpus, longest, all_windows[longest][0])
    for side in sides.values():
        if side.server is not None:
            side.server.find_way(sample[:16])
    rate = min(1.0, sampled_positions / corpus.counted_tokens)
    described: dict[str, Any] = {}
    for name in names:
        if (server := sides[name].server) is not None:
            described[name] = {"endpoint": server.url, "model": server.model, "log_probs": server.way}
        else:
            described[name] = {"dtype": sources[name].dtype, **weights_hash(sources[name])}
    config = {
        "kind": "compare-endpoint",
        "versions": versions("torch", "transformers"),
        "base": base,
        "models": described,
        "text": {
            "source": str(text) if isinstance(text, str | Path) else f"{len(text)} texts",
            "documents": len(corpus.documents),
            "skipped_documents": corpus.skipped_documents,
            "counted_tokens": corpus.counted_tokens,
            "text_sha256": corpus.text_hash,
            "tokens_sha256": corpus.token_hash,
        },
        "tokenizer": {"vocabulary": size, "sha256": tokenizer_hash(encoder), "bos": list(corpus.prefix)},
        "settings": {
            "context": context,
            "stride": stride,
            "top": top,
            "sampled_positions": sampled_positions,
            "seed": seed,
            "device": choose_device(device).type,
        },
    }
    earlier = earlier_sums(
        None if against is None else read_result(Path(against), kind="compare-endpoint"), config, _SAME
    )
    place = choose_device(device)
    settings = _Settings(context, stride, rate, seed, batch_size)
    loaded: dict[str, LoadedModel] = {}

    def start(index: int) -> Callable[[int], tuple[ModelStatistics, Any]]:
        pair = [sides[base], sides[models[index]]]
        for side in pair:
            if side.source is not None and side.name not in loaded:
                loaded[side.name] = load(side.source, size, place)
        work = _Pair(corpus, all_windows, settings, *((side, loaded.get(side.name)) for side in pair))
        return lambda document: (work.document(document), None)

    found = compute_parts(
        models,
        [sum(window.end - window.first for window in part) for part in all_windows],
        start,
        config=config,
        output=None if output is None else Path(output),
        resume=resume,
        overwrite=overwrite,
        progress=progress,
    )
    results = []
    for name, parts in zip(models, found, strict=True):
        statistics = ModelStatistics(parts[0][1].sums.units)
        for _, part, _ in parts:
            statistics.merge(part)
        results.append(BoundModel(name, statistics))
    skipped = f", {corpus.skipped_documents} shorter skipped" if corpus.skipped_documents else ""
    notes = [
        f"base  {base}",
        f"text  {config['text']['source']}: {len(corpus.documents)} documents{skipped}, "
        f"{corpus.counted_tokens} tokens, context {context}",
        *(
            f"      {name}: the {top} largest probabilities at each position, by {_WAYS[side.server.way]}"
            for name, side in sides.items()
            if side.server is not None
        ),
    ]
    warnings = [warning for source in sources.values() for warning in gguf_warning(source)]
    without = [result.name for result in results if "kl_estimate" not in result.metrics]
    if sampled_positions and without:
        warnings.append(
            f"The KL of {', '.join(without)} has no sampled estimate: the server does not state the probability of "
            "each given or sampled token."
        )
    comparison = BoundComparison(base, tuple(results), _LABELS, config, tuple(notes), tuple(warnings), earlier)
    if output is not None:
        comparison.save(Path(output) / "result.json")
    return comparison


def _identity(config: Mapping[str, Any]) -> Any:
    """What identifies the base of a configuration."""
    base = config["models"][config["base"]]
    return base.get("sha256") or (base["endpoint"], base["model"])


_SAME: dict[str, Callable[[Any], Any]] = {
    "the hash of the tokens": lambda config: config["text"]["tokens_sha256"],
    "the context": lambda config: config["settings"]["context"],
    "the stride": lambda config: config["settings"]["stride"],
    "--top": lambda config: config["settings"]["top"],
    "the base": _identity,
}


def _tokenizer(sources: Mapping[str, ModelSource], name: str | None) -> Any:
    """The tokenizer of the local models, or of `name`."""
    if name is not None:
        sources = {name: find_source(name, "--tokenizer", dtype="auto"), **sources}
    if not sources:
        raise InputError("--tokenizer: expected the tokenizer of the servers, a model directory or a name; got none")
    first, *others = sources
    found = load_tokenizer(sources[first].directory)
    for other in others:
        require_same_vocabulary(found, load_tokenizer(sources[other].directory), first, other)
    return found


def _prompt(corpus: Corpus, document: int, window: Window) -> list[int]:
    """The token ids of a window with its prefix."""
    return [*corpus.prefix, *corpus.documents[document].ids[window.start : window.end].tolist()]


class _Pair:
    """The computation of one model against the base."""

    def __init__(
        self,
        corpus: Corpus,
        parts: Sequence[Sequence[Window]],
        settings: _Settings,
        base: tuple[_Side, LoadedModel | None],
        model: tuple[_Side, LoadedModel | None],
    ) -> None:
        self.corpus, self.parts, self.settings = corpus, parts, settings
        (self.base, self.local_base), (self.model, self.local_model) = base, model
        server = self.model.server
        is_scored = server is None or server.way in ("prompt_logprobs", "echo")
        is_sampled = self.base.server is None or self.base.server.samples_all
        self.is_estimated = settings.rate > 0 and is_scored and is_sampled
        self.has_targets = all(
            side.server is None or side.server.way in ("prompt_logprobs", "echo") for side in (self.base, self.model)
        )
        names = ["kl", "reverse_kl", "missing_mass_base", "missing_mass"]
        names += ["kl_estimate"] * self.is_estimated + ["nll_base", "nll"] * self.has_targets
        # The bound from above needs the largest probability that a token of the tail can have on the side of the top k,
        # and the smallest on the other side, which is known where that is in memory.
        names += ["kl_upper"] * (self.model.server is None) + ["reverse_kl_upper"] * (self.base.server is None)
        self.units = {name: unit for name, unit in _UNITS.items() if name in names}

    def document(self, number: int) -> ModelStatistics:
        """The statistics of a document."""
        statistics = ModelStatistics(self.units)
        parts = self.parts[number]
        prompts = [_prompt(self.corpus, number, window) for window in parts]
        firsts = [len(self.corpus.prefix) + window.first - window.start for window in parts]
        generator = np.random.default_rng([self.settings.seed, number])
        with ThreadPoolExecutor(self.settings.parallel) as pool:
            stated = [
                None if side.server is None else list(pool.map(side.server.positions, prompts, firsts))
                for side in (self.base, self.model)
            ]
            for index, (window, prompt, first) in enumerate(zip(parts, prompts, firsts, strict=True)):
                positions = [None if one is None else one[index] for one in stated]
                columns = self._columns(prompt, first, positions, generator, pool)
                statistics.add(number, columns, window=window.start)
        return statistics

    def _columns(
        self,
        prompt: list[int],
        first: int,
        stated: Sequence[list[Position] | None],
        generator: np.random.Generator,
        pool: ThreadPoolExecutor,
    ) -> dict[str, NDArray[np.float64]]:
        """The columns of the tokens of a prompt from the position `first` on."""
        hidden = [
            None if model is None else _hidden(model, prompt, first) for model in (self.local_base, self.local_model)
        ]
        count = len(prompt) - first
        columns = {name: np.empty(count) for name in self.units}
        tasks: list[Callable[[], tuple[int, float]]] = []
        for start in range(0, count, _ROWS):
            end = min(start + _ROWS, count)
            local = [
                None if states is None or model is None else _log_probs(model, states[start:end])
                for model, states in zip((self.local_base, self.local_model), hidden, strict=True)
            ]
            for row in range(start, end):
                known = [None if one is None else one[row] for one in stated]
                dense = [None if one is None else one[row - start] for one in local]
                values = self._row(known, dense, prompt[first + row])
                for name, value in values.items():
                    columns[name][row] = value
                if self.is_estimated:
                    columns["kl_estimate"][row] = values["kl"]
                    is_sampled = generator.random() < self.settings.rate
                    uniform = generator.random()
                    if is_sampled:
                        task = self._remainder(prompt[: first + row], known, dense, uniform)
                        if task is not None:
                            tasks.append(lambda task=task, row=row: (row, task()))
        for row, value in pool.map(lambda task: task(), tasks):
            columns["kl_estimate"][row] += value / self.settings.rate
        return columns

    def _row(self, known: Sequence[Position | None], dense: Sequence[Tensor | None], target: int) -> dict[str, float]:
        """The values of a token."""
        p, q = known
        servers = [one for one in known if one is not None]
        stated, tokens = _stated_tokens(servers), _known_tokens(servers, self._size(dense))
        logs = [_values(tokens, position, table) for position, table in zip(known, dense, strict=True)]
        masses = [_tail(tokens, position, table) for position, table in zip(known, dense, strict=True)]
        missing = [_tail(stated, position, table) for position, table in zip(known, dense, strict=True)]
        found = {"missing_mass_base": missing[0], "missing_mass": missing[1]}
        if self.has_targets:
            found["nll_base"], found["nll"] = (
                -(float(table[target]) if table is not None else _stated(position))
                for position, table in zip(known, dense, strict=True)
            )
        if q is None:  # the base is an endpoint, and the model is in memory
            bounds = self._bounds(logs[0], tokens, dense[1])
            found |= {"kl": bounds.kl.item(), "reverse_kl": bounds.reverse_kl.item()}
            found["kl_upper"] = _upper_bound(stated, p, dense[1])
        elif p is None:
            bounds = self._bounds(logs[1], tokens, dense[0])
            found |= {"kl": bounds.reverse_kl.item(), "reverse_kl": bounds.kl.item()}
            found["reverse_kl_upper"] = _upper_bound(stated, q, dense[0])
        elif tokens:
            events = torch.tensor([*logs[1], log(masses[1]) if masses[1] > 0 else -inf], dtype=torch.float64)
            bounds = self._bounds(logs[0], list(range(len(tokens))), events)
            found |= {"kl": bounds.kl.item(), "reverse_kl": bounds.reverse_kl.item()}
        else:
            found |= {"kl": 0.0, "reverse_kl": 0.0}
        return found

    def _size(self, dense: Sequence[Tensor | None]) -> int:
        return next((len(one) for one in dense if one is not None), 0)

    def _bounds(self, log_probs: Sequence[float], tokens: Sequence[int], other: Tensor | None) -> TopKTokenKL:
        assert other is not None
        try:
            return _bounds_of_tokens(log_probs, tokens, other)
        except NotNormalizedError as error:
            server = self.base.server or self.model.server
            assert server is not None
            raise InputError(
                f"{server.name}: {error}; the log-probabilities must not be changed by sampling"
            ) from error

    def _remainder(
        self, context: list[int], known: Sequence[Position | None], dense: Sequence[Tensor | None], uniform: float
    ) -> Callable[[], float] | None:
        """The sampled remainder of the KL at a position, or None if the sampled token is not in the tail."""
        tokens = _known_tokens([one for one in known if one is not None], self._size(dense))
        masses = [_tail(tokens, position, table) for position, table in zip(known, dense, strict=True)]
        model, table = self.model.server, dense[1]
        token, log_prob = -1, None
        if dense[0] is not None:
            cumulative = dense[0].exp().cumsum(0)
            token = int(torch.searchsorted(cumulative, uniform * cumulative[-1], right=True))
            token = min(token, len(cumulative) - 1)
            log_prob = float(dense[0][token])
            if token in tokens:
                return None

        def remainder() -> float:
            drawn, log_p = token_of()
            if drawn in tokens:
                return 0.0
            if table is not None:
                log_q = float(table[drawn])
            else:
                assert model is not None
                log_q = _stated(model.positions([*context, drawn], len(context))[0])
            if masses[1] <= 0:
                return inf
            return float(phi(np.float64(log_q - log(masses[1]) - (log_p - log(masses[0])))))

        def token_of() -> tuple[int, float]:
            if log_prob is not None:
                return token, log_prob
            assert self.base.server is not None
            drawn, position = self.base.server.next_token(context)
            return drawn, _stated(position)

        return remainder


def _hidden(model: LoadedModel, prompt: Sequence[int], first: int) -> Tensor:
    """The last hidden states that predict the tokens of a prompt from a position on."""
    place = next(model.model.parameters()).device
    ids = torch.tensor([prompt], device=place)
    return model.hidden(ids, torch.ones_like(ids))[0, first - 1 : -1]


def _log_probs(model: LoadedModel, states: Tensor) -> Tensor:
    """Log-probabilities in float64, shape (n, V)."""
    head = model.head
    logits = head(states.to(head.weight.dtype)) if isinstance(head, Head) else head(states)
    return logits.double().log_softmax(-1).cpu()


def _stated_tokens(positions: Sequence[Position]) -> list[int]:
    """The tokens whose probabilities all servers state."""
    first, *others = positions
    return [token for token in first.log_probs if all(token in other.log_probs for other in others)]


def _upper_bound(tokens: Sequence[int], position: Position | None, table: Tensor | None) -> float:
    """An upper bound of the KL of a server to a known distribution; inf if the tokens are not the most probable."""
    assert position is not None
    assert table is not None
    if not (position.is_top and tokens):
        return inf
    values = torch.tensor(_values(tokens, position, None), dtype=torch.float64)
    bounds = bounds_of_events(values, torch.tensor(tokens), table, resolution=_LEAST_TAIL, are_largest=True)
    return bounds.kl_upper.item()


def _known_tokens(positions: Sequence[Position], vocabulary: int) -> list[int]:
    """The tokens whose probabilities all servers state, without the least probable ones if the tail would be tiny."""
    tokens = _stated_tokens(positions)
    if len(tokens) == vocabulary:
        return tokens
    for position in positions:
        tokens.sort(key=lambda token, position=position: -position.log_probs[token])
        masses = np.cumsum(np.exp([position.log_probs[token] for token in tokens]))
        tokens = tokens[: int((masses <= 1 - _LEAST_TAIL).sum())]
    return tokens


def _bounds_of_tokens(log_probs: Sequence[float], tokens: Sequence[int], other: Tensor) -> TopKTokenKL:
    """Lower bounds of both directions of KL between a distribution of which some tokens are known, and logits.

    The tokens need not be the most probable ones: a server adds the token of the text to them, and the last event of
    `other` may contain many tokens.
    """
    if not tokens:
        nothing = torch.zeros((), dtype=torch.float64)
        return TopKTokenKL(nothing, nothing, nothing + 1, nothing + inf)
    values = torch.tensor(log_probs, dtype=torch.float64)
    excess = float(values.logsumexp(0))
    if not excess < _ROUNDED_EXCESS:
        raise NotNormalizedError(
            f"expected log-probabilities whose probabilities sum to at most 1, got a sum of {exp(excess):.6g}; "
            "normalise them over the whole vocabulary"
        )
    values = values - max(0.0, excess)
    rounding = 4 * torch.finfo(torch.float64).eps
    return bounds_of_events(values, torch.tensor(tokens), other, resolution=rounding, are_largest=False)


def _values(tokens: Sequence[int], position: Position | None, table: Tensor | None) -> list[float]:
    """The log-probabilities of tokens."""
    if position is not None:
        return [position.log_probs[token] for token in tokens]
    assert table is not None
    return table[torch.tensor(tokens, dtype=torch.long)].tolist()


def _tail(tokens: Sequence[int], position: Position | None, table: Tensor | None) -> float:
    """The probability of all other tokens."""
    if table is not None:
        others = table.clone()
        others[torch.tensor(tokens, dtype=torch.long)] = -inf
        return float(others.exp().sum())
    assert position is not None
    return max(0.0, 1.0 - float(np.exp([position.log_probs[token] for token in tokens]).sum()))


def _stated(position: Position | None) -> float:
    """The log-probability of the token of the prompt."""
    assert position is not None
    assert position.target is not None
    return position.target
