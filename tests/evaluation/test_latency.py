"""The measurement of the latency is bounded in answers, tokens and seconds."""

from pathlib import Path

import pytest

from star.config.evaluation import Evaluate
from star.evaluation.candidate import LATENCY_ANSWERS, LATENCY_TOKENS, Candidate
from star.evaluation.journal import Journal
from star.modeling.generation import Sample


@pytest.mark.parametrize(("seconds_per_token", "answers"), [(0.001, LATENCY_ANSWERS), (0.05, 2), (1.0, 1)])
def test_a_slow_model_is_asked_less_often(
    seconds_per_token: float, answers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, asked = [0.0], []

    def never_ends(_: object, prompts: list[str], *, max_new_tokens: int, **__: object) -> list[list[Sample]]:
        clock[0] += max_new_tokens * seconds_per_token
        asked.append((prompts, max_new_tokens))
        return [[Sample("", [1] * max_new_tokens, finished=False)] for _ in prompts]

    monkeypatch.setattr("star.evaluation.candidate.time.monotonic", lambda: clock[0])
    settings = Evaluate(max_new_tokens=512)
    candidate = Candidate("a", None, None, settings, 7, Journal(tmp_path / "a.jsonl"), sampler=never_ends)  # type: ignore[arg-type]
    candidate.generate(["first", "second"], samples=1, temperature=0.0, seed=7, max_new_tokens=512)
    del asked[0]
    assert candidate.measure_latency() == pytest.approx(LATENCY_TOKENS * seconds_per_token)
    warm_up, *measured = asked
    assert warm_up[1] < LATENCY_TOKENS
    assert [tokens for _, tokens in measured] == [LATENCY_TOKENS] * answers
    assert [prompts for prompts, _ in measured] == [[name] for name in ("first", "second") * answers][:answers]
