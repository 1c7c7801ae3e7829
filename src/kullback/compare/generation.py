"""Free running: continuations that the base and a model sample, and the exact KL of the next token along them.

The KL of whole continuations is a sum over positions. With x sampled from p,

    KL(p(continuation) || q(continuation)) = E[sum_t KL(p(. | x_1 ... x_t-1) || q(. | x_1 ... x_t-1))],

so that the mean of the sums along samples is an unbiased estimate. A continuation ends with an end token of the base,
or after a number of tokens; both models have the same end.

The random numbers depend on the seed, the document and the sample alone. Prompts are sampled in blocks that do not
depend on the number of processes, so that interrupted, resumed and distributed runs have equal results.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from kullback.compare.block_records import BlockRecords
from kullback.compare.corpus import Corpus
from kullback.compare.models import LoadedModel, head_stats
from kullback.compare.results import FreeRunning, Trajectories
from kullback.compare.sources import ModelSource
from kullback.compare.statistics import DocumentSums, ModelStatistics
from kullback.compare.variants import Candidate, RoundedCache, Variant, attention_kernel, token_hidden
from kullback.errors import InputError
from kullback.integrations.transformers import end_tokens

__all__ = ["FreeRunningWork", "GenerationSettings", "Prompt", "TrajectorySums", "choose_prompts", "generation_blocks"]

POSITIONS = (1, 2, 5, 17, 65, 257, 1025, 4097)
"""The first token of each range of positions in a continuation."""

_EXAMPLES = 5  # continuations of the largest KL that are kept
_SHOWN_PROMPT = 40  # tokens at the end of a prompt that are shown
_AS_SET = Variant()


@dataclass(frozen=True)
class GenerationSettings:
    """What determines the continuations.

    Args:
        tokens: The largest number of tokens of a continuation.
        prompts: The largest number of documents that are continued; if there are more, they are drawn at random.
        prompt_tokens: The largest number of tokens of a text that are its prompt.
        continuations: The number of continuations of each prompt.
        seed: The seed of the draws of documents and of tokens.

    Raises:
        InputError: A number is less than 1, or the seed is negative.
    """

    tokens: int
    prompts: int = 256
    prompt_tokens: int = 32
    continuations: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for option, value, least in (
            ("--generate", self.tokens, 1),
            ("--prompts", self.prompts, 1),
            ("--prompt-tokens", self.prompt_tokens, 1),
            ("--continuations", self.continuations, 1),
            ("--seed", self.seed, 0),
        ):
            if value < least:
                raise InputError(f"{option}: expected at least {least}, got {value}")


@dataclass(frozen=True)
class Prompt:
    """The beginning of a document that is continued.

    Args:
        document: The number of the document.
        ids: Its first token ids with the prefix of windows, int64, shape (n,).
    """

    document: int
    ids: NDArray[np.int64]


def choose_prompts(corpus: Corpus, settings: GenerationSettings, longest: int | None) -> tuple[list[Prompt], int]:
    """The prompts: of a text its first `prompt_tokens` tokens, and at most half of it; of a chat the messages before
    the last answer.

    Args:
        corpus: The corpus.
        settings: The settings.
        longest: The largest number of tokens of a prompt; None: unlimited.

    Returns:
        The prompts, and the number of drawn documents that are left out because their prompt is longer.

    Raises:
        InputError: All prompts are longer.
    """
    count = len(corpus.documents)
    chosen = np.arange(count)
    if count > settings.prompts:
        chosen = np.sort(np.random.default_rng(settings.seed).choice(count, settings.prompts, replace=False))
    prefix, found = np.array(corpus.prefix, np.int64), []
    for number in chosen.tolist():
        document = corpus.documents[number]
        half = document.ids[: min(settings.prompt_tokens, max(1, len(document.ids) // 2))]
        ids = half if document.prompt is None else document.prompt
        found.append(Prompt(number, np.concatenate([prefix, ids.astype(np.int64)])))
    kept = [prompt for prompt in found if longest is None or len(prompt.ids) <= longest]
    if not kept:
        shortest = min(len(prompt.ids) for prompt in found)
        raise InputError(
            f"--generate {settings.tokens}: expected a prompt and a continuation of at most "
            f"{(longest or 0) + settings.tokens} tokens, the positions of the models, got {shortest + settings.tokens} "
            "or more; generate fewer tokens, or use smaller --prompt-tokens"
        )
    return kept, len(found) - len(kept)


Row = tuple[Prompt, int]
"""A prompt and the number of its sample."""


def generation_blocks(prompts: Sequence[Prompt], settings: GenerationSettings, batch_size: int) -> list[list[Row]]:
    """The continuations that are sampled together: prompts in the order of decreasing length.

    Args:
        prompts: The prompts.
        settings: The settings.
        batch_size: The number of continuations of a block.

    Returns:
        The blocks.
    """
    ordered = sorted(prompts, key=lambda prompt: (-len(prompt.ids), prompt.document))
    rows = [(prompt, sample) for prompt in ordered for sample in range(settings.continuations)]
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


class TrajectorySums:
    """The exact sums of the KL along continuations; sums of parts merge in any order with equal results.

    Example:
        >>> sums = TrajectorySums()
        >>> sums.add(0, np.array([0.1, 0.3]), is_ended=True, example={"kl": 0.4, "document": 0, "sample": 0})
        >>> f"{sums.summary().per_continuation.value:.1f}"
        '0.4'
    """

    def __init__(self) -> None:
        self.positions = ModelStatistics({"kl": "nats per token"}, quantiles_of=())
        self.continuations = DocumentSums({"kl": "nats per continuation", "tokens": "tokens", "ended": ""})
        self.examples: list[dict[str, Any]] = []

    def add(self, document: int, kl: NDArray[np.float64], *, is_ended: bool, example: dict[str, Any]) -> None:
        """Add a continuation.

        Args:
            document: The document of its prompt.
            kl: The KL of the next token before each of its tokens, shape (n,).
            is_ended: Whether its last token is an end token.
            example: Its text, its KL, its document and the number of its sample.
        """
        names = [f"{low}-{high - 1}" if high - low > 1 else str(low) for low, high in _ranges()]
        index = np.searchsorted(POSITIONS, np.arange(1, len(kl) + 1), side="right") - 1
        self.positions.add(document, {"kl": kl}, groups={"position": np.array([*names, f"{POSITIONS[-1]}-"])[index]})
        columns = {"kl": [float(kl.sum())], "tokens": [float(len(kl))], "ended": [float(is_ended)]}
        self.continuations.add(document, columns)
        self._keep([example])

    def merge(self, other: "TrajectorySums") -> None:
        """Add the continuations of other sums."""
        self.positions.merge(other.positions)
        self.continuations.merge(other.continuations)
        self._keep(other.examples)

    def _keep(self, examples: list[dict[str, Any]]) -> None:
        order = sorted([*self.examples, *examples], key=lambda one: (-float(one["kl"]), one["document"], one["sample"]))
        self.examples = order[:_EXAMPLES]

    def summary(self, longest: float = inf) -> Trajectories:
        """The means, with intervals clustered by document.

        Args:
            longest: The largest number of tokens of a continuation, and the end of the interval of the mean number.
        """
        found, tokens = self.positions.summary(), self.continuations.mean("tokens")
        if tokens.interval is not None:
            tokens = replace(tokens, interval=(tokens.interval[0], min(tokens.interval[1], longest)))
        return Trajectories(
            found.means["kl"],
            self.continuations.mean("kl"),
            tokens,
            self.continuations.mean("ended"),
            found.groups["position"],
            tuple(self.examples),
        )

    def state(self) -> dict[str, Any]:
        """The sums as values that JSON stores exactly."""
        return {
            "positions": self.positions.state(),
            "continuations": self.continuations.state(),
            "examples": self.examples,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "TrajectorySums":
        """Restore sums from `state`."""
        sums = cls()
        sums.positions = ModelStatistics.from_state(state["positions"])
        sums.continuations = DocumentSums.from_state(state["continuations"])
        sums.examples = list(state["examples"])
        return sums


def _ranges() -> Iterator[tuple[int, int]]:
    return pairwise(POSITIONS)


class _InverseTransform(LogitsProcessor):
    """Choose each next token from a uniform number: the first whose cumulative probability exceeds it.

    The logits are used as the model gives them, at temperature 1, without the padding of the vocabulary.
    """

    def __init__(self, uniforms: Tensor, vocabulary: int, start: int) -> None:
        self.uniforms, self.vocabulary, self.start = uniforms, vocabulary, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """All logits -inf except the chosen token's."""
        cumulative = scores[:, : self.vocabulary].double().softmax(-1).cumsum(-1)
        if not bool(cumulative.isfinite().all()):
            raise InputError("--generate: expected logits that are numbers, got nan; use another --dtype")
        step = input_ids.shape[1] - self.start
        chosen = (cumulative <= self.uniforms[:, step : step + 1] * cumulative[:, -1:]).sum(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


@dataclass
class FreeRunningWork:
    """The continuations of a comparison, over the blocks of this process.

    Args:
        corpus: The corpus.
        tokenizer: The tokenizer.
        vocabulary: The number of its tokens.
        settings: The settings.
        base: The base.
        candidates: The models, and the noise floors.
        records: The results of blocks.
        blocks: The blocks of this process, by number.
        load: A function that loads a model.
        device: The device.
        progress: A function that is called with the number of blocks that are done, their number, and the part of the
            work; None: without progress.
    """

    corpus: Corpus
    tokenizer: Any
    vocabulary: int
    settings: GenerationSettings
    base: ModelSource
    candidates: Sequence[Candidate]
    records: BlockRecords
    blocks: Mapping[int, list[Row]]
    load: Callable[[ModelSource], LoadedModel]
    device: torch.device
    progress: Callable[[int, int, str], None] | None

    def compute(self, *, one_at_a_time: bool) -> None:
        """Compute the blocks that are not in the records."""
        todo = {
            number: [m for m in range(len(self.candidates)) if (number, m) not in self.records.done]
            for number in self.blocks
        }
        numbers = [number for number, models in todo.items() if models]
        if not numbers:
            return
        if one_at_a_time:
            self._one_at_a_time(numbers, todo)
            return
        base = self.load(self.base)
        models = [self.load(candidate.source) for candidate in self.candidates]
        for number in self._shown(numbers, "all models"):
            rows = self.blocks[number]
            own = self.sample(base, _AS_SET, rows)
            base_own = self._hidden(base, _AS_SET, rows, own)
            for m in todo[number]:
                model, variant = models[m], self.candidates[m].variant
                model_own = self._hidden(model, variant, rows, own)
                theirs = self.sample(model, variant, rows)
                states = self._hidden(base, _AS_SET, rows, theirs), self._hidden(model, variant, rows, theirs)
                self._add(number, m, base, model, own, (base_own, model_own), theirs, states)

    def _one_at_a_time(self, numbers: list[int], todo: Mapping[int, list[int]]) -> None:
        """Compute blocks with one model in memory, and the last hidden states of the model on disk."""
        base = self.load(self.base)
        samples = {
            number: self.sample(base, _AS_SET, self.blocks[number])
            for number in self._shown(numbers, f"{self.base.name} (base)")
        }
        del base
        for m, candidate in enumerate(self.candidates):
            own_numbers = [number for number in numbers if m in todo[number]]
            if not own_numbers:
                continue
            model, theirs = self.load(candidate.source), {}
            with tempfile.TemporaryDirectory(prefix="kullback-") as directory:
                for number in self._shown(own_numbers, candidate.name):
                    rows, variant = self.blocks[number], candidate.variant
                    theirs[number] = self.sample(model, variant, rows)
                    states = {
                        name: self._hidden(model, variant, rows, found[number]).cpu().contiguous()
                        for name, found in (("own", samples), ("theirs", theirs))
                    }
                    save_file(states, Path(directory) / f"{number}.safetensors")
                model.release()
                base = self.load(self.base)
                for number in self._shown(own_numbers, f"{self.base.name} (base) along {candidate.name}"):
                    rows, own = self.blocks[number], samples[number]
                    stored = load_file(Path(directory) / f"{number}.safetensors")
                    model_own, model_theirs = (stored[name].clone().to(self.device) for name in ("own", "theirs"))
                    base_own = self._hidden(base, _AS_SET, rows, own)
                    states = self._hidden(base, _AS_SET, rows, theirs[number]), model_theirs
                    self._add(number, m, base, model, own, (base_own, model_own), theirs[number], states)
                del base

    def merged(self, blocks: int, *, is_alone: bool) -> list[FreeRunning]:
        """The results of each candidate, after all processes have finished their blocks."""
        self.records.wait(blocks * len(self.candidates), is_alone=is_alone)
        sums = [(TrajectorySums(), TrajectorySums()) for _ in self.candidates]
        for record in self.records.read():
            for total, state in zip(sums[record["model"]], record["samples"], strict=True):
                total.merge(TrajectorySums.from_state(state))
        longest = self.settings.tokens
        return [FreeRunning(own.summary(longest), theirs.summary(longest)) for own, theirs in sums]

    @torch.no_grad()
    def sample(self, model: LoadedModel, variant: Variant, rows: Sequence[Row]) -> list[NDArray[np.int64]]:
        """A continuation of each row, sampled from the full distribution of a model at temperature 1.

        Args:
            model: The model.
            variant: How it is computed.
            rows: The prompts and the numbers of their samples.

        Returns:
            The token ids of the continuations, with the end token where there is one.
        """
        size = variant.batch_size or len(rows)
        found = []
        for batch in (rows[start : start + size] for start in range(0, len(rows), size)):
            found += self._sample(model, variant, batch)
        return found

    def _sample(self, model: LoadedModel, variant: Variant, rows: Sequence[Row]) -> list[NDArray[np.int64]]:
        width, settings = max(len(prompt.ids) for prompt, _ in rows), self.settings
        ids = torch.full((len(rows), width), int(self.tokenizer.pad_token_id))
        attention = torch.zeros_like(ids)
        for row, (prompt, _) in enumerate(rows):
            ids[row, width - len(prompt.ids) :] = torch.from_numpy(prompt.ids)
            attention[row, width - len(prompt.ids) :] = 1
        uniforms = np.stack(
            [
                np.random.default_rng([settings.seed, prompt.document, sample]).random(settings.tokens)
                for prompt, sample in rows
            ]
        )
        config = GenerationConfig(
            max_new_tokens=settings.tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.ends,
            bos_token_id=self.tokenizer.bos_token_id,
        )
        chooser = _InverseTransform(torch.from_numpy(uniforms).to(self.device), self.vocabulary, width)
        cache = None if variant.kv_cache_dtype is None else RoundedCache(variant.kv_cache_dtype, model.model.config)
        defaults = model.model.generation_config
        model.model.generation_config = GenerationConfig()  # `generate` takes every setting from it that `config` lacks
        try:
            with attention_kernel(model, variant.attention):
                generated = model.model.generate(
                    input_ids=ids.to(self.device),
                    attention_mask=attention.to(self.device),
                    generation_config=config,
                    logits_processor=LogitsProcessorList([chooser]),
                    **({} if cache is None else {"past_key_values": cache}),
                )
        finally:
            model.model.generation_config = defaults
        continuations = []
        for tokens in generated[:, width:].cpu().numpy().astype(np.int64):
            ends = np.flatnonzero(np.isin(tokens, self.ends))
            continuations.append(tokens[: ends[0] + 1] if len(ends) else tokens)
        return continuations

    @property
    def ends(self) -> list[int]:
        """The end tokens of the base, which end the continuations of all models."""
        if not hasattr(self, "_ends"):
            self._ends = end_tokens(self.load(self.base).model, self.tokenizer)
        return self._ends

    def _hidden(
        self, model: LoadedModel, variant: Variant, rows: Sequence[Row], continuations: Sequence[NDArray[np.int64]]
    ) -> Tensor:
        """The last hidden states that predict the tokens of continuations, shape (n, d)."""
        tokens = [
            (np.concatenate([prompt.ids, found]), len(found))
            for (prompt, _), found in zip(rows, continuations, strict=True)
        ]
        return token_hidden(model, variant, tokens, self.device)

    def _add(
        self,
        number: int,
        m: int,
        base: LoadedModel,
        model: LoadedModel,
        own: Sequence[NDArray[np.int64]],
        own_hidden: tuple[Tensor, Tensor],
        theirs: Sequence[NDArray[np.int64]],
        their_hidden: tuple[Tensor, Tensor],
    ) -> None:
        """Store the KL of a block along the continuations of the base and of a model."""
        states = []
        for name, continuations, hidden in (("kl", own, own_hidden), ("reverse_kl", theirs, their_hidden)):
            targets = torch.from_numpy(np.concatenate(continuations)).to(self.device)
            stats = head_stats(hidden[0], base.head, hidden[1], model.head, targets)
            kl = getattr(stats, name).double().cpu().numpy()
            if (bad := ~(kl > -np.inf)).any():
                raise InputError(
                    f"--generate: expected the KL of {self.candidates[m].name} to be a number, got {kl[bad][0]}: the "
                    "logits of a model are not finite; compute the models in another dtype by --dtype"
                )
            sums, start = TrajectorySums(), 0
            for (prompt, sample), tokens in zip(self.blocks[number], continuations, strict=True):
                part = kl[start : start + len(tokens)]
                start += len(tokens)
                example = self._example(prompt, sample, tokens, part)
                sums.add(prompt.document, part, is_ended=int(tokens[-1]) in self.ends, example=example)
            states.append(sums.state())
        self.records.add(number, m, {"samples": states})

    def _example(
        self, prompt: Prompt, sample: int, tokens: NDArray[np.int64], kl: NDArray[np.float64]
    ) -> dict[str, Any]:
        total = float(kl.sum())
        return {
            "kl": total if total < np.inf else "inf",
            "document": prompt.document,
            "sample": sample,
            "name": self.corpus.documents[prompt.document].name,
            "prompt": self.tokenizer.decode(prompt.ids[-_SHOWN_PROMPT:].tolist()),
            "text": self.tokenizer.decode(tokens.tolist()),
            "tokens": len(tokens),
        }

    def _shown(self, numbers: list[int], what: str) -> Iterator[int]:
        """The numbers of blocks; progress is reported after each, in tokens of full length."""
        sizes = [len(self.blocks[number]) * self.settings.tokens for number in numbers]
        done = 0
        for number, size in zip(numbers, sizes, strict=True):
            if self.progress is not None:
                self.progress(done, sum(sizes), f"{what} (free running)")
            yield number
            done += size
        if self.progress is not None:
            self.progress(done, sum(sizes), f"{what} (free running)")
