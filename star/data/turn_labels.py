"""Labels the last turn of a conversation, as the paper's data preparation labels the assistant's turns.

    response      it says something
    single        it makes one call
    parallel      it makes several calls
    multi-step    it makes calls right after the result of a tool

A turn may have several labels, such as parallel and multi-step, and has none where nothing is known of it but its prompt.
"""

from typing import NamedTuple

LABELS = ("response", "single", "parallel", "multi-step")


class Turn(NamedTuple):
    """The last turn of a conversation.

    Attributes:
        labels: those of LABELS that it has, in their order.
        number: the place of the message, counted in pairs of messages: 1 is the answer to the first message, also behind a
            system message. Results of tools are messages, too.
        calls: number of its calls.
    """

    labels: tuple[str, ...]
    number: int
    calls: int


def label_turn(messages: list[dict]) -> Turn:
    """Labels the last message of a conversation, which is the assistant's."""
    last, before = messages[-1], messages[-2:-1]
    calls = len(last.get("tool_calls") or [])
    follows_result = any(message["role"] == "tool" for message in before)
    has = (bool(last.get("content")), calls == 1, calls > 1, calls > 0 and follows_result)
    labels = tuple(label for label, given in zip(LABELS, has, strict=True) if given)
    return Turn(labels, len(messages) // 2, calls)
