r"""Splits a conversation that a data set writes as one text: glaive's `chat`, and the prompts of Hammer's files.

>>> split_glaive("USER: Hi\n\n\nASSISTANT: Hello. <|endoftext|>")
[{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello.'}]
"""

import re

from star.data.call_texts import without_end_tokens
from star.errors import InputError

_GLAIVE_ROLES = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
# At the start of a line, or behind the end of a turn.
_GLAIVE_TURN = re.compile(r"(?:^|\n|<\|endoftext\|>)[ \t]*+(USER|ASSISTANT|FUNCTION RESPONSE):")
# Some copies of the set have all of it on one line.
_GLAIVE_TURN_IN_LINE = re.compile(r"(?:^|\s)(USER|ASSISTANT|FUNCTION RESPONSE):")
_HAMMER_PART = re.compile(r"\[BEGIN OF ([A-Z ]+)\](.*?)\[END OF \1\]", re.DOTALL)
_CHATML_TURN = re.compile(r"<\|im_start\|>(\w++)\n(.*?)<\|im_end\|>", re.DOTALL)


def split_glaive(chat: str) -> list[dict]:
    """Returns the messages of glaive's `chat`.

    Raises:
        InputError: it does not begin with a turn.
    """
    turns = list(_GLAIVE_TURN.finditer(chat))
    if not any(turn[1] == "ASSISTANT" for turn in turns):
        turns = list(_GLAIVE_TURN_IN_LINE.finditer(chat))
    if not turns or chat[: turns[0].start()].strip():
        raise InputError(f"`chat` must begin with USER: or ASSISTANT:, got {chat[:80]!r}")
    ends = [*(turn.start() for turn in turns[1:]), len(chat)]
    messages = [
        {"role": _GLAIVE_ROLES[turn[1]], "content": without_end_tokens(chat[turn.end() : end].strip())}
        for turn, end in zip(turns, ends, strict=True)
    ]
    for message in messages:
        if "<|endoftext|>" in message["content"]:
            raise InputError(f"a turn goes on after its <|endoftext|>: {message['content'][:80]!r}")
    return messages


def split_hammer(instruction: str) -> tuple[list[dict], str]:
    """Returns (messages, text of the tools) of the `instruction` in Hammer's training and test files.

    Raises:
        InputError: it has no tools or no query.
    """
    parts = {found[1]: found[2] for found in _HAMMER_PART.finditer(instruction)}
    if "AVAILABLE TOOLS" not in parts:
        raise InputError("an `instruction` is read only with [BEGIN OF AVAILABLE TOOLS], as in Hammer's files")
    if "QUERY" in parts:
        return [{"role": "user", "content": parts["QUERY"].strip()}], parts["AVAILABLE TOOLS"]
    # Later files write the conversation as turns behind the instruction, which is a turn itself.
    conversation = instruction[instruction.rindex("[END OF ") :]
    messages = [{"role": turn[1], "content": turn[2]} for turn in _CHATML_TURN.finditer(conversation)]
    if not messages:
        raise InputError("an `instruction` must have a [BEGIN OF QUERY] or turns behind it")
    return messages, parts["AVAILABLE TOOLS"]
