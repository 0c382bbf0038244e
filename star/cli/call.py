"""Defines `star call`: asks a model for function calls."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from star.chat import Completion
from star.cli.fail import fail
from star.cli.options import NameOption
from star.errors import InputError
from star.redaction import find_secret

ATTEMPTS = 3  # a person waits for the answer


def call(
    query: Annotated[str, typer.Argument(help="What the user asks for.")],
    tools: Annotated[Path, typer.Option(help="JSON file with the tools that may be called.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Alias or version of the registered model, or the folder of a model; by default `champion`. "
            "With --endpoint the name of a served model; by default the only one."
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="Base URL of an OpenAI-compatible server that is asked in place of a registered model. Key: $STAR_API_KEY."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Largest number of tokens in the answer.")] = 512,
    name: NameOption = "star",
) -> None:
    """Ask a model for the calls that answer a request. Prints one call per line, as JSON.

    Examples:

    `star call "Book a flight from Oslo to Rome" --tools tools.json`

    `star call "Book a flight from Oslo to Rome" --tools tools.json --endpoint http://localhost:8000/v1`
    """
    from star.chat import FormatError
    from star.data.endpoint import EndpointError
    from star.data.tool_files import load_tools

    # The tools are read first: a wrong file is reported before a model is downloaded.
    offered = load_tools(tools)
    try:
        if endpoint:
            completion = _ask_endpoint(query, endpoint, model=model, tools=offered, max_tokens=max_tokens)
        else:
            from star.modeling.inference import answer_request
            from star.registry.find_model import get_model_folder

            folder = get_model_folder(model or "champion", name=name)
            completion = answer_request(query, tools=offered, model_folder=folder, max_tokens=max_tokens)
    except (FormatError, EndpointError) as error:
        fail(str(error), status=1)
    for tool_call in completion.tool_calls:
        typer.echo(json.dumps(tool_call, ensure_ascii=False))
    if completion.content:
        typer.echo(completion.content)


def _ask_endpoint(
    query: str, url: str, *, model: str | None, tools: list[dict[str, Any]], max_tokens: int
) -> Completion:
    from star.data.endpoint import Endpoint
    from star.modeling.served_inference import answer_request_at

    if found := find_secret(url):
        raise InputError(f"--endpoint holds {found}: give the address without it, and the key in STAR_API_KEY")
    endpoint = Endpoint(url, model or "", key=os.environ.get("STAR_API_KEY") or None, attempts=ATTEMPTS)
    return answer_request_at(endpoint if model else endpoint.found_model(), query, tools=tools, max_tokens=max_tokens)
