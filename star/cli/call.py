"""Defines `star call`: asks a model for function calls."""

import json
from pathlib import Path
from typing import Annotated

import typer

from star.cli.fail import fail
from star.cli.options import NameOption


def call(
    query: Annotated[str, typer.Argument(help="What the user asks for.")],
    tools: Annotated[Path, typer.Option(help="JSON file with the tools that may be called.")],
    model: Annotated[
        str, typer.Option(help="Alias or version of the registered model, or the folder of a model.")
    ] = "champion",
    name: NameOption = "star",
) -> None:
    """Ask a model for the calls that answer a request. Prints one call per line, as JSON.

    Example: `star call "Book a flight from Oslo to Rome" --tools tools.json`
    """
    from star.chat import FormatError
    from star.data.tool_files import load_tools
    from star.modeling.inference import answer_request
    from star.registry.find_model import get_model_folder

    try:
        # The tools are read first: a wrong file is reported before a model is downloaded.
        completion = answer_request(query, tools=load_tools(tools), model_folder=get_model_folder(model, name=name))
    except FormatError as error:
        fail(str(error), status=1)
    for tool_call in completion.tool_calls:
        typer.echo(json.dumps(tool_call, ensure_ascii=False))
    if completion.content:
        typer.echo(completion.content)
