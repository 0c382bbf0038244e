"""Gives a pretrained base's tokenizer the tokens that STAR's format needs, and settles which token has which part.

What is settled, so that all stages and every engine make the same ids of a text:

    tags and turns   one token each; never dropped by a decoder that skips special tokens, except the turns
    end of turn      the token that the template writes behind an answer
    padding          never the end of turn, which a mask by ids would take for padding
    BOS              only in the template; the tokenizer adds nothing to a text
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from star.chat import END_OF_TEXT, FORMAT_TOKENS, IM_END, IM_START

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TURN_TOKENS = (IM_START, IM_END)
# As in Qwen3's vocabulary, where the tags around the list of tools are no tokens.
PRODUCT_TOKENS = (*TURN_TOKENS, *(tag for tag in FORMAT_TOKENS if "tools" not in tag))
# Tokens that are never in a text, under the names that families give them.
PADDING = (
    "<|finetune_right_pad_id|>",
    "<pad>",
    "[PAD]",
    "<|pad|>",
    "<|padding|>",
    END_OF_TEXT,
    "<|reserved_special_token_0|>",
)


def is_one_token(text: str, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer makes one token of the text."""
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1


def adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer puts its beginning-of-sequence token before a text."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


def rebuild(
    tokenizer: "PreTrainedTokenizerBase", *, added: Sequence[str], chat_template: str, end: str
) -> "PreTrainedTokenizerBase":
    """A tokenizer with further tokens, which adds no special token to a text.

    A tokenizer whose tokens need no change is changed in place and stays of its class, so that the files that it is saved
    to stay as they were.

    Args:
        added: tokens to add, in this order.
        end: the token that ends an answer.
    """
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    adds_special = tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]
    # Decoders skip special tokens in a completion.
    skipped = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special} & {*FORMAT_TOKENS}
    if added or adds_special or skipped:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        if adds_special:
            content["post_processor"] = _without_special_tokens(content["post_processor"])
        for token in content["added_tokens"]:
            token["special"] = token["special"] and token["content"] not in skipped
        # Not of the base's class, which would put special tokens back when the saved tokenizer is loaded.
        backend = Tokenizer.from_str(json.dumps(content))
        for text in added:
            backend.add_tokens([AddedToken(text, special=text in TURN_TOKENS, normalized=False)])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
            pad_token=tokenizer.pad_token,
            unk_token=tokenizer.unk_token,
            model_max_length=tokenizer.model_max_length,
            clean_up_tokenization_spaces=False,
            padding_side="left",
        )
    padding = choose_padding(tokenizer, end=end)
    tokenizer.chat_template = chat_template
    if tokenizer.eos_token != end:
        tokenizer.eos_token = end
    if tokenizer.pad_token != padding:
        tokenizer.pad_token = padding
    return tokenizer


def _without_special_tokens(processor: dict | None) -> dict | None:
    """A post-processor without what adds tokens to a text."""
    if processor is None or processor["type"] in ("TemplateProcessing", "BertProcessing", "RobertaProcessing"):
        return None
    if processor["type"] == "Sequence":
        kept = [inner for each in processor["processors"] if (inner := _without_special_tokens(each))]
        return {"type": "Sequence", "processors": kept} if kept else None
    return processor


def choose_padding(tokenizer: "PreTrainedTokenizerBase", *, end: str) -> str:
    """A token of the vocabulary to pad with: never `end` if there is any other, and never a new one."""
    vocabulary = tokenizer.get_vocab()
    # Where padding and end are one token, somebody had to name one, or `load_tokenizer` did.
    own = tokenizer.pad_token if tokenizer.pad_token != tokenizer.eos_token else None
    wanted = (own, *PADDING, tokenizer.unk_token, tokenizer.eos_token, tokenizer.bos_token)
    return next((token for token in wanted if token and token != end and token in vocabulary), end)


def missing_tokens(tokenizer: "PreTrainedTokenizerBase", settled: "PreTrainedTokenizerBase") -> list[str]:
    """STAR's tokens that the settled tokenizer has and this one lacks, in the order of their ids."""
    ids = {
        token: settled.convert_tokens_to_ids(token)
        for token in PRODUCT_TOKENS
        if is_one_token(token, settled) and not is_one_token(token, tokenizer)
    }
    return sorted(ids, key=lambda token: ids[token])


def settle_alike(tokenizer: "PreTrainedTokenizerBase", settled: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """A student's tokenizer, settled as that of its teacher. Both make the same ids if the two are of one family."""
    added = missing_tokens(tokenizer, settled)
    return rebuild(tokenizer, added=added, chat_template=str(settled.chat_template), end=str(settled.eos_token))
