"""Reads how a run and its tasks stand from the answer of KFP's API (GET /apis/v2beta1/runs/ID).

The answer lists the nodes of the Argo workflow: each task twice, drivers, loops, groups, the workflow itself. What is read out of it:

| the answer has | a task is |
|---|---|
| SUCCEEDED, and no pod | CACHED |
| RUNNING, and a pod that is PENDING, or only the driver | PENDING |
| FAILED, and it ran when the user cancelled the run | CANCELED |
| no state | SKIPPED: an earlier task failed |
| nothing, but the pipeline's definition has the task | UNSTARTED, or SKIPPED once the run has ended |

A cancelled run itself ends as FAILED, after CANCELING in its history.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from star.cluster.pipeline_plan import PlannedTask
from star.cluster.workflow_nodes import INTERNAL, Node, Workflow
from star.tracking.accelerators import Accelerators

ENDED = ("SUCCEEDED", "CACHED", "FAILED", "CANCELED", "SKIPPED")
DRIVER = "-driver"  # behind the name of a task, of KFP's pod that runs before it
SAME_START_SECONDS = 2.0  # between the start of a task and of its first pod


@dataclass(frozen=True)
class Task:
    """One task of a run, or one shard of it.

    Attributes:
        key: Identifies it within the run.
        name: As people know it, such as `rollout 2/4`.
        pods: Names of the pods of its attempts, the first one first.
        memory: Memory limit of its container, if the pipeline's definition is known.
        accelerators: What it holds while it runs, if that is known.
    """

    key: str
    name: str
    state: str
    started: datetime | None = None
    ended: datetime | None = None
    pods: tuple[str, ...] = ()
    memory: str | None = None
    accelerators: Accelerators | None = None

    @property
    def seconds(self) -> float | None:
        """Seconds from its start to its end; None before that, and for one that did not run."""
        is_over = self.started and self.ended and self.state not in ("SKIPPED", "UNSTARTED")
        return (self.ended - self.started).total_seconds() if is_over and self.ended and self.started else None


@dataclass(frozen=True)
class RunStatus:
    """The state of a run and of its tasks at one moment. `error` is what KFP says about the run itself."""

    run_id: str
    state: str
    error: str
    tasks: tuple[Task, ...]

    @property
    def ended(self) -> bool:
        """Whether the run is in a final state, failed or not."""
        return self.state in ENDED

    @property
    def is_complete(self) -> bool:
        """Whether nothing will change any more. The last states of the tasks arrive after that of the run."""
        return self.ended and all(task.state in ENDED for task in self.tasks)

    def named(self, name: str | None) -> list[Task]:
        """The tasks of that name, with all shards; all tasks without a name."""
        return [task for task in self.tasks if name in (None, task.name) or task.name.startswith(f"{name} ")]


def read_run(document: Mapping[str, Any], *, plan: Sequence[PlannedTask], workflow: Workflow) -> RunStatus:
    """Reads an answer.

    Args:
        document: The answer as JSON.
        plan: The tasks of its pipeline; empty if they are not known.
        workflow: The nodes of this run that are known from earlier answers; takes those that are new.
    """
    entries = [
        entry
        for entry in (document.get("run_details") or {}).get("task_details") or []
        if isinstance(entry, Mapping) and entry.get("display_name")
    ]
    workflow.learn(entries)
    history = document.get("state_history") or []
    cancelled = next(
        (_time(change.get("update_time")) for change in history if change.get("state") == "CANCELING"), None
    )
    state = document.get("state") or "PENDING"
    if cancelled and state == "FAILED":
        state = "CANCELED"
    by_display: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        by_display.setdefault(entry["display_name"], []).append(entry)
    reader = _Reader(by_display, workflow, cancelled, is_over=state in ENDED)
    known = {task.place for task in plan}
    known |= {place[:length] for place in known for length in range(1, len(place))}
    unknown = [node for node in workflow.nodes.values() if node.place and node.place not in known]
    places = list(dict.fromkeys(node.place for node in sorted(unknown, key=reader.order)))
    turns: dict[tuple[str, ...], set[str]] = {}  # of each loop
    for place in places:
        for depth, part in enumerate(place):
            if part.startswith("#"):
                turns.setdefault(place[:depth], set()).add(part)
    others = [
        PlannedTask(place, _plain_name(place, turns))
        for place in places
        if not INTERNAL.fullmatch(place[-1]) and place[-1][0] != "#"
    ]
    tasks = [reader.task(planned) for planned in (*plan, *others)]
    error = (document.get("error") or {}).get("message") or ""
    if state == "FAILED" and not any(task.state == "FAILED" for task in tasks):
        failed = sorted(
            name for name, same in by_display.items() if name.endswith(DRIVER) and same[0].get("state") == state
        )
        error = error or (f"no task of it failed, but KFP's own pods: {', '.join(failed)}" if failed else "")
    return RunStatus(document["run_id"], state, error, tuple(tasks))


def _plain_name(place: tuple[str, ...], turns: Mapping[tuple[str, ...], Collection[str]]) -> str:
    """A name for a task whose pipeline is not known: its key, and the number of its turn in each loop."""
    numbers = [
        f"{int(part[1:]) + 1}/{len(turns[place[:depth]])}" for depth, part in enumerate(place) if part.startswith("#")
    ]
    return " ".join([place[-1], *numbers])


@dataclass(frozen=True)
class _Reader:
    """Reads the tasks out of the entries of one answer."""

    entries: Mapping[str, Sequence[Mapping[str, Any]]]  # by the name that the API shows
    workflow: Workflow
    cancelled: datetime | None
    is_over: bool

    def order(self, node: Node) -> tuple[datetime, list[tuple[int, str]]]:
        entry = self.entry(node)
        started = (entry and _time(entry.get("start_time"))) or datetime.max.replace(tzinfo=UTC)
        return started, [(len(part) if part.startswith("#") else 0, part) for part in node.place]  # #9 before #10

    @cached_property
    def nodes(self) -> Mapping[tuple[str, ...], Sequence[Node]]:
        """The nodes of the workflow by their places."""
        by_place: dict[tuple[str, ...], list[Node]] = {}
        for node in self.workflow.nodes.values():
            by_place.setdefault(node.place, []).append(node)
        return by_place

    @cached_property
    def groups(self) -> Mapping[tuple[str, str], Mapping[str, Any]]:
        """Entries by their name and by what the name of a child starts with, up to each dot."""
        found: dict[tuple[str, str], Mapping[str, Any]] = {}
        for display, same in self.entries.items():
            for entry in same if len(same) > 1 else []:
                children = [
                    self.workflow.nodes[child].name for child in _children(entry) if child in self.workflow.nodes
                ]
                for name in children:
                    for dot in re.finditer(r"^|\.", name):
                        found.setdefault((display, name[: dot.end()]), entry)
        return found

    def entry(self, node: Node) -> Mapping[str, Any] | None:
        """The entry of a node. Shards have entries of one name, which are told apart by their children."""
        same = self.entries.get(node.display, [])
        return self.groups.get((node.display, node.boundary)) if len(same) > 1 else next(iter(same), None)

    def task(self, planned: PlannedTask) -> Task:
        nodes = self.nodes.get(planned.place, [])
        own = next((node for node in nodes if node.display == planned.place[-1]), None)
        entry = self.entry(own) if own else self.unlinked(planned)
        key = "/".join(planned.place)
        if entry is None or not entry.get("state"):
            return self.prepared(key, planned) or Task(
                key, planned.name, "SKIPPED" if entry or self.is_over else "UNSTARTED", memory=planned.memory
            )
        pods = self.pods(nodes)
        started, ended = _time(entry.get("start_time")), _time(entry.get("end_time"))
        state = self.state(entry, pods, started, ended)
        names = tuple(pod.id for pod in pods)
        return Task(key, planned.name, state, started, ended, names, planned.memory, planned.accelerators)

    def prepared(self, key: str, planned: PlannedTask) -> Task | None:
        """A task of which only the driver is there, the pod of KFP's that runs before it; None if that is not there either."""
        place = (*planned.place[:-1], f"{planned.place[-1]}{DRIVER}")
        nodes = self.nodes.get(place, [])
        own = next((node for node in nodes if node.display == place[-1]), None)
        entry = (self.entry(own) if own else None) or {}
        if not entry.get("state") or (self.is_over and entry["state"] != "FAILED"):
            return None
        pods = sorted((node for node in nodes if node is not own), key=lambda node: node.attempt)
        started, ended = _time(entry.get("start_time")), _time(entry.get("end_time"))
        state = "FAILED" if entry["state"] == "FAILED" else "PENDING"
        if state == "FAILED" and self.was_cancelled(started, ended):
            state = "CANCELED"
        return Task(key, planned.name, state, started, ended, tuple(pod.id for pod in pods or nodes), planned.memory)

    def unlinked(self, planned: PlannedTask) -> Mapping[str, Any] | None:
        """The entry of a task that no other entry names as its child."""
        same = self.entries.get(planned.place[-1], [])
        return same[0] if len(same) == 1 and not any(part.startswith("#") for part in planned.place) else None

    def pods(self, nodes: Sequence[Node]) -> list[Node]:
        """The nodes that are pods, by attempt. Where no node is retried, the executor itself is the pod."""
        executors = [node for node in nodes if node.display.partition("(")[0] == "executor"]
        attempts = [node for node in executors if node.display != "executor"]
        if any(node.name.endswith(")") for node in nodes):
            return sorted(attempts, key=lambda node: node.attempt)
        return [node for node in executors if (self.entry(node) or {}).get("state") != "SKIPPED"]

    def state(
        self, entry: Mapping[str, Any], pods: Sequence[Node], started: datetime | None, ended: datetime | None
    ) -> str:
        state = entry["state"]
        if state == "SUCCEEDED" and not pods:
            return "CACHED"
        if state == "RUNNING" and (not pods or self.is_pending(pods[-1], started)):
            return "PENDING"
        if state == "FAILED" and self.was_cancelled(started, ended):
            return "CANCELED"
        return state

    def was_cancelled(self, started: datetime | None, ended: datetime | None) -> bool:
        """Whether what failed between these moments ran when the user cancelled the run."""
        return bool(self.cancelled and started and ended and started <= self.cancelled <= ended)

    def is_pending(self, pod: Node, started: datetime | None) -> bool:
        """Whether a pod has not started. Entries of pods have no children, so those of shards are told apart by their start only."""
        going = self.going.get(pod.display, [])
        if pod.attempt[-1:] == (0,) and started:
            near = [
                (at, state) for at, state in going if at and abs((at - started).total_seconds()) <= SAME_START_SECONDS
            ]
            going = near or going
        return bool(going) and all(state == "PENDING" for _, state in going)

    @cached_property
    def going(self) -> Mapping[str, Sequence[tuple[datetime | None, str]]]:
        """Start and state of the entries of pods that have not ended, by the name that the API shows."""
        found: dict[str, list[tuple[datetime | None, str]]] = {}
        for display, same in self.entries.items():
            for entry in same:
                if entry.get("state") in ("PENDING", "RUNNING") and not _children(entry):
                    found.setdefault(display, []).append((_time(entry.get("start_time")), entry["state"]))
        return found


def _children(entry: Mapping[str, Any]) -> set[str]:
    return {child.get("pod_name") for child in entry.get("child_tasks") or []}


def _time(stamp: str | None) -> datetime | None:
    """A moment of the answer. What has not ended has the year 1 or 1970."""
    time = datetime.fromisoformat(stamp) if stamp else None
    return time if time and time.year > 1970 else None
