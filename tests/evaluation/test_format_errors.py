"""One reading of a valid answer: the rate, the mistakes, exact match, Sim-RL's log, `star call` and the gate agree."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import star.modeling.generation
import star.modeling.models
from star.chat import FormatError, parse_completion, render_target
from star.config.evaluation import Gate
from star.config.experiment import Config
from star.errors import InputError
from star.evaluation.candidate import Candidate
from star.evaluation.heldout import _outcome, ask_suite, score_heldout
from star.evaluation.journal import Journal
from star.evaluation.report import markdown_table, write_report
from star.modeling.inference import answer_request
from star.modeling.prompts import Prompt
from star.modeling.tokenizer import bootstrap_tokenizer
from star.registry.promotion.gate import check_scores
from star.rewards.breakdown import score_parts
from star.rewards.similarity import similarity_reward

PARAMETERS = {"type": "object", "properties": {"room": {"type": "string"}, "hours": {"type": "integer"}}}
TOOLS = [{"name": "reserve_room", "description": "Reserve a room", "parameters": PARAMETERS}]
CALL = render_target({"tool_calls": [{"name": "reserve_room", "arguments": {"room": "Birch", "hours": 2}}]})
REPLY = render_target({"content": "No tool can water the plants."})
UNCLOSED = CALL.removesuffix("\n</tool_call>")

pieces = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<tool_call",
        '{"name": "reserve_room"}',
        "<|im_end|>",
        "\n",
        "x",
    ]
)
texts = st.one_of(
    st.sampled_from([CALL, REPLY, UNCLOSED]),
    st.text(max_size=30),
    st.lists(pieces, max_size=6).map("".join),
    # Cut anywhere, as a limit of tokens cuts an answer.
    st.tuples(st.sampled_from([CALL, REPLY]), st.integers(0, 140)).map(lambda pair: pair[0][: pair[1]]),
    st.tuples(st.sampled_from([CALL, REPLY]), pieces, st.integers(0, 140)).map(
        lambda parts: parts[0][: parts[2]] + parts[1] + parts[0][parts[2] :]
    ),
)


def outcome(text: str, target: str, *, row_id: str = "room-1") -> dict:
    calls = parse_completion(target).tool_calls if target in (CALL, REPLY) else []
    messages = [{"role": "user", "content": "Birch, please"}, {"role": "assistant", "tool_calls": calls}]
    row = {"id": row_id, "kind": "simple", "source": "own", "messages": messages, "tools": TOOLS}
    answer = {"greedy": text, "samples": [text], "entropy": 0.0}
    return {"row": 0, **_outcome(row, Prompt(row_id, "", target, TOOLS), answer, set())}


def is_refused_by_parser(text: str) -> bool:
    try:
        parse_completion(text)
    except FormatError:
        return True
    return False


@given(text=texts, target=st.sampled_from([CALL, REPLY]))
def test_a_format_error_is_what_the_parser_refuses_wherever_it_is_shown(text: str, target: str) -> None:
    found, refused = outcome(text, target), is_refused_by_parser(text)
    assert found["format_error"] == float(refused)
    assert (found["mistake"] == "bad format") == refused
    assert (found["mistake"] is None) == bool(found["exact_match"])
    assert not (refused and (found["exact_match"] or found["passes"]))
    assert score_parts(text, target, TOOLS).format == 1 - found["format_error"]
    # The reward stays the official one, whatever the rate says.
    assert found["reward"] == similarity_reward(text, target, TOOLS).total
    scored = score_heldout([found], samples=1, seed=0)
    rate = scored.scores["format_errors"]["mean"]
    assert rate == sum(scored.details["mistakes"].get("bad format", {}).values())
    verdict = check_scores({"exact_match": 1.0, "format_errors": rate}, None, Gate(max_format_errors=0.5))
    assert verdict.passed != refused


@pytest.fixture(scope="module")
def empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@settings(max_examples=50)
@given(text=texts)
def test_star_call_refuses_every_format_error(empty_folder: Path, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # Only the model is replaced, by one that writes this text.
        patch.setattr(star.modeling.models, "load_model", lambda folder: None)
        patch.setattr(star.modeling.models, "load_tokenizer", lambda folder: bootstrap_tokenizer())
        patch.setattr(star.modeling.generation, "generate", lambda *_, **__: [[SimpleNamespace(text=text)]])
        try:
            answer_request("Birch, please", tools=TOOLS, model_folder=empty_folder)
            refused = False
        except FormatError:
            refused = True
    # A call of an unknown tool or argument is refused as well, and has a mistake of its own.
    mistake = outcome(text, CALL)["mistake"]
    assert refused == (mistake in ("bad format", "unknown tool", "unknown argument"))


def test_the_rate_counts_calls_that_are_cut(tmp_path: Path) -> None:
    outcomes = [outcome(text, CALL) for text in (CALL, UNCLOSED, UNCLOSED, REPLY)]
    scored = score_heldout(outcomes, samples=1, seed=0)
    assert scored.scores["format_errors"]["mean"] == 0.5
    assert scored.details["mistakes"] == {"bad format": {"simple": 2}, "reply instead of call": {"simple": 1}}
    # In the official reading, which is trained on, an unclosed call is no format error.
    assert scored.scores["mean_reward"]["mean"] == 0.25
    assert "| Mean reward (official reading) |" in markdown_table({"models": [{"name": "a", "scores": scored.scores}]})


def test_a_row_whose_target_cannot_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    broken = CALL.replace("</think>\n\n", "</think>\n\n</think>\n")
    outcomes = [outcome(CALL, CALL), outcome(CALL, broken, row_id="<broken>")]
    scored = score_heldout(outcomes, samples=1, seed=0)
    assert scored.scores["exact_match"]["mean"] == 1.0 and len(scored.outcomes) == 1
    [left_out] = scored.details["unscored"]
    assert left_out["id"] == "<broken>" and "think" in left_out["reason"]
    evaluation = {"models": [{"name": "a", "scores": scored.scores, **scored.details}]}
    assert "1 held-out row is left out of all scores" in markdown_table(evaluation)
    write_report(tmp_path / "report.html", evaluation)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (
        "1 held-out row is left out of all scores, because no answer can be right: " in page
        and "(&lt;broken&gt;)." in page
    )
    with pytest.raises(InputError, match="none of the 1 held-out rows can be scored: the target of row <broken>"):
        score_heldout(outcomes[1:], samples=1, seed=0)


def test_a_row_that_no_model_can_be_asked_is_left_out_and_named(tmp_path: Path, micro: Config) -> None:
    answer = {"role": "assistant", "content": "No."}
    messages = {"half-pair": [{"role": "user", "content": "\ud83d"}, answer], "no-question": [answer]}
    rows = [
        {"id": key, "messages": said, "tools": TOOLS, "source": "own", "kind": "x"} for key, said in messages.items()
    ]
    (tmp_path / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "train.jsonl").write_text("")
    journal = Journal(tmp_path / "journal.jsonl")
    outcomes = ask_suite(Candidate("a", None, bootstrap_tokenizer(), micro.evaluate, 7, journal), tmp_path)
    scored = score_heldout([outcome(CALL, CALL), *outcomes], samples=1, seed=0)
    assert scored.scores["exact_match"]["mean"] == 1.0
    assert scored.details["unscored"] == [
        {"id": "half-pair", "reason": "a text cannot be written as UTF-8"},
        {"id": "no-question", "reason": "there is no message to answer"},
    ]
