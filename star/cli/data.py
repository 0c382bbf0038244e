"""`star data`: from any team's tools and rows to a clean set. A command writes one folder, whole or not at all, and resumes when killed."""

import json
import os
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from star.errors import InputError

if TYPE_CHECKING:
    from star.data.rows import Reject
    from star.data.set_statistics import Figures

data_app = typer.Typer(help="Tools and rows: import, synthesize, check, describe.", no_args_is_help=True)

OutOption = Annotated[Path, typer.Option("--out", "-o", help="The folder to write. It appears when it is whole.")]
ResumeOption = Annotated[bool, typer.Option("--resume/--restart", help="Go on with killed work, or begin anew.")]
LicenceOption = Annotated[str | None, typer.Option(help="Licence of the rows, written on every one, as in CC-BY-4.0.")]
SeedOption = Annotated[int, typer.Option(help="The same seed gives the same rows.")]


@data_app.command("import")
def import_command(
    files: Annotated[
        list[Path], typer.Argument(help="OpenAPI, MCP or function lists; or rows: JSON Lines, JSON, Parquet, folders.")
    ],
    out: OutOption,
    source: Annotated[
        str | None, typer.Option(help="Name of the rows' origin: xlam, toolace, toolmind, hammer, or your own.")
    ] = None,
    licence: LicenceOption = None,
    every_turn: Annotated[bool, typer.Option(help="One row for every assistant turn, not the last alone.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Take this tool and no other; repeat it.")] = None,
    resume: ResumeOption = True,
) -> None:
    """Read tools of any dialect into tools.json, or rows of any form into rows.jsonl; what cannot be read is in rejects.jsonl.

    Examples: `star data import openapi.yaml --out tools`, `star data import xlam.json --source xlam --out xlam`
    """
    from star.data.tool_files import holds_tools

    kinds = {holds_tools(file) for file in files}
    if kinds == {True}:
        _import_tools(files, only=only or [], out=out, resume=resume)
    elif kinds == {False} and only:
        raise InputError("--only chooses among tools, and these files hold rows: leave it out")
    elif kinds == {False}:
        _import_rows(files, out=out, source=source, licence=licence, every_turn=every_turn, resume=resume)
    else:
        raise InputError("some of the files hold tools and others rows: import them one kind at a time")


def _import_tools(files: list[Path], *, only: list[str], out: Path, resume: bool) -> None:
    def work(target: Path, state: Path) -> dict:
        from star.data.rows import Reject, write_json_lines
        from star.data.tool_files import read_tools
        from star.data.tools import repeated_name
        from star.json_file import write_json

        read = [tool for file in files for tool in read_tools(file)]
        tools = [tool for tool in read if not isinstance(tool, Reject)]
        rejects = [tool for tool in read if isinstance(tool, Reject)]
        if not tools:
            raise InputError(f"no tool can be used; the first fault: {rejects[0].detail}")
        if missing := sorted(set(only) - {tool["name"] for tool in tools}):
            first = ", ".join(tool["name"] for tool in tools[:5])
            raise InputError(f"there is no tool named {missing[0]!r} among {len(tools)}, such as {first}")
        tools = [tool for tool in tools if not only or tool["name"] in only]
        if name := repeated_name(tools):
            raise InputError(f"two tools are named {name!r}: rename one")
        write_json(target / "tools.json", tools)
        write_json_lines(target / "rejects.jsonl", (vars(reject) for reject in rejects))
        return {"tools": len(tools), "rejected": len(rejects)}

    counts = _make("import", work, settings={"what": "tools", "only": only}, inputs=files, out=out, resume=resume)
    typer.echo(
        f"{counts['tools']} tools in {out / 'tools.json'}, {counts['rejected']} left out with their reasons in rejects.jsonl"
    )


def _import_rows(
    files: list[Path], *, out: Path, source: str | None, licence: str | None, every_turn: bool, resume: bool
) -> None:
    def work(target: Path, state: Path) -> dict:
        from star.data.data_card import write_card
        from star.data.importers import import_rows, original_tools
        from star.data.rows import write_json_lines
        from star.data.write_set import TOOLS, from_start, write_set

        def records() -> Iterator["dict | Reject"]:
            for file in files:
                yield from import_rows(file, source=source or file.stem, licence=licence, every_turn=every_turn)

        figures = write_set(
            lambda position: from_start(records())(position), out=target, state=state, label="import rows"
        )
        write_json_lines(target / TOOLS, original_tools(files))
        write_card(target)
        return _counts(figures)

    settings = {"source": source, "licence": licence, "every_turn": every_turn}
    _report(_make("import", work, settings=settings, inputs=files, out=out, resume=resume), out)


@data_app.command("synthesize")
def synthesize_command(
    tools: Annotated[
        Path, typer.Option(help="Tools of any dialect: OpenAPI, MCP, functions, or tools.json of `star data import`.")
    ],
    out: OutOption,
    rows: Annotated[int, typer.Option(min=1, help="Rows to make, before cleaning.")] = 10000,
    seed: SeedOption = 7,
    tools_per_prompt: Annotated[int, typer.Option(min=1, help="Tools a prompt shows, at most.")] = 4,
    kind: Annotated[
        list[str] | None, typer.Option(help="Weight of a kind, as simple=0.5; repeat it. Without: all kinds.")
    ] = None,
    masked: Annotated[
        float, typer.Option(min=0, max=1, help="Share of rows with random names for functions and parameters.")
    ] = 0.0,
    licence: LicenceOption = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Base URL of an OpenAI-compatible model, to write the rows. Key: $STAR_API_KEY.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model's name at the endpoint.")] = None,
    examples: Annotated[Path | None, typer.Option(help="Rows to show the model as examples of quality.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests at a time.")] = 8,
    price_in: Annotated[float, typer.Option(min=0, help="Price of a million prompt tokens.")] = 0.0,
    price_out: Annotated[float, typer.Option(min=0, help="Price of a million completion tokens.")] = 0.0,
    resume: ResumeOption = True,
) -> None:
    """Make rows from tool schemas alone, offline and repeatable; or have a model write them, past three gates.

    Examples: `star data synthesize --tools openapi.yaml --rows 5000 --out rows`,
    `star data synthesize --tools tools.json --endpoint http://localhost:8000/v1 --model qwen3-8b --out rows`
    """
    if (endpoint is None) != (model is None):
        raise InputError("--endpoint and --model belong together: give both, or neither for the offline generator")
    if endpoint and masked:
        raise InputError("--masked belongs to the offline generator: leave it out, or --endpoint")
    weights = _weights(kind)

    def offline(target: Path, state: Path) -> dict:
        from star.data.data_card import write_card
        from star.data.generate import KINDS, generate_rows
        from star.data.tool_files import load_tools
        from star.data.write_set import write_set

        loaded = load_tools(tools)

        def records(position: int) -> Iterator[dict]:
            return generate_rows(
                loaded, rows, seed=seed, tools_per_prompt=tools_per_prompt, kinds=weights or KINDS, masked=masked,
                licence=licence or "own", start=position,
            )  # fmt: skip

        figures = write_set(records, out=target, state=state, total=rows, label="make rows")
        write_card(target)
        return _counts(figures)

    def by_model(target: Path, state: Path) -> dict:
        from star.data.data_card import write_card
        from star.data.endpoint import Endpoint
        from star.data.generate_llm import Plan, collect_answers, read_examples, rows_in_log
        from star.data.tool_files import load_tools
        from star.data.write_set import write_set
        from star.json_file import write_json

        plan = Plan(
            load_tools(tools), rows, seed, read_examples(examples) if examples else [], tools_per_prompt, concurrency,
            licence=licence or "own", **({"kinds": weights} if weights else {}),
        )  # fmt: skip
        asked = Endpoint(endpoint, model, os.environ.get("STAR_API_KEY"))
        usage = dict(collect_answers(plan, asked, log=state / "answers.jsonl"))
        usage["cost"] = round((usage["prompt_tokens"] * price_in + usage["completion_tokens"] * price_out) / 1e6, 6)
        write_json(target / "usage.json", usage)
        figures = write_set(
            lambda position: rows_in_log(plan, state / "answers.jsonl", position), out=target, state=state, total=rows
        )
        write_card(target)
        return _counts(figures) | usage

    settings = {
        "rows": rows, "seed": seed, "tools_per_prompt": tools_per_prompt, "kinds": weights, "masked": masked, "licence": licence,
        "endpoint": endpoint, "model": model,
    }  # fmt: skip
    inputs = [tools, *([examples] if examples else [])]
    work = by_model if endpoint else offline
    counts = _make("synthesize", work, settings=settings, inputs=inputs, out=out, resume=resume)
    _report(counts, out)
    if endpoint:
        used = f"{counts['requests']} requests, {counts['retries']} retries, {counts['failed']} rows without an answer"
        typer.echo(
            f"{used}; {counts['prompt_tokens']} prompt and {counts['completion_tokens']} completion tokens, cost {counts['cost']}"
        )


@data_app.command("check")
def check_command(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Rows, or folders of `star data` or `star synthesize`. Duplicates are found across all of them."
        ),
    ],
    out: OutOption,
    benchmark: Annotated[
        Path | None, typer.Option(help="Folder with the files of BFCL or ACEBench: rows like theirs are left out.")
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Keep rows in this language (en, de, ...); repeat it.")
    ] = None,
    max_words: Annotated[int | None, typer.Option(min=1, help="Leave out longer conversations.")] = None,
    quota: Annotated[
        list[str] | None, typer.Option(help="Share of a kind, as multi-step=0.3; repeat it; with --rows.")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows to keep in all, for the quotas.")] = None,
    seed: SeedOption = 7,
    resume: ResumeOption = True,
) -> None:
    """Clean rows of any sources together: schema, duplicates, benchmark, length, language, quotas. Every reject has its reason.

    Example: `star data check mine xlam --benchmark bfcl/data --quota simple=0.5 --quota parallel=0.5 --rows 20000 --out clean`
    """
    shares = _weights(quota)
    if bool(shares) != (rows is not None):
        raise InputError("--quota and --rows belong together: shares of how many rows?")
    inputs = [rows_file for file in files for rows_file in _rows_of(file)]

    def work(target: Path, state: Path) -> dict:
        from star.data.contamination import Benchmark
        from star.data.data_card import write_card
        from star.data.filters import languages, longest
        from star.data.importers import import_rows
        from star.data.write_set import apply_quotas, from_start, write_set

        known = Benchmark(benchmark) if benchmark else None
        checks = [longest(max_words)] if max_words else []
        checks += [languages(language)] if language else []
        checks += [known.check] if known else []

        def records() -> Iterator["dict | Reject"]:
            return chain.from_iterable(import_rows(file, source=file.stem) for file in inputs)

        figures = write_set(
            lambda position: from_start(records())(position),
            out=target,
            state=state,
            checks=tuple(checks),
            observe=known.overlaps if known else None,
            label="check rows",
        )
        if shares:
            figures = apply_quotas(target, shares=shares, total=rows, seed=seed)
        write_card(target)
        return _counts(figures) | {"short": dict(figures.shortfalls)}

    settings = {"language": language, "max_words": max_words, "quota": shares, "rows": rows, "seed": seed}
    given = [*inputs, *([benchmark] if benchmark else [])]
    counts = _make("check", work, settings=settings, inputs=given, out=out, resume=resume)
    _report(counts, out)
    for kind, missing in counts["short"].items():
        typer.echo(f"{missing} rows short of the quota of {kind}")


@data_app.command("card")
def card_command(folder: Annotated[Path, typer.Argument(help="A folder of `star data` or `star synthesize`.")]) -> None:
    """Write a set's card again, and say what is in it.

    Example: `star data card runs/latest/synthesize`
    """
    from star.data.data_card import markdown_card
    from star.data.dvc_digest import dvc_digest
    from star.data.write_set import read_figures

    typer.echo(markdown_card(read_figures(folder)))
    typer.echo(f"DVC digest of the folder: {dvc_digest(folder)}")


def _rows_of(place: Path) -> list[Path]:
    """The files with the kept rows of a set's folder; anything else as it is."""
    for names in (("rows.jsonl",), ("train.jsonl", "heldout.jsonl")):
        if all((place / name).is_file() for name in names):
            return [place / name for name in names]
    return [place]


def _weights(written: list[str] | None) -> dict[str, float]:
    weights = {}
    for text in written or []:
        name, _, number = text.partition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            raise InputError(f"{text!r} is no weight: write it as simple=0.5") from None
    return weights


def _counts(figures: "Figures") -> dict:
    return {"rows": figures.rows, "read": figures.read, "rejects": dict(figures.rejects.most_common())}


def _report(counts: dict, out: Path) -> None:
    left_out = ", ".join(f"{reason} {count}" for reason, count in counts["rejects"].items()) or "none"
    typer.echo(f"{counts['rows']} of {counts['read']} rows kept in {out / 'rows.jsonl'}; left out: {left_out}")
    typer.echo(f"the set's card: {out / 'card.html'}")


def _make(
    command: str, work: Callable[[Path, Path], dict], *, settings: dict, inputs: list[Path], out: Path, resume: bool
) -> dict:
    """Runs a command's work into a partial folder and publishes it with its manifest; finished work is not done again."""
    from star.folders.code_digest import code_digest
    from star.folders.manifest import Manifest, is_finished, refuse_foreign
    from star.folders.workspace import finish_interrupted, partial_folder, publish
    from star.hashing import digest_of
    from star.json_file import write_json
    from star.stages import code_version

    out = out.absolute()
    refuse_foreign(out)
    digests = {str(path): _digest(path) for path in inputs}
    code, stage = code_digest(work), f"data {command}"
    fingerprint = digest_of([stage, settings, list(digests.values()), code])
    finish_interrupted(out, stage=stage, fingerprint=fingerprint)
    if is_finished(out, fingerprint=fingerprint):
        return json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    manifest = Manifest(stage, fingerprint, digest_of(settings), code, code_version(), digests)
    with partial_folder(out, stage=stage.replace(" ", "-"), fingerprint=fingerprint, resume=resume) as workspace:
        counts = work(workspace.out, workspace.state)
        write_json(workspace.out / "metrics.json", counts)
        publish(workspace.out, out=out, manifest=manifest)
    return counts


def _digest(path: Path) -> str:
    """sha256 of a file, or over the names and digests of a folder's files."""
    from star.hashing import digest_of, sha256_of

    if not path.is_dir():
        return sha256_of(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return digest_of([[file.relative_to(path).as_posix(), sha256_of(file)] for file in files])
