"""A small HTTP server of a transformers model, which replies as vLLM, llama-server or the completions API do."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class CompletionsServer(ThreadingHTTPServer):
    """The server; `kind` is "vllm", "openai" (echo with names of tokens) or "llama-server".

    `requests` has the headers and the body of each request, and `broken` replaces replies by a faulty one.
    """

    def __init__(self, directory: Path, kind: str, *, seed: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model = AutoModelForCausalLM.from_pretrained(directory).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.kind = kind
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.broken: Callable[[dict[str, Any]], tuple[int, Any]] | None = None
        self.key: str | None = None
        self.generator = torch.Generator().manual_seed(seed)
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @torch.no_grad()
    def log_probs(self, ids: list[int]) -> torch.Tensor:
        """Log-probabilities of the token after each token."""
        return self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)

    def reply(self, body: dict[str, Any]) -> tuple[int, Any]:
        ids = body["prompt"]
        if body["model"] != "tiny":
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        size = self.model.config.vocab_size
        if not isinstance(ids, list) or not all(0 <= token < size for token in ids):
            return 400, {"error": {"message": "Token id out of vocabulary"}}
        if len(ids) >= self.model.config.max_position_embeddings:
            return 400, {"error": {"message": "This model's maximum context length is smaller"}}
        with self.lock:
            table = self.log_probs(ids)
            drawn = int(torch.multinomial(table[-1].exp(), 1, generator=self.generator))
        try:
            return 200, getattr(self, f"_{self.kind.replace('-', '_')}")(body, ids, table, drawn)
        except _RefusedError as error:
            return 400, {"error": {"code": 400, "message": str(error)}}

    def _vllm(self, body: dict[str, Any], ids: list[int], table: torch.Tensor, drawn: int) -> Any:
        choice: dict[str, Any] = {"index": 0, "text": self.tokenizer.decode([drawn]), "logprobs": None}
        if (count := body.get("prompt_logprobs")) is not None:
            rows: list[Any] = [None]
            choice["prompt_logprobs"] = rows
            for position, token in enumerate(ids[1:]):
                row = self._top(table[position], count, token)
                rows.append(
                    {
                        str(one): {"logprob": value, "rank": rank + 1, "decoded_token": self.tokenizer.decode([one])}
                        for rank, (one, value) in enumerate(row.items())
                    }
                )
        if (count := body.get("logprobs")) is not None:
            as_ids = body.get("return_tokens_as_token_ids")

            def name(one: int) -> str:
                return f"token_id:{one}" if as_ids else self.tokenizer.decode([one])

            row = self._top(table[-1], count, drawn)
            choice["logprobs"] = {
                "tokens": [name(drawn)],
                "token_logprobs": [row[drawn]],
                "top_logprobs": [{name(one): value for one, value in row.items()}],
            }
        return {"object": "text_completion", "model": "tiny", "choices": [choice]}

    def _openai(self, body: dict[str, Any], ids: list[int], table: torch.Tensor, drawn: int) -> Any:
        if {"top_k", "min_p", "return_tokens_as_token_ids"} & body.keys():
            raise _RefusedError("Unrecognized request argument supplied: top_k")
        ids, count = [*ids, drawn], body.get("logprobs", 0)
        names = [self.tokenizer.decode([one]) for one in ids]
        values: list[float | None] = [None]
        rows: list[dict[str, float] | None] = [None]
        for position, token in enumerate(ids[1:]):
            row = self._top(table[position], count, token)
            values.append(row[token])
            rows.append({self.tokenizer.decode([one]): value for one, value in row.items()})
        first = 0 if body.get("echo") else len(ids) - 1
        logprobs = {"tokens": names[first:], "token_logprobs": values[first:], "top_logprobs": rows[first:]}
        return {"choices": [{"text": "".join(names[first:]), "logprobs": logprobs if count else None}]}

    def _llama_server(self, body: dict[str, Any], ids: list[int], table: torch.Tensor, drawn: int) -> Any:
        if body.get("echo"):
            raise _RefusedError("Only no echo is supported")
        if bias := body.get("logit_bias"):
            drawn = int(max(bias, key=bias.__getitem__))
        logprobs = None
        # llama-server omits the log-probabilities where the sampled token is a part of a character.
        is_omitted = self.tokenizer.decode([drawn]) in ("+", "=")
        if (count := body.get("logprobs")) and not is_omitted:
            row = self._top(table[-1], count, None)

            def entry(one: int, value: float) -> dict[str, Any]:
                text = self.tokenizer.decode([one])
                return {"id": one, "token": text, "bytes": list(text.encode()), "logprob": value}

            chosen = entry(drawn, self._json(table[-1, drawn]))
            chosen["top_logprobs"] = [entry(one, value) for one, value in row.items()]
            logprobs = {"content": [chosen]}
        return {"choices": [{"text": self.tokenizer.decode([drawn]), "logprobs": logprobs, "finish_reason": "length"}]}

    def _top(self, row: torch.Tensor, count: int, token: int | None) -> dict[int, float]:
        """The largest log-probabilities, and the log-probability of a token."""
        values, ids = row.topk(min(count, len(row)))
        found = dict(zip(ids.tolist(), map(self._json, values), strict=True))
        return found if token is None else {**found, token: self._json(row[token])}

    @staticmethod
    def _json(value: torch.Tensor) -> float:
        return -9999.0 if math.isinf(float(value)) else float(value)


class _RefusedError(Exception):
    pass


class _Handler(BaseHTTPRequestHandler):
    server: CompletionsServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((dict(self.headers), body))
        status, reply = 200, None
        if self.path != "/v1/completions":
            status, reply = 404, {"error": {"message": f"no route {self.path}"}}
        elif self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            given = self.headers.get("Authorization", "")
            status, reply = 401, {"error": {"message": f"Incorrect API key provided: {given}"}}
        elif self.server.broken is not None:
            status, reply = self.server.broken(body)
        else:
            status, reply = self.server.reply(body)
        content = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.send_response(status)
        if status in (301, 302, 307):
            self.send_header("Location", content.decode())
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def serve(directory: Path, kind: str, *, seed: int = 0) -> Iterator[CompletionsServer]:
    """A running server on the loopback interface."""
    server = CompletionsServer(directory, kind, seed=seed)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
