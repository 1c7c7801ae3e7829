"""The forward passes of a comparison: windows of a corpus through a base and models, in blocks that can be resumed.

A block is a number of consecutive documents of the corpus, sorted by length. Blocks do not depend on the number of
processes, and the statistics of blocks merge exactly. A run that was interrupted and resumed, or that was distributed
over processes, therefore gives the results of an uninterrupted run of one process.

A run directory has these files:

config.json        what determines the numbers: hashes of text, tokens and weights, and settings
blocks-RANK.jsonl  a line for each block and model that the process RANK has finished
modules-RANK.jsonl the same for the KL of the base from itself with one module of a model
generation-RANK.jsonl the same for the KL along sampled continuations
tokens/            the values of single tokens in a compact form, for the page
hidden/            with `one_at_a_time`, the last hidden states of the base, while the run lasts
result.json        the result
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from kullback.compare.block_records import BlockRecords
from kullback.compare.corpus import Corpus, Document, Window, encode, read_documents, windows
from kullback.compare.generation import (
    FreeRunningWork,
    GenerationSettings,
    Prompt,
    choose_prompts,
    generation_blocks,
)
from kullback.compare.models import LoadedModel, head_stats, load, top_tokens
from kullback.compare.modules import KINDS, SUM, SwappedModules
from kullback.compare.preflight import (
    require_comparable,
    require_positions,
    require_same_vocabulary,
    template_hash,
    tokenizer_hash,
    vocabulary_size,
)
from kullback.compare.results import FreeRunning
from kullback.compare.sources import DTYPES, ModelSource, gguf_warning, weights_hash
from kullback.compare.statistics import DocumentSums, ModelStatistics, confidence_labels
from kullback.compare.token_classes import TokenClasses
from kullback.compare.token_values import DocumentTokens, TokenStore, TokenValues, shown_documents
from kullback.compare.variants import Candidate, Variant, head_size, require_head_size, token_hidden
from kullback.errors import InputError, KullbackError
from kullback.integrations.transformers import load_config, load_tokenizer
from kullback.runs.checksums import read_checked, write_checked
from kullback.runs.interrupts import termination_as_interrupt
from kullback.runs.lock import run_lock
from kullback.runs.run_directory import RunDirectory, process_rank, versions
from kullback.runs.write_errors import write_errors

__all__ = ["COLUMNS", "Outcome", "Plan", "Settings", "choose_device", "run"]

PER_TOKEN = "nats per token"
COLUMNS = {
    "kl": PER_TOKEN,
    "reverse_kl": PER_TOKEN,
    "js": PER_TOKEN,
    "entropy_base": PER_TOKEN,
    "entropy": PER_TOKEN,
    "nll_base": PER_TOKEN,
    "nll": PER_TOKEN,
    "top1_agreement": "",
    "expected_acceptance": "",
    "delta_p": "",
    "squared_delta_p": "",
}
"""The columns of token values and their units. `nll` is -log q(token), `delta_p` is q(token) - p(token)."""

_DEFAULT_CONTEXT = 2048
_WORST = 20  # tokens of the largest KL that are described
_ALTERNATIVES = 5
_BEFORE, _AFTER = 40, 8  # tokens of context of a described token
_CONTEXT_EDGES = (16, 64, 256, 1024, 4096, 16384)
_SHOWN_BYTES = 4_600_000  # of the tokens on the page of a comparison
_AS_SET = Variant()
_WAIT = 600.0  # seconds until the main process must have created the run directory


@dataclass(frozen=True)
class Settings:
    """What determines the numbers of a comparison, apart from models and text.

    Args:
        context: The number of tokens of a window; None: 2048, or the positions of the models if they have fewer.
        stride: The distance between the starts of windows; None: see `windows`.
        bos: See `encode`.
        form: See `read_documents`.
        batch_size: The number of windows of a forward pass.
        device: The device; "auto": a GPU if there is one.
        one_at_a_time: Whether one model is in memory at a time; the last hidden states of the base are on disk.
        by_module: Whether the modules of each model are put into the base one at a time: a name of `KINDS`, or None.
        generate: The largest number of tokens of the continuations that are sampled, or None; for it and the following
            see `GenerationSettings`.
        prompts: The largest number of documents that are continued.
        prompt_tokens: The largest number of tokens of a text that are its prompt.
        continuations: The number of continuations of each prompt.
        seed: The seed of the continuations.
    """

    context: int | None = None
    stride: int | None = None
    bos: str = "auto"
    form: str | None = None
    batch_size: int = 4
    device: str = "auto"
    one_at_a_time: bool = False
    by_module: str | None = None
    generate: int | None = None
    prompts: int = 256
    prompt_tokens: int = 32
    continuations: int = 1
    seed: int = 0

    @property
    def generation(self) -> GenerationSettings | None:
        """The settings of free running; None: nothing is sampled."""
        if self.generate is None:
            return None
        return GenerationSettings(self.generate, self.prompts, self.prompt_tokens, self.continuations, self.seed)


@dataclass(frozen=True)
class Plan:
    """A comparison that is to be run.

    Args:
        base: The base.
        models: The models that are compared with the base, and variants of them.
        text: A path, the name of a data set, or the texts of documents.
        floors: Variants of the base, whose KL are noise floors.
        settings: The settings.
        output: The run directory; None: nothing is stored.
        resume: Whether the run in `output` is continued.
        overwrite: Whether a run in `output` may be replaced.
        against: The content of an earlier result.json that must be comparable, or None.
    """

    base: ModelSource
    models: tuple[Candidate, ...]
    text: str | Path | Sequence[str]
    floors: tuple[Candidate, ...] = ()
    settings: Settings = field(default_factory=Settings)
    output: Path | None = None
    resume: bool = False
    overwrite: bool = False
    against: Mapping[str, Any] | None = None

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The models, and the noise floors at the end."""
        return (*self.models, *self.floors)


@dataclass(frozen=True)
class Outcome:
    """The merged results of a run.

    Args:
        config: The configuration, as in config.json.
        names: The names of the candidates.
        statistics: The statistics of each candidate.
        worst: The tokens of the largest KL(base || model) of each candidate.
        warnings: Sentences about differences between the models that do not prevent the comparison.
        documents: The documents of the largest KL with the values of their tokens, for a page.
        modules: For models whose modules were swapped, by name, the sums of the KL of each module.
        free_running: The results of free running by the name of the candidate.
    """

    config: dict[str, Any]
    names: tuple[str, ...]
    statistics: tuple[ModelStatistics, ...]
    worst: tuple[list[dict[str, Any]], ...]
    warnings: tuple[str, ...]
    documents: tuple[DocumentTokens, ...]
    modules: dict[str, DocumentSums]
    free_running: dict[str, FreeRunning]


@dataclass(frozen=True)
class _Block:
    number: int
    batches: list[list[tuple[int, Window]]]  # the rows of each forward pass: document and window


def run(plan: Plan, progress: Callable[[int, int, str], None] | None = None) -> Outcome | None:
    """Run a comparison.

    Where RANK and WORLD_SIZE are in the environment, as `accelerate launch` and `torchrun` set them, this process
    computes its part of the blocks and stores it in the run directory.

    Args:
        plan: The comparison.
        progress: A function that is called with the number of counted tokens that are done, their total number, and
            the part of the work, such as the name of a model; None: without progress.

    Returns:
        The results on the main process, None on the others.

    Raises:
        InputError: The models cannot be compared, the text cannot be read, or the run directory cannot be used.
    """
    rank, world = process_rank()
    if world > 1 and plan.output is None:
        raise InputError("expected --output for a comparison by several processes, which store their parts in it")
    if world > 1 and plan.overwrite:
        raise InputError(
            "--overwrite: expected one process; delete the run directory before a run of several processes"
        )
    names = [plan.base.name, *(candidate.name for candidate in plan.candidates)]
    if twice := next((name for name in names[1:] if names[1:].count(name) > 1), None):
        raise InputError(f"expected each model once, got {twice} twice")
    if plan.output is not None and rank == 0:
        directory = RunDirectory(plan.output)
        if plan.overwrite:
            _check_inputs_are_not_replaced(plan, directory)
        directory.check_output(resume=plan.resume, overwrite=plan.overwrite, kind="comparison")
    tokenizer, warnings, config, corpus, prompts = _preflight(plan)
    blocks = _blocks(corpus, config["settings"], len(corpus.prefix))
    device = choose_device(plan.settings.device)
    with _directory(plan, config, rank) as directory:
        records = _Records(directory, rank)
        todo = [block for block in blocks if block.number % world == rank]
        work = _Work(plan, corpus, tokenizer, vocabulary_size(tokenizer), device, records, progress)
        swaps = work.swaps(BlockRecords(directory, "modules", rank, ("sums",)), todo)
        if plan.settings.one_at_a_time:
            work.one_at_a_time(todo, directory)
        else:
            work.together(todo)
        swaps.compute()
        generation = plan.settings.generation
        sampled = [] if generation is None else generation_blocks(prompts, generation, plan.settings.batch_size)
        running = work.free_running(BlockRecords(directory, "generation", rank, ("samples",)), sampled, rank, world)
        if running is not None:
            running.compute(one_at_a_time=plan.settings.one_at_a_time)
        if rank != 0:
            return None
        records.wait(len(blocks) * len(plan.candidates), is_alone=world == 1)
        statistics, worst = records.merged(len(plan.candidates))
        tokens = records.tokens.documents(records.done)
        documents = shown_documents(tokens, len(plan.models), corpus, tokenizer, _SHOWN_BYTES)
        modules = swaps.merged(len(blocks), is_alone=world == 1)
        found = [] if running is None else running.merged(len(sampled), is_alone=world == 1)
        free_running = dict(zip(names[1:], found, strict=False))
        return Outcome(config, tuple(names[1:]), statistics, worst, warnings, documents, modules, free_running)


def _check_inputs_are_not_replaced(plan: Plan, directory: RunDirectory) -> None:
    """Raise InputError if an input of the comparison is in the directory that `overwrite` replaces."""
    sources = [candidate.source for candidate in plan.models]
    inputs = [("BASE", plan.base.directory), *(("MODEL", source.directory) for source in sources)]
    inputs += [("--adapter", source.adapter) for source in sources if source.adapter is not None]
    if isinstance(plan.text, str | Path) and Path(plan.text).exists():
        inputs.append(("--text", Path(plan.text)))
    for option, path in inputs:
        directory.check_not_replaced(option, path)


def _preflight(plan: Plan) -> tuple[Any, tuple[str, ...], dict[str, Any], Corpus, list[Prompt]]:
    """The tokenizer, warnings, the configuration, the corpus and the prompts; raises for models of two vocabularies."""
    settings = plan.settings
    if settings.batch_size < 1:
        raise InputError(f"--batch-size: expected at least 1, got {settings.batch_size}")
    if settings.by_module is not None:
        if settings.by_module not in KINDS:
            raise InputError(f"--by-module: expected one of {', '.join(KINDS)}, got {settings.by_module!r}")
        if settings.one_at_a_time:
            raise InputError("--by-module: expected two models in memory, got --one-at-a-time; leave one out")
        if all(candidate.variant != _AS_SET for candidate in plan.models):
            raise InputError("--by-module: expected a MODEL with weights of its own, got variants of BASE alone")
    if plan.base.dtype not in DTYPES:
        raise InputError(f"--dtype: expected one of {', '.join(DTYPES)}, got {plan.base.dtype!r}")
    for candidate in plan.candidates:
        option = (
            "--floor"
            if candidate in plan.floors
            else "--attention"
            if candidate.variant.attention
            else "--kv-cache-dtype"
        )
        candidate.variant.require_valid(option, batch_size=settings.batch_size)
    tokenizer = load_tokenizer(plan.base.directory)
    context, warnings = settings.context, []
    sources = {source.directory: source for source in (plan.base, *(model.source for model in plan.models))}
    positions: dict[str, int | None] = {}
    tokenizers = {}
    for directory, source in sources.items():
        other = tokenizer if directory == plan.base.directory else load_tokenizer(directory)
        require_same_vocabulary(tokenizer, other, plan.base.name, source.name)
        if template_hash(other) != template_hash(tokenizer):
            warnings.append(f"{source.name} has another chat template than {plan.base.name}, whose template is used.")
        tokenizers[source.name] = other
        warnings += gguf_warning(source)
        positions[source.name] = getattr(load_config(directory), "max_position_embeddings", None)
    for candidate in plan.candidates:
        size = head_size(load_config(candidate.source.directory))
        if candidate.variant.kv_cache_dtype is not None and size is not None:
            require_head_size(candidate.variant.kv_cache_dtype, size)
    if context is None:
        context = min(_DEFAULT_CONTEXT, *(limit for limit in positions.values() if limit), _DEFAULT_CONTEXT)
    for name, limit in positions.items():
        require_positions(limit, context, name)
    documents = _documents(plan)
    generation = settings.generation
    corpus = encode(documents, tokenizer, bos=settings.bos, prompts=generation is not None)
    windows(1, context, settings.stride, prefix=len(corpus.prefix))  # refuses settings that are not valid
    prompts: list[Prompt] = []
    if generation is not None:
        limits = [limit for limit in positions.values() if limit]
        prompts, left_out = choose_prompts(corpus, generation, min(limits) - generation.tokens if limits else None)
        if left_out:
            warnings.append(
                f"{left_out} prompts are left out, because with {generation.tokens} tokens they exceed the positions "
                "of a model."
            )
    sample = tokenizer.decode(corpus.documents[0].ids[:2000])
    for name, other in tokenizers.items():
        if other is not tokenizer and _ids(other, sample) != _ids(tokenizer, sample):
            warnings.append(f"{name} splits text into other tokens than {plan.base.name}, whose tokens are used.")
    described = {
        source.name: {
            "directory": str(source.directory),
            "adapter": None if source.adapter is None else str(source.adapter),
            "dtype": source.dtype,
            **variant.settings(),
            **weights_hash(source),
        }
        for source, variant in ((plan.base, _AS_SET), *((c.source, c.variant) for c in plan.candidates))
    }
    config = {
        "kind": "compare",
        "versions": versions("torch", "transformers"),
        "base": plan.base.name,
        "floors": [floor.name for floor in plan.floors],
        "models": described,
        "text": {
            "source": str(plan.text) if isinstance(plan.text, str | Path) else f"{len(plan.text)} texts",
            "documents": len(corpus.documents),
            "skipped_documents": corpus.skipped_documents,
            "tokens": sum(len(document.ids) for document in corpus.documents),
            "counted_tokens": corpus.counted_tokens,
            "text_sha256": corpus.text_hash,
            "tokens_sha256": corpus.token_hash,
        },
        "tokenizer": {
            "vocabulary": vocabulary_size(tokenizer),
            "sha256": tokenizer_hash(tokenizer),
            "template_sha256": template_hash(tokenizer),
            "bos": list(corpus.prefix),
        },
        "prompts": len(prompts),
        "settings": {
            **{key: value for key, value in asdict(settings).items() if key not in ("device", "one_at_a_time")},
            "context": context,
            "device": choose_device(settings.device).type,
        },
    }
    if plan.against is not None:
        require_comparable(config, plan.against)
    return tokenizer, tuple(warnings), config, corpus, prompts


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _documents(plan: Plan) -> Iterator[Document]:
    if isinstance(plan.text, str | Path):
        yield from read_documents(plan.text, form=plan.settings.form)
        return
    for number, text in enumerate(plan.text):
        if not isinstance(text, str):
            raise InputError(f"text: expected strings, got {type(text).__name__} at index {number}")
        yield Document(f"text {number}", text)


def choose_device(name: str) -> torch.device:
    """The device of a name.

    Args:
        name: A device of PyTorch; "auto": a GPU if there is one.

    Returns:
        The device.

    Raises:
        InputError: PyTorch has not found the device.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK') or 0}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # not possible on the device "meta", which has no values
    except (RuntimeError, AssertionError) as error:
        reason = f"{str(error).splitlines()[0]:.200}"
        raise InputError(f"--device: expected a device such as cpu or cuda:0, got {name!r}: {reason}") from error
    return device


def _blocks(corpus: Corpus, settings: dict[str, Any], prefix: int) -> list[_Block]:
    """All blocks: documents in the order of decreasing length, until they fill a forward pass."""
    size, order = (
        settings["batch_size"],
        sorted(range(len(corpus.documents)), key=lambda i: -len(corpus.documents[i].ids)),
    )
    blocks: list[_Block] = []
    rows: list[tuple[int, Window]] = []
    for document in order:
        count = len(corpus.documents[document].ids)
        rows += [(document, w) for w in windows(count, settings["context"], settings["stride"], prefix=prefix)]
        if len(rows) >= size or document == order[-1]:
            blocks.append(_Block(len(blocks), [rows[start : start + size] for start in range(0, len(rows), size)]))
            rows = []
    return blocks


@contextmanager
def _directory(plan: Plan, config: dict[str, Any], rank: int) -> Iterator[Path | None]:
    """The run directory with its config.json, locked by the main process."""
    if plan.output is None:
        with termination_as_interrupt():
            yield None
        return
    directory = RunDirectory(plan.output)
    with ExitStack() as stack:
        stack.enter_context(termination_as_interrupt())
        stack.enter_context(write_errors(plan.output, "continue with --resume"))
        if rank == 0:
            stack.enter_context(run_lock(plan.output))
            directory.check_can_start(config, resume=plan.resume, overwrite=plan.overwrite)
            if not plan.resume:
                for stem in ("blocks", "modules", "generation"):
                    for path in plan.output.glob(f"{stem}-*.jsonl"):
                        path.unlink()
                shutil.rmtree(plan.output / "tokens", ignore_errors=True)
                (plan.output / "result.json").unlink(missing_ok=True)
                directory.create(config)
        else:
            limit = time.monotonic() + _WAIT
            while not (plan.output / "config.json").is_file():
                if time.monotonic() > limit:
                    raise InputError(f"--output {plan.output}: the main process has not created the run directory")
                time.sleep(0.1)
            directory.check_can_start(config, resume=True)
        try:
            yield plan.output
        except KullbackError:
            if rank == 0 and not any(path.stat().st_size for path in plan.output.glob("*-*.jsonl")):
                (plan.output / "config.json").unlink(missing_ok=True)  # the corrected command can start
            raise


class _Records(BlockRecords):
    """The statistics of blocks, and the values of their tokens."""

    def __init__(self, directory: Path | None, rank: int) -> None:
        super().__init__(directory, "blocks", rank, ("statistics", "worst"))
        self.tokens = TokenStore(directory)

    def add_result(self, block: int, model: int, result: "_BlockResult") -> None:
        """Store the result of a block and a model."""
        self.tokens.add(block, model, result.token_values())
        self.add(block, model, {"statistics": result.statistics.state(), "worst": result.worst})

    def merged(self, models: int) -> tuple[tuple[ModelStatistics, ...], tuple[list[dict[str, Any]], ...]]:
        """The statistics and the tokens of the largest KL of each model."""
        statistics = tuple(new_statistics() for _ in range(models))
        worst: tuple[list[dict[str, Any]], ...] = tuple([] for _ in range(models))
        for record in self.read():
            statistics[record["model"]].merge(ModelStatistics.from_state(record["statistics"]))
            worst[record["model"]][:] = _largest([*worst[record["model"]], *record["worst"]])
        return statistics, worst


def new_statistics() -> ModelStatistics:
    """Statistics without tokens."""
    return ModelStatistics(COLUMNS, quantiles_of=("kl", "delta_p"))


def _largest(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of the largest KL, in an order that does not depend on the order of blocks."""
    return sorted(entries, key=lambda e: (-e["kl"], e["document"], e["position"]))[:_WORST]


@dataclass
class _Work:
    """The computation of blocks on this process."""

    plan: Plan
    corpus: Corpus
    tokenizer: Any
    vocabulary: int
    device: torch.device
    records: _Records
    progress: Callable[[int, int, str], None] | None

    def __post_init__(self) -> None:
        self.classes = TokenClasses(self.tokenizer)
        self._loaded: dict[ModelSource, LoadedModel] = {}

    def together(self, blocks: list[_Block]) -> None:
        """Compute the blocks with the base and all models in memory."""
        count = len(self.plan.candidates)
        todo = {b.number: [m for m in range(count) if (b.number, m) not in self.records.done] for b in blocks}
        if not any(todo.values()):
            return
        base = self._load(self.plan.base)
        models = [self._load(candidate.source) for candidate in self.plan.candidates]
        variants = [candidate.variant for candidate in self.plan.candidates]
        for block in self._shown(blocks, "all models"):
            results = {model: _BlockResult(self, block.number, base, models[model]) for model in todo[block.number]}
            if not results:
                continue
            for rows in block.batches:
                hidden = self._hidden(base, rows)
                for model, result in results.items():
                    result.add(rows, hidden, self._hidden(models[model], rows, variants[model]))
            for model, result in results.items():
                self.records.add_result(block.number, model, result)

    def one_at_a_time(self, blocks: list[_Block], directory: Path | None) -> None:
        """Compute the blocks with one model in memory, and the last hidden states of the base on disk."""
        models = range(len(self.plan.candidates))
        todo = {m: [block for block in blocks if (block.number, m) not in self.records.done] for m in models}
        needed = {block.number for blocks_of_model in todo.values() for block in blocks_of_model}
        if not needed:
            return
        with ExitStack() as stack:
            if directory is None:
                cache = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kullback-")))
            else:
                cache = directory / "hidden"
                cache.mkdir(exist_ok=True)
            base = self._load(self.plan.base)
            for block in self._shown([b for b in blocks if b.number in needed], f"{self.plan.base.name} (base)"):
                for number, rows in enumerate(block.batches):
                    path = cache / f"{block.number}-{number}.bin"
                    if _read_hidden(path) is None:
                        _write_hidden(path, self._hidden(base, rows))
            base.release()
            self._loaded.clear()
            for m in models:
                if not todo[m]:
                    continue
                candidate = self.plan.candidates[m]
                model = self._load(candidate.source)
                for block in self._shown(todo[m], candidate.name):
                    result = _BlockResult(self, block.number, base, model)
                    for number, rows in enumerate(block.batches):
                        stored = _read_hidden(cache / f"{block.number}-{number}.bin")
                        if stored is None:
                            raise InputError(
                                f"{cache}: expected the hidden states of the base, found none; use --resume"
                            )
                        result.add(rows, stored.to(self.device), self._hidden(model, rows, candidate.variant))
                    self.records.add_result(block.number, m, result)
                del model
            if directory is not None:
                for block in blocks:
                    for path in cache.glob(f"{block.number}-*.bin"):
                        path.unlink()
                if not any(cache.iterdir()):
                    shutil.rmtree(cache, ignore_errors=True)

    def swaps(self, records: BlockRecords, blocks: list[_Block]) -> "_ModuleWork":
        """The work on modules. Models whose modules cannot be swapped are refused before any forward pass."""
        kind = self.plan.settings.by_module
        plain = [m for m, candidate in enumerate(self.plan.models) if candidate.variant == _AS_SET]
        models = plain if kind is not None else []
        todo = {m: [block for block in blocks if (block.number, m) not in records.done] for m in models}
        swapped = {
            m: SwappedModules(self._load(self.plan.base), self._load(self.plan.models[m].source), kind)
            for m in models
            if todo[m] and kind is not None
        }
        return _ModuleWork(self, records, models, todo, swapped)

    def free_running(
        self, records: BlockRecords, blocks: Sequence[list[Any]], rank: int, world: int
    ) -> FreeRunningWork | None:
        """The work on continuations; None: nothing is sampled."""
        settings = self.plan.settings.generation
        if settings is None:
            return None
        return FreeRunningWork(
            self.corpus,
            self.tokenizer,
            self.vocabulary,
            settings,
            self.plan.base,
            self.plan.candidates,
            records,
            {number: block for number, block in enumerate(blocks) if number % world == rank},
            self._load,
            self.device,
            self.progress,
        )

    def _load(self, source: ModelSource) -> LoadedModel:
        """The model in memory; variants of a model share its weights."""
        weights = replace(source, name="")
        if weights not in self._loaded:
            if self.plan.settings.one_at_a_time:
                self._loaded.clear()
            self._loaded[weights] = load(source, self.vocabulary, self.device)
        return replace(self._loaded[weights], source=source)

    def _shown(self, blocks: list[_Block], what: str) -> Iterator[_Block]:
        """The blocks; progress is reported after each."""
        sizes = [sum(w.end - w.first for rows in block.batches for _, w in rows) for block in blocks]
        done = 0
        if self.progress is not None:
            self.progress(0, sum(sizes), what)
        for block, size in zip(blocks, sizes, strict=True):
            yield block
            done += size
            if self.progress is not None:
                self.progress(done, sum(sizes), what)

    def targets(self, rows: list[tuple[int, Window]]) -> Tensor:
        """The counted tokens of the windows, shape (n,)."""
        ids = [self.corpus.documents[document].ids[w.first : w.end] for document, w in rows]
        return torch.from_numpy(np.concatenate(ids).astype(np.int64)).to(self.device)

    def _hidden(self, model: LoadedModel, rows: list[tuple[int, Window]], variant: Variant = _AS_SET) -> Tensor:
        """The last hidden states that predict the counted tokens of the windows, shape (n, d)."""
        prefix, tokens = np.array(self.corpus.prefix, np.int64), []
        for document, window in rows:
            ids = self.corpus.documents[document].ids[window.start : window.end].astype(np.int64)
            tokens.append((np.concatenate([prefix, ids]), window.end - window.first))
        return token_hidden(model, variant, tokens, self.device)


@dataclass
class _ModuleWork:
    """The KL of the base from itself with one module of a model, over the blocks of this process."""

    work: _Work
    records: BlockRecords
    models: list[int]
    todo: dict[int, list[_Block]]
    swapped: dict[int, SwappedModules]

    def compute(self) -> None:
        """Compute the blocks that are not in the records."""
        for m, swap in self.swapped.items():
            units = dict.fromkeys([*swap.names, SUM], PER_TOKEN)
            for block in self.work._shown(self.todo[m], f"{self.work.plan.models[m].name} (modules)"):
                sums = DocumentSums(units)
                for rows in block.batches:
                    columns = swap.kl(partial(self.work._hidden, swap.base, rows), self.work.targets(rows))
                    start = 0
                    for document, window in rows:
                        part = slice(start, start + window.end - window.first)
                        start = part.stop
                        sums.add(document, {name: values[part] for name, values in columns.items()})
                self.records.add(block.number, m, {"sums": sums.state()})

    def merged(self, blocks: int, *, is_alone: bool) -> dict[str, DocumentSums]:
        """The sums of each model by its name."""
        self.records.wait(blocks * len(self.models), is_alone=is_alone)
        found: dict[int, DocumentSums] = {}
        for record in self.records.read():
            sums = DocumentSums.from_state(record["sums"])
            if record["model"] in found:
                found[record["model"]].merge(sums)
            else:
                found[record["model"]] = sums
        return {self.work.plan.models[m].name: found[m] for m in self.models}


class _BlockResult:
    """The statistics of a block and a model, from the hidden states of its forward passes."""

    def __init__(self, work: _Work, number: int, base: LoadedModel, model: LoadedModel) -> None:
        self.work, self.number, self.base, self.model = work, number, base, model
        self.statistics = new_statistics()
        self.worst: list[dict[str, Any]] = []
        self.values: dict[int, list[tuple[int, TokenValues]]] = {}  # by document: the first token of a window, values

    def token_values(self) -> dict[int, TokenValues]:
        """The values of the counted tokens of each document."""
        parts = {
            document: [values for _, values in sorted(found, key=lambda part: part[0])]
            for document, found in self.values.items()
        }
        return {
            document: TokenValues(*map(np.concatenate, zip(*found, strict=True))) for document, found in parts.items()
        }

    def add(self, rows: list[tuple[int, Window]], hidden_p: Tensor, hidden_q: Tensor) -> None:
        """Add the counted tokens of the windows of a forward pass."""
        documents = self.work.corpus.documents
        ends = np.cumsum([window.end - window.first for _, window in rows])
        chosen = self.work.targets(rows)
        targets = chosen.cpu().numpy()
        stats = head_stats(hidden_p, self.base.head, hidden_q, self.model.head, chosen)
        columns = {name: _numbers(getattr(stats, name)) for name in ("kl", "reverse_kl", "js", "expected_acceptance")}
        log_p, log_q = _numbers(stats.log_prob_p), _numbers(stats.log_prob_q)
        delta = np.exp(log_q) - np.exp(log_p)
        columns |= {
            "entropy_base": _numbers(stats.entropy_p),
            "entropy": _numbers(stats.entropy_q),
            "nll_base": -log_p,
            "nll": -log_q,
            "top1_agreement": _numbers(stats.top1_agreement),
            "delta_p": delta,
            "squared_delta_p": delta**2,
        }
        for name, values in columns.items():
            if (bad := ~(values > -np.inf)).any():
                row = next(row for row, end in zip(rows, ends, strict=True) if bad.argmax() < end)
                raise InputError(
                    f"{documents[row[0]].name}: expected {name} of {self.model.source.name} and "
                    f"{self.base.source.name} to be a number, got {values[bad][0]}: the logits of a model are not "
                    "finite; compute the models in another dtype by --dtype"
                )
        groups = {
            "base confidence": confidence_labels(np.minimum(_numbers(stats.top1_prob_p), 1.0)),
            "token class": self.work.classes(targets),
        }
        start = 0
        for document, window in rows:
            part = slice(start, start + window.end - window.first)
            start = part.stop
            length = len(self.work.corpus.prefix)
            available = np.arange(window.first, window.end) - window.start + length
            labels = {name: values[part] for name, values in groups.items()} | {"tokens of context": _ranges(available)}
            roles = self.work.corpus.roles
            if len(roles) > 1:
                labels["role"] = np.array(roles)[documents[document].roles[window.first : window.end]]
            parts = {name: values[part] for name, values in columns.items()}
            self.statistics.add(document, parts, window=window.start, groups=labels)
            values = TokenValues.encode(parts["kl"], parts["nll_base"], parts["nll"])
            self.values.setdefault(document, []).append((window.first, values))
        self._keep_worst(rows, columns["kl"], (log_p, log_q), hidden_p, hidden_q)

    def _keep_worst(
        self,
        rows: list[tuple[int, Window]],
        kl: NDArray[np.float64],
        log_probs: tuple[NDArray[np.float64], NDArray[np.float64]],
        hidden_p: Tensor,
        hidden_q: Tensor,
    ) -> None:
        """Describe the tokens whose KL is among the largest of the block."""
        places = [(document, token) for document, window in rows for token in range(window.first, window.end)]
        order = sorted(np.flatnonzero(kl > 0).tolist(), key=lambda i: (-kl[i], *places[i]))[:_WORST]
        least = self.worst[-1]["kl"] if len(self.worst) == _WORST else -1.0
        entries = []
        for index in order:
            if kl[index] < least:
                break
            document, token = places[index]
            entries.append(
                {
                    "kl": float(kl[index]),
                    "document": document,
                    "position": token,
                    **self._context(document, token),
                    "prob_base": float(np.exp(log_probs[0][index])),
                    "prob": float(np.exp(log_probs[1][index])),
                    "top_base": self._alternatives(hidden_p[index], self.base),
                    "top": self._alternatives(hidden_q[index], self.model),
                }
            )
        self.worst = _largest([*self.worst, *entries])

    def _context(self, document: int, token: int) -> dict[str, Any]:
        ids, decode = self.work.corpus.documents[document].ids.tolist(), self.work.tokenizer.decode
        return {
            "name": self.work.corpus.documents[document].name,
            "before": decode(ids[max(0, token - _BEFORE) : token]),
            "token": decode(ids[token : token + 1]),
            "after": decode(ids[token + 1 : token + 1 + _AFTER]),
        }

    def _alternatives(self, hidden: Tensor, model: LoadedModel) -> list[list[Any]]:
        found = top_tokens(hidden, model.head, _ALTERNATIVES)
        return [[self.work.tokenizer.decode([token]), prob] for token, prob in found]


def _numbers(values: Tensor | None) -> NDArray[np.float64]:
    assert values is not None
    return values.detach().double().cpu().numpy()


def _ranges(available: NDArray[np.int64]) -> NDArray[np.str_]:
    """The range of the number of tokens before each token, as a label."""
    starts = (1, *_CONTEXT_EDGES)
    names = [f"{low}-{high - 1}" for low, high in zip(starts, _CONTEXT_EDGES, strict=False)]
    return np.array([*names, f"{_CONTEXT_EDGES[-1]}-"])[np.searchsorted(_CONTEXT_EDGES, available, side="right")]


def _write_hidden(path: Path, hidden: Tensor) -> None:
    """Store hidden states with their checksum."""
    write_checked(path, save_tensors({"hidden": hidden.cpu().contiguous()}))


def _read_hidden(path: Path) -> Tensor | None:
    """Stored hidden states in memory of the ordinary alignment, or None if there are none."""
    content = read_checked(path)
    if content is not None:
        return load_tensors(content)["hidden"].clone()
    if path.is_file():
        print(f"kullback: {path} is damaged, and is computed again", file=sys.stderr)
    return None
