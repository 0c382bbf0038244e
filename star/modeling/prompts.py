r"""Renders rows of the data set into prompts: the text that the model is given, the target text, and the tools.

Training, rollout and evaluation start from these. A template may write the beginning of the answer into the prompt. It
then belongs to the completion, and a training teaches only what comes after it:

    template            prompt ends with                                  target_after_opening
    Qwen3               <|im_start|>assistant\n                           <think>\n\n</think>\n\n<tool_call>...
    opens `<think>`     <|im_start|>assistant\n<think>\n                  \n</think>\n\n<tool_call>...
    ends the thinking   <|im_start|>assistant\n<think>\n\n</think>\n\n    <tool_call>...
"""

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from star.chat import IM_START, THINK_CLOSE, THINK_OPEN, prompt_opening, render_prompt, render_target
from star.errors import InputError
from star.modeling.tokenizer import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    """A row as a model sees it.

    Attributes:
        row_id: id of the row in the data set.
        text: the rendered prompt, up to where the model goes on.
        target: the whole completion that the row asks for, whatever the prompt holds of it already.
        tools: the tools that the prompt offers.
    """

    row_id: str
    text: str
    target: str
    tools: list[dict[str, Any]]

    @property
    def is_answered(self) -> bool:
        """Whether the row has an answer; without one, the target has an empty think block and nothing else."""
        return bool(self.target.rpartition(THINK_CLOSE)[2].strip())

    @property
    def opening(self) -> str:
        """What the prompt holds of the completion already; "" for most templates."""
        return prompt_opening(self.text)

    @property
    def target_after_opening(self) -> str:
        """The part of the target that the model has to write.

        An opening that ends the think block leaves no place for the target's reasoning.
        """
        opening = self.opening
        if self.target.startswith(opening):
            return self.target[len(opening) :]
        tag = THINK_CLOSE if THINK_CLOSE in opening else THINK_OPEN
        # The opening has its own line breaks behind the tag, so the target's are left out.
        return self.target.partition(tag)[2].lstrip("\n")


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


def template_opening(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The opening that the tokenizer's template writes at the end of every prompt; "" for most templates."""
    return prompt_opening(render_prompt([{"role": "user", "content": "Hello"}], [], tokenizer))


def template_beginning(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The beginning-of-sequence token, if the tokenizer's template writes it at the start of every prompt; else ""."""
    bos = tokenizer.bos_token
    prompt = render_prompt([{"role": "user", "content": "Hello"}], [], tokenizer)
    # Some families open every turn with their BOS, which is then the turn's.
    return bos if bos and bos != IM_START and prompt.startswith(bos) else ""


def longest_prompt(prompts: list[Prompt], tokenizer: "PreTrainedTokenizerBase") -> int:
    """Tokens of the longest prompt."""
    return max(map(len, chain.from_iterable(tokenize([prompt.text for prompt in prompts], tokenizer))))


def within_length(
    prompts: list[Prompt], tokenizer: "PreTrainedTokenizerBase", *, max_prompt_tokens: int
) -> list[Prompt]:
    """The prompts of at most `max_prompt_tokens` tokens, in their order.

    Raises:
        InputError: all prompts are longer.
    """
    tokenized = chain.from_iterable(tokenize([prompt.text for prompt in prompts], tokenizer))
    kept = [prompt for prompt, ids in zip(prompts, tokenized, strict=True) if len(ids) <= max_prompt_tokens]
    if not kept:
        raise InputError(
            f"all {len(prompts)} prompts are longer than max_prompt_tokens = {max_prompt_tokens}: raise it"
        )
    return kept
