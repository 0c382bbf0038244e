"""Renders the page of sampled completions: what the model wrote at each step that has a table, beside the target."""

from star.html_kit import STYLE, escape_html, table, truncate
from star.units import format_number

_CELL = "<td><pre>{}</pre></td>"
_STYLE = """
td pre { margin: 0; text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; max-width: 36ch; font-size: .85em }
td { vertical-align: top }
thead th { white-space: normal; vertical-align: bottom }
th:nth-child(-n+3) { text-align: left }
"""


def completions_page(tables: dict[int, list[dict]]) -> str:
    """Renders one HTML page without scripts or links. Model text is escaped, and cut where it is long.

    Args:
        tables: by step, the table that `star.simrl.completion_tables.completion_table` makes. The newest step comes
            first, unfolded.
    """
    newest = max(tables, default=None)
    sections = "".join(
        f"<details{' open' if step == newest else ''}><summary>Step {step:,}: {_summary(rows)}</summary>"
        f"{_table(step, rows)}</details>"
        for step, rows in sorted(tables.items(), reverse=True)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Sampled completions</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}{_STYLE}</style></head>'
        "<body><main><h1>Sampled completions</h1><p class=note>Of each group of rollouts the best and the worst completion, "
        f"one where they are the same. A dropped group was replaced by another prompt's. The format is read as <code>star call</code> "
        "reads it. Rewards and content follow the official reading, on which the model is trained: it also accepts a call that "
        f"is never closed, and gives −1 for a call of an unknown tool or argument.</p>{sections or '<p>No step was sampled yet.</p>'}"
        "</main></body></html>\n"
    )


def _summary(rows: list[dict]) -> str:
    valid = sum(row["format"] for row in rows)
    return f"{len(rows)} completions, {valid:.0f} of valid format"


def _table(step: int, rows: list[dict]) -> str:
    names = list(rows[0]["rewards"]) if rows else []
    scores = [f"{name} (official reading)" for name in (*names, "Content")]
    columns = ("Request", "Expected", "Completion", "Format", *scores, "Group")
    head = "".join(f'<th scope="col">{escape_html(name)}</th>' for name in columns)
    body = "".join(_row(row, names) for row in rows)
    return table(f"Step {step:,}", head, body, label=f"Completions of step {step}")


def _row(row: dict, names: list[str]) -> str:
    texts = "".join(_CELL.format(escape_html(truncate(row[key]))) for key in ("prompt", "target", "completion"))
    numbers = "".join(f"<td>{format_number(row['rewards'][name])}</td>" for name in names)
    verdicts = (
        f"<td>{'valid' if row['format'] else 'format error'}</td>{numbers}<td>{format_number(row['content'])}</td>"
    )
    return f"<tr>{texts}{verdicts}<td>{'kept' if row['kept'] else 'dropped'}</td></tr>"
