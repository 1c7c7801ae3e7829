"""Log-probabilities of a language model behind an OpenAI-compatible server, such as vLLM or llama-server.

Prompts are token ids. Three ways to obtain the k largest log-probabilities at each position of a prompt are tried:

"prompt_logprobs"  the parameter of vLLM: all positions in one request
"echo"             `echo` with `logprobs` of the completions API: all positions in one request
"steps"            `logprobs` of a completion of one token: one request for each position, as llama-server requires

The key is read from the environment variable OPENAI_API_KEY. It is sent to the server of the URL alone, and it is
neither stored nor part of a message.
"""

import json
import math
import os
import re
import string
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, Queue
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from kullback.errors import InputError

__all__ = ["SCHEME", "Position", "Server", "is_endpoint", "parse_endpoint"]

SCHEME = "openai:"

_ROUNDING_OF_MASS = 0.02  # of log-probabilities in bfloat16, or printed with few digits
_ROUNDING_OF_LOG_PROB = 0.01  # by which two statements of one log-probability may differ, relative above 1 nat
_ENOUGH_NAMES = 10  # texts of tokens, of which a server with the same vocabulary has one that is known
_ZERO = -9999.0  # servers write log-probabilities of -inf as this number or below, because JSON has no infinities
_LARGEST_REPLY = 2**28  # bytes
_PROBE = 16  # tokens of the prompt that finds out how a server states log-probabilities, at most
_ATTEMPTS = 4
_BUSY = (429, 500, 502, 503, 504)
# vLLM and llama-server sample from the full distribution with these; other servers refuse them.
_FULL_DISTRIBUTION = {"top_k": -1, "min_p": 0.0, "return_tokens_as_token_ids": True}
_LETTERS = set(string.ascii_letters + string.digits)
_TOKEN_ID = re.compile(r"token_id:(\d+)")


@dataclass(frozen=True)
class Position:
    """What a server states about the distribution of the token at one position of a prompt.

    Args:
        log_probs: The log-probabilities of the most probable tokens by their ids, in decreasing order.
        target: The log-probability of the token of the prompt at this position; None if it is not known.
        is_top: Whether `log_probs` are certainly the largest. Tokens whose ids are not known are left out.
    """

    log_probs: dict[int, float]
    target: float | None
    is_top: bool


def is_endpoint(name: str) -> bool:
    """Whether a name of a model is an endpoint, openai:URL#MODEL.

    Args:
        name: The name.

    Example:
        >>> is_endpoint("openai:http://localhost:8000/v1#llama"), is_endpoint("openai/gsm8k")
        (True, False)
    """
    return name.startswith(SCHEME)


def parse_endpoint(name: str, option: str) -> tuple[str, str]:
    """The URL and the model of an endpoint.

    Args:
        name: openai:URL#MODEL.
        option: The argument that the name came from, for error messages.

    Returns:
        The URL without a slash at its end, and the name of the model on the server.

    Raises:
        InputError: The name does not have this form, or the URL has a password.

    Example:
        >>> parse_endpoint("openai:http://localhost:8000/v1#llama", "MODEL")
        ('http://localhost:8000/v1', 'llama')
    """
    url, _, model = name.removeprefix(SCHEME).partition("#")
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for a port that is not a number
    except ValueError as error:
        raise InputError(f"{option}: expected openai:URL#MODEL, got a URL that is not valid: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or not model:
        raise InputError(
            f"{option} {name}: expected openai:URL#MODEL with a URL of http or https, such as "
            "openai:http://localhost:8000/v1#llama"
        )
    if "@" in parts.netloc or parts.query:
        raise InputError(f"{option}: expected a URL without user, password or query; use OPENAI_API_KEY for the key")
    return url.rstrip("/"), model


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are errors, because they could send the key to another host."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:  # noqa: ARG002
        return None


class _HttpError(InputError):
    """A reply with an HTTP status other than 200."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Server:
    """A model behind an OpenAI-compatible server.

    Args:
        name: The name in messages, openai:URL#MODEL.
        url: The URL, to which "/completions" is appended.
        model: The name of the model on the server.
        vocabulary: The number of token ids of the tokenizer.
        decode: A function from a token id to its text.
        top: The number k of log-probabilities at each position.
        timeout: The seconds after which a request fails.
        way: "prompt_logprobs", "echo" or "steps"; "" before the first request.
        extra: Parameters of every request.
        samples_all: Whether replies state every sampled token. llama-server leaves out parts of characters.
    """

    name: str
    url: str
    model: str
    vocabulary: int
    decode: Callable[[int], str]
    top: int = 20
    timeout: float = 60.0
    way: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    samples_all: bool = True

    def __post_init__(self) -> None:
        self.opener = urllib.request.build_opener(_NoRedirect)
        self.ids: dict[str, int] | None = None

    # Requests

    def _post(self, body: Mapping[str, Any], *, attempts: int = _ATTEMPTS) -> dict[str, Any]:
        """The reply to a request; busy servers are asked again."""
        for attempt in range(attempts):
            try:
                return self._post_once(body)
            except _HttpError as error:
                if error.status not in _BUSY or attempt + 1 == attempts:
                    raise
                time.sleep(0.5 * 2**attempt)
        raise AssertionError("unreachable")

    def _post_once(self, body: Mapping[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY", "").strip():
            headers["Authorization"] = f"Bearer {key}"
        data = json.dumps({"model": self.model, "temperature": 1.0, "top_p": 1.0, **body}).encode()
        try:
            request = urllib.request.Request(f"{self.url}/completions", data, headers)
            status, content = _within(self.timeout, lambda: self._reply(request))
        except (TimeoutError, urllib.error.URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise InputError(f"{self.name}: no reply within {self.timeout:g} s; see --timeout") from None
            if isinstance(error, ValueError):  # such as a key that is not a valid header, which must not be shown
                raise InputError(f"{self.name}: the request is not valid; check the URL and OPENAI_API_KEY") from None
            raise InputError(f"{self.name}: the server cannot be reached: {reason}") from None
        except Exception as error:  # the errors of http.client for replies that are no HTTP
            raise InputError(f"{self.name}: expected a reply of HTTP, got {type(error).__name__}") from None
        if status != 200:
            detail = _error_text(content.replace(key.encode(), b"***") if key else content)
            advice = "; set the environment variable OPENAI_API_KEY" if status in (401, 403) and not key else ""
            if status in (400, 413, 422) and len(body.get("prompt", ())) > _PROBE:
                advice = f"; the prompt has {len(body['prompt'])} tokens: if the server allows fewer, pass --context"
            raise _HttpError(f"{self.name}: HTTP status {status}: {detail}{advice}", status)
        if len(content) > _LARGEST_REPLY:
            raise InputError(f"{self.name}: expected a reply of at most {_LARGEST_REPLY} bytes; use a smaller --top")
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            raise self._malformed("text that is not JSON") from None
        if not isinstance(found, dict):
            raise self._malformed(f"JSON of type {type(found).__name__}")
        return found

    def _reply(self, request: urllib.request.Request) -> tuple[int, bytes]:
        """The status and the content of a reply, or the beginning of the content of an error."""
        try:
            with self.opener.open(request, timeout=self.timeout) as reply:
                return 200, reply.read(_LARGEST_REPLY + 1)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(4096)

    def _malformed(self, found: str) -> InputError:
        return InputError(f"{self.name}: expected the reply of the completions API, got {found}")

    def _choice(self, reply: Mapping[str, Any]) -> dict[str, Any]:
        choices = reply.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise self._malformed("a reply without choices")
        return choices[0]

    # Distributions

    def find_way(self, prompt: Sequence[int]) -> None:
        """Find out how the server gives log-probabilities.

        Args:
            prompt: The token ids of a prompt of 2 tokens or more.

        Raises:
            InputError: The server cannot be reached, refuses the model or token ids, or gives no log-probabilities.
        """
        failures: list[InputError] = []
        for way in ("prompt_logprobs", "echo", "steps"):
            for extra in (_FULL_DISTRIBUTION, {}):
                self.way, self.extra = way, extra
                try:
                    found = self._positions(list(prompt), 1, attempts=1)
                except _HttpError as error:
                    if error.status in (401, 403, 404):  # no parameter is the reason
                        self.way = ""
                        raise
                    failures.append(error)
                    continue
                if found is not None:
                    return
                break  # the server ignores the parameter
        self.way = ""
        if failures:
            raise failures[-1]
        raise self._malformed("a reply without log-probabilities; the server must support logprobs")

    def positions(self, prompt: Sequence[int], first: int) -> list[Position]:
        """The distributions of the tokens of a prompt from a position on.

        Args:
            prompt: The token ids.
            first: The first position, 1 or more.

        Returns:
            A distribution for each position from `first` to the end of the prompt.

        Raises:
            InputError: A request fails, the reply is not valid, or the server has another vocabulary.
        """
        found = self._positions(list(prompt), first)
        if found is None:
            raise self._malformed("a reply without log-probabilities, which earlier replies had")
        return found

    def next_token(self, prompt: Sequence[int]) -> tuple[int, Position]:
        """Sample the token that follows a prompt from the full distribution of the server.

        Args:
            prompt: The token ids.

        Returns:
            The id of the token, and the distribution with its log-probability as the target.

        Raises:
            InputError: As `positions` raises.
        """
        token, position = self._step(list(prompt))
        if token is None:
            raise self._malformed("a sampled token whose id is not known")
        return token, position

    def _positions(self, prompt: list[int], first: int, *, attempts: int = _ATTEMPTS) -> list[Position] | None:
        """The distributions; None if the reply has no log-probabilities."""
        if self.way == "steps":
            try:
                steps = [self._distribution(prompt[:end], attempts=attempts) for end in range(first, len(prompt))]
            except _NoLogProbsError:
                return None
            known = [position.log_probs.get(token) for position, token in zip(steps, prompt[first:], strict=True)]
            return [Position(one.log_probs, target, one.is_top) for one, target in zip(steps, known, strict=True)]
        way = {"prompt_logprobs": self.top} if self.way == "prompt_logprobs" else {"echo": True, "logprobs": self.top}
        reply = self._post({"prompt": prompt, "max_tokens": 1, **way, **self.extra}, attempts=attempts)
        choice = self._choice(reply)
        if self.way == "prompt_logprobs":
            rows = choice.get("prompt_logprobs", reply.get("prompt_logprobs"))
            if not isinstance(rows, list):
                return None
            found = [self._by_ids(row, index) for index, row in enumerate(rows) if index]
        else:
            entry = choice.get("logprobs")
            if not isinstance(entry, dict) or not isinstance(entry.get("token_logprobs"), list):
                return None
            names, rows = entry.get("tokens"), entry.get("top_logprobs")
            count = len(entry["token_logprobs"])
            if count <= 1 < len(prompt):  # the prompt is not in the reply
                return None
            if count < len(prompt):
                raise self._malformed(f"log-probabilities of {count} tokens for a prompt of {len(prompt)}")
            if not isinstance(names, list) or not isinstance(rows, list) or len(rows) != len(names):
                raise self._malformed("logprobs without tokens and top_logprobs of one length")
            for index, (name, token) in enumerate(zip(names, prompt, strict=False)):
                self._require_text(token, str(name), index)
            found = [self._by_names(row, index) for index, row in enumerate(rows) if index]
            if sum(map(len, found)) >= _ENOUGH_NAMES and all(token < 0 for row in found for token in row):
                raise InputError(
                    f"{self.name}: expected tokens of the tokenizer in top_logprobs, but none of its "
                    f"{sum(map(len, found))} texts is one; the server has another vocabulary"
                )
        if len(found) + 1 < len(prompt):
            raise self._malformed(f"log-probabilities of {len(found) + 1} tokens for a prompt of {len(prompt)}")
        positions = []
        for index in range(first, len(prompt)):
            log_probs, token = found[index - 1], prompt[index]
            target = log_probs.get(token)
            if self.way == "echo":
                target = self._number(choice["logprobs"]["token_logprobs"][index], index)
                other = log_probs.get(token, target)
                if other != target and not abs(other - target) <= _ROUNDING_OF_LOG_PROB * max(1.0, abs(target)):
                    raise self._malformed(
                        f"two log-probabilities, {target:.4g} and {other:.4g}, of the token at position {index}"
                    )
            elif target is None:
                raise self._malformed(f"no log-probability of token {token} at position {index} of the prompt")
            positions.append(self._position(log_probs, target))
        return positions

    def _distribution(self, prompt: list[int], *, attempts: int) -> Position:
        """The distribution of the next token.

        llama-server omits the log-probabilities where the sampled token is a part of a character. A bias towards a
        whole character then changes the sampled token, and not the log-probabilities, which are those before sampling.
        """
        try:
            return self._step(prompt, attempts=attempts)[1]
        except _NoLogProbsError:
            letter = next((token for token in range(self.vocabulary) if self.decode(token) in _LETTERS), None)
            if letter is None:
                raise
            return self._step(prompt, attempts=attempts, logit_bias={str(letter): 100})[1]

    def _step(self, prompt: list[int], *, attempts: int = _ATTEMPTS, **more: Any) -> tuple[int | None, Position]:
        """A sampled token and its distribution."""
        body = {"prompt": prompt, "max_tokens": 1, "logprobs": self.top, **self.extra, **more}
        entry = self._choice(self._post(body, attempts=attempts)).get("logprobs")
        if not isinstance(entry, dict):
            raise _NoLogProbsError(str(self._malformed("a reply without logprobs")))
        content = entry.get("content")
        if isinstance(content, list):  # llama-server
            self.samples_all = False
            if not content or not isinstance(content[0], dict) or not isinstance(content[0].get("top_logprobs"), list):
                raise self._malformed("logprobs without top_logprobs")
            rows = {str(one.get("id")): one for one in content[0]["top_logprobs"] if isinstance(one, dict)}
            log_probs = self._by_ids(rows, len(prompt))
            token = self._id(content[0].get("id"), len(prompt))
            return token, self._position(log_probs, self._number(content[0].get("logprob"), len(prompt)))
        lists = [entry.get(key) for key in ("tokens", "token_logprobs", "top_logprobs")]
        if not all(isinstance(one, list) and one for one in lists):
            raise _NoLogProbsError(str(self._malformed("logprobs without tokens")))
        names, values, rows = lists
        assert names is not None
        assert values is not None
        assert rows is not None
        log_probs = self._by_names(rows[0], len(prompt))
        return self._id_of(str(names[0])), self._position(log_probs, self._number(values[0], len(prompt)))

    def _position(self, log_probs: Mapping[int, float], target: float | None) -> Position:
        """The k largest of the log-probabilities; a server adds the token of the prompt where it is not among them."""
        known = {token: value for token, value in log_probs.items() if token >= 0}
        order = sorted(known, key=lambda token: -known[token])[: self.top]
        return Position({token: known[token] for token in order}, target, len(known) == len(log_probs))

    def _by_ids(self, row: Any, index: int) -> dict[int, float]:
        """The log-probabilities of an object whose keys are token ids."""
        if not isinstance(row, dict):
            raise self._malformed(f"log-probabilities of position {index} that are not an object")
        found = {}
        for key, entry in row.items():
            token = self._id(key, index)
            if not isinstance(entry, dict):
                raise self._malformed(f"a log-probability of position {index} that is not an object")
            found[token] = self._number(entry.get("logprob"), index)
            text = entry.get("decoded_token", entry.get("token"))
            if isinstance(text, str):
                self._require_text(token, text, index)
        return self._with_possible_mass(found, index)

    def _by_names(self, row: Any, index: int) -> dict[int, float]:
        """The log-probabilities of an object whose keys are texts of tokens; unknown tokens have negative ids."""
        if not isinstance(row, dict):
            raise self._malformed(f"top_logprobs of position {index} that are not an object")
        found: dict[int, float] = {}
        for number, (name, value) in enumerate(row.items()):
            token = self._id_of(name)
            found[-1 - number if token is None or token in found else token] = self._number(value, index)
        return self._with_possible_mass(found, index)

    def _with_possible_mass(self, log_probs: dict[int, float], index: int) -> dict[int, float]:
        """The log-probabilities, after a check that the probabilities of the tokens sum to at most 1."""
        mass = math.fsum(map(math.exp, log_probs.values()))
        if mass > 1 + _ROUNDING_OF_MASS:
            raise self._malformed(f"probabilities of position {index} that sum to {mass:.4g}")
        if log_probs and mass == 0:
            raise self._malformed(f"log-probabilities of position {index} that are all -inf")
        return log_probs

    def _id(self, value: Any, index: int) -> int:
        """A token id, after a check that it is in the vocabulary."""
        try:
            token = int(value)
        except (TypeError, ValueError):
            raise self._malformed(f"{value!r:.40} as a token id at position {index}") from None
        if not 0 <= token < self.vocabulary:
            raise InputError(
                f"{self.name}: expected token ids below {self.vocabulary}, as the tokenizer has, got {token} at "
                f"position {index}; the server has another vocabulary"
            )
        return token

    def _id_of(self, name: str) -> int | None:
        """The id of the text of a token; None if no token or several tokens have this text."""
        if match := _TOKEN_ID.fullmatch(name):
            return self._id(match[1], 0)
        if self.ids is None:
            self.ids = {}
            for token in range(self.vocabulary):
                text = self.decode(token)
                self.ids[text] = -1 if text in self.ids or "\ufffd" in text else token
        found = self.ids.get(name, -1)
        return None if found < 0 else found

    def _require_text(self, token: int, text: str, index: int) -> None:
        """Check that the server has the token's text for the id; parts of characters cannot be compared."""
        if match := _TOKEN_ID.fullmatch(text):
            if int(match[1]) != token:
                raise InputError(
                    f"{self.name}: expected token {token} at position {index}, got token {match[1]}; the server "
                    "changes the prompt"
                )
            return
        own = self.decode(token)
        if "\ufffd" in own or "\ufffd" in text or text.startswith("bytes:") or not text:
            return
        if _plain(text) != _plain(own):
            raise InputError(
                f"{self.name}: expected the token {own!r} of id {token} at position {index}, got {text!r}; the server "
                "has another vocabulary"
            )

    def _number(self, value: Any, index: int) -> float:
        """A log-probability; -inf for the number that stands for it."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or math.isnan(value) or value > 1e-3:
            raise self._malformed(f"{value!r:.40} as a log-probability at position {index}")
        return -math.inf if value <= _ZERO else float(value)


def _within(seconds: float, function: Callable[[], Any]) -> Any:
    """The result of a function, in a thread of its own.

    The timeout of a socket begins again with each byte that arrives, so that it does not limit a slow reply.

    Raises:
        TimeoutError: The function did not return in time. Its thread ends with the process.
        Exception: The exception of the function.
    """
    outcome: Queue[tuple[Any, Exception | None]] = Queue()

    def run() -> None:
        try:
            outcome.put((function(), None))
        except Exception as error:
            outcome.put((None, error))

    Thread(target=run, daemon=True).start()
    try:
        result, error = outcome.get(timeout=seconds)
    except Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return result


class _NoLogProbsError(InputError):
    """A reply without log-probabilities."""


def _plain(text: str) -> str:
    """The text of a token without spaces, and without the marks of spaces and line feeds of vocabularies."""
    return re.sub(r"[\s\u2581\u0120\u010a]+", "", text)


def _error_text(content: bytes) -> str:
    """The message in the body of an HTTP error, in one line."""
    text = content.decode("utf-8", "replace")
    try:
        found = json.loads(text)
        for key in ("error", "message", "detail"):
            if isinstance(found, dict) and key in found:
                found = found[key]
        text = found if isinstance(found, str) else json.dumps(found)
    except (ValueError, RecursionError):
        pass
    return " ".join(text.split())[:200] or "no message"
