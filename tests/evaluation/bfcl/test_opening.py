"""A model whose chat template opens the answer is asked BFCL's prompts with that opening."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from star.chat import CHAT_TEMPLATE
from star.config.evaluation import Evaluate
from star.evaluation.bfcl import run
from star.evaluation.candidate import Candidate
from star.evaluation.journal import Journal
from star.folders.shard import Shard
from star.modeling.models import load_model, load_tokenizer
from star.modeling.tokenizer import bootstrap_tokenizer

PROMPT = "<|im_start|>user\nPing.<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("opens", [True, False])
def test_the_harness_gets_the_whole_completion(
    finished: dict[str, Path], thinking_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opens: bool
) -> None:
    model = thinking_teacher if opens else finished["refine-teacher"]
    replies: list[dict[str, str]] = []
    # The harness needs an environment of its own; here it asks one question and scores nothing.
    monkeypatch.setattr(run, "run_harness", lambda answer, **_: replies.extend(answer([{"prompt": PROMPT}])))
    settings, journal = Evaluate(max_new_tokens=4), Journal(tmp_path / "journal")
    candidate = Candidate("model", load_model(model), load_tokenizer(model), settings, 7, journal)
    run.ask_suite(candidate, None)
    assert candidate.first_prompts == [PROMPT + "<think>\n" * opens]
    assert replies[0]["text"].startswith("<think>\n") or not opens


def test_a_family_with_a_bos_has_it_before_the_harness_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = bootstrap_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.chat_template = "{{- bos_token }}" + CHAT_TEMPLATE
    asked: list[str] = []
    monkeypatch.setattr(run, "run_harness", lambda answer, **_: answer([{"prompt": PROMPT}]))
    candidate: Any = SimpleNamespace(
        name="model",
        settings=Evaluate(),
        shard=Shard(),
        tokenizer=tokenizer,
        reply=lambda suite, prompts: asked.extend(prompts),
    )
    run.ask_suite(candidate, None)
    assert asked == ["<|endoftext|>" + PROMPT]
