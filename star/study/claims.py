"""Writes which claims of the paper the recorded cells bear out, and how much of the study is recorded."""

from collections.abc import Sequence

from star.config.study import Study
from star.study.grid import Cell
from star.study.paper import CLAIMS, QUESTIONS, Claim
from star.study.results import Recorded, Row
from star.study.scores import Scores, paragraph, signed_percent, table

HEAD = ["claim", "difference", "points", "seeds", "here"]
MOST_LISTED = 12  # names of cells in a sentence


def coverage_section(cells: Sequence[Cell], recorded: Recorded, *, study: Study) -> str:
    """How many of the cells are recorded, which are missing, and which lines were left out."""
    done = {(row["cell"], row["seed"]) for row in recorded.rows if not row["failed"]}
    missing = [cell for cell in cells if (cell.name, str(cell.seed)) not in done]
    count = f"{len(cells) - len(missing)} of {len(cells)} cells recorded"
    text = paragraph(
        f"**{count}.** Missing: {_listed([(c.name, c.seed) for c in missing], study)}." if missing else f"{count}."
    )
    if recorded.others:
        text += paragraph(left_out(recorded.others, study))
    return f"\n## What is recorded\n\n{text}".rstrip("\n") + "\n"


def left_out(others: Sequence[Row], study: Study) -> str:
    """Says which lines of the file are no results of this study."""
    lines = "1 line was" if len(others) == 1 else f"{len(others)} lines were"
    names = _listed([(row["cell"], int(row["seed"])) for row in others], study)
    return f"{lines} made with other settings than these, and left out: {names}."


def claims_section(scores: Scores, *, names: set[str]) -> str:
    """The claims whose cells the study has.

    Args:
        names: of all cells of the study.
    """
    possible, asked = (
        [claim for claim in claims if {claim.better, claim.worse} <= names] for claims in (CLAIMS, QUESTIONS)
    )
    without = len(CLAIMS) - len(possible)
    if not possible and not asked:
        return ""
    text = "\n## What holds\n\n" + paragraph(
        """Each claim as a difference of two cells, paired by seed, with its 95% interval (Student's t). *Holds* and *the opposite* mean
        that the whole interval lies on one side of zero. Seeds that agree more closely than one held-out row do so by chance, so the
        standard deviation of a share counts as at least one row. No correction is made for the number of claims: of twenty true
        equalities, one is expected to look like a difference by chance."""
    )
    text += paragraph(
        f"""The intervals are over the students' seeds. Data, teacher, its samples and the {_heldout_rows(scores)} held-out rows are the
        same for all; other rows or tools may decide otherwise."""
    )
    if possible:
        body = [[*_compared(claim, scores), _papers(claim)] for claim in possible]
        text += "The paper's own difference of the two, in points, is of BFCLv3 overall and ACEBench normal.\n\n"
        text += table([*HEAD, "paper: BFCL, ACEBench"], body, text_columns=2)
    if without:
        text += (
            "\n"
            + paragraph(f"Cells for {without} further claims of the paper are not in this study.").rstrip("\n")
            + "\n"
        )
    if asked:
        body = [_compared(claim, scores) for claim in asked]
        text += f"\nWhat the paper does not claim, and people ask:\n\n{table(HEAD, body, text_columns=2)}"
    return text


def _compared(claim: Claim, scores: Scores) -> list[str]:
    """The line of a claim: its cells, their difference, and what that decides."""
    found = scores.difference(claim.better, claim.worse, claim.column)
    named = [claim.text, f"`{claim.better}` − `{claim.worse}`"]
    if found is None:
        return [*named, "-", "0", "not recorded"]
    text = "{:+.3f}".format if claim.column == "before_rl_entropy" else signed_percent
    half = "" if found.half is None else f" ± {text(found.half).lstrip('+')}"
    said = {1: "holds", 0: "not decided", -1: "the opposite"}[found.sign]
    seeds = f"{found.seeds} of {len(scores.seeds)}" if found.seeds < len(scores.seeds) else str(found.seeds)
    return [*named, text(found.mean) + half, seeds, said]


def _papers(claim: Claim) -> str:
    papers = claim.papers_difference()
    if papers is None:
        return "-"
    bfcl, acebench = (
        "-" if value is None else f"{value:+.{digits}f}" for value, digits in zip(papers, (2, 1), strict=True)
    )
    return f"{bfcl}, {acebench}"


def _heldout_rows(scores: Scores) -> str:
    return " or ".join(sorted({row["heldout_rows"] for row in scores.rows}, key=float))


def _listed(cells: Sequence[tuple[str, int]], study: Study) -> str:
    """Names of cells, with their seeds where these are not all seeds of the study: `ckd+none`, `fkl+none` (seeds 12, 13)."""
    seeds: dict[str, list[int]] = {}
    for name, seed in cells:
        seeds.setdefault(name, []).append(seed)
    texts = [
        f"`{name}`"
        + ("" if set(some) == set(study.seeds) else f" (seed{'s' * (len(some) > 1)} {', '.join(map(str, some))})")
        for name, some in seeds.items()
    ]
    more = len(texts) - MOST_LISTED
    return ", ".join(texts[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
