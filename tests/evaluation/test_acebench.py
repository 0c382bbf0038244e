"""ACEBench from a checkout: hand-made rows in its layout, a checker with its signature, conversations as units."""

import json
from pathlib import Path

import pytest

from star.config.evaluation import Evaluate
from star.errors import InputError
from star.evaluation.acebench import CATEGORIES, check_calls, read_category

CHECKER = """
def normal_checker(func_descriptions, model_output, possible_answer, question, test_category):
    print("noise on stdout")
    if test_category == "normal_atom_bool" and "crash" in question:
        raise KeyError("odd")
    return {"valid": model_output == [{name: value} for name, value in possible_answer.items()]}
"""
TOOL = {"name": "lamp", "description": "", "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}}}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "ACEBench"
    data = folder / "data_all" / "data_en"
    (data / "possible_answer").mkdir(parents=True)
    (folder / "model_eval").mkdir()
    (folder / "model_eval" / "checker.py").write_text(CHECKER)
    for category in CATEGORIES:
        keys = ["0_0", "0_1", "1_0"] if category.startswith("multi_turn") else ["0", "1", "2"]
        rows = [{"id": f"normal_{category}_{key}", "question": "user: light", "function": [TOOL]} for key in keys]
        answers = [{"id": row["id"], "ground_truth": {"lamp": {"on": True}}} for row in rows]
        for place, items in ((data, rows), (data / "possible_answer", answers)):
            (place / f"data_normal_{category}.json").write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder


def test_turns_of_a_conversation_stay_together(checkout: Path) -> None:
    rows = read_category(checkout, "multi_turn_user_switch", None)
    assert [row["conversation"].rpartition("_")[2] for row in rows] == ["0", "0", "1"]
    assert len(read_category(checkout, "multi_turn_user_switch", 1)) == 2
    assert len(read_category(checkout, "atom_bool", 2)) == 2


def test_the_checker_decides_and_what_it_raises_on_is_wrong(checkout: Path) -> None:
    rows = read_category(checkout, "atom_bool", None)
    rows[1]["question"] = "crash"
    right = {"lamp": {"on": True}}
    assert check_calls(rows, [[right], [right], []], checkout) == [True, False, False]
    assert check_calls(rows, [[{"lamp": {"on": False}}], [], [right]], checkout) == [False, False, True]


def test_a_folder_that_is_not_a_checkout_is_named(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        read_category(tmp_path / "nowhere", "atom_bool", None)
    rows = read_category(checkout, "atom_bool", 1)
    (checkout / "model_eval" / "checker.py").unlink()
    with pytest.raises(InputError, match="checker of"):
        check_calls(rows, [[{"lamp": {}}]], checkout)


def test_a_model_is_scored_by_conversation(checkout: Path, finished: dict[str, Path], micro, tmp_path: Path) -> None:
    from star.evaluation.acebench import ask_acebench, score_acebench
    from star.evaluation.candidate import Candidate
    from star.evaluation.evaluate import score_and_write
    from star.evaluation.gather import gather
    from star.evaluation.journal import Journal
    from star.folders.shard import Shard
    from star.modeling.models import load_model, load_tokenizer

    changed = {"limit": 1, "max_new_tokens": 2, "suites": ("acebench",), "acebench": str(checkout)}
    settings = Evaluate.model_validate({**micro.evaluate.model_dump(), **changed})
    folder, file = finished["refine"], tmp_path / "answers.jsonl"
    candidate = Candidate("small", load_model(folder), load_tokenizer(folder), settings, 7, Journal(file))
    found = score_acebench([ask_acebench(candidate, checkout)])
    assert {name: score["rows"] for name, score in found["categories"].items()} == dict.fromkeys(CATEGORIES, 1)
    assert found["scores"]["normal"]["mean"] == 0.0 < found["scores"]["normal"]["high"]

    config = micro.model_copy(update={"evaluate": settings})
    gathered = []
    for number in range(1, 14):  # one shard more than there are categories
        (state := tmp_path / str(number)).mkdir()
        gathered.append(gather({"small": folder}, None, config=config, state=state, title="", shard=Shard(number, 13)))
    assert gathered[-1].models[0].suites["acebench"] is None
    score_and_write(gathered, out=tmp_path)
    [model] = json.loads((tmp_path / "evaluation.json").read_text())["models"]
    assert model["acebench"]["categories"] == found["categories"]
    lines = [json.loads(line) for line in (tmp_path / "outcomes.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [verdict["id"] for verdict in found["verdicts"]]
