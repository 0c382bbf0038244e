"""Finds training rows that ask what a benchmark asks, so that a model is not trained on what it is measured by.

Reads BFCL's files (`question` as turns of messages, `function`, answers under `possible_answer/`) and ACEBench's (`question` as text,
`function`, answers likewise). A row is contaminated when one of its user turns

- is a turn of the benchmark word for word, or shares 13 words in a row with one (the usual measure since GPT-3), or
- is the same sentence with other values. The sentences are compared by their skeletons: the words without numbers, quotations, names and
  the values of the call. "Book a table for 4 at Luigi's in Rome" and "Book a table for 2 at Mario's in Oslo" both have the skeleton
  "book a table for at in". MinHash finds candidates; the Jaccard similarity of words and word pairs decides. Short sentences ("What is the
  weather in") are common, so for them the tool or its parameters must be the benchmark's too.

Kept rows that share 8 words in a row with the benchmark, or show a tool of the same name, are counted as overlaps for the card.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from star.data.read_records import read_records
from star.errors import InputError

LONG_NGRAM, SHORT_NGRAM = 13, 8  # lengths in words: rejected, counted as an overlap
MIN_SIMILARITY = 0.7  # Jaccard similarity of two sentences without their values
MIN_SKELETON_WORDS = 6  # a shorter skeleton needs the same tool or parameters as well
MIN_TURN_WORDS = 4  # a shorter turn ("Yes, please do.") needs the same tool or parameters as well
BANDS, BAND_ROWS = 16, 4
WORD = re.compile(r"[^\W_]+(?:'[a-z]+)?")
QUOTED = re.compile(r"\"[^\"\n]{1,200}\"|'(?=\S)[^'\n]{1,200}(?<=\S)'(?!\w)|“[^”]{1,200}”|`[^`]{1,200}`")
NUMBER_WORDS = frozenset([
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "twenty", "thirty", "forty", "fifty", "hundred", "thousand", "million"
])  # fmt: skip


@dataclass(frozen=True)
class BenchmarkTurn:
    """One user turn of a benchmark."""

    name: str
    words: tuple[str, ...]
    skeleton: tuple[str, ...]
    tools: frozenset[str]
    parameters: frozenset[frozenset[str]]


class Benchmark:
    """An index of the user turns of all benchmark files in a folder. Memory grows with the benchmark, not with the rows."""

    def __init__(self, folder: Path) -> None:
        """Reads the folder.

        Raises:
            InputError: it holds no benchmark file.
        """
        from datasketch import MinHash, MinHashLSH  # imported here because it takes a second

        self.turns = list(_benchmark_turns(folder))
        if not self.turns:
            raise InputError(f"{folder} holds no benchmark: give the folder with BFCL's or ACEBench's .json files")
        self.tool_names = frozenset(name for turn in self.turns for name in turn.tools)
        self._whole_turns: dict[int, int] = {}
        self._long_ngrams: dict[int, int] = {}
        self._short_ngrams: dict[int, int] = {}
        self._empty = MinHash(num_perm=BANDS * BAND_ROWS, seed=1)
        self._near = MinHashLSH(num_perm=BANDS * BAND_ROWS, params=(BANDS, BAND_ROWS))
        for number, turn in enumerate(self.turns):
            # The first turn with these words is the one that a reject names.
            self._whole_turns.setdefault(_hash(turn.words), number)
            for width, ngrams in ((LONG_NGRAM, self._long_ngrams), (SHORT_NGRAM, self._short_ngrams)):
                for ngram in _ngrams(turn.words, width):
                    ngrams.setdefault(ngram, number)
            # A skeleton of one word has no pair of words to compare.
            if len(turn.skeleton) >= 2:
                self._near.insert(number, self._minhash(turn.skeleton))

    def check(self, row: dict) -> tuple[str, str] | None:
        """Returns (reason, detail) of a contaminated row, else None.

        Reasons: contaminated_verbatim, contaminated_13gram, contaminated_near.
        """
        content = _RowContent(row)
        # The surest measure comes first, because the first one that matches is the reason in the reject.
        for text in content.user_turns:
            words = _words(text)
            if (number := self._whole_turns.get(_hash(words))) is not None:
                turn = self.turns[number]
                # Many rows answer "Yes, please.": only the same tool makes that a copy.
                if len(words) >= MIN_TURN_WORDS or content.tools & turn.tools or content.parameters & turn.parameters:
                    return "contaminated_verbatim", f"a user turn is that of {turn.name}"
            if (
                number := next(
                    (self._long_ngrams[ngram] for ngram in _ngrams(words, LONG_NGRAM) if ngram in self._long_ngrams),
                    None,
                )
            ) is not None:
                return "contaminated_13gram", f"shares {LONG_NGRAM} words in a row with {self.turns[number].name}"
            if found := self._nearest(_skeleton(text, content.values), content):
                turn, similarity = found
                return "contaminated_near", f"{similarity:.2f} alike with {turn.name} once the values are taken out"
        return None

    def overlaps(self, row: dict) -> Iterator[str]:
        """Yields what a kept row has in common with the benchmark, for the card."""
        for text in _RowContent(row).user_turns:
            if (
                number := next(
                    (
                        self._short_ngrams[ngram]
                        for ngram in _ngrams(_words(text), SHORT_NGRAM)
                        if ngram in self._short_ngrams
                    ),
                    None,
                )
            ) is not None:
                yield f"{SHORT_NGRAM}-gram of {self.turns[number].name}"
        for tool in row["tools"]:
            if tool["name"] in self.tool_names:
                yield f"tool name {tool['name']}"

    def _nearest(self, skeleton: tuple[str, ...], content: "_RowContent") -> tuple[BenchmarkTurn, float] | None:
        if len(skeleton) < 2:
            return None
        features = _features(skeleton)
        # Sorted, because the candidates come in no fixed order and the first match names the reject.
        for number in sorted(self._near.query(self._minhash(skeleton))):
            turn = self.turns[number]
            turn_features = _features(turn.skeleton)
            similarity = len(features & turn_features) / len(features | turn_features)
            if similarity < MIN_SIMILARITY:
                continue
            # Few words are shared by chance, so a short skeleton needs a tool or parameters in common as well.
            enough_words = min(len(skeleton), len(turn.skeleton)) >= MIN_SKELETON_WORDS
            if enough_words or content.tools & turn.tools or content.parameters & turn.parameters:
                return turn, similarity
        return None

    def _minhash(self, skeleton: tuple[str, ...]) -> Any:
        minhash = self._empty.copy()
        minhash.update_batch([feature.encode() for feature in sorted(_features(skeleton))])
        return minhash


class _RowContent:
    """What is compared of a row: its user turns, the values in its calls, the names of its tools and of their parameters."""

    def __init__(self, row: dict) -> None:
        self.row = row
        self.user_turns = [
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
        return _sets_of_two_or_more(frozenset(tool["parameters"]["properties"]) for tool in self.row["tools"])


def _sets_of_two_or_more(sets: Iterable[frozenset[str]]) -> frozenset[frozenset[str]]:
    """Returns the sets of at least two names. A single parameter (`city`) is too common to identify a tool."""
    return frozenset(names for names in sets if len(names) >= 2)


def _benchmark_turns(folder: Path) -> Iterator[BenchmarkTurn]:
    # Sorted, because the first match names the reject, and the order of a folder differs between machines.
    files = sorted(file for kind in ("*.json", "*.jsonl") for file in folder.rglob(kind)) if folder.is_dir() else []
    # The answers come first: their values are removed from the questions' skeletons.
    answers: dict[str, Any] = {}
    for file in files:
        if "possible_answer" in file.parts:
            answers |= {
                record["id"]: record.get("ground_truth")
                for record in _read_objects(file)
                if isinstance(record.get("id"), str)
            }
    for file in files:
        if "possible_answer" in file.parts:
            continue
        for number, record in enumerate(_read_objects(file), start=1):
            if "question" not in record:
                continue
            name = str(record.get("id") or f"{file.stem}:{number}")
            tools = dict(_name_and_parameters(tool) for tool in record.get("function") or [] if isinstance(tool, dict))
            values = _value_words(answers.get(name))
            for text in _user_turns(record["question"]):
                words = _words(text)
                if words:
                    yield BenchmarkTurn(
                        name, words, _skeleton(text, values), frozenset(tools), _sets_of_two_or_more(tools.values())
                    )


def _read_objects(file: Path) -> Iterator[dict]:
    for _, record in read_records(file):
        if isinstance(record, dict):
            yield record


def _name_and_parameters(tool: dict) -> tuple[str, frozenset[str]]:
    """Returns (name, names of its parameters) of a benchmark's tool."""
    parameters = tool.get("parameters", tool.get("arguments"))
    parameters = parameters if isinstance(parameters, dict) else {}
    properties = parameters.get("properties", parameters)
    return str(tool.get("name")), frozenset(properties if isinstance(properties, dict) else ())


def _user_turns(question: Any) -> Iterator[str]:
    """Yields the user's turns. BFCL has lists of messages in a list, ACEBench one text with `user:` and `system:` before the turns."""
    if isinstance(question, str):
        parts = re.split(r"(?m)^\s*(user|system|assistant)\s*:", question)
        # Text before the first marker is the user's.
        turns = [turn for role, turn in zip(["user", *parts[1::2]], parts[::2], strict=False) if role == "user"]
        yield from (turn.strip() for turn in turns if turn.strip())
    elif isinstance(question, list):
        for part in question:
            yield from _user_turns(part)
    elif (
        isinstance(question, dict)
        and question.get("role", "user") == "user"
        and isinstance(question.get("content"), str)
    ):
        yield question["content"]


def _value_words(answer: Any) -> frozenset[str]:
    """Returns the words of all values in calls or in BFCL's answers, without the words of keys."""
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
    """Returns the words of a sentence without numbers, quotations, names and values, which differ from one use to the next."""
    kept = []
    for sentence in re.split(r"(?<=[.!?])\s+|\n+", QUOTED.sub(" ", text)):
        for place, found in enumerate(WORD.finditer(sentence)):
            word = found[0]
            lower = word.casefold()
            # The first word of a sentence is upper case anyway.
            is_name = place > 0 and word[0].isupper() and word != "I"
            if is_name or lower in NUMBER_WORDS or any(letter.isdigit() for letter in word):
                continue
            if lower in values and lower not in COMMON:
                continue
            kept.append(lower)
    return tuple(kept)


# Words that are kept even when a value contains them: otherwise two copies of a sentence would lose different words.
COMMON = frozenset([
    "a", "an", "and", "are", "as", "at", "be", "by", "can", "do", "for", "from", "have", "how", "i", "in", "is",
    "it", "me", "my", "of", "on", "or", "please", "that", "the", "this", "to", "what", "with", "you"
])  # fmt: skip


def _features(skeleton: tuple[str, ...]) -> set[str]:
    # The pairs keep the order of the words, which single words lose.
    return {*skeleton, *map(" ".join, pairwise(skeleton))}


def _ngrams(words: tuple[str, ...], width: int) -> Iterator[int]:
    return (_hash(words[start : start + width]) for start in range(len(words) - width + 1))


def _hash(words: tuple[str, ...]) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest())
