"""A client for any OpenAI-compatible chat endpoint: vLLM, llama.cpp, a hosted service. It expects the worst of the other side.

Errors of the server (5xx, 429, a cut connection, an answer that is no JSON) are tried again with growing pauses, or after what Retry-After
says; errors of the request (400, 401, 404) are the user's and end the work at once. Answers are read up to a bound, within a deadline.
"""

import http.client
import json
import random
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from star.errors import InputError

LARGEST_ANSWER = 4 * 2**20  # bytes
LONGEST_PAUSE = 60.0  # seconds, whatever Retry-After says
TRANSIENT_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
TRANSIENT_ERRORS = (urllib.error.URLError, http.client.HTTPException, OSError, ValueError)
CUT_IN_REASONING = "the answer reached its limit of tokens within the model's reasoning: raise --max-tokens"
NO_ANSWER = "the server sent reasoning and no answer: check that its reasoning parser suits the model's chat template"


class EndpointError(Exception):
    """The endpoint gave no usable answer, however often it was asked."""


@dataclass(frozen=True)
class Answer:
    """What the model wrote, and what it cost.

    Attributes:
        text: the answer; empty where there is only reasoning.
        why_empty: what is wrong then, and what to do.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    attempts: int
    why_empty: str = ""


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask. `url` is the base, as `http://localhost:8000/v1`; `key` is sent as a bearer token and never shown."""

    url: str
    model: str
    key: str | None = None
    timeout: float = 120.0  # seconds for one answer
    attempts: int = 6
    first_pause: float = 0.5  # seconds; doubled each time

    def ask(self, messages: list[dict], *, temperature: float, seed: int, max_tokens: int) -> Answer:
        """One answer of the model.

        Raises:
            EndpointError: no usable answer after all attempts.
            InputError: the endpoint refuses the request as such (address, key, model).
        """
        body = {
            "model": self.model,
            "messages": messages,
            "temperature": temperature,
            "seed": seed,
            "max_tokens": max_tokens,
        }
        jitter = random.Random(seed)  # noqa: S311 - pauses need no secret

        def pause(state: RetryCallState) -> float:
            seconds = self.first_pause * 2 ** (state.attempt_number - 1) * (1 + jitter.random())
            error = state.outcome.exception() if state.outcome else None
            if isinstance(error, urllib.error.HTTPError):
                seconds = max(seconds, _retry_after(error))
            return min(seconds, LONGEST_PAUSE)

        retrying = Retrying(
            retry=retry_if_exception(_is_transient), stop=stop_after_attempt(self.attempts), wait=pause, reraise=True
        )
        try:
            return retrying(lambda: _answer(self._post(body), attempts=retrying.statistics["attempt_number"]))
        # Before TRANSIENT_ERRORS, which contains its base class.
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code}: {_start(error)}"
            if not _is_transient(error):
                raise InputError(f"{self.url} refuses the request ({problem}): check address, key and model") from error
        except TRANSIENT_ERRORS as error:
            problem = f"{type(error).__name__}: {str(error)[:200]}"
        raise EndpointError(f"{self.url} gave no usable answer in {self.attempts} attempts; the last: {problem}")

    def _post(self, body: dict) -> bytes:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        try:
            request = urllib.request.Request(  # noqa: S310 - the scheme is checked below
                f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
            )
        except ValueError as error:
            raise InputError(f"{self.url!r} is no address: give one such as http://localhost:8000/v1") from error
        # urllib opens file: and ftp: addresses, too.
        if request.type not in ("http", "https"):
            raise InputError(f"{self.url!r} is no address: give one such as http://localhost:8000/v1")
        # urlopen's timeout is for each read, so a server that sends single bytes could hold the connection for ever.
        deadline = time.monotonic() + self.timeout
        with urllib.request.urlopen(request, timeout=self.timeout) as response:  # noqa: S310 - http or https, checked above
            content = bytearray()
            # `read1` returns what has arrived; `read` would wait for all of it and pass the deadline.
            while chunk := response.read1(65536):
                content += chunk
                if len(content) > LARGEST_ANSWER:
                    raise ValueError(f"an answer of more than {LARGEST_ANSWER // 2**20} MiB")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the answer took longer than {self.timeout:.0f} s")
            # `read1` reports a cut connection like the end of the answer.
            if response.length:
                raise http.client.IncompleteRead(bytes(content), response.length)
        return bytes(content)


def _is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: an HTTP status of TRANSIENT_STATUSES, a cut connection, an answer without text."""
    # First, because an HTTPError is a URLError and most of its codes are the user's fault.
    if isinstance(error, urllib.error.HTTPError):
        return error.code in TRANSIENT_STATUSES
    return isinstance(error, TRANSIENT_ERRORS)


def _answer(content: bytes, *, attempts: int) -> Answer:
    """The first choice's text; ValueError where the answer has none."""
    try:
        document = json.loads(content)
        choice = document["choices"][0]
        message = choice["message"]
        text = message.get("content")
        is_cut = choice.get("finish_reason") == "length"
        only_reasoning = _is_only_reasoning(message, is_cut=is_cut)
        usage = document.get("usage") or {}
        tokens = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")]
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"an answer without choices[0].message.content: {content[:100]!r}") from error
    why_empty = ""
    if only_reasoning:
        text, why_empty = "", CUT_IN_REASONING if is_cut else NO_ANSWER
    if not isinstance(text, str):
        raise ValueError("an answer whose content is no text")
    # A server's counts may be missing or absurd; the text is usable without them.
    prompt, completion = (count if isinstance(count, int) and 0 <= count < 10**9 else 0 for count in tokens)
    return Answer(text, prompt, completion, attempts, why_empty)


def _is_only_reasoning(message: dict, *, is_cut: bool) -> bool:
    """Whether a message ends before the model's reasoning does. The reasoning may be apart, or in the text up to `</think>`."""
    text = message.get("content")
    if not isinstance(text, str) or not text.strip():
        # Servers with a reasoning parser have it under one of these names.
        return bool(message.get("reasoning_content") or message.get("reasoning"))
    begin = text.lstrip()
    # A template may write `<think>` into the prompt, so the text may begin within the reasoning without a sign of it.
    # Drafts in it are no answer. An answer that was cut is one only where nothing came before its object.
    unmarked = is_cut and not begin.startswith(("{", "```"))
    return "</think>" not in text and (begin.startswith("<think>") or unmarked)


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Seconds to wait; the header's date form and nonsense count as none."""
    try:
        return min(max(0.0, float(error.headers.get("Retry-After", ""))), LONGEST_PAUSE)
    except ValueError:
        return 0.0


def _start(error: urllib.error.HTTPError) -> str:
    try:
        return " ".join(error.read(300).decode("utf-8", "replace").split())
    except (OSError, http.client.HTTPException):
        return str(error.reason)


def usage_of(answers: list[Answer]) -> dict[str, Any]:
    """Requests, retries and tokens of some answers, summed."""
    return {
        "requests": len(answers),
        "retries": sum(answer.attempts - 1 for answer in answers),
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "completion_tokens": sum(answer.completion_tokens for answer in answers),
    }
