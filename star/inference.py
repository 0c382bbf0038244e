"""One request answered by one model: what `star call` does."""

import re
from pathlib import Path

from star.chat import Completion, FormatError, parse_completion, render_prompt, validate_calls
from star.data.generate import public_tool
from star.data.tool_files import load_tools
from star.errors import InputError

MAX_NEW_TOKENS = 512


def answer(query: str, *, tools: Path, model: str, name: str) -> Completion:
    """Greedy answer of a model to `query`, parsed and checked against the tools.

    Args:
        tools: JSON file with tools in any dialect of star.data.tools.
        model: an alias or a version of the registered model `name`, or a model folder.

    Raises:
        InputError: the tools or the model cannot be read.
        FormatError: the model's text breaks the format; the message carries the text, made printable.
    """
    shown = [public_tool(tool) for tool in load_tools(tools)]
    folder = resolve_model(model, name=name)
    from star.generation import generate
    from star.models import load_model, load_tokenizer

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


def resolve_model(model: str, *, name: str) -> Path:
    """The folder of a model: the given one, or a registered version, of the model `name` unless it names one, in the home's `models/`."""
    from star.registry.fetch import fetch_version
    from star.registry.tracking import home
    from star.registry.versions import resolve

    if Path(model).is_dir():
        return Path(model)
    if "/" in model and not names_version(model):
        raise InputError(f"no model folder at {model}: give a folder, an alias such as champion, or a version number")
    return fetch_version(resolve(model, name=name), home() / "models")


def names_version(model: str) -> bool:
    """Whether it is NAME/3 of the registry: no hub id ends in a number alone."""
    return re.fullmatch(r"[^/]+/\d+", model) is not None
