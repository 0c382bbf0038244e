"""A small byte-level BPE tokenizer for models built from scratch, with the Qwen3 chat template.

Two choices make tiny models learn to copy. Words, single digits and the runs of everything else stand apart, so a value has the same
tokens in the user's request and in the JSON of the call. And the fixed pieces of the tool template are one token each, so a prompt is as
long as what differs in it.
"""

import hashlib
import json
from collections.abc import Iterable

from star.chat import CHAT_TEMPLATE, FORMAT_TOKENS, SPECIAL_TOKENS, TOOLS_FOOTER, TOOLS_HEADER

# The punctuation that wraps every tool and every call: one token each instead of about nine.
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


def train_tokenizer(texts: Iterable[str], *, vocab_size: int):
    """Trains the tokenizer on rendered prompts and targets. The same texts give the same tokenizer.

    Returns:
        transformers.PreTrainedTokenizerFast with at most `vocab_size` tokens, `<|im_end|>` as the end and `<|endoftext|>` as padding.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

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
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_without(texts, ENVELOPES), trainer)
    tokenizer.add_tokens(added)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def bootstrap_tokenizer():
    """A tokenizer of bytes alone, to render the texts that the real one is trained on."""
    return train_tokenizer([], vocab_size=300)


def _without(texts: Iterable[str], pieces: Iterable[str]) -> Iterable[str]:
    # Merges learned inside a piece that is one token anyway would be wasted vocabulary.
    longest_first = sorted(pieces, key=len, reverse=True)
    for text in texts:
        for piece in longest_first:
            text = text.replace(piece, "\n")
        yield text


def tokenizer_digest(tokenizer) -> str:
    """sha256 over vocabulary, merges, added tokens and splitting: tokenizers with the same digest turn text into the same ids."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {key: content.get(key) for key in ("model", "added_tokens", "pre_tokenizer", "normalizer")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
