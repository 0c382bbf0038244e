"""The Sim-RL reward: how similar a completion's calls (or its reply) are to the target's, in [-1, 1].

R = -1 for a format error, else the content score: R_fc for calls, ROUGE-L F1 for a reply (STAR, arXiv 2602.03022,
section on Sim-RL). Values equal the official code's to the last bit, which are float32; where that code would raise,
this one gives the format error. It never raises.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from functools import cache, lru_cache
from struct import Struct
from typing import Any, NamedTuple

from rapidfuzz.distance import LCSseq

from star.chat import CALL_OPEN, Completion, FormatError, parse_completion, parse_target, validate_calls

FLOAT32 = Struct("f")
NUMBERS = (int, float)  # booleans are integers: True == 1.0
TOKEN = re.compile("[a-z0-9]+")
# More words than any model's context holds, so only a hostile text is cut: two of megabytes would take minutes.
MAX_WORDS = 1 << 16
LONGEST_CACHED = 1 << 12  # characters of a text of which the parse and the words are kept
GROUPS_KEPT = 8
STEMS_KEPT = 1 << 14


class Reward(NamedTuple):
    """The parts of a reward.

    Attributes:
        total: what is trained on: -1 for a format error, else `content`.
        format: 1 when the format holds, else -1.
        content: the similarity to the target in [0, 1]; 0 for a format error.
    """

    total: float
    format: float
    content: float


FORMAT_ERROR = Reward(total=-1.0, format=-1.0, content=0.0)


def similarity_reward(completion: str, target: str, tools: list[dict[str, Any]]) -> Reward:
    """Scores a completion against its target.

    Args:
        completion: what the model gave after `<|im_start|>assistant\\n`.
        target: the text it should have given; the opening `<think>` may be missing.
        tools: the tools of the prompt, bare or wrapped, in either dialect of `star.chat.tool_parameters`.

    Returns:
        `FORMAT_ERROR` also where the target or the tools are at fault. The completion is read as the official reward
        reads it (`parse_completion(strict=False)`): a call that is never closed is neither a call nor a reply and
        scores 0.
    """
    if not isinstance(completion, str) or not isinstance(target, str):
        return FORMAT_ERROR
    compare = _compare_once if len(completion) + len(target) <= LONGEST_CACHED else _compare
    try:
        predicted, reward = compare(completion, target)
        validate_calls(predicted, tools)
    except FormatError:
        return FORMAT_ERROR
    return reward


def exact_match(completion: str, target: str, tools: list[dict[str, Any]]) -> bool:
    """Whether a completion makes exactly the target's calls, in any order.

    Arguments are compared as JSON values: 1 is 1.0, but neither true nor "1".
    A target without calls is matched by every reply without calls: whether to call is exact, wording is not. A format
    error, here in the strict reading, matches nothing. Never raises.
    """
    try:
        expected = parse_target(target)
        predicted = parse_completion(completion)
        validate_calls(predicted, tools)
    except FormatError:
        return False
    return Counter(map(_canonical_call, predicted.tool_calls)) == Counter(map(_canonical_call, expected.tool_calls))


def rouge_l(first: str, second: str) -> float:
    """ROUGE-L F1 of two texts as rouge_score computes it with its stemmer; 1 for equal texts, 0 beside a blank one."""
    if first == second:
        return 1.0
    first_words, second_words = _words(first), _words(second)
    common = LCSseq.similarity(first_words, second_words)
    if not common:
        return 0.0
    precision, recall = common / len(first_words), common / len(second_words)
    return 2 * precision * recall / (precision + recall)


def _compare(completion: str, target: str) -> tuple[Completion, Reward]:
    """The parsed completion and its reward, if its calls are the tools' own."""
    expected = (_target_once if len(target) <= LONGEST_CACHED else _target)(target)
    predicted = parse_completion(completion, strict=False)
    if expected.tool_calls:
        content = _calls_similarity(predicted.tool_calls, expected.tool_calls)
    else:
        content = _reply_similarity(predicted, expected.content)
    content = FLOAT32.unpack(FLOAT32.pack(content))[0]
    return predicted, Reward(content, 1.0, content)


def _target(text: str) -> Completion:
    return parse_target(text, strict=False)


# Rollouts are scored group by group: a group shares its target and has many completions twice. Little is kept, so that the
# garbage collector has little to walk over; a format error is found anew each time.
_compare_once = lru_cache(maxsize=GROUPS_KEPT * 8)(_compare)
_target_once = lru_cache(maxsize=GROUPS_KEPT)(_target)


def _reply_similarity(predicted: Completion, reply: str) -> float:
    is_reply = predicted.content and not predicted.tool_calls and CALL_OPEN not in predicted.content
    return rouge_l(predicted.content, reply) if is_reply else 0.0


def _calls_similarity(predicted: list[dict[str, Any]], expected: list[dict[str, Any]]) -> float:
    """R_fc: predicted calls in their order, each with the most similar expected call of its name that is left."""
    unused, similarity, matched = list(expected), 0.0, 0
    for call in predicted:
        name, arguments, best = call["name"], call["arguments"], -1.0
        for number, other in enumerate(unused):
            if other["name"] == name and (score := arguments_similarity(arguments, other["arguments"])) > best:
                best, match = score, number
        if best >= 0:
            del unused[match]
            similarity, matched = similarity + best, matched + 1
    return similarity / (len(predicted) + len(expected) - matched)


def arguments_similarity(predicted: dict[str, Any], expected: dict[str, Any]) -> float:
    """Of two calls' arguments: the similarities of the shared keys' values, summed, over the union of the keys."""
    similarity, union = 0.0, len(predicted) + len(expected)
    if not union:
        return 1.0
    for key, value in predicted.items():
        if key in expected:
            other, union = expected[key], union - 1
            both_text = isinstance(value, str) and isinstance(other, str)
            similarity += rouge_l(value, other) if both_text else _equality(value, other)
    return similarity / union


def _equality(predicted: Any, expected: Any) -> float:
    if isinstance(predicted, NUMBERS) and isinstance(expected, NUMBERS):
        return float(predicted == expected)
    return float(str(predicted) == str(expected))


def _words(text: str) -> tuple[str, ...]:
    return _words_once(text) if len(text) <= LONGEST_CACHED else _split_words(text)


def _split_words(text: str) -> tuple[str, ...]:
    return tuple(map(_stem, TOKEN.findall(text.lower())[:MAX_WORDS]))


class _Stems(dict[str, str]):
    """The stems of the words seen, most of which come again."""

    def __missing__(self, word: str) -> str:
        stem = _stemmer()(word) if len(word) > 3 else word
        if len(word) <= LONGEST_CACHED:
            if len(self) >= STEMS_KEPT:
                self.clear()
            self[word] = stem
        return stem


_stem = _Stems().__getitem__
_words_once = lru_cache(maxsize=1 << 12)(_split_words)


@cache
def _stemmer() -> Callable[[str], str]:
    # nltk takes seconds to import: only who compares texts pays for it.
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer().stem


def _canonical_call(call: dict[str, Any]) -> str:
    return json.dumps([call["name"], _canonical(call["arguments"])], sort_keys=True)


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
