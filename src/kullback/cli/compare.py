"""`kullback compare`: the KL divergence of language models from their base over a corpus."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kullback.cli.output import print_result, strict
from kullback.errors import InputError
from kullback.integrations.gguf import is_gguf
from kullback.integrations.openai_server import is_endpoint
from kullback.runs.printable import one_line

__all__ = ["add_parser"]

ABOVE_THRESHOLD = 3
EXAMPLES = """The corpus is a text file, a .jsonl file whose lines have a "text" or chat "messages", a directory of
such files, or a data set of the Hugging Face hub. Its documents are the clusters of all intervals. A document that is
longer than the context is split into windows that count each token once. If the tokenizer begins a text with a
beginning-of-sequence token, every window begins with it.

examples:
  kullback compare base-model int8-model int4-model --text corpus --floor bfloat16 --output runs/compare
  kullback compare base-model int4-model --text corpus --generate 256 --by-module
  kullback compare base-model --kv-cache-dtype float8_e4m3fn --text corpus --floor batch-size=1
  kullback compare base-model --adapter lora --text chats.jsonl --fail-above 0.05
  kullback compare base-model new-model --text corpus --against runs/compare/result.json
  kullback compare base-model quantised.gguf --text corpus
  kullback compare base-model openai:http://localhost:8000/v1#served-model --text corpus --top 20
  kullback compare base-model model-of-another-tokenizer --text corpus --text-level
  kullback compare base.kld quantised-model --bos always
  accelerate launch -m kullback compare base-model new-model --text corpus --output runs/compare
"""
_OF_GENERATE = ("prompts", "prompt_tokens", "continuations", "seed")
_VARIANTS = ("attention", "kv_cache_dtype", "by_module", "generate", "prompts", "prompt_tokens", "continuations")
_EXACT = ("adapter", "floor", "one_at_a_time", "card", *_VARIANTS)
_NEED_A_MODEL = ("text", "format", "context", "stride", "batch_size", "seed", *_EXACT)
_NEED_AN_ENDPOINT = ("top", "sampled_positions", "tokenizer", "timeout")
_TOKENS = ("batch_size", "fail_above", "seed", *_EXACT, *_NEED_AN_ENDPOINT)
_LINES = 10  # lines of progress for each pass over the corpus


def add_parser(commands: Any) -> None:
    """Add the command `compare`."""
    parser = commands.add_parser(
        "compare",
        help="measure the KL divergence of language models from their base over a corpus",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "base",
        metavar="BASE",
        help="a transformers directory in safetensors, a GGUF file (its weights are dequantised), a model of the "
        "Hugging Face hub, or a file of llama.cpp's --kl-divergence-base, whose tokens are the text and whose "
        "results are lower bounds",
    )
    add(
        "models",
        nargs="*",
        metavar="MODEL",
        help="a model like BASE, or the directory of a PEFT adapter of BASE. BASE or all MODELs can be a model of an "
        "OpenAI-compatible server, openai:URL#NAME, whose results are bounds",
    )
    add("--text", metavar="CORPUS", help="the corpus; see below (required unless BASE is a file of llama.cpp)")
    add(
        "--format",
        choices=("text", "jsonl", "chat"),
        help="text: each file is a document; jsonl: each line has a text; chat: each line has messages (default: by "
        "the suffix of each file and the keys of each line)",
    )
    add("--adapter", action="append", default=[], metavar="PEFT", help="also compare BASE with this adapter")
    add(
        "--context",
        type=int,
        metavar="N",
        help="the tokens of a window (default: 2048, or the positions of the models if they have fewer)",
    )
    add(
        "--stride",
        type=int,
        metavar="N",
        help="the distance between windows of a document, less than their tokens (default: as large as possible)",
    )
    add(
        "--bos",
        choices=("auto", "always", "never"),
        default="auto",
        help="whether windows begin with the beginning-of-sequence token, or, where BASE is a file of llama.cpp, "
        "whether it replaces the first token of each chunk (default: as the tokenizer does)",
    )
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16", "float64"),
        default="auto",
        help="the dtype of all models (default: as their weights were saved)",
    )
    add(
        "--floor",
        action="append",
        default=[],
        metavar="SETTING",
        help="measure a noise floor, the KL of BASE from itself with another SETTING: a dtype such as bfloat16, "
        "batch-size=N (less than --batch-size), attention=NAME or kv-cache-dtype=DTYPE (may be repeated)",
    )
    add(
        "--attention",
        action="append",
        default=[],
        metavar="NAME",
        help="also compute each MODEL, or BASE where MODEL is missing, with this attention implementation of "
        "transformers: eager, sdpa, flex_attention, flash_attention_2 or flash_attention_3 (may be repeated)",
    )
    add(
        "--kv-cache-dtype",
        action="append",
        default=[],
        metavar="DTYPE",
        help="also compute each MODEL, or BASE where MODEL is missing, with keys and values rounded to float16, "
        "bfloat16, float8_e4m3fn, float8_e5m2, or llama.cpp's q8_0 or q4_0 (may be repeated)",
    )
    add("--batch-size", type=int, metavar="N", help="windows in a forward pass (default: 4)")
    add("--device", default="auto", metavar="DEVICE", help="such as cpu or cuda:0 (default: a GPU if there is one)")
    add(
        "--one-at-a-time",
        action="store_true",
        help="keep one model in memory; the last hidden states of BASE are stored on disk meanwhile",
    )
    add(
        "--by-module",
        nargs="?",
        const="layer",
        choices=("layer", "part"),
        help="put each module of MODEL (layers, embeddings, norm, head) into BASE one at a time, and attribute the KL "
        "to them; part: attention, MLP and norms of each layer",
    )
    add(
        "--generate",
        type=int,
        metavar="N",
        help="also sample continuations of at most N tokens from BASE and from each MODEL, and measure the KL along "
        "them",
    )
    add("--prompts", type=int, metavar="N", help="documents that are continued, at most (default: 256)")
    add(
        "--prompt-tokens",
        type=int,
        metavar="N",
        help="first tokens of a text that are its prompt, at most, and at most half of it (default: 32); the prompt of "
        "a chat is what precedes its last answer",
    )
    add("--continuations", type=int, metavar="N", help="continuations of each prompt (default: 1)")
    add("--seed", type=int, metavar="N", help="the seed of the continuations (default: 0)")
    add(
        "--write-llama-cpp",
        type=Path,
        metavar="FILE",
        help="instead of a comparison, write the log-probabilities of BASE over the corpus to FILE, as llama.cpp does "
        "with --kl-divergence-base, in chunks of --context tokens (default: 512)",
    )
    add(
        "--output",
        type=Path,
        metavar="RUN",
        help="store the results and the page compare.html in the run directory RUN, for --resume",
    )
    add(
        "--text-level",
        action="store_true",
        help="compare models with different tokenizers by the log-likelihoods of whole texts, in bits per byte; this "
        "is not a KL divergence of tokens",
    )
    server = parser.add_argument_group("models of OpenAI-compatible servers; OPENAI_API_KEY is the key")
    server.add_argument("--top", type=int, metavar="K", help="log-probabilities at each position (default: 20)")
    server.add_argument(
        "--sampled-positions",
        type=int,
        metavar="N",
        help="positions at which a token of BASE is sampled, for an unbiased estimate of the KL (default: 256)",
    )
    server.add_argument("--tokenizer", metavar="MODEL", help="their tokenizer, where no local model has it")
    server.add_argument("--timeout", type=float, metavar="S", help="seconds for each request (default: 60)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="continue the interrupted comparison in RUN")
    start.add_argument(
        "--overwrite", action="store_true", help="replace an earlier comparison in RUN, or an earlier FILE"
    )
    add(
        "--against",
        type=Path,
        metavar="RESULT",
        help="compare with the models of an earlier result.json, which must have the same base, tokens and windows",
    )
    add("--fail-above", type=float, metavar="X", help="exit with status 3 if KL(BASE || MODEL) > X nats per token")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    form.add_argument("--card", action="store_true", help="print a Markdown block for the card of the model")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from kullback.cli.run_summary import results_on_stdout

    if options.write_llama_cpp is not None:
        return _write(options)
    if options.text_level:
        return _compare_texts(options)
    with results_on_stdout():
        is_file = Path(options.base).is_file() and not is_gguf(Path(options.base))
        has_endpoint = any(map(is_endpoint, (options.base, *options.models)))
        if not has_endpoint:
            _refuse(options, _NEED_AN_ENDPOINT, "expected an endpoint openai:URL#NAME as BASE or MODEL, got none")
        if is_file:
            comparison = _compare_with_file(options)
        else:
            comparison = _compare_with_endpoint(options) if has_endpoint else _compare(options)
        if options.output is not None and (is_file or has_endpoint) and not options.json:
            print("kullback: compare.html is not written, because it shows the exact KL of tokens", file=sys.stderr)
    if comparison is None:  # another process prints the results
        return 0
    if options.json:
        print_result(json.dumps(strict(comparison.to_dict()), allow_nan=False))
    elif options.card:
        from kullback.compare.results import card_text

        print_result(card_text(comparison))
    else:
        print_result(str(comparison))
    limit = math.inf if options.fail_above is None else options.fail_above
    found = [(model, model.metrics["kl"].value) for model in comparison.models]
    above = [(model, value) for model, value in found if not value <= limit]
    for model, value in above:
        print(f"kullback: {one_line(model.name)}: {value:.4g} nats per token exceed {limit:g}", file=sys.stderr)
    return ABOVE_THRESHOLD if above else 0


def _refuse(options: argparse.Namespace, names: Sequence[str], reason: str) -> None:
    """Refuse the first of the options that is given."""
    if given := [name for name in names if getattr(options, name) not in (None, False, [])]:
        raise InputError(f"--{given[0].replace('_', '-')}: {reason}")


def _compare_texts(options: argparse.Namespace) -> int:
    """Compare models by the log-likelihoods of whole texts, after options are refused that need tokens."""
    from kullback.cli.run_summary import results_on_stdout

    _refuse(options, _TOKENS, "expected a comparison of tokens, got --text-level; leave one out")
    if options.bos != "auto":
        raise InputError("--bos: expected auto for --text-level, which begins every text with a token of its own")
    for name in (options.base, *options.models):
        if is_endpoint(name):
            raise InputError(f"--text-level: expected local models, got {name}")
    if options.text is None:
        raise InputError("--text: expected a corpus, got none")
    _check_run(options)
    _import_transformers()
    from kullback.compare.text_level import compare_text_level

    names = ("context", "stride", "dtype", "device", "output", "resume", "overwrite")
    with results_on_stdout():
        comparison = compare_text_level(
            options.base,
            options.models,
            text=options.text,
            form=options.format,
            against=options.against,
            progress=_Progress(quiet=options.json, unit="bytes"),
            **{name: getattr(options, name) for name in names},
        )
    print_result(json.dumps(strict(comparison.to_dict()), allow_nan=False) if options.json else str(comparison))
    return 0


def _compare_with_endpoint(options: argparse.Namespace) -> Any:
    """Compare models where one is behind a server, after options are refused that need logits."""
    _refuse(options, _EXACT, "expected local models, whose KL is exact, got an endpoint; leave the option out")
    if options.text is None:
        raise InputError("--text: expected a corpus, got none")
    _check_limit(options)
    _check_run(options)
    _import_transformers()
    from kullback.compare.endpoint import compare_with_endpoint

    names = ("context", "stride", "bos", "dtype", "device", "output", "resume", "overwrite", "tokenizer")
    numbers = ("top", "sampled_positions", "timeout", "batch_size", "seed")
    given = {name: getattr(options, name) for name in numbers if getattr(options, name) is not None}
    return compare_with_endpoint(
        options.base,
        options.models,
        text=options.text,
        form=options.format,
        against=options.against,
        progress=_Progress(quiet=options.json),
        **{name: getattr(options, name) for name in names},
        **given,
    )


def _compare_with_file(options: argparse.Namespace) -> Any:
    """Compare models with a file of llama.cpp, after options are refused that need a model as base."""
    _refuse(options, _NEED_A_MODEL, f"expected a model as BASE, got the file {options.base}; leave the option out")
    _check_limit(options)
    _check_run(options)
    from kullback.compare.llama_cpp import open_log_probs

    open_log_probs(options.base)  # raises before libraries are imported that take seconds
    _import_transformers()
    from kullback.compare.stored_base import compare_with_file

    return compare_with_file(
        options.base,
        options.models,
        bos=options.bos,
        dtype=options.dtype,
        device=options.device,
        output=options.output,
        resume=options.resume,
        overwrite=options.overwrite,
        against=options.against,
        progress=_Progress(quiet=options.json),
    )


def _write(options: argparse.Namespace) -> int:
    """Write a file of llama.cpp from a base."""
    if options.models or options.adapter:
        raise InputError("--write-llama-cpp: expected BASE alone, got models to compare; leave them out")
    if options.text is None:
        raise InputError("--text: expected a corpus, got none")
    needless = (
        "stride",
        "floor",
        "attention",
        "kv_cache_dtype",
        "by_module",
        "generate",
        *_OF_GENERATE,
        "one_at_a_time",
        "output",
        "resume",
        "against",
        "fail_above",
        "card",
    )
    for name in (*needless, "json", "batch_size"):
        if getattr(options, name) not in (None, False, []):
            raise InputError(f"--{name.replace('_', '-')}: expected a comparison, got --write-llama-cpp; leave one out")
    _import_transformers()
    from kullback.compare.stored_base import write_base_file

    names = ("context", "bos", "dtype", "device", "overwrite")
    given = {name: getattr(options, name) for name in names}
    count = write_base_file(options.write_llama_cpp, options.base, options.text, form=options.format, **given)
    print_result(f"wrote {count} chunks to {one_line(str(options.write_llama_cpp))}")
    return 0


def _check_limit(options: argparse.Namespace) -> None:
    if options.fail_above is not None and not 0 <= options.fail_above < math.inf:
        raise InputError(f"--fail-above: expected a finite number of nats per token >= 0, got {options.fail_above}")


def _check_run(options: argparse.Namespace) -> None:
    if options.output is None and (options.resume or options.overwrite):
        raise InputError(f"{'--resume' if options.resume else '--overwrite'}: expected --output RUN too, got none")


def _compare(options: argparse.Namespace) -> Any:
    """Check the options, and run the comparison."""
    if options.text is None:
        raise InputError("--text: expected a corpus, got none; it is required unless BASE is a file of llama.cpp")
    for option, value, least in (
        ("--context", options.context, 2),
        ("--stride", options.stride, 1),
        ("--batch-size", options.batch_size, 1),
    ):
        if value is not None and value < least:
            raise InputError(f"{option}: expected at least {least}, got {value}")
    _check_limit(options)
    given = next((name for name in _OF_GENERATE if getattr(options, name) is not None), None)
    if given is not None and options.generate is None:
        raise InputError(f"--{given.replace('_', '-')}: expected --generate N too, got none")
    _check_run(options)
    from kullback.compare.comparison import make_plan, read_result, run_plan

    against = None if options.against is None else read_result(options.against)
    _import_transformers()
    plan = make_plan(
        options.base,
        options.models,
        text=options.text,
        dtype=options.dtype,
        floors=options.floor,
        adapters=options.adapter,
        attention=options.attention,
        kv_cache_dtypes=options.kv_cache_dtype,
        settings={
            "context": options.context,
            "stride": options.stride,
            "bos": options.bos,
            "form": options.format,
            "batch_size": 4 if options.batch_size is None else options.batch_size,
            "device": options.device,
            "one_at_a_time": options.one_at_a_time,
            "by_module": options.by_module,
            "generate": options.generate,
            **{name: getattr(options, name) for name in _OF_GENERATE if getattr(options, name) is not None},
        },
        output=options.output,
        resume=options.resume,
        overwrite=options.overwrite,
        against=against,
    )
    return run_plan(plan, _Progress(quiet=options.json))


def _import_transformers() -> None:
    """Import transformers, without its warnings and progress bars, or raise where a package is missing."""
    from kullback.train.run_checks import require_packages

    require_packages(("torch", "transformers", "safetensors", "huggingface_hub"), extra="train")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


class _Progress:
    """Lines of progress on standard error."""

    def __init__(self, *, quiet: bool, unit: str = "tokens") -> None:
        self.quiet, self.unit, self.what, self.shown = quiet, unit, "", 0

    def __call__(self, done: int, total: int, what: str) -> None:
        if what != self.what:
            self.what, self.shown = what, 0
        step = done * _LINES // total if total else 0
        if self.quiet or step <= self.shown:
            return
        self.shown = step
        print(f"kullback: {one_line(what)}: {done} of {total} {self.unit}", file=sys.stderr, flush=True)
