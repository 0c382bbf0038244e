"""Measures rewards per second on one core: `star.rewards.similarity.similarity_reward` beside the official formulation.

    python benchmarks/reward.py            # about half a minute on one core
    python benchmarks/reward.py --rows 50  # a quick look

The official formulation is written here in its plain form, with the prompt's text as input: it reads the tools from the
prompt, uses a lazy regular expression for each kind of block and rouge_score's own scorer (three measures, stemmed) for
every pair of strings, and caches nothing.

Both score the same completions of generated rows. Each target is answered eight times, as in a group of rollouts:
exactly, with a changed, missing or added argument, with a call too few or too many, with other words, and in a broken
format. Every turn has other rows, so that no completion was seen before. All values are compared. Times are CPU
seconds of this process.
"""

import argparse
import gc
import json
import random
import re
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from statistics import median

from rouge_score.rouge_scorer import RougeScorer

from star.chat import TOOLS_FOOTER, TOOLS_HEADER, render_target
from star.config.data import Data
from star.data.generate_offline import generate_rows
from star.data.tool_files import load_tools
from star.rewards.similarity import similarity_reward

TURNS = 5
GROUP = 8
WORDS = ("the", "requested", "cities", "running", "tomorrow", "evening", "please", "of", "weather", "conference")
rouge_scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


def official(completion: str, target: str, prompt: str) -> float:
    """Returns the total reward; -1 wherever the formulation raises."""
    try:
        parameters = read_tools(prompt)
        _, _, answer = target.partition("</think>")
        expected, reply = read_answer(answer.strip())
        if len(re.findall(r"<think>(.*?)</think>", completion, re.S)) != 1:
            return -1.0
        predicted, text = read_answer(completion.split("</think>")[-1].strip())
        if any(
            call["name"] not in parameters or set(call["arguments"]) - set(parameters[call["name"]])
            for call in predicted
        ):
            return -1.0
    except (ValueError, KeyError, TypeError):
        return -1.0
    if expected:
        return calls_score(predicted, expected) if predicted else 0.0
    return text_score(text, reply or "") if text else 0.0


def read_tools(prompt: str) -> dict[str, dict]:
    tools = [
        json.loads(line) for line in re.findall(r"<tools>(.*?)</tools>", prompt, re.S)[-1].split("\n") if line.strip()
    ]
    return {tool["name"]: tool["parameters"]["properties"] for tool in tools}


def read_answer(answer: str) -> tuple[list[dict], str | None]:
    if "<tool_call>" not in answer:
        return [], answer
    calls = [json.loads(block) for block in re.findall(r"<tool_call>(.*?)</tool_call>", answer, re.S)]
    return [{"name": call["name"], "arguments": call["arguments"]} for call in calls], None


def calls_score(predicted: list[dict], expected: list[dict]) -> float:
    unused = defaultdict(list)
    for call in expected:
        unused[call["name"]].append(call["arguments"])
    total = 0.0
    for call in predicted:
        candidates = unused[call["name"]]
        if candidates:
            scores = [arguments_score(call["arguments"], arguments) for arguments in candidates]
            best = scores.index(max(scores))
            total += scores[best]
            candidates.pop(best)
    return total / (len(predicted) + sum(map(len, unused.values())))


def arguments_score(predicted: dict, expected: dict) -> float:
    union = len(set(predicted) | set(expected))
    shared = sum(value_score(value, expected[key]) for key, value in predicted.items() if key in expected)
    return shared / union if union else 1.0


def value_score(predicted: object, expected: object) -> float:
    if isinstance(predicted, str) and isinstance(expected, str):
        return text_score(predicted, expected)
    if isinstance(predicted, int | float) and isinstance(expected, int | float):
        return float(predicted == expected)
    return float(str(predicted) == str(expected))


def text_score(predicted: str, expected: str) -> float:
    if predicted == expected:
        return 1.0
    if not predicted.strip() or not expected.strip():
        return 0.0
    return rouge_scorer.score(expected, predicted)["rougeL"].fmeasure


def completions(rows: list[dict], *, seed: int) -> Iterator[tuple[str, dict]]:
    """Yields GROUP completions per row, each with the row."""
    rng = random.Random(seed)  # noqa: S311 - a draw that can be repeated, no secret
    for row in rows:
        for _ in range(GROUP):
            yield render_sometimes_cut(change_message(row["messages"][-1], rng), rng), row


def prompt_of(row: dict) -> str:
    lines = "\n".join(json.dumps(tool) for tool in row["tools"])
    question = "\n".join(message["content"] for message in row["messages"][:-1])
    return f"{TOOLS_HEADER}{lines}{TOOLS_FOOTER}\n{question}"


def change_message(message: dict, rng: random.Random) -> dict:
    message = deepcopy(message)
    calls = message.get("tool_calls") or []
    if not calls:
        words = message["content"].split()
        message["content"] = " ".join(word if rng.random() < 0.7 else rng.choice(WORDS) for word in words)
        return message
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        arguments = rng.choice(calls)["arguments"]
        key = rng.choice([*arguments, None])
        if key is None:
            calls.append(deepcopy(rng.choice(calls))) if rng.random() < 0.5 else calls.pop(rng.randrange(len(calls)))
            if not calls:
                return {"content": "I cannot do that."}
        elif isinstance(arguments[key], str):
            arguments[key] = f"{arguments[key]} {rng.choice(WORDS)}"
        else:
            arguments.pop(key)
    return message


def render_sometimes_cut(message: dict, rng: random.Random) -> str:
    text = render_target(message)
    return text[: rng.randrange(len(text))] if rng.random() < 0.05 else text


def seconds_of(score: Callable, items: list[tuple]) -> float:
    began = time.process_time()
    for item in items:
        score(*item)
    return time.process_time() - began


def measure(tools: list[dict], count: int, *, seed: int) -> tuple[float, float]:
    """CPU seconds of the official formulation and of ours for `count` rows that neither has seen."""
    rows = list(generate_rows(tools, count, seed=seed))
    items = [(text, render_target(row["messages"][-1]), row) for text, row in completions(rows, seed=seed)]
    for_official = [(text, target, prompt_of(row)) for text, target, row in items]
    for_ours = [(text, target, row["tools"]) for text, target, row in items]
    gc.freeze()  # a full collection of what was imported takes longer than our turn, and would fall into one or another
    seconds = seconds_of(official, for_official), seconds_of(similarity_reward, for_ours)
    theirs = [struct.unpack("f", struct.pack("f", official(*item)))[0] for item in for_official]
    if theirs != [similarity_reward(*item).total for item in for_ours]:
        raise SystemExit("the two give different values: nothing is measured")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500, help="generated rows, each answered 8 times")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    tools = load_tools(Path(Data().tools.read_verified()))
    measure(tools, 10, seed=arguments.seed + TURNS)  # nltk takes seconds to import
    turns = [measure(tools, arguments.rows, seed=arguments.seed + turn) for turn in range(TURNS)]
    slow, fast = (median(column) for column in zip(*turns, strict=True))
    count = arguments.rows * GROUP
    print(
        f"{TURNS} turns of {count} completions of other rows each, all values equal; CPU time on one core, median turn"
    )
    print("| | rewards per second |\n|---|---:|")
    print(f"| official formulation | {count / slow:,.0f} |")
    print(f"| similarity_reward | {count / fast:,.0f} |")
    ratios = [slow / fast for slow, fast in turns]
    print(f"| ratio (median, range over the turns) | {median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) |")


if __name__ == "__main__":
    main()
