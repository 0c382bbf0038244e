"""Rows as a model sees them: the rendered prompt, the target text, the tools. Training, rollout and evaluation start from these."""

from dataclasses import dataclass

from star.chat import render_prompt, render_target
from star.errors import InputError


@dataclass(frozen=True)
class Prompt:
    row_id: str
    text: str
    target: str
    tools: list[dict]


def render_rows(rows: list[dict], tokenizer) -> list[Prompt]:
    """One prompt a row, in the order of the rows."""
    return [
        Prompt(
            row["id"],
            render_prompt(row["messages"][:-1], row["tools"], tokenizer),
            render_target(row["messages"][-1]),
            row["tools"],
        )
        for row in rows
    ]


def within_length(prompts: list[Prompt], tokenizer, *, max_prompt_tokens: int) -> list[Prompt]:
    """The prompts of at most `max_prompt_tokens` tokens, in their order.

    Raises:
        InputError: all are longer.
    """
    lengths = [
        len(ids) for ids in tokenizer([prompt.text for prompt in prompts], add_special_tokens=False)["input_ids"]
    ]
    kept = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= max_prompt_tokens]
    if not kept:
        raise InputError(
            f"all {len(prompts)} prompts are longer than max_prompt_tokens = {max_prompt_tokens}: raise it"
        )
    return kept
