"""Asks a teacher behind an OpenAI-compatible server for samples and for top-k log-probs.

Start the server with `vllm serve TEACHER --max-logprobs 100`.

`sample_with_end_token` and `completion_top_k` also convert the output of vLLM in this process (vllm_engine.py).

Shapes: T completion tokens, K teacher ids per token.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as AbstractSequence
from contextlib import contextmanager
from typing import Any

import torch
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt
from transformers import PreTrainedTokenizerBase

from star.chat import prompt_opening
from star.errors import InputError, UnavailableError
from star.http_client import UNAVAILABLE_STATUSES, RedirectError, retry_pause, send
from star.http_exchange import Answer, BadStatusError, NoAnswerError, TooLargeError
from star.modeling.generation import Sample, Sequence

KEY_VARIABLE = "STAR_TEACHER_KEY"  # sent as a bearer token, as `vllm serve --api-key` wants it
RETRIES = 6  # per request, after pauses of 0.5, 1, 2, 4, 8 and 16 seconds
TIMEOUT_SECONDS = 1800.0  # for the whole answer to a batch
# Of an answer: at least, and for each number that was asked for (a log-probability with its token, or a token with its text).
MIN_BYTES, BYTES_PER_VALUE = 16 * 2**20, 512


class TeacherServer:
    """A server at a URL such as http://teacher:8000/v1 that serves one model, the teacher.

    Raises:
        InputError: the server does not answer, refuses a request or serves several models; the message says what to do.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        answer = self._request("GET", "models")
        with self._reads_answer():
            served = [str(model["id"]) for model in answer["data"]]
        if len(served) != 1:
            raise InputError(f"{self.url} serves {len(served)} models: start it with the teacher only")
        self.model = served[0]

    def generate(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: list[str],
        *,
        samples: int,
        temperature: float,
        max_new_tokens: int,
        seed: int,
    ) -> list[list[Sample]]:
        """Samples `samples` completions per prompt, like `star.modeling.generation.generate`."""
        ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
        groups: list[list[Sample]] = [[] for _ in prompts]
        # A server draws the same samples for the same prompt and seed, so a repeated prompt gets another seed.
        for number, indices in enumerate(split_by_occurrence(prompts)):
            choices = self._complete(
                [ids[index] for index in indices],
                n=samples,
                temperature=temperature,
                max_tokens=max_new_tokens,
                seed=seed + number * samples,
                # Without these the server would apply the model's own top-k and top-p.
                top_p=1.0,
                top_k=-1,
                stop_token_ids=[tokenizer.eos_token_id],
                skip_special_tokens=False,
                return_token_ids=True,
            )
            for index, start in zip(indices, range(0, len(choices), samples), strict=True):
                opening = prompt_opening(prompts[index])
                with self._reads_answer():
                    groups[index] = [
                        _sample_of_choice(choice, tokenizer, opening=opening)
                        for choice in choices[start : start + samples]
                    ]
        return groups

    def top_k(
        self, sequences: list[Sequence], *, k: int, excluded_ids: AbstractSequence[int] = ()
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Returns per sequence the k likeliest ids of each completion token and their log-probs, as `completion_top_k`."""
        prompts = [sequence.prompt_ids + sequence.completion_ids for sequence in sequences]
        # Only the log-probs of the prompt are used; one token is the least that a server generates.
        choices = self._complete(prompts, n=1, temperature=0.0, max_tokens=1, prompt_logprobs=k)
        results = []
        for sequence, choice in zip(sequences, choices, strict=True):
            with self._reads_answer():
                positions = [
                    {int(token): float(entry["logprob"]) for token, entry in (position or {}).items()}
                    for position in choice.get("prompt_logprobs") or []
                ]
                results.append(completion_top_k(positions, sequence, k=k, source=self.url, excluded_ids=excluded_ids))
        return results

    def _complete(self, prompts: list[list[int]], **settings: Any) -> list[dict[str, Any]]:
        """Requests completions; returns the `n` choices of each prompt, in the order of the prompts."""
        values = len(prompts) * settings["n"] * settings["max_tokens"]
        values += sum(map(len, prompts)) * (settings.get("prompt_logprobs", 0) + 1)
        body = {"model": self.model, "prompt": prompts, **settings}
        answer = self._request("POST", "completions", body=body, max_bytes=MIN_BYTES + BYTES_PER_VALUE * values)
        # A server may return the choices in the order in which they were finished.
        with self._reads_answer():
            choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
        # A missing choice would shift all later ones to the wrong prompt.
        if len(choices) != len(prompts) * settings["n"]:
            raise InputError(
                f"{self.url} returned {len(choices)} completions for {len(prompts)} prompts: is it such a server?"
            )
        return choices

    @contextmanager
    def _reads_answer(self) -> Iterator[None]:
        """Around what reads an answer: one of another form is an InputError, whichever part of it is missing."""
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            # A KeyError has the name only.
            raise InputError(
                f"{self.url} sent an answer that cannot be read ({type(error).__name__}: {str(error)[:200]}): is it a server with "
                "the API of vLLM?"
            ) from error

    def _request(self, method: str, path: str, *, body: object = None, max_bytes: int = MIN_BYTES) -> dict[str, Any]:
        def ask() -> Answer:
            return send(
                method,
                f"{self.url}/{path}",
                name="the teacher's server",
                seconds=TIMEOUT_SECONDS,
                token=os.environ.get(KEY_VARIABLE),
                body=body,
                max_bytes=max_bytes,
            ).checked()

        def pause(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            answer = error.answer if isinstance(error, BadStatusError) else None
            return retry_pause(self.url, 0.5 * 2 ** (state.attempt_number - 1), answer)

        retrying = Retrying(
            retry=retry_if_exception(_is_transient), stop=stop_after_attempt(RETRIES + 1), wait=pause, reraise=True
        )
        try:
            document = retrying(ask).document()
        except NoAnswerError as error:
            raise UnavailableError(
                f"the teacher's server at {self.url} does not answer ({error}): start it, or correct the URL; finished batches are kept"
            ) from error
        except BadStatusError as error:
            refusal = f"({error.status}): {error.answer.start()!r}"
            raise InputError(f"{self.url}/{path} refused the request {refusal}") from error
        if not isinstance(document, dict):
            raise InputError(
                f"{self.url}/{path} sent {type(document).__name__} in place of a JSON object: is it such a server?"
            )
        return document


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, BadStatusError):
        return error.status in UNAVAILABLE_STATUSES
    return isinstance(error, NoAnswerError) and not isinstance(error, RedirectError | TooLargeError)


def _sample_of_choice(choice: dict[str, Any], tokenizer: PreTrainedTokenizerBase, *, opening: str) -> Sample:
    """Converts a choice of the response. Older servers return no token ids; then the text is tokenized again."""
    finished = choice["finish_reason"] == "stop"
    ids = choice.get("token_ids")
    if ids is None:
        ids = tokenizer(choice["text"], add_special_tokens=False)["input_ids"]
    if not all(type(token) is int for token in ids):
        raise TypeError("token_ids has something else than integers")
    return sample_with_end_token(ids, tokenizer, finished=finished, opening=opening)


def sample_with_end_token(
    ids: AbstractSequence[int], tokenizer: PreTrainedTokenizerBase, *, finished: bool, opening: str
) -> Sample:
    """Makes the sample of a completion. A finished one ends with the end token, which some servers leave out.

    Args:
        ids: what the back end sampled, without the opening that the prompt holds.
    """
    # The end token is no part of the text, and ends the ids of every finished sample, whatever the server returned.
    body = list(ids[:-1] if finished and ids and ids[-1] == tokenizer.eos_token_id else ids)
    text = tokenizer.decode(body, skip_special_tokens=False)
    assert isinstance(text, str)  # noqa: S101 - a list only for a batch of completions
    return Sample(opening + text, [*body, tokenizer.eos_token_id] if finished else body, finished)


def split_by_occurrence(prompts: list[str]) -> list[list[int]]:
    """Returns the indices of the first occurrences of all prompts, then of the second ones, and so on.

    For example, ["a", "b", "a"] gives [[0, 1], [2]].
    """
    seen: Counter[str] = Counter()
    rounds: list[list[int]] = []
    for index, prompt in enumerate(prompts):
        if seen[prompt] == len(rounds):
            rounds.append([])
        rounds[seen[prompt]].append(index)
        seen[prompt] += 1
    return rounds


def completion_top_k(
    positions: list[dict[int, float]],
    sequence: Sequence,
    *,
    k: int,
    source: str,
    excluded_ids: AbstractSequence[int] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the k most probable ids of each completion token [T, K] and their log-probabilities, falling.

    An excluded id among them is left out and its probability is shared among the others. Where fewer than k are left,
    the row is padded with its first id and -inf. What the back end did not return, its answer cannot be corrected for:
    excluded ids that are not among the k most probable.

    Args:
        positions: per token of prompt and completion the log-probabilities of its candidates by id. These are k + 1
            where the token itself is not among the k most probable.
        source: name of the back end, for the error.
        excluded_ids: rows of the teacher's head that are no token.

    Raises:
        InputError: the back end returned fewer than k, or nothing but excluded ids.
    """
    positions = positions[len(sequence.prompt_ids) :]
    if len(positions) != len(sequence.completion_ids) or any(len(position) < k for position in positions):
        raise InputError(
            f"{source} returned fewer than {k} log-probs per token: start it with `--max-logprobs {k}`, "
            "or lower topk.top_k"
        )
    # Ties by id, so that equal answers give equal files. The cut drops a token that is not among the k.
    rows = [sorted(position.items(), key=lambda pair: (-pair[1], pair[0]))[:k] for position in positions]
    if excluded := set(excluded_ids):
        rows = [_without_ids(row, excluded, k=k, source=source) for row in rows]
    ids_TK = torch.tensor([[token for token, _ in row] for row in rows])
    # A back end's rounding may give a log-probability just above 0.
    return ids_TK, torch.tensor([[min(logprob, 0.0) for _, logprob in row] for row in rows])


def _without_ids(row: list[tuple[int, float]], excluded: set[int], *, k: int, source: str) -> list[tuple[int, float]]:
    """The pairs of a row whose id is not excluded, normalised without the others' probability and padded to k."""
    kept = [pair for pair in row if pair[0] not in excluded]
    if not kept:
        raise InputError(f"{source} gives all of its {k} log-probs to ids that are no token: is it this teacher?")
    if len(kept) == len(row):
        return row
    excluded_mass = sum(math.exp(logprob) for token, logprob in row if token in excluded)
    # At most the mass that the kept ids leave; rounding could put both together above 1.
    kept_mass = max(1.0 - excluded_mass, sum(math.exp(logprob) for _, logprob in kept))
    shifted = [(token, logprob - math.log(kept_mass)) for token, logprob in kept]
    return shifted + [(shifted[0][0], -math.inf)] * (k - len(shifted))
