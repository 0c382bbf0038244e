"""Runs the commands of `star data`: each writes one folder under the folder contract (`star.folders.run_once`).

    settings = SynthesizeSettings(tools=Path("tools.json"), rows=300, seed=7)
    counts = synthesize(settings, out=Path("rows"))    # {"rows": 296, "read": 300, "rejects": {"near_duplicate": 4}}

Every command has a dataclass of settings, a public function, and a `_write_...` function that does the work. The work function imports
what it needs in its body: the code digest, by which a finished folder is recognised, follows the imports of that function.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from star.config.row_kinds import ROW_KIND_WEIGHTS
from star.data.row_files import row_files
from star.digest_cache import digest_of_file, digests_of
from star.errors import InputError
from star.folders.code_digest import code_digest
from star.folders.manifest import Manifest
from star.folders.run_once import Result, draft_manifest, run_once
from star.folders.workspace import Workspace
from star.hashing import digest_of

if TYPE_CHECKING:
    from star.data.rows import Reject

Counts = dict[str, Any]  # what metrics.json of the folder holds
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class ImportSettings:
    """Settings of `star data import`.

    Attributes:
        files: files that all hold tools, or files and folders that all hold rows.
        source: name of the rows' origin; without it, the name of each file.
        licence: written on every row; without it, what the row says or what is known of its source.
        every_turn: make one row per assistant turn instead of one per conversation.
        only: names of the tools to import; empty for all.
    """

    files: list[Path]
    source: str | None = None
    licence: str | None = None
    every_turn: bool = False
    only: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ModelSettings:
    """The model that writes rows, at an OpenAI-compatible endpoint. The key is read from STAR_API_KEY.

    Attributes:
        url: base URL of the endpoint, such as http://localhost:8000/v1.
        name: name of the model at the endpoint.
        examples: file of rows that the prompts show as examples of quality.
        concurrency: requests in flight at the same time.
        max_tokens: largest number of tokens in an answer, reasoning included.
        price_in, price_out: price of a million prompt and completion tokens.
    """

    url: str
    name: str
    examples: Path | None = None
    concurrency: int = 8
    max_tokens: int = 1024
    price_in: float = 0.0
    price_out: float = 0.0


@dataclass(frozen=True)
class SynthesizeSettings:
    """Settings of `star data synthesize`.

    Attributes:
        tools: file of tools in any dialect.
        rows: rows to make, before cleaning.
        kinds: weight of each kind of row; empty for the default weights.
        masked: share of rows with random names for functions and parameters (offline generator only).
        model: the model that writes the rows; None for the offline generator.
    """

    tools: Path
    rows: int = 10000
    seed: int = 7
    tools_per_prompt: int = 4
    kinds: Mapping[str, float] = field(default_factory=dict)
    masked: float = 0.0
    licence: str | None = None
    model: ModelSettings | None = None


@dataclass(frozen=True)
class CheckSettings:
    """Settings of `star data check`.

    Attributes:
        files: files of rows, or folders of `star data` or `star synthesize`.
        benchmark: folder of BFCL's or ACEBench's files; rows like theirs are rejected.
        languages: languages to keep, as ISO 639-1 codes; empty for all.
        max_words: words of the longest conversation to keep.
        quotas: share of each kind among the rows to keep; needs `rows`.
        rows: rows to keep in all.
        seed: chooses which rows of a kind are kept.
    """

    files: list[Path]
    benchmark: Path | None = None
    languages: list[str] = field(default_factory=list)
    max_words: int | None = None
    quotas: Mapping[str, float] = field(default_factory=dict)
    rows: int | None = None
    seed: int = 7


def import_files(settings: ImportSettings, *, out: Path, resume: bool = True) -> Counts:
    """Imports tools into `out`/tools.json, or rows into `out`/rows.jsonl; rejects.jsonl has what could not be read, with reasons.

    Returns:
        {"tools", "rejected"} for tools, and "tool_notes" where a schema could not be used as a whole.
        {"rows", "read", "rejects": {reason: count}} for rows.

    Raises:
        InputError: a file is missing or cannot be read, some files hold tools and others rows, or no tool can be used.
    """
    from star.data.tool_files import holds_tools

    kinds = {holds_tools(file) for file in settings.files}
    if len(kinds) > 1:
        raise InputError("some of the files hold tools and others rows: import them one kind at a time")
    if kinds == {True}:
        relevant: dict[str, object] = {"what": "tools", "only": settings.only}
        return _run("import", _write_tools, settings, relevant, inputs=settings.files, out=out, resume=resume)
    if settings.only:
        raise InputError("--only chooses among tools, and these files hold rows: leave it out")
    relevant = {"source": settings.source, "licence": settings.licence, "every_turn": settings.every_turn}
    return _run("import", _write_imported_rows, settings, relevant, inputs=settings.files, out=out, resume=resume)


def synthesize(settings: SynthesizeSettings, *, out: Path, resume: bool = True) -> Counts:
    """Makes rows from tools into `out`/rows.jsonl: with the offline generator, or with a model.

    Returns:
        {"rows", "read", "rejects": {reason: count}}; with a model also its usage and cost; "uncalled": {tool: why no row calls it} and
        "tool_notes" where there are any.

    Raises:
        InputError: the tools cannot be used, a kind of row is unknown, or the endpoint refuses the requests.
    """
    model = settings.model
    relevant = {
        "rows": settings.rows,
        "seed": settings.seed,
        "tools_per_prompt": settings.tools_per_prompt,
        # The code digest leaves star.config out, so the offline generator's default weights are written here.
        "kinds": dict(settings.kinds or ({} if model else ROW_KIND_WEIGHTS)),
        "masked": settings.masked,
        "licence": settings.licence,
        "endpoint": model.url if model else None,
        "model": model.name if model else None,
        **({"max_tokens": model.max_tokens} if model else {}),
    }
    inputs = [settings.tools, *([model.examples] if model and model.examples else [])]
    # The code digest follows this function's imports: changing one way leaves the other's finished folders valid.
    write = _write_rows_of_model if model else _write_generated_rows
    return _run("synthesize", write, settings, relevant, inputs=inputs, out=out, resume=resume)


def check(settings: CheckSettings, *, out: Path, resume: bool = True) -> Counts:
    """Cleans the rows of all files together into `out`/rows.jsonl; rejects.jsonl has the others with their reasons.

    Returns:
        {"rows", "read", "rejects": {reason: count}, "short": {kind: rows missing from its quota}}.

    Raises:
        InputError: a file is missing or cannot be read, or `benchmark` holds no benchmark.
    """
    relevant = {
        "language": settings.languages,
        "max_words": settings.max_words,
        "quota": dict(settings.quotas),
        "rows": settings.rows,
        "seed": settings.seed,
    }
    benchmark = [settings.benchmark] if settings.benchmark else []
    inputs = [*chain.from_iterable(map(row_files, settings.files)), *benchmark]
    return _run("check", _write_checked_rows, settings, relevant, inputs=inputs, out=out, resume=resume)


def _run(
    command: str,
    write: Callable[[Settings, Workspace], Counts],
    settings: Settings,
    relevant: Mapping[str, object],
    *,
    inputs: list[Path],
    out: Path,
    resume: bool,
) -> Counts:
    """Runs a command once; the same command on the same inputs answers from the folder that it wrote.

    Args:
        write: the work, a function of this module.
        relevant: the settings that determine the result. How many requests run at once, for one, does not.
    """

    def describe() -> Manifest:
        digests = {str(path): _content_digest(path) for path in inputs}
        # The files in their order: of duplicates the first is kept, and a file that is given twice repeats all of its rows.
        canonical = json.dumps({**relevant, "inputs": [str(path) for path in inputs]}, sort_keys=True)
        return draft_manifest(f"data {command}", settings=canonical, code=code_digest(write), inputs=digests)

    def work(workspace: Workspace, manifest: Manifest) -> Result:
        return Result(write(settings, workspace))

    return run_once(describe, work, out=out.absolute(), resume=resume, sources=inputs).metrics


def _write_tools(settings: ImportSettings, workspace: Workspace) -> Counts:
    """Writes tools.json and rejects.jsonl."""
    from star.data.rows import Reject
    from star.data.tool_files import read_tools
    from star.data.tools import notes_by_tool, repeated_name
    from star.data.write_set import reject_line
    from star.json_file import write_json

    read = [tool for file in settings.files for tool in read_tools(file)]
    tools = [tool for tool in read if not isinstance(tool, Reject)]
    rejects = [tool for tool in read if isinstance(tool, Reject)]
    if not tools:
        raise InputError(f"no tool can be used; the first fault: {rejects[0].detail}")
    if missing := sorted(set(settings.only) - {tool["name"] for tool in tools}):
        first = ", ".join(tool["name"] for tool in tools[:5])
        raise InputError(f"there is no tool named {missing[0]!r} among {len(tools)}, such as {first}")
    tools = [tool for tool in tools if not settings.only or tool["name"] in settings.only]
    # After the choice by `only`: a repeated name among tools that are left out does no harm.
    if name := repeated_name(tools):
        raise InputError(f"two tools are named {name!r}: rename one")
    write_json(workspace.out / "tools.json", tools)
    (workspace.out / "rejects.jsonl").write_bytes(b"".join(map(reject_line, rejects)))
    counts: Counts = {"tools": len(tools), "rejected": len(rejects)}
    return counts | ({"tool_notes": notes} if (notes := notes_by_tool(tools)) else {})


def _write_imported_rows(settings: ImportSettings, workspace: Workspace) -> Counts:
    """Writes the set of imported rows, its card, and tools.jsonl with the tools as they were written."""
    from star.data.data_card import write_card
    from star.data.importers import import_rows, original_tools
    from star.data.rows import write_json_lines
    from star.data.write_set import TOOLS, from_start, write_set

    def records() -> Iterator["dict | Reject"]:
        for file in settings.files:
            yield from import_rows(
                file, source=settings.source or file.stem, licence=settings.licence, every_turn=settings.every_turn
            )

    statistics = write_set(from_start(records()), out=workspace.out, state=workspace.state, label="import rows")
    # A second pass over the files, so that memory does not grow with their rows.
    write_json_lines(workspace.out / TOOLS, original_tools(settings.files))
    write_card(workspace.out)
    return statistics.counts()


def _write_generated_rows(settings: SynthesizeSettings, workspace: Workspace) -> Counts:
    """Writes the set that the offline generator makes, and its card."""
    from star.data.data_card import write_card
    from star.data.generate_offline import generate_rows
    from star.data.tool_coverage import add_tool_coverage
    from star.data.tool_files import load_tools
    from star.data.write_set import write_set

    tools = load_tools(settings.tools)

    def records(position: int) -> Iterator[dict]:
        return generate_rows(
            tools,
            settings.rows,
            seed=settings.seed,
            tools_per_prompt=settings.tools_per_prompt,
            kinds=settings.kinds or ROW_KIND_WEIGHTS,
            masked=settings.masked,
            licence=settings.licence or "own",
            start=position,
        )

    statistics = write_set(records, out=workspace.out, state=workspace.state, total=settings.rows, label="make rows")
    coverage = add_tool_coverage(statistics, tools, folder=workspace.out, masked=settings.masked)
    write_card(workspace.out)
    return statistics.counts() | coverage


def _write_rows_of_model(settings: SynthesizeSettings, workspace: Workspace) -> Counts:
    """Writes the set that a model makes, its card, and usage.json. The answers are kept in the state, so none is asked for twice."""
    from star.data.data_card import write_card
    from star.data.endpoint import Endpoint
    from star.data.generate_llm import MODEL_ROW_KIND_WEIGHTS, Plan, collect_answers, read_examples, read_rows_from_log
    from star.data.tool_coverage import add_tool_coverage
    from star.data.tool_files import load_tools
    from star.data.write_set import write_set
    from star.json_file import write_json

    model = settings.model
    if model is None:
        raise ValueError("settings.model is None: synthesize() calls this only when a model writes the rows")
    plan = Plan(
        load_tools(settings.tools),
        settings.rows,
        settings.seed,
        read_examples(model.examples) if model.examples else [],
        settings.tools_per_prompt,
        model.concurrency,
        licence=settings.licence or "own",
        kinds=settings.kinds or MODEL_ROW_KIND_WEIGHTS,
        max_tokens=model.max_tokens,
    )
    log = workspace.state / "answers.jsonl"
    # All answers come before the first row: they arrive in any order, and rows are written in that of their numbers.
    # The key is read here, so that neither the settings nor the manifest hold it.
    usage: Counts = dict(
        collect_answers(plan, Endpoint(model.url, model.name, os.environ.get("STAR_API_KEY") or None), log=log)
    )
    cost = usage["prompt_tokens"] * model.price_in + usage["completion_tokens"] * model.price_out
    usage["cost"] = round(cost / 1e6, 6)
    write_json(workspace.out / "usage.json", usage)
    statistics = write_set(
        lambda position: read_rows_from_log(plan, log, position),
        out=workspace.out,
        state=workspace.state,
        total=settings.rows,
    )
    coverage = add_tool_coverage(statistics, plan.tools, folder=workspace.out)
    write_card(workspace.out)
    return statistics.counts() | usage | coverage


def _write_checked_rows(settings: CheckSettings, workspace: Workspace) -> Counts:
    """Writes the set of the rows that pass all checks, cut down to the quotas, and its card."""
    from star.data.contamination import Benchmark
    from star.data.data_card import write_card
    from star.data.filters import at_most_words, in_languages
    from star.data.importers import import_rows
    from star.data.write_set import apply_quotas, from_start, write_set

    benchmark = Benchmark(settings.benchmark) if settings.benchmark else None
    checks = [at_most_words(settings.max_words)] if settings.max_words else []
    checks += [in_languages(settings.languages)] if settings.languages else []
    checks += [benchmark.check] if benchmark else []

    def records() -> Iterator["dict | Reject"]:
        files = chain.from_iterable(map(row_files, settings.files))
        return chain.from_iterable(import_rows(file, source=file.stem) for file in files)

    # A set that is still to be cut down is not the result: a killed run goes on with it in the state.
    wanted = settings.rows if settings.quotas else None
    whole = workspace.out if wanted is None else workspace.state / "whole"
    whole.mkdir(exist_ok=True)
    statistics = write_set(
        from_start(records()),
        out=whole,
        state=workspace.state,
        checks=tuple(checks),
        find_overlaps=benchmark.overlaps if benchmark else None,
        label="check rows",
    )
    # After the cleaning, because only the rows that are left can fill a quota.
    if wanted is not None:
        statistics = apply_quotas(whole, out=workspace.out, shares=settings.quotas, total=wanted, seed=settings.seed)
    write_card(workspace.out)
    return statistics.counts() | {"short": dict(statistics.shortfalls)}


def _content_digest(path: Path) -> str:
    """sha256 of a file; for a folder, a digest over the names and digests of its files."""
    if not path.is_dir():
        return digest_of_file(path, trust="own")
    # Sorted, because the order of a folder differs between machines and the digest must not.
    files = sorted(file for file in path.rglob("*") if file.is_file())
    found = digests_of(files, trust="own")
    return digest_of([[file.relative_to(path).as_posix(), sha256] for file, sha256 in found.items()])
