"""The comparison of language models with a base over a corpus."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kullback.compare.arguments import checked_arguments
from kullback.compare.results import FORMAT, Comparison, ModelResult, ModuleShares
from kullback.compare.statistics import DocumentSums, paired_difference, sums_of_models
from kullback.errors import InputError
from kullback.runs.write_errors import write_errors

if TYPE_CHECKING:
    from kullback.compare.runner import Outcome, Plan

__all__ = ["KINDS", "compare", "make_plan", "read_result", "run_plan"]

KINDS = {
    "compare": "a comparison of models by the exact KL",
    "compare-endpoint": "a comparison with a model behind a server",
    "compare-file": "a comparison with a file of llama.cpp",
    "compare-texts": "a comparison by --text-level",
}
"""The kinds of comparisons, in words."""


@checked_arguments
def compare(
    base: str | Path,
    models: str | Path | Sequence[str | Path],
    *,
    text: str | Path | Sequence[str],
    context: int | None = None,
    stride: int | None = None,
    bos: str = "auto",
    form: str | None = None,
    dtype: str = "auto",
    floor: str | Sequence[str] | None = None,
    adapters: str | Path | Sequence[str | Path] = (),
    attention: str | Sequence[str] = (),
    kv_cache_dtype: str | Sequence[str] = (),
    batch_size: int = 4,
    device: str = "auto",
    one_at_a_time: bool = False,
    by_module: str | None = None,
    generate: int | None = None,
    prompts: int = 256,
    prompt_tokens: int = 32,
    continuations: int = 1,
    seed: int = 0,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    against: str | Path | None = None,
) -> Comparison:
    """KL(base || model) of language models over a corpus, exact over the vocabulary, with intervals.

        KL = (1/N) sum_i sum_v p(v | context i) log(p(v | context i) / q(v | context i))

    The windows of the corpus pass through both models, and the statistics are computed from their last hidden states
    and output heads. The intervals are clustered by document, because the tokens of a document are correlated.

    Args:
        base: A transformers directory, or a model of the Hugging Face hub.
        models: One or several models like `base`; or directories of PEFT adapters of the base.
        text: A text file, a JSON Lines file, a directory of such files or a data set of the hub; or the texts of
            documents. The documents are the clusters of the intervals.
        context: The number of tokens of a window; None: 2048, or the positions of the models if they have fewer.
        stride: The distance between the starts of windows; None: as large as possible. Each token is counted once.
        bos: "auto": windows begin with a BOS token if the tokenizer begins a text with it; "always"; "never".
        form: "text", "jsonl" or "chat"; None: by the suffix of each file.
        dtype: The dtype of all models: "float32", "bfloat16", "float16", "float64"; "auto": as the weights were
            saved.
        floor: How the base is computed again, whose KL from itself is the noise floor: a dtype, "batch-size=N",
            "attention=NAME" or "kv-cache-dtype=DTYPE"; or several of them; None: no floor.
        adapters: Directories of PEFT adapters of the base, which are further models.
        attention: Attention implementations of transformers, such as "eager". Each model is also computed with each
            of them, or the base if `models` is empty.
        kv_cache_dtype: Dtypes to which the keys and values of attention are rounded: "float16", "bfloat16",
            "float8_e4m3fn", "float8_e5m2", or llama.cpp's "q8_0" and "q4_0". Each model is also computed with each of
            them, or the base if `models` is empty.
        batch_size: The number of windows of a forward pass.
        device: A device such as "cpu" or "cuda:0"; "auto": a GPU if there is one.
        one_at_a_time: Whether only one model is in memory at a time.
        by_module: Whether the KL is attributed to modules, by putting each module of a model into the base: "layer",
            "part" for attention, MLP and norms of each layer, or None.
        generate: The largest number of tokens of continuations that the base and each model sample at temperature 1,
            along which the KL is measured; None: no free running.
        prompts: The largest number of documents that are continued; if there are more, they are drawn at random.
        prompt_tokens: The largest number of tokens of a text that are its prompt, and at most half of the text. The
            prompt of a chat is what precedes its last answer.
        continuations: The number of continuations of each prompt.
        seed: The seed of the continuations.
        output: The run directory for `resume`, result.json and the page compare.html; None: nothing is stored.
        resume: Whether the interrupted comparison in `output` is continued.
        overwrite: Whether a comparison in `output` may be replaced.
        against: The result.json of an earlier comparison with the same base and text, for paired differences.

    Returns:
        The comparison. KL is `inf` where a model gives probability 0 to a token that is possible under the base.

    Raises:
        InputError: An argument is of a wrong kind or has no effect, the models do not load or do not share a
            vocabulary, the text cannot be read, or the run directory cannot be used.
        MissingDependencyError: PyTorch or transformers is not installed.

    Example:
        >>> compare("base", ["int8", "int4"], text="corpus", floor="bfloat16")  # doctest: +SKIP
        Comparison(base='base', int8: 0.0011 nats per token, int4: 0.034 nats per token)
    """
    plan = make_plan(
        str(base),
        _texts(models),
        text=text,
        dtype=dtype,
        floors=_texts(floor),
        adapters=_texts(adapters),
        attention=_texts(attention),
        kv_cache_dtypes=_texts(kv_cache_dtype),
        settings={
            "context": context,
            "stride": stride,
            "bos": bos,
            "form": form,
            "batch_size": batch_size,
            "device": device,
            "one_at_a_time": one_at_a_time,
            "by_module": by_module,
            "generate": generate,
            "prompts": prompts,
            "prompt_tokens": prompt_tokens,
            "continuations": continuations,
            "seed": seed,
        },
        output=None if output is None else Path(output),
        resume=resume,
        overwrite=overwrite,
        against=None if against is None else read_result(Path(against)),
    )
    comparison = run_plan(plan)
    if comparison is None:
        raise InputError("compare: expected the main process of a distributed run, whose RANK is 0")
    return comparison


def make_plan(
    base: str,
    models: Sequence[str],
    *,
    text: str | Path | Sequence[str],
    dtype: str,
    floors: Sequence[str],
    adapters: Sequence[str],
    attention: Sequence[str],
    kv_cache_dtypes: Sequence[str],
    settings: Mapping[str, Any],
    output: Path | None,
    resume: bool,
    overwrite: bool,
    against: Mapping[str, Any] | None,
) -> "Plan":
    """Find the models of a comparison; the arguments have the names that `compare` has.

    Raises:
        InputError: A model is not valid, or there is none.
        MissingDependencyError: PyTorch or transformers is not installed.
    """
    from kullback.compare.corpus import read_documents
    from kullback.compare.sources import find_source

    if not (models or adapters or attention or kv_cache_dtypes):
        raise InputError(
            "expected a model to compare with the base: MODEL or --adapter; or --attention or --kv-cache-dtype"
        )
    if isinstance(text, str | Path):
        next(read_documents(text, form=settings["form"]))  # raises before libraries are imported that take seconds
    if not isinstance(text, str | Path) and not text:
        raise InputError("text: expected at least one text, got an empty list")
    source = find_source(base, "BASE", dtype=dtype)
    sources = [find_source(name, "MODEL", dtype=dtype, base=source) for name in models]
    for name in adapters:
        found = find_source(name, "--adapter", dtype=dtype, base=source)
        if found.adapter is None:
            raise InputError(f"--adapter {name}: expected the directory of an adapter, got a whole model")
        sources.append(found)
    # A base that is compared with itself needs a name of its own.
    sources = [replace(one, name=f"{one.name} (model)") if one.name == source.name else one for one in sources]
    from kullback.compare.runner import Plan, Settings
    from kullback.compare.variants import Candidate, Variant, floor_variant

    variants = [*(Variant(attention=name) for name in attention), *(Variant(kv_cache_dtype=d) for d in kv_cache_dtypes)]
    plain = [Candidate(one) for one in sources]
    candidates = [(one, *(one.varied(variant) for variant in variants)) for one in plain or [Candidate(source)]]
    return Plan(
        source,
        tuple(one for group in candidates for one in (group if plain else group[1:])),
        text,
        tuple(
            Candidate(replace(source, name="floor", dtype=variant.dtype or source.dtype)).varied(variant)
            for variant in map(floor_variant, floors)
        ),
        Settings(**settings),
        output,
        resume,
        overwrite,
        against,
    )


def _texts(values: str | Path | Sequence[str | Path] | None) -> list[str]:
    """One value or several values as texts."""
    return [str(values)] if isinstance(values, str | Path) else [str(value) for value in values or ()]


def run_plan(plan: "Plan", progress: Any = None) -> Comparison | None:
    """Run a comparison, and write result.json and compare.html to its run directory.

    Returns:
        The comparison; None on the processes of a distributed run other than the main process.

    Raises:
        InputError: See `compare`.
    """
    from kullback.compare.runner import run

    outcome = run(plan, progress)
    if outcome is None:
        return None
    comparison = _comparison(plan, outcome)
    if plan.output is not None:
        from kullback.compare.page import write_comparison_page

        with write_errors(plan.output, "continue with --resume"):
            comparison.save(plan.output / "result.json")
            write_comparison_page(comparison, plan.output / "compare.html")
    return comparison


def _comparison(plan: "Plan", outcome: "Outcome") -> Comparison:
    from kullback.compare.modules import SUM

    modules = {
        name: ModuleShares(
            {module: sums.mean(module, (0.0, inf)) for module in sums.units if module != SUM},
            paired_difference(outcome.statistics[outcome.names.index(name)].sums, sums, "kl", SUM),
        )
        for name, sums in outcome.modules.items()
    }
    results = [
        ModelResult(name, statistics, tuple(worst), modules.get(name), outcome.free_running.get(name))
        for name, statistics, worst in zip(outcome.names, outcome.statistics, outcome.worst, strict=True)
    ]
    count = len(plan.models)
    earlier = None if plan.against is None else _earlier_sums(plan.against)
    return Comparison(
        plan.base.name,
        tuple(results[:count]),
        tuple(results[count:]),
        outcome.config,
        outcome.warnings,
        earlier,
        outcome.documents,
    )


def read_result(
    path: Path, option: str = "--against", *, kind: str = "compare", sums: str = "kl_by_document"
) -> dict[str, Any]:
    """Read the result.json of an earlier comparison.

    Args:
        path: The file, or its run directory.
        option: The option that the path came from, for error messages.
        kind: The kind of the comparison, a name of `KINDS`: the KL of another kind is another quantity.
        sums: The name of the sums by document that every model must have.

    Returns:
        The content.

    Raises:
        InputError: The file does not exist, or it is not a result of this version, or of another kind.
    """
    file = path / "result.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{option} {file}: expected a result.json of kullback compare, got no JSON: {error}"
        ) from error
    except OSError as error:
        raise InputError(f"{option} {file}: cannot be read: {error.strerror or error}") from error
    valid = isinstance(content, dict) and isinstance(content.get("config"), dict)
    if not valid or not isinstance(content.get("models"), list):
        raise InputError(f"{option} {file}: expected a result.json of kullback compare, got other JSON")
    if content.get("format") != FORMAT:
        raise InputError(f"{option} {file}: expected a result of format {FORMAT}, got {content.get('format')!r}")
    if (found := content["config"].get("kind")) in KINDS and found != kind:
        raise InputError(f"{option} {file}: expected the result of {KINDS[kind]}, got the result of {KINDS[found]}")
    try:
        _earlier_sums(content, sums)
    except (KeyError, TypeError, InputError) as error:
        raise InputError(f"{option} {file}: expected {sums} of each model, got {error!r}") from error
    return content


def _earlier_sums(result: Mapping[str, Any], sums: str = "kl_by_document") -> dict[str, DocumentSums]:
    """The sums by document of the models of an earlier result, by name."""
    found = sums_of_models(result, sums)
    for name, one in found.items():
        if (sums == "kl_by_document" and "kl" not in one.units) or not one.documents:
            raise InputError(f"no KL of {name}")
    return found
