"""Whatever stands in the texts, documents and folders that others give beside data sets: an error of one kind, soon, and in little memory.

Read are: answers of models and what is scored of them, answers of servers, configurations, model folders, manifests, records of the ledger,
statistics of data sets and their cards, spools of events. The inputs run in a child process with a limit of its memory. By hand:
`python -m tests.test_foreign_documents 20000`. The files of tools and rows have a test of their own, tests/data/test_foreign_input.py.
"""

import copy
import json
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from star.call_blocks import FormatError, begins_call
from star.chat import parse_completion, parse_target, prompt_opening, tool_parameters, validate_calls
from star.cluster import pipeline_end
from star.cluster.run_tasks import read_run
from star.cluster.workflow_nodes import Workflow
from star.config.files import packaged_file
from star.config.load import load_config
from star.config.model_files import digest_of_model_folder, named_shards, refuse_unsafe_weights
from star.data import endpoint
from star.data.data_card import html_card, markdown_card
from star.data.llm_gates import find_fault_in_any_turn, parse_row, parse_verdict
from star.data.set_statistics import SetStatistics
from star.data.write_set import read_statistics
from star.errors import InputError
from star.folders.manifest import open_input, read_manifest
from star.modeling import trial_child
from star.registry.promotion.records import Attempt, DamagedRecordError, Decision, parse_record
from star.rewards.similarity import exact_match, similarity_reward, similarity_typed_reward
from star.tracking.spool import Spool
from tests.foreign_inputs import read_many, read_many_in_a_child

TAGS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<|im_end|>",
    "<tool_response>",
    "```json\n",
    "[f(x=1)]",
    "Action:",
    "\n",
    " ",
]
PIECES = [
    *TAGS, '{"name": "f", "arguments": {"x": "a"}}', '{"name": "f", "arguments": ', "[" * 3000, '{"a":' * 3000, "9" * 5000, "1e999", "NaN",
    "\ud800", "\x00", "a" * 100_000, "<think>" * 3000, "<tool_call>" * 3000, "{" * 200, '"', "\\", "\u00e9" * 50, "x y z " * 20_000,
]  # fmt: skip
NUMBERS = [0, -1, 10**11, 10**400, 1e308, float("nan"), float("inf"), 2**63, 0.1, True, None]
TOOL = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "string", "pattern": "^(a|a)*$"}}}}
TINY = yaml.safe_load(packaged_file("tiny.yaml").read_text(encoding="utf-8"))
ATTEMPT = Attempt("promote", 3, 0, "reason", registry="r")
CHOICE = {"message": {"content": '{"query": "q", "calls": []}', "role": "assistant"}, "finish_reason": "stop"}
TASK = {"display_name": "exit-handler-1", "state": "SUCCEEDED"}
CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "vocab_size": 9,
    "transformers_weights": "model.safetensors",
}
SEEDS: dict[str, list] = {
    "completion": ["<think>\na\n</think>\n\n<tool_call>\n" + '{"name": "f", "arguments": {"x": "a"}}' + "\n</tool_call>"],
    "configuration": [TINY, {"extends": "tiny", "data": {"generated_rows": 9}}],
    "manifest": [{"stage": "synthesize", "fingerprint": "a", "files": [{"path": "a.txt", "size": 1, "sha256": "00"}]}],
    "ledger": [asdict(ATTEMPT), asdict(Decision(1, {"champion": 3}, ATTEMPT, "p", "r"))],
    "answer": [{"choices": [CHOICE], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}],
    "written row": [{"query": "q", "calls": [{"name": "f", "arguments": {"x": "a"}}], "reply": "r", "ok": True}],
    "pipeline": [{"state_history": [{"state": "RUNNING"}], "run_details": {"task_details": [TASK]}}],
    "statistics": [SetStatistics(read=3, rows=2).to_json() | {"kinds": {"simple": 2}, "uncalled": {"f": "why"}}],
    "events": [{"at": 1, "kind": "metric", "values": {"a": 1}}],
    "model folder": [CONFIG, {"weight_map": {"a": "model-1.safetensors"}},
                     {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}],
}  # fmt: skip


def _nested(inner: Any, depth: int) -> Any:
    for _ in range(depth):
        inner = [inner] if depth % 2 else {"a": inner}
    return inner


LEAVES = (
    st.sampled_from(NUMBERS)
    | st.sampled_from(PIECES)
    | st.text(max_size=6)
    | st.builds(_nested, st.sampled_from([1, "a"]), st.integers(1, 700))
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def foreign(draw: st.DrawFn) -> tuple[str, bytes]:
    """(what it is given as, content)."""
    kind = draw(st.sampled_from(sorted(SEEDS)))
    if kind == "completion":
        text = "".join(
            draw(st.lists(st.sampled_from(PIECES) | st.text(max_size=5) | st.sampled_from(SEEDS[kind]), max_size=9))
        )
        return kind, text.encode("utf-8", "surrogatepass")
    value = copy.deepcopy(draw(st.sampled_from(SEEDS[kind])))
    for _ in range(draw(st.integers(0, 3))):
        node = value
        while draw(st.booleans()):
            inner = [
                part for part in (node.values() if isinstance(node, dict) else node) if isinstance(part, dict | list)
            ]
            node = draw(st.sampled_from([part for part in inner if part] or [node]))
        if isinstance(node, dict):
            node[draw(st.sampled_from([*node, "x"]))] = draw(VALUES)
        else:
            node.insert(0, draw(VALUES))
    try:
        text = yaml.safe_dump(value) if kind == "configuration" and draw(st.booleans()) else json.dumps(value)
    except (RecursionError, ValueError, yaml.YAMLError):
        text = "["
    content = text.encode("utf-8", "surrogatepass")
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        place = draw(st.integers(0, len(content)))
        junk = draw(
            st.binary(max_size=3)
            | st.sampled_from([b"[" * 50_000, b'{"a":' * 20_000, b"9" * 5000, b"&a [*a]", b"!!int x", b"\x00", b"\n"])
        )
        content = content[:place] + junk + content[place + draw(st.integers(0, 9)) :]
    return kind, content


def _score(folder: Path, content: bytes) -> None:
    text = content.decode("utf-8", "surrogatepass")
    for strict in (True, False):
        for parse in (parse_completion, parse_target):
            with suppress(FormatError):
                validate_calls(parse(text, strict=strict), [TOOL])
    begins_call(text)
    prompt_opening(text)
    for score in (similarity_reward, similarity_typed_reward, exact_match):
        score(text, SEEDS["completion"][0], [TOOL])
        score(SEEDS["completion"][0], text, [TOOL])
    with suppress(FormatError, ValueError, RecursionError):
        tool_parameters(json.loads(content))


def _configure(folder: Path, content: bytes) -> None:
    (folder / "c.yaml").write_bytes(content)
    load_config(folder / "c.yaml")


def _read_manifest(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    read_manifest(folder)
    open_input(folder, stage="synthesize")


def _read_record(folder: Path, content: bytes) -> None:
    for kind in (Attempt, Decision):
        with suppress(DamagedRecordError):
            assert parse_record(content.decode(errors="surrogateescape"), kind).registry is not None


def _read_answer(folder: Path, content: bytes) -> None:
    parse_verdict(endpoint._answer(content, attempts=1))


def _read_row(folder: Path, content: bytes) -> None:
    text = content.decode(errors="surrogateescape")
    parse_verdict(endpoint.Answer(text, 0, 0, 1, ""))
    row = parse_row(text, "simple", [{**TOOL, "description": ""}], identity="a")
    json.dumps(row, allow_nan=False).encode()
    find_fault_in_any_turn(row)


def _read_state(folder: Path, content: bytes) -> None:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):  # the client's to find
        return
    with suppress(*pipeline_end.ERRORS):  # what its only caller expects
        pipeline_end.end_of(document, read_run(document, plan=[], workflow=Workflow()))


def _read_statistics(folder: Path, content: bytes) -> None:
    (folder / "figures.json").write_bytes(content)
    statistics = read_statistics(folder)
    html_card(statistics)
    markdown_card(statistics)


def _read_events(folder: Path, content: bytes) -> None:
    (folder / "events.jsonl").write_bytes(content + b"\n")
    Spool(folder).unsent_events()


def _read_model(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    (folder / "model.safetensors.index.json").write_bytes(content)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(content)) + content)
    for check in (named_shards, refuse_unsafe_weights, digest_of_model_folder):
        with suppress(InputError):
            check(folder)
    with trial_child._step("weights"):
        trial_child._sizes_of_weights(folder, [])
    with trial_child._step("config.json"):
        trial_child._check_sizes(trial_child._read_json(folder / "config.json"), elements=6, tensors=1)


READERS: dict[str, Callable[[Path, bytes], None]] = {
    "completion": _score, "configuration": _configure, "manifest": _read_manifest, "ledger": _read_record, "answer": _read_answer,
    "written row": _read_row, "pipeline": _read_state, "statistics": _read_statistics, "events": _read_events, "model folder": _read_model,
}  # fmt: skip
EXPECTED = {"answer": ValueError, "written row": ValueError, "model folder": trial_child.Refused}


def read(folder: Path, kind: str, content: bytes) -> None:
    with suppress(InputError, EXPECTED.get(kind, InputError)):
        READERS[kind](folder, content)


@pytest.mark.parametrize("count", [pytest.param(300, id="300"), pytest.param(2000, id="2000", marks=pytest.mark.slow)])
def test_no_document_of_others_hangs_or_ends_a_command(count: int) -> None:
    read_many_in_a_child("tests.test_foreign_documents", count)


if __name__ == "__main__":
    read_many(foreign(), read, count=int(sys.argv[1]))
