"""The reasons of format errors, as a rollout and Sim-RL show them."""

from star.chat import render_target
from star.rewards.format_errors import describe_format_errors, format_error

TOOLS = [{"name": "ping", "description": "", "parameters": {"type": "object", "properties": {}}}]
CALL = render_target({"tool_calls": [{"name": "ping", "arguments": {}}]})
PROMPT = "<|im_start|>user\nPing.<|im_end|>\n<|im_start|>assistant\n"


def test_a_valid_completion_has_no_reason() -> None:
    assert format_error(CALL, TOOLS) is None
    assert "names no tool" in (format_error(CALL.replace("ping", "pong"), TOOLS) or "")


def test_the_reading_of_the_reward_accepts_text_before_the_reasoning() -> None:
    assert format_error(f"Well. {CALL}", TOOLS, strict=False) is None
    assert format_error(f"Well. {CALL}", TOOLS)


def test_the_most_frequent_reasons_come_first_and_one_completion_is_shown_with_the_end_of_its_prompt() -> None:
    wrong = ["\x1b[2J no reasoning", *[CALL.replace("ping", "pong")] * 3, CALL.replace("{}", "[]"), CALL[:-20]]
    wrong += [CALL.replace("{}", "{?}")]
    text = describe_format_errors([(PROMPT, completion, TOOLS) for completion in wrong])
    assert text.startswith('"a call names no tool of the prompt" (3), ')
    assert "others (2); " in text
    assert text.endswith(r"'\x1b[2J no reasoning' after the prompt's '<|im_start|>assistant\n'")


def test_a_completion_that_is_valid_itself_is_blamed_on_its_row() -> None:
    assert "target is invalid" in describe_format_errors([(PROMPT, CALL, TOOLS)])
