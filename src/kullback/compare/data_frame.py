"""Estimates as a data frame of pandas."""

from collections.abc import Iterable, Mapping
from typing import Any

from kullback.errors import MissingDependencyError
from kullback.result import Estimate

__all__ = ["estimates_as_frame"]


def estimates_as_frame(rows: Iterable[tuple[Mapping[str, str], Estimate]]) -> Any:
    """A pandas DataFrame with a row for each estimate.

    Args:
        rows: The names of an estimate by column, and the estimate.

    Returns:
        The columns of the names, value, low, high, std_error, unit and status; `low` and `high` are the 95% interval,
        nan where it is not determined.

    Raises:
        MissingDependencyError: pandas is not installed.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise MissingDependencyError("pandas is missing: pip install pandas") from error
    nan = float("nan")
    return pandas.DataFrame(
        [
            {
                **names,
                "value": estimate.value,
                "low": low,
                "high": high,
                "std_error": estimate.std_error,
                "unit": estimate.unit,
                "status": estimate.status,
            }
            for names, estimate in rows
            for low, high in [estimate.interval or (nan, nan)]
        ]
    )
