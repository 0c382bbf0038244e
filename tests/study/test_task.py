"""The study's task: its tools, and that every kind of request is held out with tools that no model has seen."""

from collections import Counter
from pathlib import Path

from star.config.load import load_config
from star.data.rows import read_rows
from star.data.splits import tool_identity
from star.data.synthesize import make_data_set
from star.data.tool_files import load_tools
from star.study.task import OBJECTS, TOOLS, VERBS, make_tools, tools_file

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "configs" / "study-tools.json"


def test_the_tools_file_is_up_to_date() -> None:
    assert FILE.read_text(encoding="utf-8") == tools_file(), "run: python -m star.study.task > configs/study-tools.json"


def test_every_word_comes_in_many_tools() -> None:
    """So a held-out tool is a new combination of words that training has."""
    tools = load_tools(FILE)
    assert len({tool_identity(tool) for tool in tools}) == len(tools) == TOOLS == len(make_tools())
    verbs, things = zip(*(tool["name"].split("_") for tool in tools), strict=True)
    assert set(verbs) == set(VERBS) and set(things) == set(OBJECTS)
    assert min(Counter(verbs).values()) > 5 and min(Counter(things).values()) > 5


def test_all_kinds_of_requests_are_held_out_with_new_tools(tmp_path: Path) -> None:
    profile = load_config("study-tiny")
    data = profile.data.model_copy(update={"generated_rows": 1400, "heldout_rows": 120})
    for name in ("out", "state"):
        (tmp_path / name).mkdir()
    make_data_set(data, seed=profile.seed, out=tmp_path / "out", state=tmp_path / "state")
    train, held = (list(read_rows(tmp_path / "out" / f"{name}.jsonl")) for name in ("train", "heldout"))
    assert len(held) == 120
    seen = {tool_identity(tool) for row in train for tool in row["tools"]}
    assert all(any(tool_identity(tool) not in seen for tool in row["tools"]) for row in held)
    assert {row["kind"] for row in held} == {kind for kind, weight in data.kinds.items() if weight}
