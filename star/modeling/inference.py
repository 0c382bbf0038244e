"""Answers one request with one model: the work of `star call`."""

from pathlib import Path
from typing import Any

from star.chat import Completion, FormatError, parse_completion, render_prompt, validate_calls
from star.data.tools import public_tool


def answer_request(query: str, *, tools: list[dict[str, Any]], model_folder: Path, max_tokens: int = 512) -> Completion:
    """Answers `query` greedily, and checks the answer against the tools.

    Args:
        tools: the tools in normal form, as `load_tools` reads them.
        max_tokens: the largest number of tokens in the answer.

    Raises:
        InputError: the model cannot be read.
        FormatError: the model's text breaks the format; the message holds the text, escaped.
    """
    # Imported here, because torch and transformers take seconds to import.
    from star.modeling.generation import generate
    from star.modeling.models import load_model, load_tokenizer
    from star.modeling.trial import try_model

    prompt_tools = [public_tool(tool) for tool in tools]
    messages = [{"role": "user", "content": query}]
    try_model(model_folder, conversations=[{"messages": messages, "tools": prompt_tools}])
    tokenizer = load_tokenizer(model_folder)
    prompt = render_prompt(messages, prompt_tools, tokenizer)
    model = load_model(model_folder)
    [[sample]] = generate(model, tokenizer, [prompt], samples=1, temperature=0.0, max_new_tokens=max_tokens, seed=0)
    try:
        completion = parse_completion(sample.text)
        validate_calls(completion, prompt_tools)
    except FormatError as error:
        # repr escapes control characters, which would otherwise reach the terminal.
        raise FormatError(f"the model's answer breaks the format ({error}): {sample.text[:500]!r}") from error
    return completion
