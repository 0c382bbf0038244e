"""A client for any OpenAI-compatible chat endpoint: vLLM, llama.cpp, a hosted service. It expects the worst of the other side.

Errors of the server (5xx, 429, a cut connection, an answer that is no JSON) are tried again with growing pauses, or after what Retry-After
says; errors of the request (400, 401, 404, a redirect) are the user's and end the work at once. star/http_client.py says what holds for
each request.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from star.errors import InputError
from star.http_client import UNAVAILABLE_STATUSES, RedirectError, retry_pause, send
from star.http_exchange import BadStatusError, NoAnswerError, TooLargeError

Result = TypeVar("Result")
LARGEST_ANSWER = 4 * 2**20  # bytes
TRANSIENT_ERRORS = (NoAnswerError, ValueError)
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
class Reply:
    """What the server made of the model's answer, where tools were given.

    Attributes:
        reasoning: what a reasoning parser of the server took out of the text; else "".
        tool_calls: what a tool-call parser of the server took out of the text, as it sent them; else empty.
        is_cut: whether the answer reached its limit of tokens.
    """

    content: str
    reasoning: str
    tool_calls: list[Any]
    is_cut: bool


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask. `url` is the base, as `http://localhost:8000/v1`; `key` is sent as a bearer token and never shown."""

    url: str
    model: str = ""  # found_model() gives the endpoint with the name of the only served one
    key: str | None = field(default=None, repr=False)
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
        return self._retried(lambda: self._request("POST", "chat/completions", body), read=_answer, seed=seed)

    def ask_with_tools(self, messages: list[dict], *, tools: list[dict], max_tokens: int) -> Reply:
        """One greedy answer of the model, which may call the tools.

        Args:
            tools: in OpenAI's form, `{"type": "function", "function": {...}}`.

        Raises:
            EndpointError, InputError: as `ask`.
        """
        body = {"model": self.model, "messages": messages, "tools": tools, "temperature": 0, "max_tokens": max_tokens}

        def request() -> bytes:
            try:
                return self._request("POST", "chat/completions", body)
            except BadStatusError as error:
                # vLLM refuses tools where it was started without a parser of their calls; it then sends the text.
                if error.status != 400 or b"tool" not in error.answer.content:
                    raise
                return self._request("POST", "chat/completions", {**body, "tool_choice": "none"})

        return self._retried(request, read=lambda content, attempts: _reply(content), seed=0)

    def found_model(self) -> Self:
        """This endpoint with the name of the model that it serves.

        Raises:
            EndpointError, InputError: as `ask`; also where it serves several models, or none.
        """
        served = self._retried(lambda: self._request("GET", "models"), read=lambda content, _: _names(content), seed=0)
        if len(served) != 1:
            # A hosted service has hundreds.
            names = ", ".join(name[:80] for name in served[:10]) + (", ..." if len(served) > 10 else "")
            raise InputError(f"{self.url} serves {len(served)} models ({names}): choose one with --model")
        return replace(self, model=served[0])

    def _retried(self, request: Callable[[], bytes], *, read: Callable[[bytes, int], Result], seed: int) -> Result:
        """What `read` makes of the answer and the number of attempts that it took."""
        jitter = random.Random(seed)  # noqa: S311 - pauses need no secret

        def pause(state: RetryCallState) -> float:
            seconds = self.first_pause * 2 ** (state.attempt_number - 1) * (1 + jitter.random())
            error = state.outcome.exception() if state.outcome else None
            return retry_pause(self.url, seconds, error.answer if isinstance(error, BadStatusError) else None)

        retrying = Retrying(
            retry=retry_if_exception(_is_transient), stop=stop_after_attempt(self.attempts), wait=pause, reraise=True
        )
        try:
            return retrying(lambda: read(request(), retrying.statistics["attempt_number"]))
        except (BadStatusError, *TRANSIENT_ERRORS) as error:
            problem = str(error)[:300]
            if not _is_transient(error):
                raise InputError(f"{self.url} refuses the request ({problem}): check address, key and model") from error
        raise EndpointError(f"{self.url} gave no usable answer in {self.attempts} attempts; the last: {problem}")

    def _request(self, method: str, path: str, body: dict | None = None) -> bytes:
        answer = send(
            method,
            f"{self.url.rstrip('/')}/{path}",
            name="--endpoint",
            seconds=self.timeout,
            token=self.key,
            body=body,
            max_bytes=LARGEST_ANSWER,
        )
        return answer.checked().content


def _is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: an HTTP status of a server that is busy, a cut connection, an answer without text."""
    if isinstance(error, BadStatusError):
        return error.status in UNAVAILABLE_STATUSES
    return isinstance(error, TRANSIENT_ERRORS) and not isinstance(error, RedirectError | TooLargeError)


def _answer(content: bytes, attempts: int) -> Answer:
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


def _reply(content: bytes) -> Reply:
    """The first choice's text and calls; ValueError where the answer has none of this form."""
    try:
        choice = json.loads(content)["choices"][0]
        message = choice["message"]
        text = message.get("content") or ""
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        calls = message.get("tool_calls") or []
        is_cut = choice.get("finish_reason") == "length"
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"an answer without choices[0].message: {content[:100]!r}") from error
    if not (isinstance(text, str) and isinstance(reasoning, str) and isinstance(calls, list)):
        raise ValueError(f"a message whose content, reasoning or tool_calls cannot be read: {content[:100]!r}")
    return Reply(text, reasoning, calls, is_cut)


def _names(content: bytes) -> list[str]:
    """The names of the served models; ValueError where the answer has no list of them."""
    try:
        return [str(model["id"]) for model in json.loads(content)["data"]]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"a list of models without data[].id: {content[:100]!r}") from error


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


def usage_of(answers: list[Answer]) -> dict[str, Any]:
    """Requests, retries and tokens of some answers, summed."""
    return {
        "requests": len(answers),
        "retries": sum(answer.attempts - 1 for answer in answers),
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "completion_tokens": sum(answer.completion_tokens for answer in answers),
    }
