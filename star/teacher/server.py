"""The teacher behind an OpenAI-compatible server (`vllm serve TEACHER --max-logprobs 100`): sampling, and the top-k of given completions.

T completion tokens, K teacher ids a token.
"""

from pathlib import Path
from typing import Any

import torch

from star.errors import InputError
from star.generation import Sample, Sequence

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

    def vocab_size(self, teacher: Path) -> int:
        """The width of the teacher's logits, from the configuration in its folder."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(teacher, trust_remote_code=False).get_text_config().vocab_size

    def generate(
        self, tokenizer, prompts: list[str], *, samples: int, temperature: float, max_new_tokens: int, seed: int
    ) -> list[list[Sample]]:
        """What `star.generation.generate` does: `samples` completions for each prompt."""
        choices = self._complete(
            tokenizer(prompts, add_special_tokens=False)["input_ids"],
            n=samples,
            temperature=temperature,
            max_tokens=max_new_tokens,
            seed=seed,
            # The server would take the model's own top-k and top-p where none are given.
            top_p=1.0,
            top_k=-1,
            stop_token_ids=[tokenizer.eos_token_id],
            skip_special_tokens=False,
            return_token_ids=True,
        )
        made = [_sample(choice, tokenizer) for choice in choices]
        return [made[start : start + samples] for start in range(0, len(made), samples)]

    def top_k(self, sequences: list[Sequence], *, k: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The k most probable ids of each completion position, [T, K], and their log-probabilities, falling."""
        prompts = [sequence.prompt_ids + sequence.completion_ids for sequence in sequences]
        choices = self._complete(prompts, n=1, temperature=0.0, max_tokens=1, prompt_logprobs=k)
        found = []
        for sequence, choice in zip(sequences, choices, strict=True):
            positions = (choice.get("prompt_logprobs") or [])[len(sequence.prompt_ids) :]
            if len(positions) != len(sequence.completion_ids) or any(len(position) < k for position in positions):
                raise InputError(
                    f"{self.url} gave fewer than {k} log-probs a token: start it with `--max-logprobs {k}`, or lower topk.top_k"
                )
            rows = [_top_of(position, k) for position in positions]
            ids_TK = torch.tensor([[token for token, _ in row] for row in rows])
            found.append((ids_TK, torch.tensor([[logprob for _, logprob in row] for row in rows])))
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
    body = ids[:-1] if finished and ids and ids[-1] == tokenizer.eos_token_id else ids
    text = tokenizer.decode(body, skip_special_tokens=False)
    return Sample(text, [*body, tokenizer.eos_token_id] if finished else body, finished)


def _top_of(position: dict[str, dict[str, float]], k: int) -> list[tuple[int, float]]:
    # One more than k is given where the token itself is not among the k.
    pairs = [(int(token), min(entry["logprob"], 0.0)) for token, entry in position.items()]
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:k]
