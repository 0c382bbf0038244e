"""Renders rows of the data set into prompts: the text that the model is given, the target text, and the tools.

Training, rollout and evaluation start from these.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from star.chat import render_prompt, render_target
from star.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    """A row as a model sees it.

    Attributes:
        row_id: id of the row in the data set.
        text: the rendered prompt, up to where the model goes on.
        target: the text that the model should write.
        tools: the tools that the prompt offers.
    """

    row_id: str
    text: str
    target: str
    tools: list[dict[str, Any]]


def render_rows(rows: list[dict[str, Any]], tokenizer: "PreTrainedTokenizerBase") -> list[Prompt]:
    """Renders one prompt per row, in the order of the rows. The last message of a row is its target."""
    return [
        Prompt(
            row["id"],
            render_prompt(row["messages"][:-1], row["tools"], tokenizer),
            render_target(row["messages"][-1]),
            row["tools"],
        )
        for row in rows
    ]


def within_length(
    prompts: list[Prompt], tokenizer: "PreTrainedTokenizerBase", *, max_prompt_tokens: int
) -> list[Prompt]:
    """The prompts of at most `max_prompt_tokens` tokens, in their order.

    Raises:
        InputError: all prompts are longer.
    """
    # The chat template has rendered all special tokens into the text already.
    lengths = [
        len(ids) for ids in tokenizer([prompt.text for prompt in prompts], add_special_tokens=False)["input_ids"]
    ]
    kept = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= max_prompt_tokens]
    if not kept:
        raise InputError(
            f"all {len(prompts)} prompts are longer than max_prompt_tokens = {max_prompt_tokens}: raise it"
        )
    return kept
