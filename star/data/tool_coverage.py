"""Says which tools no row of a set calls, and why: a model that is trained on the set does not learn to call them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from star.data.rows import read_json_lines
from star.data.set_statistics import TEXTS, SetStatistics
from star.data.tools import notes_by_tool
from star.data.write_set import REJECTS, STATISTICS
from star.json_file import write_json

SHOWN = 10  # tools or notes in the output of a command; the card has more


def add_tool_coverage(statistics: SetStatistics, tools: list[dict], *, folder: Path, masked: float = 0.0) -> dict:
    """Adds to the statistics which tools no row calls and what could not be used of their schemas, and writes them to figures.json.

    Args:
        tools: normal-form tools that rows were made for.
        folder: folder of the set, with rejects.jsonl. The statistics are written there if they change.
        masked: share of rows with random names, whose calls cannot be counted.

    Returns:
        {"uncalled", "tool_notes"} of the statistics, each where there is something to say.
    """
    statistics.tool_notes = notes_by_tool(tools)
    # Without any call, the kinds of rows that were asked for have none.
    if statistics.called and "(others)" not in statistics.called and masked < 1:
        missing = [tool["name"] for tool in tools if tool["name"] not in statistics.called]
        statistics.uncalled = _reasons(missing, folder / REJECTS, masked=masked) if missing else {}
    said = {key: texts for key in TEXTS if (texts := getattr(statistics, key))}
    if said:
        write_json(folder / STATISTICS, statistics.to_json())
    return said


def coverage_lines(uncalled: Mapping[str, str], notes: Mapping[str, str]) -> Iterable[str]:
    """Yields the lines for a person: every tool that no row calls, and every one whose schema could not be used as a whole."""
    if uncalled:
        yield f"{_tools(len(uncalled))} that no row calls; a model does not learn them from these rows:"
        yield from _listed(uncalled)
    if notes:
        yield f"{_tools(len(notes))} whose schemas could not be used as a whole:"
        yield from _listed(notes)


def _tools(count: int) -> str:
    return "1 tool" if count == 1 else f"{count:,} tools"


def _listed(reasons: Mapping[str, str]) -> Iterable[str]:
    yield from (f"  {name}: {why}" for name, why in list(reasons.items())[:SHOWN])
    if len(reasons) > SHOWN:
        yield f"  and {len(reasons) - SHOWN:,} more, which tools.json or the card lists"


def _reasons(names: list[str], rejects: Path, *, masked: float) -> dict[str, str]:
    """Returns why no row calls a tool, by its name: what the rejects with a call of it say."""
    refused: dict[str, Counter[str]] = {name: Counter() for name in names}
    details: dict[str, str] = {}
    for _, reject in read_json_lines(rejects):
        for name in _called(reject.get("row")) & refused.keys():
            refused[name][reject["reason"]] += 1
            # The fault of a row with several calls may be another call's.
            if name in str(reject["detail"]):
                details.setdefault(name, str(reject["detail"])[:200])
    return {name: _reason(refused[name], details.get(name, ""), masked=masked) for name in names}


def _called(row: object) -> set[str]:
    messages = row.get("messages") if isinstance(row, dict) else None
    target = messages[-1] if isinstance(messages, list) and messages else None
    calls = target.get("tool_calls") if isinstance(target, dict) else None
    return {str(call.get("name")) for call in calls or [] if isinstance(call, dict)}


def _reason(refused: Counter[str], detail: str, *, masked: float) -> str:
    if not refused:
        hidden = " (masked rows hide names)" if masked else ""
        return f"no row with a call of it was made{hidden}; make more rows"
    reasons = ", ".join(f"{reason} {count}" for reason, count in refused.most_common())
    return f"all rows with a call of it were left out: {reasons}" + (f" ({detail})" if detail else "")
