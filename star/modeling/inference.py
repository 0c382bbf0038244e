"""One request answered by one model: what `star call` does."""

from pathlib import Path

from star.chat import Completion, FormatError, parse_completion, render_prompt, validate_calls
from star.data.generate import public_tool

MAX_NEW_TOKENS = 512


def answer(query: str, *, tools: list[dict], folder: Path) -> Completion:
    """Greedy answer of a model to `query`, parsed and checked against the tools.

    Args:
        tools: the tools in normal form, as `load_tools` reads them.
        folder: the model's folder.

    Raises:
        InputError: the model cannot be read.
        FormatError: the model's text breaks the format; the message carries the text, made printable.
    """
    shown = [public_tool(tool) for tool in tools]
    from star.modeling.generation import generate
    from star.modeling.models import load_model, load_tokenizer

    tokenizer = load_tokenizer(folder)
    prompt = render_prompt([{"role": "user", "content": query}], shown, tokenizer)
    loaded = load_model(folder)
    [[sample]] = generate(
        loaded, tokenizer, [prompt], samples=1, temperature=0.0, max_new_tokens=MAX_NEW_TOKENS, seed=0
    )
    try:
        completion = parse_completion(sample.text)
        validate_calls(completion, shown)
    except FormatError as error:
        raise FormatError(f"the model's answer breaks the format ({error}): {sample.text[:500]!r}") from error
    return completion
