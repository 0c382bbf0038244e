"""The tokenizer of models from scratch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star.chat import FORMAT_TOKENS, SPECIAL_TOKENS, render_target
from star.config.files import packaged_file
from star.data.generate_offline import generate_rows
from star.data.tool_files import load_tools
from star.modeling.prompts import render_rows
from star.modeling.tokenizer import ENVELOPES, bootstrap_tokenizer, tokenizer_digest, train_tokenizer


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
