"""Fuzzes the reward and the parser with atheris, guided by coverage, until it finds an error or has done its runs.

    pip install atheris
    python benchmarks/reward_fuzz.py -runs=100000 -max_len=4096 -seed=1      # libFuzzer's options

A completion is made of the fuzzer's bytes, as they are or between the pieces of a valid completion. Every reward
scores it against a fixed target and against a fuzzed one. Findings, which end the run: any exception, a total outside
of its range, a completion that scores above the exact answer, a result of the strict parser that cannot be written as
JSON, and a score that takes longer than a second.
"""

import json
import sys
import time

import atheris

with atheris.instrument_imports(include=["star.chat", "star.rewards"]):
    from star.chat import FORMAT_TOKENS, FormatError, parse_completion, render_target
    from star.rewards.baselines import REWARDS, toolrl_reward
    from star.rewards.breakdown import score_parts
    from star.rewards.similarity import exact_match, similarity_reward

MAX_SECONDS = 1.0  # of CPU time
TOOLS = [
    {"name": "f", "parameters": {"type": "object", "properties": {"a": {}, "b": {}}}},
    {"name": "g", "parameters": {"a": {"type": "str"}}},
]
CALLS = [
    {"name": "f", "arguments": {"a": "running to Oslo", "b": 7}},
    {"name": "f", "arguments": {"a": [1, {"x": None}], "b": True}},
    {"name": "g", "arguments": {}},
]
TARGETS = [
    render_target({"tool_calls": CALLS}),
    render_target({"tool_calls": CALLS[:1]}),
    render_target({"content": "I cannot run that for you."}),
]
PIECES = [*FORMAT_TOKENS, "<|im_end|>", '{"name": "f", "arguments": ', '{"a": ', '"b": ', "NaN", "-Infinity", "1e999"]
PIECES += ["9" * 5000, "[" * 2000, "{}" * 50, "\\ud800", "\ud800", "}", "]", ",", '"', "y" * 300, *TARGETS]
RANGES = {"similarity": (-1, 1), "similarity-typed": (-1, 1), "binary": (-1, 1), "toolrl": (-3, 4)}


def completion_of(data: atheris.FuzzedDataProvider) -> str:
    """Makes a text of pieces and of the fuzzer's own characters."""
    kind = data.ConsumeIntInRange(0, 2)
    if kind == 0:
        return data.ConsumeUnicode(data.remaining_bytes())
    parts: list[str] = []
    while data.remaining_bytes() and len(parts) < 40:
        known = data.ConsumeIntInRange(0, 3)
        length = data.ConsumeIntInRange(0, 12)
        parts.append(data.PickValueInList(PIECES) if known else data.ConsumeUnicode(length))
    text = "".join(parts)
    return text if kind == 1 else f"<think>\n\n</think>\n\n<tool_call>\n{text}\n</tool_call>"


def check(data: bytes) -> None:
    """Raises for a finding. The fuzzer calls it with its bytes."""
    provider = atheris.FuzzedDataProvider(data)
    target = provider.PickValueInList(TARGETS)
    text = completion_of(provider)
    began = time.process_time()
    for name, reward in REWARDS.items():
        scored, best = reward(text, target, TOOLS), reward(target, target, TOOLS)
        low, high = RANGES[name]
        assert low <= scored.total <= high and 0 <= scored.content <= 1 and scored.format in (-1, 1), (name, scored)
        assert scored.total <= best.total, (name, scored, best)
    assert low <= toolrl_reward(target, text, TOOLS).total <= high  # a hostile target
    assert -1 <= similarity_reward(target, text, TOOLS).total <= 1
    assert similarity_reward(text, text, TOOLS).content in (0.0, 1.0) or "NaN" in text or "Infinity" in text
    assert exact_match(text, target, TOOLS) in (True, False)
    score_parts(text, target, TOOLS)
    try:
        completion = parse_completion(text)
    except FormatError:
        pass
    else:
        json.dumps(completion.tool_calls, ensure_ascii=False, allow_nan=False).encode()
    assert time.process_time() - began < MAX_SECONDS, "slow"


if __name__ == "__main__":
    similarity_reward("<think></think>running", "<think></think>runs", TOOLS)  # nltk takes seconds to import
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
