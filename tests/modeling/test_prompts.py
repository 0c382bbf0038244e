"""Prompt and training text together are what the template renders for the whole conversation, whatever it opens."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star.chat import CHAT_TEMPLATE, parse_completion, prompt_opening, render_target
from star.modeling.prompts import Prompt, render_rows, template_opening
from star.modeling.tokenizer import bootstrap_tokenizer

HEADER = "<|im_start|>assistant\n"
THINKS, ENDS_THINKING = "<think>\n", "<think>\n\n</think>\n\n"
TOOL = {"name": "ping", "description": "", "parameters": {"type": "object", "properties": {}}}
QUESTION = {"role": "user", "content": "Is <think> a tag?"}

words = st.text(st.characters(exclude_categories=["C"], exclude_characters="<"), max_size=12).map(str.strip)
names = st.sampled_from(["ping", "get_time"])  # Qwen3's template does not escape the name of a tool
calls = st.lists(
    st.fixed_dictionaries({"name": names, "arguments": st.dictionaries(words, words, max_size=2)}), max_size=2
)


def tokenizer_that_opens(opening: str) -> Any:
    """A tokenizer whose template writes `opening` behind the header of the answer, as Qwen3-Thinking-2507's does."""
    tokenizer = bootstrap_tokenizer()
    start, separator, end = CHAT_TEMPLATE.rpartition("{{- '<|im_start|>assistant\\n' }}")
    tokenizer.chat_template = start + separator + "{{- " + repr(opening) + " }}" + end
    return tokenizer


TOKENIZERS = {opening: tokenizer_that_opens(opening) for opening in ("", THINKS, ENDS_THINKING)}


@pytest.mark.parametrize("opening", ["", THINKS, "<think>", "<think>\n\n", ENDS_THINKING, "<think></think>"])
def test_an_opening_is_found_at_the_end_of_the_prompt_only(opening: str) -> None:
    assert prompt_opening("<|im_start|>user\n<think>\n<|im_end|>\n" + HEADER + opening) == opening


@pytest.mark.parametrize("end", ["", "<think>\nFirst,", "<think>\n</think>\n\nNo.", "</think>", "<think>x</think>"])
def test_other_text_at_the_end_is_no_opening(end: str) -> None:
    assert prompt_opening(HEADER + end) == ""


@pytest.mark.parametrize("opening", TOKENIZERS)
def test_the_template_says_what_it_opens(opening: str) -> None:
    assert template_opening(TOKENIZERS[opening]) == opening


@given(opening=st.sampled_from(list(TOKENIZERS)), reasoning=words, content=words, tool_calls=calls)
def test_the_model_learns_to_go_on_from_the_prompt(
    opening: str, reasoning: str, content: str, tool_calls: list[dict]
) -> None:
    # A template that has ended the thinking leaves no place for reasoning.
    reasoning = "" if opening == ENDS_THINKING else reasoning
    answer = {"role": "assistant", "content": content, "reasoning_content": reasoning, "tool_calls": tool_calls}
    row = {"id": "r", "messages": [QUESTION, answer], "tools": [TOOL]}
    tokenizer = TOKENIZERS[opening]
    [prompt] = render_rows([row], tokenizer)
    wrapped = [{"type": "function", "function": TOOL}]
    whole = tokenizer.apply_chat_template(row["messages"], tools=wrapped, tokenize=False)
    assert prompt.text + prompt.target_after_opening + "<|im_end|>\n" == whole
    assert prompt.opening == opening
    assert prompt.opening + prompt.target_after_opening == prompt.target == render_target(answer)


def test_reasoning_is_left_out_where_the_prompt_has_ended_the_thinking() -> None:
    target = render_target({"reasoning_content": "Let me see.", "content": "Yes."})
    assert Prompt("r", HEADER + ENDS_THINKING, target, []).target_after_opening == "Yes."


@pytest.mark.parametrize(
    "opening", ["<think>", "<think>\n\n", "<think>\n\n\n", "<think></think>", "<think>\n</think>\n"]
)
def test_unusual_line_breaks_of_an_opening_are_kept(opening: str) -> None:
    target = render_target({"content": "Yes."})
    prompt = Prompt("r", HEADER + opening, target, [])
    assert parse_completion(prompt.opening + prompt.target_after_opening) == parse_completion(target)


def test_an_earlier_answer_in_the_prompt_is_no_opening() -> None:
    earlier = {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": []}
    row = {"id": "r", "messages": [QUESTION, earlier, QUESTION, {"role": "assistant", "content": "Yes."}], "tools": []}
    [plain] = render_rows([row], TOKENIZERS[""])
    [opened] = render_rows([row], TOKENIZERS[THINKS])
    assert plain.opening == "" and plain.target_after_opening == plain.target
    assert opened.text == plain.text + THINKS
