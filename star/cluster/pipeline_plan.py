"""Reads from a compiled pipeline which tasks a run of it will have, in which order, and under which names people know them.

A task's key in the compiled pipeline, such as `merge-2`, is not its name, `merge-extract-topk`. The tasks of a loop have the loop's items
behind their names: `rollout 2/4`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

from star.tracking.accelerators import VARIABLE, Accelerators

SHARD = re.compile(r"\d+/\d+")


@dataclass(frozen=True)
class PlannedTask:
    """One task that a run will have.

    Attributes:
        place: Where it stands: the keys of its groups and its own, and `#1` for the second item of a loop.
        memory: Memory limit of its container, such as 6Gi.
        accelerators: What it holds while it runs.
    """

    place: tuple[str, ...]
    name: str
    memory: str | None = None
    accelerators: Accelerators | None = None


def planned_tasks(spec: Mapping[str, Any] | None) -> list[PlannedTask]:
    """The tasks of a pipeline in the order in which they run. Empty without its definition, or where that has an unknown form.

    Args:
        spec: The definition as the API returns it, alone or with that of Kubernetes beside it.
    """
    try:
        definition = (spec or {}).get("pipeline_spec") or spec or {}
        return list(_tasks(definition, definition["root"], (), ""))
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        # A run of somebody else, perhaps compiled by another SDK. It can still be followed, under the names of its nodes.
        return []


def _tasks(
    definition: Mapping[str, Any], component: Mapping[str, Any], place: tuple[str, ...], behind: str
) -> Iterator[PlannedTask]:
    tasks = component["dag"]["tasks"]
    after = {key: sorted(set(task.get("dependentTasks") or []) & set(tasks)) for key, task in sorted(tasks.items())}
    for key in TopologicalSorter(after).static_order():
        task = tasks[key]
        inner = definition["components"][task["componentRef"]["name"]]
        items = _items(task)
        turns = (
            [((*place, key), behind)]
            if items is None
            else [((*place, key, f"#{number}"), f"{behind} {item}") for number, item in enumerate(items)]
        )
        for own, suffix in turns:
            if "dag" in inner:
                yield from _tasks(definition, inner, own, suffix)
            else:
                name = (task.get("taskInfo") or {}).get("name") or key
                container = _container(definition, inner)
                yield PlannedTask(own, name + suffix, _memory(container), _accelerators(container))


def _items(task: Mapping[str, Any]) -> list[str] | None:
    """What stands behind the names of a loop's tasks, item by item; None for a task that is no loop."""
    iterator = task.get("parameterIterator") or task.get("artifactIterator")
    if iterator is None:
        return None
    raw = (iterator.get("items") or {}).get("raw")
    # Items that only the run knows are counted by their turns, as they appear.
    items = json.loads(raw) if raw else []
    return [
        item if isinstance(item, str) and SHARD.fullmatch(item) else f"{number}/{len(items)}"
        for number, item in enumerate(items, 1)
    ]


def _container(definition: Mapping[str, Any], component: Mapping[str, Any]) -> Mapping[str, Any]:
    executor = definition["deploymentSpec"]["executors"].get(component.get("executorLabel")) or {}
    return executor.get("container") or {}


def _memory(container: Mapping[str, Any]) -> str | None:
    resources = container.get("resources") or {}
    limit = resources.get("resourceMemoryLimit") or resources.get("memoryLimit")
    return f"{limit:g} GB" if isinstance(limit, int | float) else limit


def _accelerators(container: Mapping[str, Any]) -> Accelerators | None:
    texts = [entry.get("value") for entry in container.get("env") or [] if entry.get("name") == VARIABLE]
    try:
        return Accelerators.from_json(texts[0]) if texts else None
    except ValueError:  # a pipeline that somebody else compiled
        return None
