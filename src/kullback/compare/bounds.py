"""Comparisons whose KL divergences are bounds or estimates: their results, and their parts on disk.

A comparison is a number of parts (the documents of a corpus or the chunks of a file), whose statistics merge exactly.
In a run directory, parts.jsonl has a line for each part and model that is finished.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from kullback.compare.block_records import BlockRecords
from kullback.compare.data_frame import estimates_as_frame
from kullback.compare.llama_cpp_statistics import LlamaCppStatistic
from kullback.compare.statistics import (
    DocumentSums,
    ModelStatistics,
    PairedDifference,
    paired_difference,
    sums_of_models,
)
from kullback.errors import InputError
from kullback.result import Estimate
from kullback.runs.atomic_write import write_atomically
from kullback.runs.interrupts import termination_as_interrupt
from kullback.runs.lock import run_lock
from kullback.runs.printable import one_line
from kullback.runs.run_directory import RunDirectory, process_rank
from kullback.runs.write_errors import write_errors

__all__ = ["BoundComparison", "BoundModel", "compute_parts", "earlier_sums", "require_single_process"]

_FORMAT = 1
_PARTS = "parts"  # the beginning of the name of the file of finished parts

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class BoundModel:
    """The results of one model.

    Args:
        name: The name of the model.
        statistics: The statistics of the columns over the tokens.
        llama_cpp: The statistics of llama.cpp under its names, where the base is a file of llama.cpp.
    """

    name: str
    statistics: ModelStatistics
    llama_cpp: tuple[LlamaCppStatistic, ...] = ()

    @cached_property
    def metrics(self) -> dict[str, Estimate]:
        """The mean of each column over the tokens, with a 95% interval that is clustered by document or chunk."""
        return self.statistics.summary().means


@dataclass(frozen=True)
class BoundComparison:
    """A comparison of models with a base whose KL divergences are bounds or estimates.

    Args:
        base: The name of the base.
        models: The results of the models.
        labels: For each column in the order of the table, what it is, such as "KL(base || model), lower bound".
        config: What the comparison was computed from: hashes and settings.
        notes: Lines that describe base and text.
        warnings: Sentences that describe limitations.
        earlier: The sums of the main column of the models of an earlier result for the same tokens, by name.
        facts: Further entries of the dictionary of results.

    Example:
        >>> from kullback.compare.stored_base import compare_with_file
        >>> comparison = compare_with_file("base.kld", ["quantised"])  # doctest: +SKIP
        >>> comparison["quantised"].metrics["tail_mass"].value  # doctest: +SKIP
        0.00049
    """

    base: str
    models: tuple[BoundModel, ...]
    labels: Mapping[str, str]
    config: Mapping[str, Any]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    earlier: Mapping[str, DocumentSums] | None = None
    facts: Mapping[str, Any] | None = None

    def __getitem__(self, name: str) -> BoundModel:
        """The results of a model.

        Raises:
            InputError: The comparison does not have the model.
        """
        for model in self.models:
            if model.name == name:
                return model
        raise InputError(f"expected one of {', '.join(model.name for model in self.models)}, got {name!r}")

    def paired(self) -> dict[tuple[str, str], PairedDifference]:
        """The differences of the main column, first minus second, of all pairs of models and of earlier models.

        Returns:
            The differences by the names of the models. A difference of two lower bounds is not a bound of the
            difference.
        """
        column = next(iter(self.labels))
        sums = {model.name: model.statistics.sums for model in self.models}
        pairs = {(a, b): paired_difference(sums[a], sums[b], column) for a, b in combinations(sums, 2)}
        for name, former in (self.earlier or {}).items():
            pairs |= {
                (model, f"{name} (earlier)"): paired_difference(own, former, column) for model, own in sums.items()
            }
        return pairs

    def __str__(self) -> str:
        lines = [one_line(note) for note in self.notes]
        width = max(map(len, self.labels.values())) + 2
        for model in self.models:
            lines += ["", f"model {one_line(model.name)}"]
            for name, label in self.labels.items():
                value = model.metrics.get(name)
                if value is None:
                    continue
                limits = "" if value.interval is None else " [{:.4g}, {:.4g}]".format(*value.interval)
                lines.append(f"  {label:<{width}}{value.value:.4g}{limits} {value.unit}".rstrip())
            if model.llama_cpp:
                lines += ["", "  statistics of llama.cpp (uncertainties as if tokens were independent)"]
            for line in model.llama_cpp:
                error = "" if line.uncertainty is None else f" ± {line.uncertainty:.6f}"
                lines.append(f"  {line.name:<{width}}{line.value:.6f}{error} {line.unit}".rstrip())
        label = next(iter(self.labels.values()))
        lines += ["", f"[...] are 95% intervals, clustered by {self._cluster}."]
        for (a, b), pair in self.paired().items():
            low_high = "" if pair.difference.interval is None else " [{:.4g}, {:.4g}]".format(*pair.difference.interval)
            lines.append(one_line(f"{label}: {a} minus {b}: {pair.difference.value:.4g}{low_high}."))
        found = [warning for model in self.models for warning in model.metrics[next(iter(self.labels))].warnings]
        lines += [one_line(f"Warning: {warning}") for warning in dict.fromkeys([*self.warnings, *found])]
        return "\n".join(lines)

    @property
    def _cluster(self) -> str:
        return "document" if "text" in self.config else "chunk"

    def to_frame(self) -> Any:
        """All metrics as a pandas DataFrame.

        Returns:
            A row for each model and metric, with the columns model, metric, label, value, low, high, std_error, unit
            and status; `low` and `high` are the 95% interval, nan where it is not determined.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        return estimates_as_frame(
            ({"model": model.name, "metric": name, "label": self.labels[name]}, estimate)
            for model in self.models
            for name, estimate in model.metrics.items()
        )

    def to_dict(self) -> dict[str, Any]:
        """All results as a dictionary that JSON can store, the content of result.json.

        Returns:
            The results. Infinities and nan are the strings "inf", "-inf" and "nan".
        """
        column = next(iter(self.labels))
        return {
            "format": _FORMAT,
            "base": self.base,
            "is_lower_bound": True,
            **(self.facts or {}),
            "config": dict(self.config),
            "labels": dict(self.labels),
            "models": [
                {
                    "name": model.name,
                    "bounds": {name: estimate.to_dict() for name, estimate in model.metrics.items()},
                    "tokens": model.statistics.sums.tokens,
                    "llama_cpp": [line._asdict() for line in model.llama_cpp],
                    "kl_by_document": model.statistics.sums.select(column).state(),
                }
                for model in self.models
            ],
            "paired": [
                {"first": a, "second": b, "difference": pair.difference.to_dict()}
                for (a, b), pair in self.paired().items()
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


def require_single_process() -> None:
    """Check that the comparison is not distributed over processes.

    Raises:
        InputError: WORLD_SIZE is larger than 1.
    """
    if process_rank()[1] > 1:
        raise InputError("expected one process for a file, an endpoint or a comparison of texts; leave accelerate out")


def earlier_sums(
    against: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    keys: Mapping[str, Callable[[Any], Any]],
    *,
    sums: str = "kl_by_document",
) -> dict[str, DocumentSums] | None:
    """The sums of the models of an earlier result, which must have been computed from the same.

    Args:
        against: The content of the earlier result.json, or None.
        config: The configuration of this comparison.
        keys: What must be equal: a name for the message, and a function of a configuration.
        sums: The name of the sums of a model.

    Returns:
        The sums by the name of the model, or None.

    Raises:
        InputError: The results cannot be compared; the message has every difference.
    """
    if against is None:
        return None
    try:
        former = against["config"]
        pairs = [(name, read(former), read(config)) for name, read in keys.items()]
        found = sums_of_models(against, sums)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"--against: expected a result of a comparison of the same kind, got one without {error}"
        ) from error
    if differing := [f"{name} was {before}, is {now}" for name, before, now in pairs if before != now]:
        raise InputError(f"--against: expected a comparable result, but {'; '.join(differing)}")
    return found


def compute_parts(
    names: Sequence[str],
    sizes: Sequence[int],
    start: Callable[[int], Callable[[int], tuple[ModelStatistics, Any]]],
    *,
    config: Mapping[str, Any],
    output: Path | None,
    resume: bool,
    overwrite: bool,
    progress: Progress | None = None,
) -> list[list[tuple[int, ModelStatistics, Any]]]:
    """Compute all parts of all models that are not finished, one model after another.

    Args:
        names: The names of the models.
        sizes: The number of counted tokens of each part.
        start: A function from the index of a model to a function from the index of a part to its statistics and to
            further values that JSON can store. It is called for models that have parts to compute.
        config: The configuration, for config.json.
        output: The run directory; None: nothing is stored.
        resume: Whether the run in `output` is continued.
        overwrite: Whether a run in `output` may be replaced.
        progress: A function that is called with finished tokens, all tokens and the name of the model.

    Returns:
        For each model, the index, the statistics and the further values of each part, in the order of the parts.

    Raises:
        InputError: The run directory cannot be used.
    """
    with ExitStack() as stack:
        stack.enter_context(termination_as_interrupt())
        if output is not None:
            directory = RunDirectory(output)
            directory.check_output(resume=resume, overwrite=overwrite, kind="comparison")
            stack.enter_context(write_errors(output, "continue with --resume"))
            stack.enter_context(run_lock(output))
            directory.check_can_start(config, resume=resume, overwrite=overwrite)
            if not resume:
                for path in (*output.glob(f"{_PARTS}-*.jsonl"), output / "result.json"):
                    path.unlink(missing_ok=True)
                directory.create(config)
        parts = BlockRecords(output, _PARTS, 0, ("statistics", "tokens"))
        for model, name in enumerate(names):
            todo = [part for part in range(len(sizes)) if (part, model) not in parts.done]
            if not todo:
                continue
            compute, finished = start(model), sum(sizes) - sum(sizes[part] for part in todo)
            for part in todo:
                statistics, tokens = compute(part)
                parts.add(part, model, {"statistics": statistics.state(), "tokens": tokens})
                finished += sizes[part]
                if progress is not None:
                    progress(finished, sum(sizes), name)
        found: list[dict[int, tuple[int, ModelStatistics, Any]]] = [{} for _ in names]
        for record in parts.read():
            part, statistics = record["block"], ModelStatistics.from_state(record["statistics"])
            found[record["model"]][part] = (part, statistics, record["tokens"])
        return [[by_part[part] for part in sorted(by_part)] for by_part in found]
