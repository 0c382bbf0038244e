"""The tokenizer of models from scratch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.normalizers import Lowercase
from transformers import PreTrainedTokenizerFast

from star.chat import FORMAT_TOKENS, SPECIAL_TOKENS, render_target
from star.config.files import packaged_file
from star.data.generate_offline import generate_rows
from star.data.tool_files import load_tools
from star.modeling.prompts import render_rows
from star.modeling.tokenizer import (
    ENVELOPES,
    are_tokens,
    bootstrap_tokenizer,
    ids_without_token,
    tokenizer_differences,
    tokenizer_digest,
    train_tokenizer,
    vocabulary_size,
)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rows = list(generate_rows(load_tools(packaged_file("tools.json")), 200, seed=1))
    return [prompt.text + prompt.target for prompt in render_rows(rows, bootstrap_tokenizer())]


@pytest.fixture(scope="module")
def tokenizer(texts: list[str]):
    return train_tokenizer(texts, vocab_size=700)


def test_the_fixed_pieces_are_one_token_each(tokenizer) -> None:
    for piece in (*SPECIAL_TOKENS, *FORMAT_TOKENS, *ENVELOPES):
        assert len(tokenizer(piece, add_special_tokens=False)["input_ids"]) == 1, piece


def test_a_value_has_the_same_tokens_in_the_request_and_in_the_call(tokenizer) -> None:
    call = render_target({"tool_calls": [{"name": "book_flight", "arguments": {"origin": "Oslo", "nights": 217}}]})
    asked, made = (tokenizer.tokenize(text) for text in ("from Oslo for 217 nights", call))
    for value in (tokenizer.tokenize("Oslo"), tokenizer.tokenize("217")):
        for tokens in (asked, made):
            assert any(tokens[start : start + len(value)] == value for start in range(len(tokens)))


@given(text=st.text(max_size=60))
def test_any_text_comes_back(tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_digest_tells_tokenizers_apart(tokenizer, texts: list[str]) -> None:
    assert tokenizer_digest(tokenizer) == tokenizer_digest(train_tokenizer(texts, vocab_size=700))
    assert tokenizer_digest(tokenizer) != tokenizer_digest(train_tokenizer(texts, vocab_size=690))


def test_two_tokenizers_are_compared_id_by_id() -> None:
    def tokenizer(text: str) -> PreTrainedTokenizerFast:
        return train_tokenizer([text] * 9, vocab_size=320)

    first, other, lowering = tokenizer("one two three"), tokenizer("four five six"), tokenizer("one two three")
    assert tokenizer_differences(first, tokenizer("one two three")) == ""
    found = tokenizer_differences(first, other)
    names = [{id_: token for token, id_ in one.get_vocab().items()} for one in (first, other)]
    id_ = min(id_ for id_ in names[0] if names[0][id_] != names[1].get(id_))
    assert found.startswith(f'id {id_} is "{names[0][id_]}" and "{names[1][id_]}", id ')
    lowering.backend_tokenizer.normalizer = Lowercase()
    assert tokenizer_differences(first, lowering) == "their tokens are the same ids, but they differ in normalizer"


def test_ids_without_a_token_are_padding_and_gaps() -> None:
    tokenizer = bootstrap_tokenizer()
    count = vocabulary_size(tokenizer)
    assert count == len(tokenizer) and ids_without_token(tokenizer, rows=count) == []
    assert ids_without_token(tokenizer, rows=count + 3) == [count, count + 1, count + 2]
    assert are_tokens([0, count - 1], tokenizer) and not are_tokens([0, count], tokenizer)
