"""Trains the tokenizer of models built from scratch: a small byte-level BPE with the Qwen3 chat template.

Two choices make tiny models learn to copy:

- No token spans a border between a word, a digit and anything else. So a value has the same tokens in the user's
  request and in the JSON of the call: `Oslo` in `from Oslo` and in `"origin": "Oslo"`.
- The fixed pieces of the tool template (ENVELOPES) are one token each. So the length of a prompt comes from what
  differs in it.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from star.chat import CHAT_TEMPLATE, FORMAT_TOKENS, SPECIAL_TOKENS, TOOLS_FOOTER, TOOLS_HEADER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The punctuation around every tool and every call: one token per piece instead of about nine.
ENVELOPES = (
    TOOLS_HEADER,
    TOOLS_FOOTER,
    '{"type": "function", "function": {"name": "',
    '", "description": "',
    '", "parameters": {"type": "object", "properties": {"',
    '"}, "required": ["',
    '}, "required": ["',
    '"]}}}',
    '": {"type": "string"}, "',
    '": {"type": "integer"}, "',
    '": {"type": "string"}',
    '": {"type": "integer"',
    ', "minimum": ',
    ', "maximum": ',
    '": {"type": "string", "enum": ["',
    '{"name": "',
    '", "arguments": {"',
)

SHOWN_DIFFERENCES = 3  # between two tokenizers, in an error
TOKENIZED_AT_ONCE = 256  # texts: a call needs 130 bytes per token, so that one for a whole data set would need too many


def tokenize(texts: list[str], tokenizer: "PreTrainedTokenizerBase") -> Iterator[list[list[int]]]:
    """Yields the ids of the texts, TOKENIZED_AT_ONCE texts at a time.

    No special token is added: the chat template has written all of them into the texts.
    """
    for start in range(0, len(texts), TOKENIZED_AT_ONCE):
        batch = texts[start : start + TOKENIZED_AT_ONCE]
        yield tokenizer(batch, add_special_tokens=False, return_attention_mask=False)["input_ids"]


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> "PreTrainedTokenizerBase":
    """Trains the tokenizer on rendered prompts and targets. The same texts give the same tokenizer.

    Returns:
        A tokenizer with at most `vocab_size` tokens, `<|im_end|>` as the end token and `<|endoftext|>` as padding.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    # Not special: these tags are text for the parser, also where a decoder skips special tokens.
    added = [AddedToken(text, special=False, normalized=False) for text in (*FORMAT_TOKENS, *ENVELOPES)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|[^\p{L}\p{N}]+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(added),
        special_tokens=list(SPECIAL_TOKENS),
        # All 256 bytes, so that any text can be encoded, also one unlike the training texts.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts_without(texts, ENVELOPES), trainer)
    tokenizer.add_tokens(added)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",  # noqa: S106 - a token of text
        pad_token="<|endoftext|>",  # noqa: S106 - a token of text
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def bootstrap_tokenizer() -> "PreTrainedTokenizerBase":
    """A tokenizer of single bytes, with which the texts are rendered that the real tokenizer is trained on."""
    return train_tokenizer([], vocab_size=300)


def vocabulary_size(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The largest id of a token, plus one. A model's head often has more rows: Qwen2.5-7B has 152,064 for 151,665."""
    return max(tokenizer.get_vocab().values()) + 1


# Cached because a large vocabulary takes a tenth of a second to read, which would count in every measured answer.
@lru_cache(maxsize=4)
def ids_without_token(tokenizer: "PreTrainedTokenizerBase", *, rows: int) -> list[int]:
    """The ids below `rows`, ascending, that are no token: rows that pad a head to a round size, and gaps between tokens."""
    return sorted(set(range(rows)).difference(tokenizer.get_vocab().values()))


def are_tokens(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether each of the ids is a token."""
    return None not in tokenizer.convert_ids_to_tokens(ids)


def _texts_without(texts: Iterable[str], pieces: Iterable[str]) -> Iterable[str]:
    """The texts, each piece replaced by a line break: merges learned inside a piece (one token) are wasted."""
    # Longest first, because some pieces are the beginning of others.
    longest_first = sorted(pieces, key=len, reverse=True)
    for text in texts:
        for piece in longest_first:
            text = text.replace(piece, "\n")
        yield text


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 (hex) over vocabulary, merges, added tokens and splitting.

    Tokenizers with equal digests turn text into the same ids.
    """
    return hashlib.sha256(json.dumps(_parts(tokenizer), sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def tokenizer_differences(first: "PreTrainedTokenizerBase", second: "PreTrainedTokenizerBase") -> str:
    """Says where two tokenizers differ, id by id and then in the way they split text; empty where their digests are equal.

    For example: `id 300 is "ab" and "Ġthe", id 301 is "cd" and no token, 18 more ids differ`.
    """
    if tokenizer_digest(first) == tokenizer_digest(second):
        return ""
    tokens = [{id_: token for token, id_ in tokenizer.get_vocab().items()} for tokenizer in (first, second)]
    ids = [id_ for id_ in sorted(tokens[0].keys() | tokens[1].keys()) if tokens[0].get(id_) != tokens[1].get(id_)]
    if ids:
        named = [
            [json.dumps(by_id[id_], ensure_ascii=False) if id_ in by_id else "no token" for by_id in tokens]
            for id_ in ids[:SHOWN_DIFFERENCES]
        ]
        found = [f"id {id_} is {one} and {other}" for id_, (one, other) in zip(ids, named, strict=False)]
        rest = len(ids) - SHOWN_DIFFERENCES
        return ", ".join(found + ([f"{rest} more ids differ"] if rest > 0 else []))
    # All ids are the same tokens, so the text must be cut differently before they are looked up.
    parts = [_parts(tokenizer) for tokenizer in (first, second)]
    differing = [key for key in parts[0] if parts[0][key] != parts[1][key]]
    return f"their tokens are the same ids, but they differ in {' and '.join(differing)}"


def _parts(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    # Without padding, truncation and decoder, which do not change the ids of a text.
    return {key: content.get(key) for key in ("model", "added_tokens", "pre_tokenizer", "normalizer")}
