"""Finds rows that a benchmark also asks, so that what is trained on is not what is measured.

Read are BFCL's files (`question` as turns of messages, `function`, answers under `possible_answer/`) and ACEBench's (`question` as text,
`function`, answers likewise). A row is contaminated when one of its user turns

- is a turn of the benchmark word for word, or shares 13 words in a row with one (the usual measure since GPT-3), or
- is the same sentence with other values: what is left without numbers, quotations, names and the call's own values is alike
  (MinHash finds the candidates, Jaccard over words and pairs of words decides). Short sentences are common property ("What is the weather
  in"), so there the tool or its parameters must be the benchmark's too.

Kept rows that share 8 words in a row, or show a tool of a benchmark's name, are counted for the report: what this may have missed.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from star.data.read_records import read_records
from star.errors import InputError

LONG, SHORT = 13, 8  # words in a row
ALIKE = 0.7  # Jaccard similarity of two sentences without their values
ENOUGH_WORDS = 6  # of a sentence without its values, to be told apart by words alone
LEAST_WORDS = 4  # a shorter turn ("Yes, please do.") says nothing
BANDS, BAND_ROWS = 16, 4
WORD = re.compile(r"[^\W_]+(?:'[a-z]+)?")
QUOTED = re.compile(r"\"[^\"\n]{1,200}\"|'(?=\S)[^'\n]{1,200}(?<=\S)'(?!\w)|“[^”]{1,200}”|`[^`]{1,200}`")
NUMBER_WORDS = frozenset(
    [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "twenty",
        "thirty",
        "forty",
        "fifty",
        "hundred",
        "thousand",
        "million",
    ]
)


@dataclass(frozen=True)
class Item:
    """One user turn of a benchmark."""

    name: str
    words: tuple[str, ...]
    skeleton: tuple[str, ...]
    tools: frozenset[str]
    parameters: frozenset[frozenset[str]]


class Benchmark:
    """The turns of every benchmark file in a folder, indexed. Memory grows with the benchmark, not with the rows."""

    def __init__(self, folder: Path) -> None:
        """Reads the folder.

        Raises:
            InputError: it holds no benchmark file.
        """
        from datasketch import MinHash, MinHashLSH  # here: it takes a second to import

        self.items = list(_items(folder))
        if not self.items:
            raise InputError(f"{folder} holds no benchmark: give the folder with BFCL's or ACEBench's .json files")
        self.tool_names = frozenset(name for item in self.items for name in item.tools)
        self.whole: dict[int, int] = {}
        self.long: dict[int, int] = {}
        self.short: dict[int, int] = {}
        self._empty = MinHash(num_perm=BANDS * BAND_ROWS, seed=1)
        self._near = MinHashLSH(num_perm=BANDS * BAND_ROWS, params=(BANDS, BAND_ROWS))
        for number, item in enumerate(self.items):
            self.whole.setdefault(_hash(item.words), number)
            for width, grams in ((LONG, self.long), (SHORT, self.short)):
                for gram in _grams(item.words, width):
                    grams.setdefault(gram, number)
            if len(item.skeleton) >= 2:
                self._near.insert(number, self._minhash(item.skeleton))

    def check(self, row: dict) -> tuple[str, str] | None:
        """(reason, detail) where the row is contaminated; reasons: contaminated_verbatim, contaminated_13gram, contaminated_near."""
        asked = _Asked(row)
        for text in asked.turns:
            words = _words(text)
            if (number := self.whole.get(_hash(words))) is not None:
                item = self.items[number]
                if len(words) >= LEAST_WORDS or asked.tools & item.tools or asked.parameters & item.parameters:
                    return "contaminated_verbatim", f"a user turn is that of {item.name}"
            if (
                number := next((self.long[gram] for gram in _grams(words, LONG) if gram in self.long), None)
            ) is not None:
                return "contaminated_13gram", f"shares {LONG} words in a row with {self.items[number].name}"
            if found := self._nearest(_skeleton(text, asked.values), asked):
                item, alike = found
                return "contaminated_near", f"{alike:.2f} alike with {item.name} once the values are taken out"
        return None

    def overlaps(self, row: dict) -> Iterator[str]:
        """What a kept row shares with the benchmark, for the report."""
        for text in _Asked(row).turns:
            if (
                number := next((self.short[gram] for gram in _grams(_words(text), SHORT) if gram in self.short), None)
            ) is not None:
                yield f"{SHORT}-gram of {self.items[number].name}"
        for tool in row["tools"]:
            if tool["name"] in self.tool_names:
                yield f"tool name {tool['name']}"

    def _nearest(self, skeleton: tuple[str, ...], asked: "_Asked") -> tuple[Item, float] | None:
        if len(skeleton) < 2:
            return None
        mine = _features(skeleton)
        for number in sorted(self._near.query(self._minhash(skeleton))):
            item = self.items[number]
            theirs = _features(item.skeleton)
            alike = len(mine & theirs) / len(mine | theirs)
            if alike < ALIKE:
                continue
            known = min(len(skeleton), len(item.skeleton)) >= ENOUGH_WORDS
            if known or asked.tools & item.tools or asked.parameters & item.parameters:
                return item, alike
        return None

    def _minhash(self, skeleton: tuple[str, ...]) -> Any:
        minhash = self._empty.copy()
        minhash.update_batch([feature.encode() for feature in sorted(_features(skeleton))])
        return minhash


class _Asked:
    """What a row asks: its user turns, the values of its target's calls, and which tools it could call."""

    def __init__(self, row: dict) -> None:
        self.row = row
        self.turns = [
            message["content"] for message in row["messages"] if message["role"] == "user" and message.get("content")
        ]

    @cached_property
    def values(self) -> frozenset[str]:
        calls = (call for message in self.row["messages"] for call in message.get("tool_calls") or [])
        return _value_words([call["arguments"] for call in calls])

    @cached_property
    def tools(self) -> frozenset[str]:
        return frozenset(tool["name"] for tool in self.row["tools"])

    @cached_property
    def parameters(self) -> frozenset[frozenset[str]]:
        return _telling(frozenset(tool["parameters"]["properties"]) for tool in self.row["tools"])


def _telling(sets: Iterable[frozenset[str]]) -> frozenset[frozenset[str]]:
    """The sets of at least two names: one parameter alone (`city`) tells nothing."""
    return frozenset(names for names in sets if len(names) >= 2)


def _items(folder: Path) -> Iterator[Item]:
    files = sorted(file for kind in ("*.json", "*.jsonl") for file in folder.rglob(kind)) if folder.is_dir() else []
    answers: dict[str, Any] = {}
    for file in files:
        if "possible_answer" in file.parts:
            answers |= {
                record["id"]: record.get("ground_truth")
                for record in _objects(file)
                if isinstance(record.get("id"), str)
            }
    for file in files:
        if "possible_answer" in file.parts:
            continue
        for number, record in enumerate(_objects(file), start=1):
            if "question" not in record:
                continue
            name = str(record.get("id") or f"{file.stem}:{number}")
            tools = dict(_names(tool) for tool in record.get("function") or [] if isinstance(tool, dict))
            values = _value_words(answers.get(name))
            for text in _texts(record["question"]):
                words = _words(text)
                if words:
                    yield Item(name, words, _skeleton(text, values), frozenset(tools), _telling(tools.values()))


def _objects(file: Path) -> Iterator[dict]:
    for _, record in read_records(file):
        if isinstance(record, dict):
            yield record


def _names(tool: dict) -> tuple[str, frozenset[str]]:
    """(name, names of its parameters) of a benchmark's tool."""
    parameters = tool.get("parameters", tool.get("arguments"))
    parameters = parameters if isinstance(parameters, dict) else {}
    properties = parameters.get("properties", parameters)
    return str(tool.get("name")), frozenset(properties if isinstance(properties, dict) else ())


def _texts(question: Any) -> Iterator[str]:
    """The user's turns: BFCL has lists of messages in a list, ACEBench one text with `user:` and `system:` before the turns."""
    if isinstance(question, str):
        parts = re.split(r"(?m)^\s*(user|system|assistant)\s*:", question)
        turns = [turn for role, turn in zip(["user", *parts[1::2]], parts[::2], strict=False) if role == "user"]
        yield from (turn.strip() for turn in turns if turn.strip())
    elif isinstance(question, list):
        for part in question:
            yield from _texts(part)
    elif (
        isinstance(question, dict)
        and question.get("role", "user") == "user"
        and isinstance(question.get("content"), str)
    ):
        yield question["content"]


def _value_words(answer: Any) -> frozenset[str]:
    """The words of all values in calls or in BFCL's answers; those of keys are no values."""
    found: set[str] = set()
    waiting = [answer]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and len(value) <= 500:
            found.update(_words(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.update(_words(json.dumps(value)))
    return frozenset(found)


def _words(text: str) -> tuple[str, ...]:
    return tuple(WORD.findall(text.casefold()))


def _skeleton(text: str, values: frozenset[str]) -> tuple[str, ...]:
    """The words of a sentence without what may differ from one use to the next."""
    left = []
    for sentence in re.split(r"(?<=[.!?])\s+|\n+", QUOTED.sub(" ", text)):
        for place, found in enumerate(WORD.finditer(sentence)):
            word = found[0]
            low = word.casefold()
            a_name = place > 0 and word[0].isupper() and word != "I"
            if a_name or low in NUMBER_WORDS or any(letter.isdigit() for letter in word):
                continue
            if low in values and low not in COMMON:
                continue
            left.append(low)
    return tuple(left)


# Words that a value may hold without being one: taking them out would leave different holes in two copies of a sentence.
COMMON = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "by",
        "can",
        "do",
        "for",
        "from",
        "have",
        "how",
        "i",
        "in",
        "is",
        "it",
        "me",
        "my",
        "of",
        "on",
        "or",
        "please",
        "that",
        "the",
        "this",
        "to",
        "what",
        "with",
        "you",
    ]
)


def _features(skeleton: tuple[str, ...]) -> set[str]:
    return {*skeleton, *map(" ".join, zip(skeleton, skeleton[1:], strict=False))}


def _grams(words: tuple[str, ...], width: int) -> Iterator[int]:
    return (_hash(words[start : start + width]) for start in range(len(words) - width + 1))


def _hash(words: tuple[str, ...]) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest())
