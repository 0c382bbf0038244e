"""The teacher behind an OpenAI-compatible server (`vllm serve TEACHER --max-logprobs 100`): sampling, and the top-k of given completions.

T completion tokens, K teacher ids a token.
"""

from collections import Counter
from collections.abc import Sequence as Row
from typing import Any

import torch

from star.errors import InputError
from star.modeling.generation import Sample, Sequence

ATTEMPTS = 6  # of one request, the pauses between them doubling from half a second
TIMEOUT = (10, 1800)  # seconds to connect, and to answer a batch


class TeacherServer:
    """Asks the server at a URL such as http://teacher:8000/v1, which serves one model.

    Raises:
        InputError: the server does not answer, or refuses a request; the message says the cure.
    """

    def __init__(self, url: str) -> None:
        import requests
        from urllib3.util import Retry

        self.url = url.rstrip("/")
        self._session = requests.Session()
        retry = Retry(ATTEMPTS, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=None)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=retry))
        served = self._ask("GET", "models")["data"]
        if len(served) != 1:
            raise InputError(f"{self.url} serves {len(served)} models: start it with the teacher alone")
        self.model: str = served[0]["id"]

    def generate(
        self, tokenizer, prompts: list[str], *, samples: int, temperature: float, max_new_tokens: int, seed: int
    ) -> list[list[Sample]]:
        """What `star.modeling.generation.generate` does: `samples` completions for each prompt."""
        ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
        groups: list[list[Sample]] = [[] for _ in prompts]
        for number, places in enumerate(occurrences(prompts)):
            choices = self._complete(
                [ids[place] for place in places],
                n=samples,
                temperature=temperature,
                max_tokens=max_new_tokens,
                # A server draws the same for the same prompt and seed.
                seed=seed + number * samples,
                # The server would take the model's own top-k and top-p where none are given.
                top_p=1.0,
                top_k=-1,
                stop_token_ids=[tokenizer.eos_token_id],
                skip_special_tokens=False,
                return_token_ids=True,
            )
            for place, start in zip(places, range(0, len(choices), samples), strict=True):
                groups[place] = [_sample(choice, tokenizer) for choice in choices[start : start + samples]]
        return groups

    def top_k(self, sequences: list[Sequence], *, k: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The k most probable ids of each completion position, [T, K], and their log-probabilities, falling."""
        prompts = [sequence.prompt_ids + sequence.completion_ids for sequence in sequences]
        choices = self._complete(prompts, n=1, temperature=0.0, max_tokens=1, prompt_logprobs=k)
        found = []
        for sequence, choice in zip(sequences, choices, strict=True):
            positions = [
                {int(token): entry["logprob"] for token, entry in (position or {}).items()}
                for position in choice.get("prompt_logprobs") or []
            ]
            found.append(top_of_completion(positions, sequence, k=k, source=self.url))
        return found

    def _complete(self, prompts: list[list[int]], **settings: Any) -> list[dict[str, Any]]:
        answer = self._ask("POST", "completions", json={"model": self.model, "prompt": prompts, **settings})
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        if len(choices) != len(prompts) * settings["n"]:
            raise RuntimeError(f"{self.url} gave {len(choices)} completions for {len(prompts)} prompts")
        return choices

    def _ask(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        import requests

        try:
            response = self._session.request(method, f"{self.url}/{path}", timeout=TIMEOUT, **arguments)
        except requests.RequestException as error:
            raise InputError(
                f"the teacher's server at {self.url} does not answer ({type(error).__name__}): start it, or correct the URL; finished "
                "batches are kept"
            ) from error
        if not response.ok:
            raise InputError(f"{self.url}/{path} refused the request ({response.status_code}): {response.text[:300]!r}")
        return response.json()


def _sample(choice: dict[str, Any], tokenizer) -> Sample:
    """The completion with its end token, which servers leave out of the text and some out of the tokens."""
    finished = choice["finish_reason"] == "stop"
    ids = choice.get("token_ids")
    if ids is None:
        ids = tokenizer(choice["text"], add_special_tokens=False)["input_ids"]
    return ended_sample(ids, tokenizer, finished=finished)


def ended_sample(ids: Row[int], tokenizer, *, finished: bool) -> Sample:
    """The sample of a completion's tokens, which end with the end token when it is finished, whether they were given with it or not."""
    body = list(ids[:-1] if finished and ids and ids[-1] == tokenizer.eos_token_id else ids)
    text = tokenizer.decode(body, skip_special_tokens=False)
    return Sample(text, [*body, tokenizer.eos_token_id] if finished else body, finished)


def occurrences(prompts: list[str]) -> list[list[int]]:
    """Where each prompt stands for the first time, where for the second, and so on."""
    seen: Counter[str] = Counter()
    rounds: list[list[int]] = []
    for place, prompt in enumerate(prompts):
        if seen[prompt] == len(rounds):
            rounds.append([])
        rounds[seen[prompt]].append(place)
        seen[prompt] += 1
    return rounds


def top_of_completion(
    positions: list[dict[int, float]], sequence: Sequence, *, k: int, source: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k most probable ids at the completion's positions, [T, K], and their log-probabilities, falling.

    Args:
        positions: for every token of prompt and completion its candidates' log-probabilities; one more than k where the token itself is
            not among the k.
        source: who gave them, for the error.
    """
    positions = positions[len(sequence.prompt_ids) :]
    if len(positions) != len(sequence.completion_ids) or any(len(position) < k for position in positions):
        raise InputError(
            f"{source} gave fewer than {k} log-probs a token: start it with `--max-logprobs {k}`, or lower topk.top_k"
        )
    rows = [sorted(position.items(), key=lambda pair: (-pair[1], pair[0]))[:k] for position in positions]
    ids_TK = torch.tensor([[token for token, _ in row] for row in rows])
    return ids_TK, torch.tensor([[min(logprob, 0.0) for _, logprob in row] for row in rows])
