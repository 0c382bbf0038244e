"""Derives what the server answered before: the answer for a run at an earlier moment, from the answer at its end.

An entry appears when the server first heard of it, has the last state that it had heard of by then, and names the children that had
appeared. Times of the server's own hearing are in `state_history`, those of the cluster in `start_time` and `end_time`.
"""

from datetime import datetime
from typing import Any

from tests.kfp_replay.recording import FINAL, NO_TIME, NOT_FINISHED, node_id

ENDS = (*FINAL, "CANCELED")


def seconds_of(recorded: dict[str, Any], stamp: str) -> float:
    """Seconds between a run's creation and a moment."""
    return (datetime.fromisoformat(stamp) - datetime.fromisoformat(recorded["created_at"])).total_seconds()


def moments(recorded: dict[str, Any]) -> list[float]:
    """The seconds at which the answer changed, from the run's creation on."""
    entries = recorded["run_details"]["task_details"]
    heard = [change["update_time"] for entry in (recorded, *entries) for change in entry.get("state_history") or []]
    heard += [entry["create_time"] for entry in entries if "display_name" not in entry]
    return sorted({seconds_of(recorded, stamp) for stamp in heard})


def answer_at(recorded: dict[str, Any], second: float) -> dict[str, Any]:
    """The answer that the server gave this many seconds after the run's creation."""
    entries = recorded["run_details"]["task_details"]
    seen = {id(entry) for entry in entries if _appeared(recorded, entry) <= second}
    hidden = {child for child, own in _entries_of_nodes(entries).items() if not seen & {id(entry) for entry in own}}
    shown = []
    for entry in entries:
        if id(entry) in seen:
            children = [child for child in entry.get("child_tasks") or [] if child["pod_name"] not in hidden]
            shown.append(_at(recorded, entry, second, NO_TIME, "end_time") | {"child_tasks": children})
            if not children:
                del shown[-1]["child_tasks"]
    run = _at(recorded, recorded, second, NOT_FINISHED, "finished_at")
    return run | {"run_details": {"task_details": shown}}


def _appeared(recorded: dict[str, Any], entry: dict[str, Any]) -> float:
    history = entry.get("state_history") or []
    return seconds_of(recorded, history[0]["update_time"] if history else entry["create_time"])


def _at(recorded: dict[str, Any], entry: dict[str, Any], second: float, unfinished: str, end: str) -> dict[str, Any]:
    """An entry, or the run itself, with the state that the server had heard of."""
    history = [
        change for change in entry.get("state_history") or [] if seconds_of(recorded, change["update_time"]) <= second
    ]
    then = {key: value for key, value in entry.items() if key not in ("state", "state_history", "child_tasks")}
    if history:
        then["state_history"] = history
    named = [change["state"] for change in history if "state" in change]
    if named:
        then["state"] = named[-1]
    if then.get("state") not in ENDS and entry.get("state") in ENDS:
        then[end] = unfinished
    return then


def node_names(entries: list[dict[str, Any]]) -> dict[str, str]:
    """The name of every node that is the child of another one, by its id."""
    ids = {child["pod_name"] for entry in entries for child in entry.get("child_tasks") or []}
    displays = {entry["display_name"] for entry in entries if entry.get("display_name")}
    names: dict[str, str] = {}
    waiting = [next(iter(ids)).rpartition("-")[0]] if ids else []
    workflow = waiting[0] if waiting else ""
    while waiting:
        parent = waiting.pop()
        last = max((shown for shown in displays if parent.endswith(shown)), key=len, default=parent)
        for display in displays:
            inside = (
                f"{parent}{display.removeprefix(last)}" if display.startswith(f"{last}(") else f"{parent}.{display}"
            )
            for name in {inside, f"{parent}.{display}"}:
                if (node := node_id(workflow, name)) in ids and node not in names:
                    names[node] = name
                    waiting.append(name)
    return names


# Of the entries of a recording, which are kept here so that their address stays theirs.
_KNOWN: dict[int, tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]] = {}


def _entries_of_nodes(entries: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The entries that can be a node's. The names of shards' tasks are in the answer more than once, and then its children tell."""
    if id(entries) in _KNOWN:
        return _KNOWN[id(entries)][1]
    by_display: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        by_display.setdefault(entry.get("display_name") or "", []).append(entry)
    names = node_names(entries)
    found = {}
    for node, name in names.items():
        display = max((shown for shown in by_display if shown and name.endswith(shown)), key=len, default="")
        around = name.removesuffix(display)
        beside = {other for other, longer in names.items() if longer.startswith(around)}
        same = by_display.get(display, [])
        own = [entry for entry in same if beside & {child["pod_name"] for child in entry.get("child_tasks") or []}]
        found[node] = same if len(same) == 1 else own or [entry for entry in same if "child_tasks" not in entry]
    _KNOWN[id(entries)] = entries, found
    return found
