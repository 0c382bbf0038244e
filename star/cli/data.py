"""Defines `star data`: import tools and rows, make rows, clean rows, print a set's card."""

from pathlib import Path
from typing import Annotated, Any

import typer

from star.cli.options import MODEL_HELP, NameOption, OutOption, ResumeOption
from star.errors import InputError
from star.redaction import find_secret
from star.terminal import continued
from star.tracking.light_import import import_mlflow_without_pandas

data_app = typer.Typer(help="Import, make, clean and describe sets of tools and rows.", no_args_is_help=True)

LicenceOption = Annotated[str | None, typer.Option(help="Licence to write on every row, such as CC-BY-4.0.")]
SeedOption = Annotated[int, typer.Option(help="Random seed. The same seed gives the same rows.")]


@data_app.command("import")
def import_command(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Files of tools (OpenAPI, MCP, lists of functions), or files and folders of rows (JSON Lines, JSON, Parquet)."
        ),
    ],
    out: OutOption,
    source: Annotated[
        str | None, typer.Option(help="Name of the rows' origin: xlam, toolace, toolmind, hammer, or your own.")
    ] = None,
    licence: LicenceOption = None,
    every_turn: Annotated[
        bool, typer.Option(help="Make one row per assistant turn instead of one per conversation.")
    ] = False,
    only: Annotated[list[str] | None, typer.Option(help="Import only the tool of this name. May be repeated.")] = None,
    resume: ResumeOption = True,
) -> None:
    """Import tools into tools.json, or rows into rows.jsonl. What cannot be read goes to rejects.jsonl with the reason.

    Examples:

    `star data import openapi.yaml --out tools`

    `star data import xlam.json --source xlam --out xlam`
    """
    from star.data.commands import ImportSettings, import_files

    settings = ImportSettings(files, source=source, licence=licence, every_turn=every_turn, only=only or [])
    counts = import_files(settings, out=out, resume=resume)
    if "tools" in counts:
        left_out = f"{counts['rejected']} left out with their reasons in rejects.jsonl"
        typer.echo(f"{counts['tools']} tools in {out / 'tools.json'}, {left_out}")
        _print_coverage(counts)
    else:
        _print_counts(counts, out)
        _print_first_reasons(counts, out)


@data_app.command("synthesize")
def synthesize_command(
    tools: Annotated[
        Path, typer.Option(help="File of tools: OpenAPI, MCP, functions, or the tools.json of `star data import`.")
    ],
    out: OutOption,
    rows: Annotated[int, typer.Option(min=1, help="Number of rows to make, before cleaning.")] = 10000,
    seed: SeedOption = 7,
    tools_per_prompt: Annotated[int, typer.Option(min=1, help="Largest number of tools in a prompt.")] = 4,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Weight of one kind of row, such as simple=0.5. May be repeated. Default: all kinds."),
    ] = None,
    masked: Annotated[
        float, typer.Option(min=0, max=1, help="Share of rows with random names for functions and parameters.")
    ] = 0.0,
    licence: LicenceOption = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="Base URL of an OpenAI-compatible endpoint whose model writes the rows. Key: $STAR_API_KEY."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model at the endpoint.")] = None,
    examples: Annotated[
        Path | None, typer.Option(help="Rows that the prompts show the model as examples of quality.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Number of requests at the same time.")] = 8,
    max_tokens: Annotated[
        int,
        typer.Option(min=1, help="Largest number of tokens in an answer. A model that reasons needs several thousand."),
    ] = 1024,
    price_in: Annotated[float, typer.Option(min=0, help="Price of a million prompt tokens.")] = 0.0,
    price_out: Annotated[float, typer.Option(min=0, help="Price of a million completion tokens.")] = 0.0,
    resume: ResumeOption = True,
) -> None:
    """Make rows from tool schemas: offline and repeatable, or written by a model and checked by three gates.

    Examples:

    `star data synthesize --tools openapi.yaml --rows 5000 --out rows`

    `star data synthesize --tools tools.json --endpoint http://localhost:8000/v1 --model qwen3-8b --out rows`
    """
    from star.data.commands import ModelSettings, SynthesizeSettings, synthesize

    if bool(endpoint) != bool(model):
        raise InputError("--endpoint and --model belong together: give both, or neither for the offline generator")
    written_by = None
    if endpoint and (found := find_secret(endpoint)):
        raise InputError(f"--endpoint holds {found}: give the address without it, and the key in STAR_API_KEY")
    if endpoint and model:
        written_by = ModelSettings(
            endpoint, model, examples, concurrency, max_tokens, price_in=price_in, price_out=price_out
        )
    if written_by and masked:
        raise InputError("--masked belongs to the offline generator: leave it out, or --endpoint")
    settings = SynthesizeSettings(
        tools, rows=rows, seed=seed, tools_per_prompt=tools_per_prompt, kinds=_parse_weights(kind), masked=masked,
        licence=licence, model=written_by,
    )  # fmt: skip
    counts = synthesize(settings, out=out, resume=resume)
    _print_counts(counts, out)
    _print_coverage(counts)
    if written_by:
        _print_usage(counts)


@data_app.command("check")
def check_command(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Files of rows, or folders of `star data` or `star synthesize`. Duplicates are found across all of them."
        ),
    ],
    out: OutOption,
    benchmark: Annotated[
        Path | None, typer.Option(help="Folder with the files of BFCL or ACEBench. Rows like theirs are rejected.")
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Language to keep, such as en or de. May be repeated. Default: all.")
    ] = None,
    max_words: Annotated[
        int | None, typer.Option(min=1, help="Reject conversations with more words than this.")
    ] = None,
    quota: Annotated[
        list[str] | None,
        typer.Option(help="Share of one kind of row, such as multi-step=0.3. May be repeated. Needs --rows."),
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Number of rows to keep in all. Needs --quota.")] = None,
    seed: SeedOption = 7,
    resume: ResumeOption = True,
) -> None:
    """Clean rows of any sources together: schema, duplicates, benchmarks, length, language, quotas. Every reject has a reason.

    Examples:

    `star data check mine xlam --out clean`

    `star data check mine xlam --benchmark bfcl/data --quota simple=0.5 --quota parallel=0.5 --rows 20000 --out clean`
    """
    from star.data.commands import CheckSettings, check

    quotas = _parse_weights(quota)
    if bool(quotas) != (rows is not None):
        raise InputError("--quota and --rows belong together: shares of how many rows?")
    settings = CheckSettings(
        files, benchmark, languages=language or [], max_words=max_words, quotas=quotas, rows=rows, seed=seed
    )
    counts = check(settings, out=out, resume=resume)
    _print_counts(counts, out)
    for kind, missing in counts["short"].items():
        typer.echo(f"{missing} rows short of the quota of {kind}")


@data_app.command("card")
def card_command(folder: Annotated[Path, typer.Argument(help="A folder of `star data` or `star synthesize`.")]) -> None:
    """Print the card of a set of rows, and the digest under which DVC tracks its folder.

    Example: `star data card runs/latest/synthesize`
    """
    from star.data.data_card import markdown_card
    from star.data.write_set import read_statistics
    from star.folders.dvc_digest import dvc_digest

    typer.echo(markdown_card(read_statistics(folder)))
    typer.echo(f"DVC digest of the folder: {dvc_digest(folder)}")


@data_app.command("restore")
def restore_command(
    to: Annotated[Path, typer.Option(help="New folder for the rows and tools.")],
    model: Annotated[str, typer.Argument(help=f"{MODEL_HELP} Or a model folder, as ./FOLDER.")] = "champion",
    name: NameOption = "star",
) -> None:
    """Bring back the rows and tools that a model's data set was made of, as its lineage names them.

    From DVC's remote, from S3, or from this machine; each file is compared with the sha256 in the lineage.

    Examples:

    `star data restore --to back`

    `star data restore star/3 --to back`
    """
    from star.registry.restore_data import restore_data

    import_mlflow_without_pandas()
    for restored in restore_data(model, name=name, to=to):
        typer.echo(f"{restored.setting}: {restored.place}, sha256 {restored.sha256[:12]}, from {restored.source}")


def _parse_weights(texts: list[str] | None) -> dict[str, float]:
    """Reads `simple=0.5` and its like into {kind: weight}."""
    weights = {}
    for text in texts or []:
        kind, _, weight = text.partition("=")
        try:
            weights[kind] = float(weight)
        except ValueError:
            raise InputError(f"{text!r} is not a weight: write it as simple=0.5") from None
    return weights


def _print_counts(counts: dict[str, Any], out: Path) -> None:
    left_out = ", ".join(f"{reason} {count}" for reason, count in counts["rejects"].items()) or "none"
    typer.echo(f"{counts['rows']} of {counts['read']} rows kept in {out / 'rows.jsonl'}; left out: {left_out}")
    typer.echo(f"the set's card: {out / 'card.html'}")


def _print_coverage(counts: dict[str, Any]) -> None:
    from star.data.tool_coverage import coverage_lines

    for line in coverage_lines(counts.get("uncalled", {}), counts.get("tool_notes", {})):
        typer.echo(continued(line))


def _print_first_reasons(counts: dict[str, Any], out: Path) -> None:
    """Prints why records were left out, if more than a tenth was: then a form may be unknown, or its fields have other names."""
    from star.data.write_set import first_reasons

    if sum(counts["rejects"].values()) * 10 > counts["read"]:
        typer.echo(f"more than a tenth was left out; the first reasons (all are in {out / 'rejects.jsonl'}):")
        for reason in first_reasons(out):
            typer.echo(f"  {continued(reason[:300])}")


def _print_usage(usage: dict[str, Any]) -> None:
    requests = f"{usage['requests']} requests, {usage['retries']} retries, {usage['failed']} rows without an answer"
    tokens = f"{usage['prompt_tokens']} prompt and {usage['completion_tokens']} completion tokens"
    typer.echo(f"{requests}; {tokens}, cost {usage['cost']}")
