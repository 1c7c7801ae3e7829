"""Exceptions of training libraries as one line."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kullback.errors import InputError, KullbackError

__all__ = ["library_errors"]

# The base classes of the exceptions of httpx, requests and urllib3.
_NETWORK_ERRORS = {"TransportError", "RequestException", "HTTPError"}


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
    except Exception as error:  # the settings lead to exceptions of every class in several libraries
        if isinstance(error, OSError) and error.errno is not None:  # the system refused to read or write a file
            raise
        message = " ".join(str(error).split()) or "no message"
        if isinstance(error, ConnectionError) or _NETWORK_ERRORS & {one.__name__ for one in type(error).__mro__}:
            raise InputError(
                f"{name}: the network cannot be reached: {message[:400]}; settings such as push_to_hub and report_to "
                "require it"
            ) from error
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = "/".join(Path(frame.filename).parts[-3:])
        raise InputError(f"{name}: {type(error).__name__}: {message[:400]} ({place}, line {frame.lineno})") from error
