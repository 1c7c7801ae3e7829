"""Exceptions of training libraries as one line."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kullback.errors import InputError, KullbackError
from kullback.runs.write_errors import find_write_failure

__all__ = ["NO_MEMORY", "is_out_of_memory", "library_errors"]

# The base classes of the exceptions of httpx, requests and urllib3.
_NETWORK_ERRORS = {"TransportError", "RequestException", "HTTPError"}

NO_MEMORY = "the memory is not sufficient; use a smaller model, shorter sequences or a smaller batch size"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception reports that memory cannot be allocated on the host or on an accelerator.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
        (True, False)
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and re.search("can't allocate memory|out of memory", str(error)) is not None


@contextmanager
def library_errors(name: str) -> Iterator[None]:
    """Within the context, exceptions of the training libraries become an `InputError` of one line.

    Failures to read or write a file and the exceptions of this package are not changed.

    Args:
        name: The name of the trainer or of the option, which begins the message.
    """
    try:
        yield
    except KullbackError:
        raise
    except (Exception, SystemExit) as error:  # user code and settings lead to exceptions of every class
        if isinstance(error, OSError) and error.errno is not None:  # the system refused to read or write a file
            raise
        if find_write_failure(error) is not None:  # `write_errors` describes it
            raise
        message = " ".join(str(error).split()) or "no message"
        if is_out_of_memory(error):
            raise InputError(f"{name}: {NO_MEMORY}: {message[:400]}") from error
        if isinstance(error, ConnectionError) or _NETWORK_ERRORS & {one.__name__ for one in type(error).__mro__}:
            raise InputError(
                f"{name}: the network cannot be reached: {message[:400]}; settings such as push_to_hub and report_to "
                "require it"
            ) from error
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = str(Path(*Path(frame.filename).parts[-3:]))
        raise InputError(f"{name}: {type(error).__name__}: {message[:400]} ({place}, line {frame.lineno})") from error
