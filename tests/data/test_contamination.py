"""Decontamination: copies of a benchmark's rows are found however they are disguised; rows of one's own stay."""

import json
import os
from pathlib import Path

import pytest

from star.data.contamination import Benchmark
from star.errors import InputError

AREA = "Find the area of a triangle with a base of 10 units and height of 5 units."
WEATHER = "What is the weather in Paris?"
LONG = "Please book me a table for two people at the Italian restaurant near the old harbour tomorrow evening, and tell my wife."


def tool(name: str, *parameters: str) -> dict:
    return {
        "name": name,
        "description": "",
        "parameters": {"type": "object", "properties": {key: {} for key in parameters}},
    }


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "possible_answer").mkdir()
    rows = [
        {
            "id": "b0",
            "question": [[{"role": "user", "content": AREA}]],
            "function": [tool("triangle_area", "base", "height")],
        },
        {
            "id": "b1",
            "question": [[{"role": "user", "content": WEATHER}]],
            "function": [tool("weather.get", "city", "unit")],
        },
        {"id": "a2", "question": f"system: be brief\nuser: {LONG}\n", "function": [tool("book", "people", "when")]},
    ]
    (folder / "BFCL_v4_simple.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer = {"id": "b1", "ground_truth": [{"weather.get": {"city": ["Paris"], "unit": ["", "celsius"]}}]}
    (folder / "possible_answer" / "BFCL_v4_simple.json").write_text(json.dumps(answer))
    return Benchmark(folder)


def row(query: str, *tools: dict, **arguments: object) -> dict:
    calls = [{"name": tools[0]["name"], "arguments": arguments}] if tools else []
    messages = [{"role": "user", "content": query}, {"role": "assistant", "content": "", "tool_calls": calls}]
    return {"id": "r", "messages": messages, "tools": list(tools)}


@pytest.mark.parametrize(
    ("copied", "reason"),
    [
        (row(AREA, tool("triangle_area", "base", "height")), "contaminated_verbatim"),
        (row(AREA.upper() + "!", tool("renamed", "x")), "contaminated_verbatim"),
        (
            row(AREA.replace("10", "7").replace("5", "12.5"), tool("renamed", "x", "y"), x=7, y=12.5),
            "contaminated_near",
        ),
        (row("Hello! " + LONG + " Thank you.", tool("other", "a")), "contaminated_13gram"),
        (row(WEATHER.replace("Paris", "oslo"), tool("weather.get", "city", "unit"), city="oslo"), "contaminated_near"),
    ],
    ids=["verbatim", "renamed", "other-values", "inside", "short-with-its-tool"],
)
def test_copies_are_found(benchmark: Benchmark, copied: dict, reason: str) -> None:
    assert benchmark.check(copied)[0] == reason


@pytest.mark.parametrize(
    "own",
    [
        row(WEATHER.replace("Paris", "Oslo"), tool("forecast", "place"), place="Oslo"),
        row("Find the area of a circle whose radius is 4.", tool("circle", "radius"), radius=4),
        row("Track my parcel 4711, please.", tool("track", "number"), number=4711),
    ],
)
def test_rows_of_ones_own_stay(benchmark: Benchmark, own: dict) -> None:
    assert benchmark.check(own) is None


def test_overlaps_of_kept_rows_are_reported(benchmark: Benchmark) -> None:
    part = " ".join(LONG.split()[2:11])
    kept = row(f"Do {part}", tool("weather.get", "place"))
    assert benchmark.check(kept) is None
    assert list(benchmark.overlaps(kept)) == ["8-gram of a2", "tool name weather.get"]


def test_a_folder_without_a_benchmark_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no benchmark"):
        Benchmark(tmp_path)


@pytest.mark.slow
def test_nearly_all_planted_copies_of_bfcl_are_found() -> None:
    import importlib.util

    folder = os.environ.get("STAR_BFCL")
    if not folder:
        pytest.skip("set STAR_BFCL to bfcl_eval/data of the package bfcl-eval")
    script = Path(__file__).parents[2] / "benchmarks" / "data_decontamination.py"
    spec = importlib.util.spec_from_file_location("data_decontamination", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    known = Benchmark(Path(folder))
    found = [known.check(copied) is not None for _, _, copied in module.planted(Path(folder))]
    assert sum(found) / len(found) >= 0.95
