"""Chooses the chat template that a pretrained base is trained and asked with: its own, or STAR's.

STAR reads one form of tool calls (star/chat.py). A base's own template serves where a conversation rendered with it shows
the tool, and writes an earlier call in that form. Otherwise the base gets STAR's template, which equals Qwen3's.
"""

import json
import re
from typing import TYPE_CHECKING, Any

from star.call_blocks import CALL_CLOSE, CALL_OPEN
from star.chat import CHAT_TEMPLATE, IM_END, IM_START, THINK_OPEN, prompt_opening, render_prompt
from star.config.models import ChatTemplate
from star.errors import InputError
from star.modeling.trial_child import TOOL_CONVERSATION

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CALLS = re.compile(f"{CALL_OPEN}(.*?){CALL_CLOSE}", re.DOTALL)
QUESTION, ANSWER = "rehearsed question", "rehearsed answer"


def choose_template(tokenizer: "PreTrainedTokenizerBase", wanted: ChatTemplate, *, source: str) -> tuple[str, str]:
    """Chooses the template of a base.

    Args:
        tokenizer: as the base has it, with its own template, if any.
        wanted: the setting `teacher.chat_template`.

    Returns:
        The template, and the choice as a phrase. For `auto` the phrase says why the base's own is not used.

    Raises:
        InputError: `own` is wanted, and the base's own template cannot be used.
    """
    if wanted == "qwen3":
        return CHAT_TEMPLATE, "STAR's (qwen3), by the setting"
    if reason := reason_against_own(tokenizer):
        if wanted == "own":
            raise InputError(
                f"the chat template of {source} cannot be used (chat_template: own): {reason}; set `chat_template: auto`, "
                "or correct its chat_template.jinja"
            )
        return CHAT_TEMPLATE, f"STAR's (qwen3), because {reason}"
    own: Any = tokenizer.chat_template
    return own, "its own"


def reason_against_own(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Why the tokenizer's own template cannot be used, as a phrase; None where it can."""
    if not tokenizer.chat_template:
        return "the base has no chat template"
    [tool], messages = TOOL_CONVERSATION["tools"], TOOL_CONVERSATION["messages"]
    call = messages[2]["tool_calls"][0]["function"]
    try:
        first = render_prompt(messages[:2], [tool], tokenizer)
        whole = render_prompt(messages, [tool], tokenizer)
        ending = end_of_turn(tokenizer)
    except Exception as error:  # a template raises what jinja or its author chose
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"the base's own template cannot render a conversation with a tool ({reason[:200]})"
    if not all(shown in first for shown in (tool["name"], *tool["parameters"]["properties"])):
        return "the base's own template shows no tools"
    if not any(_is_call(text, call) for text in CALLS.findall(whole)):
        return (
            f'the base\'s own template writes calls in another form than {CALL_OPEN}{{"name", "arguments"}}{CALL_CLOSE}'
        )
    if lost := [message["content"] for message in messages if message["content"] not in whole]:
        return f"the base's own template leaves a message out ({lost[0]!r})"
    if ending is None:
        return "the base's own template ends an answer with no token of its own"
    return None


def _is_call(text: str, call: dict[str, Any]) -> bool:
    try:
        return json.loads(text) == call
    except (ValueError, RecursionError):
        return False


def end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The token that the tokenizer's template writes behind an answer; None where it writes none."""
    text = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": ANSWER},
            {"role": "user", "content": QUESTION},
        ],
        tokenize=False,
    )
    assert isinstance(text, str)  # noqa: S101 - ids only with `tokenize`
    behind = text.partition(ANSWER)[2].lstrip()
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    # The longest, because one token may begin another.
    return max((token for token in added if token and behind.startswith(token)), key=len, default=None)


# Where the reasoning is turned off, the template has written a closed think block already.
_OPEN_THINK = (
    "{%- if add_generation_prompt and not (enable_thinking is defined and enable_thinking is false) %}"
    f"{{{{- {json.dumps(THINK_OPEN)} }}}}{{%- endif %}}"
)


def with_open_think(template: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The template, with an opened `<think>` at the end of every prompt; unchanged where it writes a think tag there itself.

    The paper's data preparation appends the tag to the rendered prompt. In the template it is at the end of every prompt: in
    training, sampling, evaluation, and where the published model is used.
    """
    question = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(question, chat_template=template, tokenize=False, add_generation_prompt=True)
    assert isinstance(prompt, str)  # noqa: S101 - ids only with `tokenize`
    return template if prompt_opening(prompt) else template + _OPEN_THINK


def one_template(templates: dict[str, str]) -> str | None:
    """One template of the named ones of a tokenizer, which writes what transformers chooses among them.

    That is `tool_use` where there are tools, and else `default`. Others are for what STAR does not ask for.
    """
    with_tools, without = templates.get("tool_use"), templates.get("default")
    if with_tools is None or without is None:
        return with_tools or without
    # The newline at the end of a template is not written. The signs keep jinja from taking more of them.
    first, second = with_tools.removesuffix("\n"), without.removesuffix("\n")
    return f"{{% if tools +%}}{first}{{%+ else +%}}{second}{{%+ endif %}}"


def with_bos(template: str, tokenizer: "PreTrainedTokenizerBase", *, adds_bos: bool) -> str:
    """The template, preceded by the beginning-of-sequence token where the family needs it and the template lacks it.

    Written as text into the template, because then every tokenization of a rendered prompt has it exactly once, whether
    or not it adds special tokens. A template may write it in prompts with tools alone, or in those without.

    Args:
        adds_bos: whether the base's tokenizer puts the token before every text.
    """
    bos = tokenizer.bos_token
    if not bos or bos in (IM_START, IM_END):
        return template
    [tool] = TOOL_CONVERSATION["tools"]
    writes = {
        condition: _writes_bos(tokenizer, template, bos, tools=tools)
        for condition, tools in (("tools", [{"type": "function", "function": tool}]), ("not tools", None))
    }
    if all(writes.values()) or not (adds_bos or _own_writes_bos(tokenizer, bos)):
        return template
    written = f"{{{{- {json.dumps(bos)} }}}}"
    if any(writes.values()):
        lacking = next(condition for condition, found in writes.items() if not found)
        written = f"{{%- if {lacking} %}}{written}{{%- endif %}}"
    return f"{written}{template}"


def _writes_bos(tokenizer: "PreTrainedTokenizerBase", template: str | None, bos: str, *, tools: Any = None) -> bool:
    question = [{"role": "user", "content": QUESTION}]
    text = tokenizer.apply_chat_template(question, chat_template=template, tools=tools, tokenize=False)
    return isinstance(text, str) and text.startswith(bos)


def _own_writes_bos(tokenizer: "PreTrainedTokenizerBase", bos: str) -> bool:
    try:
        return bool(tokenizer.chat_template) and _writes_bos(tokenizer, None, bos)
    except Exception:  # a template raises what jinja or its author chose
        return False
