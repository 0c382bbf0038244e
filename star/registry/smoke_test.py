"""Runs the smoke test of a published model: loads the downloaded folder and has it answer one request with tools."""

import json
from pathlib import Path

from star.config.files import packaged_file

QUERY = "Book a flight from Oslo to Rome"
NEW_TOKENS = 72


def run_smoke_test(folder: Path) -> str:
    """Loads a model folder, asks it for a flight with the packaged tools, and returns a sentence with its answer.

    An answer in a broken format passes: how often that may happen is the gate's `max_format_errors`.

    Raises:
        InputError: the folder cannot be loaded.
        RuntimeError: the model generates nothing.
    """
    from star.chat import FormatError, parse_completion, render_prompt
    from star.data.tool_files import load_tools
    from star.data.tools import public_tool
    from star.modeling.generation import generate
    from star.modeling.models import load_model, load_tokenizer
    from star.modeling.trial import try_model

    tools = [public_tool(tool) for tool in load_tools(packaged_file("travel.json"))]
    messages = [{"role": "user", "content": QUERY}]
    try_model(folder, conversations=[{"messages": messages, "tools": tools}])
    tokenizer = load_tokenizer(folder)
    prompt = render_prompt(messages, tools, tokenizer)
    model = load_model(folder)
    # Temperature 0, so that the same files always give the same answer.
    [[sample]] = generate(model, tokenizer, [prompt], samples=1, temperature=0.0, max_new_tokens=NEW_TOKENS, seed=0)
    if not sample.token_ids:
        raise RuntimeError("it generates nothing")
    try:
        tool_calls = parse_completion(sample.text).tool_calls
    except FormatError:
        return "the published model loads and answers a request with tools, though not in the format"
    names = ", ".join(json.dumps(call["name"], ensure_ascii=False) for call in tool_calls)
    answer = f"calls {names}" if tool_calls else "in words"
    return f"the published model loads and answers a request with tools ({answer})"
