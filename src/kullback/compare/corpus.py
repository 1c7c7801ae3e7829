"""The corpus of a comparison: documents from files and data sets, their tokens, and windows of the context length.

Three rules determine which tokens are counted:

- A document is encoded without special tokens of its own. If the tokenizer begins a text with a beginning-of-sequence
  (BOS) token, every window begins with it; the BOS token itself is never counted.
- A document that is longer than the context is split into windows that overlap. Each token is counted once, in the
  first window that contains it.
- A token is counted if a token precedes it in its window. The first token of a document is therefore counted if there
  is a BOS token. A document of fewer than 2 tokens, BOS included, has nothing to count, and is skipped.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kullback.errors import InputError
from kullback.integrations.hub import dataset_rows, is_hub_dataset
from kullback.runs.library_errors import library_errors

__all__ = ["Corpus", "Document", "TokenizedDocument", "Window", "encode", "read_documents", "token_prefix", "windows"]

TEXT = "text"
"""The role of a token of a plain text."""

_SUFFIXES = (
    *(".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml", ".csv", ".tsv", ".json", ".yaml", ".yml", ".toml"),
    *(".py", ".js", ".ts", ".c", ".h", ".cc", ".cpp", ".hpp", ".java", ".go", ".rs", ".rb", ".sh", ".sql"),
)
_ROWS = (".jsonl", ".ndjson")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Document:
    """A document of a corpus.

    Args:
        name: Where the document is from, such as "corpus/a.txt" or "chats.jsonl, line 3".
        content: The text, or chat messages with a "role" and a "content".
    """

    name: str
    content: str | list[dict[str, Any]]


@dataclass(frozen=True)
class TokenizedDocument:
    """The tokens of a document.

    Args:
        name: The name of the document.
        ids: Token ids without the prefix, int32, shape (n,).
        roles: The chat role of each token, shape (n,), as indices into `Corpus.roles`.
        prompt: Of a chat, the token ids of the messages before its last answer, with the beginning of an answer;
            None for a text, and where prompts were not asked for.
    """

    name: str
    ids: NDArray[np.int32]
    roles: NDArray[np.uint16]
    prompt: NDArray[np.int32] | None = None


@dataclass(frozen=True)
class Window:
    """A part of a document that is one row of a forward pass: the prefix, and then the tokens from start to end.

    Args:
        start: The first token of the window.
        first: The first token of the window that is counted.
        end: The end of the window; the tokens from `first` to `end` are counted.
    """

    start: int
    first: int
    end: int


@dataclass(frozen=True)
class Corpus:
    """The tokens of all documents that have a token to count.

    Args:
        documents: The documents.
        prefix: The BOS token with which each window begins, or nothing.
        roles: The names of the chat roles; the first is "text".
        skipped_documents: The number of documents without a token to count.
        text_hash: The SHA-256 of the texts of all documents, hexadecimal.
        token_hash: The SHA-256 of the prefix and of the token ids of all documents, hexadecimal.
    """

    documents: tuple[TokenizedDocument, ...]
    prefix: tuple[int, ...]
    roles: tuple[str, ...]
    skipped_documents: int
    text_hash: str
    token_hash: str

    @property
    def counted_tokens(self) -> int:
        """The number of tokens that are counted."""
        return sum(len(document.ids) - (0 if self.prefix else 1) for document in self.documents)


def read_documents(source: str | Path, option: str = "--text", *, form: str | None = None) -> Iterator[Document]:
    """Read the documents of a file, of a directory or of a data set of the Hugging Face hub.

    A `.jsonl` or `.ndjson` file and a data set have one document for each row, which is a "text" or chat "messages";
    every other file is one document. A directory is read recursively in the order of its paths; hidden files, and files
    that have no suffix of a text file, are left out.

    Args:
        source: The file, the directory, or ORGANISATION/NAME[:CONFIGURATION[:SPLIT]]; a local path takes precedence.
        option: The command-line option that the source came from, for error messages.
        form: "text": each file is one document; "jsonl": each row has a "text"; "chat": each row has "messages", and
            other files of a directory are left out; None: by the suffix and by the keys of each row.

    Returns:
        The documents.

    Raises:
        InputError: The source does not exist, is a pipe or a device, has no document, is not UTF-8, or a row is not
            valid. The message has the line or the position of the first bad byte.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     _ = (Path(directory) / "a.jsonl").write_text('{"text": "first"}\\n{"text": "second"}\\n')
        ...     [document.content for document in read_documents(directory)]
        ['first', 'second']
    """
    if not str(source):
        raise InputError(f"{option}: expected a path or the name of a data set, got an empty argument")
    if is_hub_dataset(str(source)):
        for place, row in dataset_rows(str(source), option):
            yield _document(row, place, form)
        return
    path, location = Path(source), f"{option} {source}"
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(
            f"{location}: expected a file or a directory, got a pipe or a device, which cannot be read twice; write "
            "the text to a file"
        )
    if not path.exists():
        raise InputError(
            f"{location}: no such file or directory; expected a text file, a .jsonl file, a directory of such files, "
            "or a data set of the Hugging Face hub such as openai/gsm8k:main"
        )
    found = False
    for file in _text_files(path, location, form):
        for document in _file_documents(file, f"{option} {file}", form):
            found = found or bool(document.content)
            yield document
    if not found:
        raise InputError(f"{location}: expected text, got {'only empty files' if path.is_dir() else 'an empty file'}")


def _text_files(path: Path, location: str, form: str | None) -> list[Path]:
    """The file, or the text files below a directory in the order of their paths."""
    if not path.is_dir():
        return [path]
    entries = sorted(path.rglob("*"), key=lambda entry: entry.relative_to(path).parts)
    files = [
        entry
        for entry in entries
        if entry.is_file() and not any(part.startswith(".") for part in entry.relative_to(path).parts)
    ]
    texts = [
        file for file in files if file.suffix.lower() in ((*_SUFFIXES, *_ROWS) if form in (None, "text") else _ROWS)
    ]
    if not texts:
        found = f"{len(files)} other files" if files else "no files"
        expected = "*.txt, *.md, *.py or *.jsonl" if form in (None, "text") else "*.jsonl"
        raise InputError(f"{location}: expected files such as {expected} in it, got {found}")
    return texts


def _file_documents(path: Path, location: str, form: str | None) -> Iterator[Document]:
    """The documents of one file; an empty text file is one document, and an empty line of a JSON Lines file is none."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{location}: cannot be read: {error.strerror or error}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{location}, line {line}: expected UTF-8 text, got the byte 0x{content[error.start]:02x} at position "
            f"{error.start}; convert the file to UTF-8"
        ) from error
    if form == "text" or (form is None and path.suffix.lower() not in _ROWS):
        yield Document(str(path), text if text.strip() else "")
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{location}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise InputError(f"{place}: expected a JSON object, got a line that is not JSON: {reason}") from error
        yield _document(row, place, form)


def _document(row: Any, place: str, form: str | None) -> Document:
    """The document of a row of a JSON Lines file or of a data set."""
    wanted = {"jsonl": ("text",), "text": ("text",), "chat": ("messages",)}.get(form or "", ("messages", "text"))
    keys = [key for key in wanted if isinstance(row, dict) and key in row]
    if not keys:
        got = (
            f"the keys {', '.join(map(str, row)) or 'of an empty object'}" if isinstance(row, dict) else f"{row!r:.60}"
        )
        expected = " or ".join(f'"{key}"' for key in reversed(wanted))
        raise InputError(f"{place}: expected an object with {expected}, got {got}")
    value, name = row[keys[0]], place.split(" ", 1)[-1]
    if keys[0] == "text":
        if not isinstance(value, str):
            raise InputError(f'{place}: expected "text" to be text, got {value!r:.60}')
        return Document(name, value)
    is_chat = isinstance(value, list) and all(
        isinstance(one, dict) and isinstance(one.get("role"), str) for one in value
    )
    if not is_chat or not value:
        raise InputError(
            f'{place}: expected "messages" to be a list of objects with a "role" and a "content", got {value!r:.60}'
        )
    return Document(name, value)


def encode(
    documents: Iterator[Document] | Sequence[Document], tokenizer: Any, *, bos: str = "auto", prompts: bool = False
) -> Corpus:
    """Encode documents by a tokenizer.

    Plain text is encoded as it is, and text of special tokens in it becomes these tokens. Chat messages are encoded by
    the tokenizer's chat template, without a prompt for a further answer.

    Args:
        documents: The documents.
        tokenizer: A tokenizer of transformers.
        bos: "auto": windows begin with a BOS token if the tokenizer begins a text with it; "always"; "never".
        prompts: Whether chats are also encoded up to their last answer, as prompts of it.

    Returns:
        The corpus. It needs 6 bytes of memory for each token.

    Raises:
        InputError: A document has a lone surrogate, it has chat messages and the tokenizer has no chat template, the
            template refuses the messages, the tokenizer has no BOS token although `bos` is "always", or no document has
            a token to count.
    """
    prefix = token_prefix(tokenizer, bos)
    texts, tokens = hashlib.sha256(), hashlib.sha256(np.asarray(prefix, "<i4").tobytes())
    encoded: list[TokenizedDocument] = []
    roles, skipped = {TEXT: 0}, 0
    for document in documents:
        content, prompt = document.content, None
        stored = content if isinstance(content, str) else json.dumps(content, sort_keys=True, default=str)
        texts.update(stored.encode("utf-8", "surrogatepass") + b"\0")
        _require_encodable(content, document.name)
        if isinstance(content, str):
            ids, names = tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"], []
        else:
            ids, names = _encode_chat(content, tokenizer, document.name)
            if prefix and tuple(ids[:1]) == prefix:  # the template writes it itself
                ids, names = ids[1:], names[1:]
            if prompts:
                prompt = np.asarray(_chat_prompt(content, tokenizer, document.name), np.int32)
                prompt = prompt[1:] if prefix and tuple(prompt[:1].tolist()) == prefix else prompt
        if len(ids) + len(prefix) < 2 or not ids:
            skipped += 1
            continue
        array = np.asarray(ids, np.int32)
        tokens.update(len(ids).to_bytes(8, "little") + array.astype("<i4").tobytes())
        indices = [roles.setdefault(name, len(roles)) for name in names] or [0] * len(ids)
        encoded.append(TokenizedDocument(document.name, array, np.asarray(indices, np.uint16), prompt))
    if not encoded:
        got = "the document is" if skipped == 1 else f"all {skipped} documents are"
        raise InputError(f"expected a document of 2 tokens or more, but {got} shorter")
    return Corpus(tuple(encoded), prefix, tuple(roles), skipped, texts.hexdigest(), tokens.hexdigest())


def _require_encodable(content: str | list[dict[str, Any]], name: str) -> None:
    """Raise InputError if a text has a lone surrogate, which has no encoding and no token."""
    parts = [content] if isinstance(content, str) else [value for message in content for value in message.values()]
    for part in parts:
        if isinstance(part, str) and (found := _SURROGATE.search(part)):
            raise InputError(
                f"{name}: expected text of Unicode characters, got the lone surrogate {found[0]!a} at position "
                f"{found.start()} of the text"
            )


def token_prefix(tokenizer: Any, bos: str) -> tuple[int, ...]:
    """The BOS token with which each window begins.

    Args:
        tokenizer: A tokenizer of transformers.
        bos: "auto": as the tokenizer begins a text; "always"; "never".

    Returns:
        The id of the BOS token, or nothing.

    Raises:
        InputError: `bos` is another word, or it is "always" and the tokenizer has no BOS token.
    """
    if bos not in ("auto", "always", "never"):
        raise InputError(f"bos: expected auto, always or never, got {bos!r}")
    token = tokenizer.bos_token_id
    if bos == "always" and token is None:
        raise InputError("--bos always: expected a tokenizer with a beginning-of-sequence token, got one without")
    if bos == "never" or token is None:
        return ()
    begins = list(tokenizer("a", verbose=False)["input_ids"])[:1] == [token]
    return (int(token),) if begins or bos == "always" else ()


def _encode_chat(messages: list[dict[str, Any]], tokenizer: Any, name: str) -> tuple[list[int], list[str]]:
    """The token ids of chat messages, and the role of the message that each token belongs to."""
    if not tokenizer.chat_template:
        raise InputError(
            f"{name}: expected plain text, because the tokenizer has no chat template, got chat messages; use --format "
            "jsonl if the rows also have a text, or a model with a chat template"
        )
    with library_errors(f"{name}: the chat template refuses the messages"):
        ids = _template_ids(messages, tokenizer)
    roles, done = [], 0
    for count, message in enumerate(messages, start=1):
        try:
            part = ids if count == len(messages) else _template_ids(messages[:count], tokenizer)
        except Exception:  # templates can refuse a chat that ends with a message of this role
            continue
        # The role is assigned to the longest common beginning, because templates can end a chat in a special way.
        end = len(ids) if count == len(messages) else _common(part, ids)
        roles += [str(message["role"])] * (end - done)
        done = max(done, end)
    return ids, roles


def _chat_prompt(messages: list[dict[str, Any]], tokenizer: Any, name: str) -> list[int]:
    """The token ids of the messages before the last answer, or of all messages, with the beginning of an answer."""
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    end = answers[-1] if answers and answers[-1] > 0 else len(messages)
    with library_errors(f"{name}: the chat template refuses the messages"):
        return _template_ids(messages[:end], tokenizer, add_generation_prompt=True)


def _template_ids(messages: list[dict[str, Any]], tokenizer: Any, **settings: bool) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **settings)["input_ids"])


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the longest common beginning of two sequences."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))


def windows(count: int, context: int, stride: int | None, *, prefix: int = 0) -> list[Window]:
    """The windows of a document, which count each token once.

    Window k has the tokens from k * stride to k * stride + context - prefix. The tokens that window k - 1 has too are
    the context of those that follow.

    Args:
        count: The number of tokens of the document, without the prefix.
        context: The number of tokens of a window, with its prefix.
        stride: The distance between the starts of windows; None: as large as possible, so that each window repeats one
            token of the window before it.
        prefix: The number of tokens with which each window begins.

    Returns:
        The windows in their order.

    Raises:
        InputError: The context has less than 2 tokens besides the prefix, or the stride is not between 1 and the
            number of tokens of a window, without its prefix, minus 1.

    Example:
        >>> [(window.start, window.first, window.end) for window in windows(10, 5, 2)]
        [(0, 1, 5), (2, 5, 7), (4, 7, 9), (6, 9, 10)]
    """
    room = context - prefix
    if room < 2:
        raise InputError(f"--context: expected at least {2 + prefix} tokens, got {context}")
    if stride is None:
        stride = room - 1
    if not 1 <= stride < room:
        raise InputError(f"--stride: expected 1 to {room - 1} for a context of {context}, got {stride}")
    found = [Window(0, 0 if prefix else 1, min(room, count))]
    while found[-1].end < count:
        start = found[-1].start + stride
        found.append(Window(start, found[-1].end, min(start + room, count)))
    return found
