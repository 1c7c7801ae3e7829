"""The comparison of language models with a base over a corpus, and its results."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kullback.compare.statistics import (
    DocumentSums,
    ModelStatistics,
    ModelSummary,
    PairedDifference,
    paired_difference,
    perplexity,
    root_mean_square,
)
from kullback.errors import InputError, MissingDependencyError
from kullback.result import Estimate
from kullback.runs.atomic_write import write_atomically

if TYPE_CHECKING:
    from kullback.compare.runner import Outcome, Plan
    from kullback.compare.token_values import DocumentTokens

__all__ = ["Comparison", "ModelResult", "compare", "make_plan", "read_result", "run_plan"]

FORMAT = 1


@dataclass(frozen=True)
class ModelResult:
    """The results of one model.

    Args:
        name: The name of the model.
        statistics: The statistics of its tokens.
        worst: The tokens with the largest KL(base || model), with their context and the most probable tokens.
    """

    name: str
    statistics: ModelStatistics
    worst: tuple[dict[str, Any], ...]

    @cached_property
    def summary(self) -> ModelSummary:
        """The means, the quantiles and the groups of tokens."""
        return self.statistics.summary()

    @cached_property
    def metrics(self) -> dict[str, Estimate]:
        """All metrics, each with a 95% interval that is clustered by document.

        `kl` is KL(base || model) and `reverse_kl` KL(model || base); `js_bits` is the Jensen-Shannon divergence in
        bits. `perplexity_ratio` is the perplexity of the model divided by the perplexity of the base.
        `top1_agreement`, `expected_acceptance`, `delta_p` (the mean change of the probability of the token that
        follows) and `rms_delta_p` are probabilities.
        """
        means, sums = self.summary.means, self.statistics.sums
        return {
            "kl": means["kl"],
            "reverse_kl": means["reverse_kl"],
            "js": means["js"],
            "js_bits": _scaled(means["js"], 1 / log(2), "bits per token"),
            "entropy_base": means["entropy_base"],
            "entropy": means["entropy"],
            "perplexity_base": perplexity(means["nll_base"]),
            "perplexity": perplexity(means["nll"]),
            "perplexity_ratio": perplexity(paired_difference(sums, sums, "nll", "nll_base").difference),
            "top1_agreement": means["top1_agreement"],
            "expected_acceptance": means["expected_acceptance"],
            "delta_p": means["delta_p"],
            "rms_delta_p": root_mean_square(means["squared_delta_p"]),
        }


@dataclass(frozen=True)
class Comparison:
    """The comparison of models with a base over a corpus.

    Args:
        base: The name of the base.
        models: The results of each model.
        floor: The results of the base in another dtype, which are the noise floor; None: it was not measured.
        config: What the comparison was computed from: hashes of text, tokens and weights, and settings.
        warnings: Sentences that describe limitations.
        earlier: The KL of the models of an earlier result for the same tokens, by name.
        documents: The documents of the largest KL with the values of their tokens, for `write_comparison_page`.

    Example:
        >>> import kullback
        >>> comparison = kullback.compare("base", "quantised", text="corpus")  # doctest: +SKIP
        >>> comparison["quantised"].metrics["kl"].interval  # doctest: +SKIP
        (0.0017, 0.0021)
    """

    base: str
    models: tuple[ModelResult, ...]
    floor: ModelResult | None
    config: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    earlier: Mapping[str, DocumentSums] | None = None
    documents: tuple["DocumentTokens", ...] = ()

    def __getitem__(self, name: str) -> ModelResult:
        """The results of a model.

        Args:
            name: The name of the model: the path or the name that was passed.

        Returns:
            The results.

        Raises:
            InputError: The comparison does not have the model.
        """
        for model in self.models:
            if model.name == name:
                return model
        raise InputError(f"expected one of {', '.join(model.name for model in self.models)}, got {name!r}")

    def __repr__(self) -> str:
        found = ", ".join(f"{model.name}: {model.metrics['kl'].value:.4g} nats per token" for model in self.models)
        return f"Comparison(base={self.base!r}, {found})"

    def __str__(self) -> str:
        from kullback.compare.report import report_text

        return report_text(self)

    def paired(self) -> dict[tuple[str, str], PairedDifference]:
        """The differences of KL(base || model) of all pairs of models, and of models and earlier models.

        Returns:
            The differences, first minus second, by the names of the models.
        """
        sums = {model.name: model.statistics.sums for model in self.models}
        pairs = {(a, b): paired_difference(sums[a], sums[b], "kl") for a, b in combinations(sums, 2)}
        for name, former in (self.earlier or {}).items():
            label = f"{name} (earlier)"
            pairs |= {(model, label): paired_difference(own, former, "kl") for model, own in sums.items()}
        return pairs

    def above_floor(self) -> dict[str, PairedDifference]:
        """KL(base || model) minus the noise floor.

        Returns:
            The difference for each model; empty if the floor was not measured.
        """
        if self.floor is None:
            return {}
        floor = self.floor.statistics.sums
        return {model.name: paired_difference(model.statistics.sums, floor, "kl") for model in self.models}

    def to_frame(self) -> Any:
        """All metrics as a pandas DataFrame.

        Returns:
            A row for each model and metric, with the columns model, metric, value, low, high, std_error, unit and
            status; `low` and `high` are the 95% interval, nan where it is not determined.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise MissingDependencyError("pandas is missing: pip install pandas") from error
        nothing = (float("nan"), float("nan"))
        rows = [
            (model.name, name, e.value, *(e.interval or nothing), e.std_error, e.unit, e.status)
            for model in (*self.models, *([self.floor] if self.floor else []))
            for name, e in model.metrics.items()
        ]
        columns = ["model", "metric", "value", "low", "high", "std_error", "unit", "status"]
        return pandas.DataFrame(rows, columns=columns)  # pyright: ignore[reportArgumentType]

    def to_dict(self) -> dict[str, Any]:
        """All results as a dictionary that JSON can store, the content of result.json.

        Returns:
            The results. Infinities and nan are the strings "inf", "-inf" and "nan".
        """
        return {
            "format": FORMAT,
            "config": dict(self.config),
            "models": [_model_to_dict(model) for model in self.models],
            "floor": None if self.floor is None else _model_to_dict(self.floor),
            "paired": [
                {"first": a, "second": b, "difference": pair.difference.to_dict(), "text": pair.describe(a, b)}
                for (a, b), pair in self.paired().items()
            ],
            "above_floor": [
                {"model": name, "difference": pair.difference.to_dict(), "text": pair.describe_floor(name)}
                for name, pair in self.above_floor().items()
            ],
            "warnings": list(self.warnings),
        }

    def save(self, path: str | Path) -> None:
        """Write the results to a JSON file, for `against` of a later comparison.

        Args:
            path: The file.

        Raises:
            OSError: The file cannot be written.
        """
        write_atomically(Path(path), json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")


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
    floor: str | None = None,
    adapters: Sequence[str | Path] = (),
    batch_size: int = 4,
    device: str = "auto",
    one_at_a_time: bool = False,
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
        floor: The dtype in which the base is computed again, whose KL is the noise floor; None: no floor.
        adapters: Directories of PEFT adapters of the base, which are further models.
        batch_size: The number of windows of a forward pass.
        device: A device such as "cpu" or "cuda:0"; "auto": a GPU if there is one.
        one_at_a_time: Whether only one model is in memory at a time.
        output: The run directory for `resume` and result.json; None: nothing is stored.
        resume: Whether the interrupted comparison in `output` is continued.
        overwrite: Whether a comparison in `output` may be replaced.
        against: The result.json of an earlier comparison with the same base and text, for paired differences.

    Returns:
        The comparison. KL is `inf` where a model gives probability 0 to a token that is possible under the base.

    Raises:
        InputError: The models do not load or do not share a vocabulary, the text cannot be read, or the run directory
            cannot be used.
        MissingDependencyError: PyTorch or transformers is not installed.

    Example:
        >>> compare("base", ["int8", "int4"], text="corpus", floor="bfloat16")  # doctest: +SKIP
        Comparison(base='base', int8: 0.0011 nats per token, int4: 0.034 nats per token)
    """
    names = [models] if isinstance(models, str | Path) else list(models)
    plan = make_plan(
        str(base),
        list(map(str, names)),
        text=text,
        dtype=dtype,
        floor=floor,
        adapters=list(map(str, adapters)),
        settings={
            "context": context,
            "stride": stride,
            "bos": bos,
            "form": form,
            "batch_size": batch_size,
            "device": device,
            "one_at_a_time": one_at_a_time,
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
    floor: str | None,
    adapters: Sequence[str],
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

    if not models and not adapters:
        raise InputError("expected a model to compare with the base: MODEL or --adapter")
    if isinstance(text, str | Path):
        next(read_documents(text, form=settings["form"]))  # raises before libraries are imported that take seconds
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

    return Plan(source, tuple(sources), text, floor, Settings(**settings), output, resume, overwrite, against)


def run_plan(plan: "Plan", progress: Any = None) -> Comparison | None:
    """Run a comparison, and write result.json to its run directory.

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
        comparison.save(plan.output / "result.json")
    return comparison


def _comparison(plan: "Plan", outcome: "Outcome") -> Comparison:
    results = [
        ModelResult(name, statistics, tuple(worst))
        for name, statistics, worst in zip(outcome.names, outcome.statistics, outcome.worst, strict=True)
    ]
    floor = results.pop() if plan.floor is not None else None
    earlier = None if plan.against is None else _earlier_sums(plan.against)
    return Comparison(
        plan.base.name, tuple(results), floor, outcome.config, outcome.warnings, earlier, outcome.documents
    )


def read_result(path: Path, option: str = "--against") -> dict[str, Any]:
    """Read the result.json of an earlier comparison.

    Args:
        path: The file, or its run directory.
        option: The option that the path came from, for error messages.

    Returns:
        The content.

    Raises:
        InputError: The file does not exist, or it is not a result of this version.
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
    try:
        _earlier_sums(content)
    except (KeyError, TypeError, InputError) as error:
        raise InputError(f"{option} {file}: expected the KL of each document of each model, got {error!r}") from error
    return content


def _earlier_sums(result: Mapping[str, Any]) -> dict[str, DocumentSums]:
    """The KL of the models of an earlier result, by name."""
    sums = {str(model["name"]): DocumentSums.from_state(model["kl_by_document"]) for model in result["models"]}
    for name, one in sums.items():
        if "kl" not in one.units or not one.documents:
            raise InputError(f"no KL of {name}")
    return sums


def _model_to_dict(model: ModelResult) -> dict[str, Any]:
    summary = model.summary.to_dict()
    return {
        "name": model.name,
        "metrics": {name: estimate.to_dict() for name, estimate in model.metrics.items()},
        **{key: summary[key] for key in ("documents", "tokens", "independent_means", "quantiles", "groups")},
        "worst": [{**token, "kl": _finite(token["kl"])} for token in model.worst],
        "kl_by_document": model.statistics.sums.select("kl").state(),
    }


def _finite(number: float) -> float | str:
    return number if abs(number) < float("inf") else str(number)


def _scaled(estimate: Estimate, factor: float, unit: str) -> Estimate:
    """An estimate in another unit."""
    interval = estimate.interval and (factor * estimate.interval[0], factor * estimate.interval[1])
    return replace(
        estimate, value=factor * estimate.value, std_error=factor * estimate.std_error, unit=unit, interval=interval
    )
