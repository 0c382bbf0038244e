"""Trains the tokenizer of models built from scratch: a small byte-level BPE with the Qwen3 chat template.

Two choices make tiny models learn to copy:

- No token spans a border between a word, a digit and anything else. So a value has the same tokens in the user's
  request and in the JSON of the call: `Oslo` in `from Oslo` and in `"origin": "Oslo"`.
- The fixed pieces of the tool template (ENVELOPES) are one token each. So the length of a prompt comes from what
  differs in it.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

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
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    # Without padding, truncation and decoder, which do not change the ids of a text.
    parts = {key: content.get(key) for key in ("model", "added_tokens", "pre_tokenizer", "normalizer")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
