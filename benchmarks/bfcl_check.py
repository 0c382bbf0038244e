"""Checks the BFCL evaluation end to end: the ground truth must score near 1, a model that never calls the known floor.

    python benchmarks/bfcl_check.py                 # all 17 categories, a few minutes
    python benchmarks/bfcl_check.py --limit 20      # 20 entries per category

The ground truth is read from the environment of BFCL's harness and written as the tool calls that a Qwen model would
write. From there it goes the way of any model's text: handler, simulators, checkers.
"""

import argparse
import ast
import json
from collections.abc import Iterator

from star.chat import render_target
from star.config.bfcl_categories import CATEGORIES, IRRELEVANCE, MULTI_TURN, SIMPLE
from star.evaluation.bfcl.environment import harness_python
from star.evaluation.bfcl.run import Query, Reply, evaluate_bfcl

Call = dict


def never_call(queries: list[Query]) -> list[Reply]:
    """A model that answers every prompt with a refusal."""
    return [{"text": render_target({"content": "I cannot do that."})} for _ in queries]


class GroundTruth:
    """A model that knows the answers. In each turn it writes all calls at once, then replies."""

    def __init__(self) -> None:
        [self.data] = (harness_python().parent.parent / "lib").glob("python*/site-packages/bfcl_eval/data")
        self.turns: dict[str, list[list[Call]]] = {}
        for category in CATEGORIES:
            entries = self._read(f"BFCL_v4_{category}.json")
            answers = {} if category in (*IRRELEVANCE, "live_relevance") else self._answers(category)
            for entry in entries:
                self.turns[entry["id"]] = list(self._turns(category, entry, answers.get(entry["id"])))
        self.texts: dict[str, Iterator[str]] = {}

    def __call__(self, queries: list[Query]) -> list[Reply]:
        return [{"text": next(self.texts.setdefault(query["id"], self._texts(query["id"])))} for query in queries]

    def _texts(self, key: str) -> Iterator[str]:
        for calls in self.turns[key]:
            if calls:
                yield render_target({"tool_calls": calls})
            yield render_target({"content": "Done."})

    def _turns(self, category: str, entry: dict, answer: list | None) -> Iterator[list[Call]]:
        if category in MULTI_TURN:
            names = self._parameter_names(entry["involved_classes"])
            yield from ([_parse_call(text, names) for text in turn] for turn in answer or [])
        elif category in IRRELEVANCE:
            yield []
        elif category == "live_relevance":
            yield [{"name": entry["function"][0]["name"], "arguments": {}}]
        else:
            functions = {function["name"]: function["parameters"]["properties"] for function in entry["function"]}
            calls = ((name, options) for call in answer or [] for name, options in call.items())
            yield [
                {"name": name, "arguments": _arguments(options, functions[name], category)} for name, options in calls
            ]

    def _parameter_names(self, classes: list[str]) -> dict[str, list[str]]:
        """The names of every function's parameters in order, because some answers pass arguments by position."""
        files = {"GorillaFileSystem": "gorilla_file_system", "MathAPI": "math_api", "MessageAPI": "message_api"}
        files |= {"TwitterAPI": "posting_api", "TicketAPI": "ticket_api", "TradingBot": "trading_bot"}
        files |= {"TravelAPI": "travel_booking", "VehicleControlAPI": "vehicle_control"}
        functions = [item for name in classes for item in self._read(f"multi_turn_func_doc/{files[name]}.json")]
        return {function["name"]: list(function["parameters"]["properties"]) for function in functions}

    def _answers(self, category: str) -> dict[str, list]:
        return {row["id"]: row["ground_truth"] for row in self._read(f"possible_answer/BFCL_v4_{category}.json")}

    def _read(self, name: str) -> list[dict]:
        return [json.loads(line) for line in (self.data / name).read_text(encoding="utf-8").splitlines() if line]


def _parse_call(text: str, names: dict[str, list[str]]) -> Call:
    """Parses a call that is written in Python, such as `cd(folder='documents')`."""
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name), text
    by_position = zip(names[call.func.id], map(ast.literal_eval, call.args), strict=False)
    by_name = ((keyword.arg, ast.literal_eval(keyword.value)) for keyword in call.keywords)
    return {"name": call.func.id, "arguments": {**dict(by_position), **dict(by_name)}}


def _arguments(options: dict[str, list], parameters: dict[str, dict], category: str) -> dict:
    """Chooses an accepted value for every argument. An argument that must be absent is left out."""
    chosen = {name: _first(values) for name, values in options.items() if values and values != [""]}
    if category in SIMPLE[1:]:
        write = _java if category == "simple_java" else _javascript
        return {name: write(value, parameters[name]) for name, value in chosen.items()}
    return chosen


def _first(values: list) -> object:
    """Returns the first accepted value. In an object every key has a list of accepted values of its own."""
    return _plain(next((value for value in values if value != ""), ""))


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {name: _first(values) for name, values in value.items() if isinstance(values, list) and values != [""]}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _java(value: object, parameter: dict) -> str:
    kind, nested = parameter["type"], parameter.get("items", {}).get("type")
    if isinstance(value, str):
        return value
    if isinstance(value, list) and kind == "Array":
        return f"new Object[]{{{', '.join(_java_literal(item, nested, quote=nested is None) for item in value)}}}"
    if isinstance(value, list):
        items = ", ".join(_java_literal(item, nested) for item in value)
        return f"new ArrayList<>(Arrays.asList({items}))" if value else "new ArrayList<>()"
    if isinstance(value, dict):
        puts = " ".join(f'put("{key}", {_java_literal(item, None)});' for key, item in value.items())
        return f"new HashMap<>() {{{{ {puts} }}}}"
    return _java_literal(value, kind)


def _java_literal(value: object, kind: str | None, *, quote: bool = True) -> str:
    if isinstance(value, str):
        return f'"{value}"' if quote else value
    return json.dumps(value) + {"long": "L", "float": "f"}.get(kind or "", "")


def _javascript(value: object, parameter: dict) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | list | dict):
        return json.dumps(value)
    return f"{value}n" if parameter["type"] == "Bigint" else str(value)


def check(limit: int | None) -> None:
    truth = evaluate_bfcl(GroundTruth(), label="ground truth", limit=limit)
    silent = evaluate_bfcl(never_call, label="never calls", limit=limit)
    print(
        f"{truth['package']}, data {truth['data']} {truth['data_sha256'][:12]}, network closed: {truth['isolated']}\n"
    )
    print("| score | ground truth | never calls | floor by formula |\n|---|---:|---:|---:|")
    for name, score in truth["scores"].items():
        print(f"| {name} | {score['mean']:.4f} | {silent['scores'][name]['mean']:.4f} | {silent['floor'][name]:.4f} |")
    print("\n| category | entries | ground truth | never calls |\n|---|---:|---:|---:|")
    for name, score in truth["categories"].items():
        print(f"| {name} | {score['rows']} | {score['mean']:.4f} | {silent['categories'][name]['mean']:.4f} |")
    print("\nLost by the ground truth: " + ", ".join(v["id"] for v in truth["verdicts"] if not v["valid"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="entries per category")
    check(parser.parse_args().limit)
