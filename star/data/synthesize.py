"""The data set of a run: generated and imported rows, cleaned together and split, nothing left out without a reason."""

from pathlib import Path

from star.config import Data
from star.data.cleaning import clean
from star.data.generate import generate_rows
from star.data.importers import import_rows
from star.data.rows import write_json_lines, write_rows
from star.data.splits import split
from star.data.tools import load_tools
from star.errors import InputError
from star.progress import Bar


def make_data_set(settings: Data, *, seed: int, out: Path) -> dict[str, float]:
    """Writes train.jsonl, heldout.jsonl and rejects.jsonl.

    Returns:
        counts: train and held-out rows, imported rows, rejected rows in all and by reason.
    """
    tools = load_tools(settings.tools.read_verified())
    imported = list(import_rows(settings.seed_data.read_verified(), source="seed")) if settings.seed_data else []
    rows = list(imported)
    with Bar("generate rows", settings.generated_rows) as bar:
        for row in generate_rows(tools, settings.generated_rows, seed=seed, tools_per_prompt=settings.tools_per_prompt):
            rows.append(row)
            bar.advance()
    result = clean(rows)
    if len(result.kept) <= settings.heldout_rows:
        raise InputError(
            f"only {len(result.kept)} of {len(rows)} rows are clean ({result.reasons()}), too few to hold out "
            f"{settings.heldout_rows}: make or give more rows, or hold out fewer"
        )
    train, heldout = split(result.kept, heldout=settings.heldout_rows, seed=seed)
    write_rows(out / "train.jsonl", train)
    write_rows(out / "heldout.jsonl", heldout)
    write_json_lines(out / "rejects.jsonl", (vars(reject) for reject in result.rejects))
    counts = {"train": len(train), "heldout": len(heldout), "imported": len(imported), "rejected": len(result.rejects)}
    counts["fitted"] = result.fitted
    return counts | {f"rejected_{reason}": count for reason, count in result.reasons().items()}
