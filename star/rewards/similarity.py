"""Computes the Sim-RL reward: how similar a completion's calls, or its reply, are to the target's, in [-1, 1].

R = -1 for a format error, else the content score in [0, 1]: R_fc for calls, ROUGE-L F1 for a reply (STAR, arXiv
2602.03022, section on Sim-RL). An example of R_fc, with two calls expected and one made:

    expected  get_weather(city="New York City", days=3)   get_time(zone="UTC")
    made      get_weather(city="New York", days=3)
    the pair of get_weather: (ROUGE-L 0.8 of the cities + 1 for equal days) / 2 keys in the union = 0.9
    R_fc = sum over pairs 0.9 / (1 made + 2 expected - 1 pair) = 0.45

Values of `similarity_reward` equal those of the official code to the last bit; those are float32. Where that code would
raise, this one gives the format error. It never raises.

That code compares values that are not two texts as Python's text, so "5" earns as much as 5, and an object with its
keys in another order earns nothing. `similarity_typed_reward` compares them as JSON values instead; all else is the same.
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
NUMBERS = (int, float)  # booleans are integers, so True equals 1.0, as in the official code
TOKEN = re.compile("[a-z0-9]+")
# Comparing two texts of megabytes would take minutes. No model's context holds this many words, so no real text is cut.
MAX_WORDS = 1 << 16
MAX_CACHED_LENGTH = 1 << 12  # characters; longer texts are parsed and split again each time
CACHED_GROUPS = 8
CACHED_STEMS = 1 << 14
Equal = Callable[[Any, Any], bool]  # whether two values of an argument that are not both text are equal


class Reward(NamedTuple):
    """The parts of a reward.

    Attributes:
        total: the reward that is trained on: -1 for a format error, else `content`.
        format: 1 when the completion has the format, else -1.
        content: similarity to the target in [0, 1]; 0 for a format error.
    """

    total: float
    format: float
    content: float


FORMAT_ERROR = Reward(total=-1.0, format=-1.0, content=0.0)


def similarity_reward(completion: str, target: str, tools: list[dict[str, Any]]) -> Reward:
    r"""Scores a completion against its target.

    Args:
        completion: what the model wrote after `<|im_start|>assistant\n`.
        target: what it should have written; the opening `<think>` may be missing.
        tools: the tools of the prompt, bare or wrapped, in either dialect of `star.chat.tool_parameters`.

    Returns:
        The reward; `FORMAT_ERROR` also where the target or the tools are invalid. The completion is parsed as by the
        official reward (`parse_completion(strict=False)`): a call that is never closed is neither a call nor a reply,
        and scores 0.
    """
    return _reward(completion, target, tools, _equal_as_text)


def similarity_typed_reward(completion: str, target: str, tools: list[dict[str, Any]]) -> Reward:
    """The similarity reward with values compared as JSON: 5 is neither "5" nor true, and the order of keys is no matter.

    Two texts are still compared by ROUGE-L. As in `exact_match`, 1 equals 1.0. It reads completions as `similarity_reward`
    does, and gives the same value wherever no value differs in its type or in the order of its keys.
    """
    return _reward(completion, target, tools, _equal_as_json)


def _reward(completion: str, target: str, tools: list[dict[str, Any]], equal: Equal) -> Reward:
    # The reward must not raise: one bad row would stop a training.
    if not isinstance(completion, str) or not isinstance(target, str):
        return FORMAT_ERROR
    # Long texts are not cached, because a model may write megabytes.
    compare = _compare_cached if len(completion) + len(target) <= MAX_CACHED_LENGTH else _compare
    try:
        # The cache does not know the tools, so the calls are validated each time.
        predicted, reward = compare(completion, target, equal)
        validate_calls(predicted, tools)
    except FormatError:
        return FORMAT_ERROR
    return reward


def exact_match(completion: str, target: str, tools: list[dict[str, Any]]) -> bool:
    """Whether a completion makes exactly the target's calls, in any order.

    Arguments are compared as JSON values: 1 equals 1.0, but neither true nor "1". A target without calls is matched by
    every reply in words: whether to call is compared, the wording is not. A format error, here in the strict reading,
    matches nothing: also an answer that says nothing, or one that begins a call. Never raises.
    """
    try:
        expected = parse_target(target)
        predicted = parse_completion(completion)
        validate_calls(predicted, tools)
    except FormatError:
        return False
    return Counter(map(_canonical_call, predicted.tool_calls)) == Counter(map(_canonical_call, expected.tool_calls))


def rouge_l(first: str, second: str) -> float:
    """ROUGE-L F1 of two texts, as the package rouge_score computes it with its stemmer.

    1 for equal texts; 0 if only one is blank.
    """
    if first == second:
        return 1.0
    first_words, second_words = _words(first), _words(second)
    common = LCSseq.similarity(first_words, second_words)
    if not common:
        return 0.0
    precision, recall = common / len(first_words), common / len(second_words)
    return 2 * precision * recall / (precision + recall)


def _compare(completion: str, target: str, equal: Equal) -> tuple[Completion, Reward]:
    """The parsed completion, and its reward if all its calls are valid for the tools."""
    expected = (_parse_target_cached if len(target) <= MAX_CACHED_LENGTH else _parse_target)(target)
    predicted = parse_completion(completion, strict=False)
    if expected.tool_calls:
        content = _calls_similarity(predicted.tool_calls, expected.tool_calls, equal)
    else:
        content = _reply_similarity(predicted, expected.content)
    content = FLOAT32.unpack(FLOAT32.pack(content))[0]  # rounded to float32, as the official values are
    return predicted, Reward(content, 1.0, content)


def _parse_target(text: str) -> Completion:
    return parse_target(text, strict=False)


# Rollouts are scored group by group. A group has one target, and often the same completion several times. The caches
# are small, so that the garbage collector has little to traverse. Exceptions are not cached: a format error is found
# anew each time.
_compare_cached = lru_cache(maxsize=CACHED_GROUPS * 8)(_compare)
_parse_target_cached = lru_cache(maxsize=CACHED_GROUPS)(_parse_target)


def _reply_similarity(predicted: Completion, reply: str) -> float:
    """ROUGE-L of the replies; 0 where calls were made, or a call was opened and never closed."""
    is_reply = predicted.content and not predicted.tool_calls and CALL_OPEN not in predicted.content
    return rouge_l(predicted.content, reply) if is_reply else 0.0


def _calls_similarity(predicted: list[dict[str, Any]], expected: list[dict[str, Any]], equal: Equal) -> float:
    """R_fc: each predicted call, in order, is paired with the most similar expected call of its name that is left."""
    left, similarity, pairs = list(expected), 0.0, 0
    for call in predicted:
        name, arguments, best = call["name"], call["arguments"], -1.0
        for number, other in enumerate(left):
            if other["name"] != name:
                continue
            if (score := arguments_similarity(arguments, other["arguments"], equal=equal)) > best:
                best, match = score, number
        # Paired even with similarity 0: the pair still makes the denominator smaller.
        if best >= 0:
            del left[match]
            similarity, pairs = similarity + best, pairs + 1
    return similarity / (len(predicted) + len(expected) - pairs)


def _equal_as_text(predicted: Any, expected: Any) -> bool:
    """Whether two values are equal numbers, or else have the same Python text, because the official code compares so."""
    if isinstance(predicted, NUMBERS) and isinstance(expected, NUMBERS):
        return predicted == expected
    return str(predicted) == str(expected)


def _equal_as_json(predicted: Any, expected: Any) -> bool:
    return _canonical_json(predicted) == _canonical_json(expected)


def arguments_similarity(
    predicted: dict[str, Any], expected: dict[str, Any], *, equal: Equal = _equal_as_text
) -> float:
    """Similarity of two calls' arguments: sum of the similarities of shared keys' values / number of keys in the union.

    Two texts are compared by ROUGE-L, all other values by `equal`. No arguments on both sides give 1.
    """
    similarity, union = 0.0, len(predicted) + len(expected)
    if not union:
        return 1.0
    for key, value in predicted.items():
        if key in expected:
            other, union = expected[key], union - 1
            both_text = isinstance(value, str) and isinstance(other, str)
            similarity += rouge_l(value, other) if both_text else equal(value, other)
    return similarity / union


def _words(text: str) -> tuple[str, ...]:
    return _words_cached(text) if len(text) <= MAX_CACHED_LENGTH else _split_words(text)


def _split_words(text: str) -> tuple[str, ...]:
    return tuple(map(_stem, TOKEN.findall(text.lower())[:MAX_WORDS]))


class _Stems(dict[str, str]):
    """The stems of the words seen so far, of which most occur again."""

    def __missing__(self, word: str) -> str:
        # rouge_score leaves words of up to three characters as they are.
        stem = _stemmer()(word) if len(word) > 3 else word
        if len(word) <= MAX_CACHED_LENGTH:
            # Bounded, because a model may write any number of different words.
            if len(self) >= CACHED_STEMS:
                self.clear()
            self[word] = stem
        return stem


_stem = _Stems().__getitem__
_words_cached = lru_cache(maxsize=1 << 12)(_split_words)


@cache
def _stemmer() -> Callable[[str], str]:
    # Imported here, because nltk takes seconds to import and only comparing texts needs it.
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer().stem


def _canonical_call(call: dict[str, Any]) -> str:
    return _canonical_json([call["name"], call["arguments"]])


def _canonical_json(value: Any) -> str:
    return json.dumps(_canonical(value), sort_keys=True)


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    # 1.0 and 1 are the same JSON number. True is no float, so it stays apart from 1.
    return int(value) if isinstance(value, float) and value.is_integer() else value
