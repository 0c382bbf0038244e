"""One model evaluated by itself, two evaluations compared, an evaluation that was cut short: with real models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from star.config.experiment import Config
from star.data.rows import read_rows
from star.evaluation.candidate import Candidate
from star.evaluation.heldout import ask_heldout, score_heldout
from star.evaluation.journal import Journal
from star.folders.manifest import open_input
from star.modeling.models import load_model, load_tokenizer
from star.modeling.prompts import render_rows

MICRO = Path(__file__).parents[1] / "micro.yaml"


def star(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "star.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env={**os.environ, "COLUMNS": "160"}, capture_output=True, text=True)


@pytest.mark.slow
def test_a_model_alone_and_against_the_stages_teacher(finished: dict[str, Path], tmp_path: Path) -> None:
    common = ("--suite", "heldout", "--data", finished["synthesize"], "--config", MICRO)
    done = star("evaluate", "--model", finished["distill"], *common, "--out", "alone", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| Exact match |" in done.stdout
    open_input(tmp_path / "alone", stage="evaluate-model")
    alone = json.loads((tmp_path / "alone" / "evaluation.json").read_text())["models"][0]
    stages = json.loads((finished["evaluate"] / "evaluation.json").read_text())["models"]
    assert alone["scores"] == stages[1]["scores"]
    written = (tmp_path / "alone" / "manifest.json").stat().st_mtime_ns
    again = star("evaluate", "--model", finished["distill"], *common, "--out", "alone", cwd=tmp_path)
    assert again.stdout == done.stdout and (tmp_path / "alone" / "manifest.json").stat().st_mtime_ns == written

    compared = star("compare", f"{finished['evaluate']}:teacher", "alone", cwd=tmp_path)
    assert compared.returncode == 0, compared.stderr
    assert "Exact match" in compared.stdout and "First minus second" in compared.stdout
    wrong = star("compare", f"{finished['evaluate']}:nobody", "alone", cwd=tmp_path)
    assert wrong.returncode == 2 and "teacher, distilled, refined" in wrong.stderr


@pytest.fixture(scope="module")
def asked_model(finished: dict[str, Path], micro: Config) -> tuple:
    folder = finished["refine"]
    rows = list(read_rows(finished["synthesize"] / "heldout.jsonl"))
    tokenizer = load_tokenizer(folder)
    settings = micro.evaluate.model_copy(update={"batch_size": 3, "max_new_tokens": 4, "samples": 4})
    return load_model(folder), tokenizer, rows, render_rows(rows, tokenizer), settings


def test_what_was_answered_before_a_kill_is_not_generated_again(asked_model: tuple, tmp_path: Path) -> None:
    model, tokenizer, rows, prompts, settings = asked_model

    def asked(file: Path) -> tuple[list[dict], Candidate]:
        candidate = Candidate("small", model, tokenizer, settings, 7, Journal(file))
        return ask_heldout(candidate, rows, prompts, seen_tools=set()), candidate

    whole, first = asked(tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    assert (first.journal.asked, len(lines)) == (4, 4)
    (tmp_path / "cut.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:50])
    resumed, second = asked(tmp_path / "cut.jsonl")
    assert (second.journal.recalled, second.journal.asked) == (2, 2)
    assert 0 < second.tokens < first.tokens
    assert resumed == whole
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    by_kind = score_heldout(whole, samples=4, seed=7).details["by_kind"]
    assert by_kind["tool unseen in training"]["rows"] == sum(row["expected_call"] == "call" for row in whole)


def test_a_wide_model_reads_each_prompt_once_for_the_same_answers(
    asked_model: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer, rows, prompts, settings = asked_model
    read: list[tuple[int, int]] = []
    outcomes = []
    for width in (256, 1):
        monkeypatch.setattr("star.modeling.prompt_groups.MIN_WIDTH", width)
        candidate = Candidate("small", model, tokenizer, settings, 7, Journal(tmp_path / f"{width}.jsonl"))
        counter = model.get_input_embeddings().register_forward_hook(
            lambda _, given, __: read.append(tuple(given[0].shape))
        )
        outcomes.append(ask_heldout(candidate, rows, prompts, seen_tools=set()))
        counter.remove()
    narrow, wide = outcomes
    # A narrow model reads them once more, for the entropy.
    assert sum(count for count, length in read if length > 8) == (2 + 1) * len(prompts)
    assert [row.pop("entropy") for row in wide] == pytest.approx([row.pop("entropy") for row in narrow], rel=1e-4)
    assert wide == narrow


def test_a_prompt_longer_than_the_context_is_left_unanswered(asked_model: tuple, tmp_path: Path) -> None:
    model, tokenizer, _, prompts, settings = asked_model
    candidate = Candidate("small", model, tokenizer, settings, 7, Journal(tmp_path / "answers.jsonl"))
    short, long = candidate.reply("bfcl", [prompts[0].text, "word " * 5000])
    assert "text" in short
    assert "the model's context 4096" in long["error"]
