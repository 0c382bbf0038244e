"""Writes answers of a KFP server 2.17 for a run (GET /apis/v2beta1/runs/ID), from a small table of tasks.

    recording([Planned("preflight", 30, 60), Planned("rollout", 70, 100, loop="for-loop-3", shard=0), Planned("finish", 110, 120)])

The answers have the form of a real server's. They list the nodes of the Argo workflow and not the tasks:

- A node is a retry node and its attempt, `NAME` and `NAME(0)`, because the shipped workflow-controller retries every template by default.
- Drivers, the group of the exit handler, loops and the workflow itself are listed like tasks. No entry has a pod_name.
- `child_tasks[].pod_name` is the id of the child's node: `<workflow>-<fnv1a32 of the node's name>`.
- A task that did not run has no state, and one entry of its history has none. A task from the cache has an executor that is SKIPPED.
- Some entries have neither name nor state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
NO_TIME, NOT_FINISHED = "0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z"
HANDLER = "exit-handler-1"
FINAL = ("SUCCEEDED", "FAILED", "SKIPPED")
DRIVER_SECONDS = 10.0  # that a driver runs before its task; its pod is done after half of them
HEARD = 1.0  # seconds until the server hears of a change


@dataclass(frozen=True)
class Planned:
    """One task of a run: its times in seconds since the run's start, how it ends, and where it stands.

    Attributes:
        name: Key of the task in the compiled pipeline, such as merge-2.
        end: None while it runs.
        state: SUCCEEDED, FAILED, CACHED (taken from the cache), OMITTED (an earlier task failed).
        waits: Seconds that the last attempt's pod is pending; as long as the task when None.
        attempts: Ends of the attempts before the last one, whose pods were lost.
        loop: The loop that it is a shard of, such as for-loop-3.
        shard: Its number in the loop, from 0 on.
        hook: Whether it is the exit handler's task.
    """

    name: str
    start: float
    end: float | None = None
    state: str = "SUCCEEDED"
    waits: float | None = 0.0
    attempts: tuple[float, ...] = ()
    loop: str | None = None
    shard: int = 0
    hook: bool = False


@dataclass
class Node:
    """One node of the workflow, which becomes one entry of the answer."""

    name: str
    display: str
    start: float
    end: float | None
    state: str
    is_pod: bool = False
    waits: float | None = 0.0


def fnv1a32(text: str) -> int:
    """The 32-bit FNV-1a hash of a text."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


def node_id(workflow: str, name: str) -> str:
    """The id of a node, which is also the name of its pod."""
    return workflow if name == workflow else f"{workflow}-{fnv1a32(name)}"


def stamp(seconds: float | None) -> str:
    """A moment as the API writes it."""
    return NO_TIME if seconds is None else f"{BEGAN + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%SZ}"


class _Workflow:
    """Nodes of a workflow and their children, in the way in which Argo names and links them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: dict[str, Node] = {}
        self.children: dict[str, list[str]] = {}

    def add(self, after: str, name: str, display: str, node: dict[str, Any]) -> str:
        """Adds a node behind another one, and returns its name."""
        self.nodes[name] = Node(name, display, **node)
        if after:
            self.children.setdefault(after, []).append(name)
        return name

    def retried(self, after: str, name: str, display: str, *, attempts: tuple[float, ...] = (), **node: Any) -> str:
        """Adds a retry node with its attempts, and returns the name of the last one."""
        own = {key: value for key, value in node.items() if key not in ("is_pod", "waits")}
        self.add(after, name, display, own)
        starts = [node["start"], *attempts]
        for number, (start, end) in enumerate(zip(starts, attempts, strict=False)):
            lost = node | {"start": start, "end": end, "state": "FAILED", "waits": 0.0}
            self.add(name, f"{name}({number})", f"{display}({number})", lost)
        number, last = len(attempts), node | {"start": starts[-1]}
        return self.add(name, f"{name}({number})", f"{display}({number})", last)

    def driver(self, after: str, inside: str, task: str, *, end: float, omitted: bool = False) -> str:
        """Adds the driver of a task and returns its last node, behind which the task follows."""
        name = f"{inside}.{task}-driver"
        if omitted:
            return self.add(after, name, f"{task}-driver", {"start": end, "end": end, "state": "OMITTED"})
        start = max(0.0, end - DRIVER_SECONDS)
        self.retried(after, name, f"{task}-driver", start=start, end=end, state="SUCCEEDED", is_pod=True)
        self.nodes[f"{name}(0)"].end = start + (end - start) / 2
        return f"{name}(0)"

    def task(self, after: str, inside: str, task: Planned) -> str:
        """Adds a task with its driver and its executor, and returns the node behind which the next one follows."""
        name = f"{inside}.{task.name}"
        if task.state == "OMITTED":
            driver = self.driver(after, inside, task.name, end=task.start, omitted=True)
            return self.add(driver, name, task.name, {"start": task.start, "end": task.start, "state": "OMITTED"})
        driver = self.driver(after, inside, task.name, end=task.start)
        state = "SUCCEEDED" if task.state == "CACHED" else "RUNNING" if task.end is None else task.state
        attempt = self.retried(driver, name, task.name, start=task.start, end=task.end, state=state)
        executor = f"{attempt}.executor"
        if task.state == "CACHED":
            skipped = {"start": task.start, "end": task.start, "state": "SKIPPED"}
            self.add(attempt, executor, "executor", skipped)
            return attempt
        pod = {"is_pod": True, "waits": task.waits, "attempts": task.attempts}
        self.retried(attempt, executor, "executor", start=task.start, end=task.end, state=state, **pod)
        return attempt

    def loop(self, after: str, inside: str, shards: list[Planned]) -> str:
        """Adds a loop with its shards, and returns the node behind which the next task follows."""
        name = shards[0].loop or ""
        if all(shard.state == "OMITTED" for shard in shards):
            omitted = {"start": shards[0].start, "end": shards[0].start, "state": "OMITTED"}
            return self.add(after, f"{inside}.{name}", name, omitted)
        begin = min(shard.start for shard in shards) - 3 * DRIVER_SECONDS
        ends = [shard.end for shard in shards]
        end = None if None in ends else max(end for end in ends if end is not None)
        own = {"start": begin, "end": end, "state": _group_state(shards)}
        outer = self.retried(after, f"{inside}.{name}", name, **own)
        driver = self.driver(outer, outer, "iteration", end=begin + DRIVER_SECONDS)
        turns = f"{outer}.iteration-iterations"
        self.add(driver, turns, "iteration-iterations", own | {"start": begin + DRIVER_SECONDS})
        for number, shard in enumerate(shards):
            state = {"start": begin + DRIVER_SECONDS, "end": shard.end, "state": _group_state([shard])}
            label = f"iteration-iterations({number}:{number})"
            turn = self.retried(turns, f"{outer}.{label}", label, **state)
            item = self.driver(turn, turn, "iteration-item", end=begin + 2 * DRIVER_SECONDS)
            inner = self.retried(item, f"{turn}.iteration-item", "iteration-item", **state)
            self.task(inner, inner, shard)
        return outer


def _group_state(tasks: Sequence[Planned]) -> str:
    if any(task.end is None and task.state != "OMITTED" for task in tasks):
        return "RUNNING"
    return "FAILED" if any(task.state in ("FAILED", "OMITTED") for task in tasks) else "SUCCEEDED"


def recording(
    tasks: Sequence[Planned],
    *,
    workflow: str = "star-abcde",
    run_id: str = "0f0f0f0f-0000-4000-8000-000000000001",
    handler: bool = True,
    cancelled: float | None = None,
) -> dict[str, Any]:
    """The answer for a run at its end, or while a task of it runs.

    Args:
        handler: Whether the tasks stand under an exit handler, as ours do.
        cancelled: Second at which the user cancelled the run.
    """
    argo = _Workflow(workflow)
    inner = [task for task in tasks if not task.hook]
    ends = [task.end if task.state != "OMITTED" else task.start for task in tasks]
    end = None if None in ends else max(end for end in ends if end is not None)
    inner_ends = [task.end if task.state != "OMITTED" else task.start for task in inner]
    inner_end = None if None in inner_ends else max(end for end in inner_ends if end is not None)
    whole = {"start": 0.0, "end": end, "state": _group_state(inner) if end is not None else "RUNNING"}
    top = argo.retried("", workflow, workflow, **whole)
    place = argo.retried(
        argo.driver(top, top, "root", end=DRIVER_SECONDS), f"{top}.root", "root", **whole | {"start": DRIVER_SECONDS}
    )
    if handler:
        driver = argo.driver(place, place, HANDLER, end=2 * DRIVER_SECONDS)
        group = {"start": 2 * DRIVER_SECONDS, "end": inner_end, "state": _group_state(inner)}
        inside = argo.retried(driver, f"{place}.{HANDLER}", HANDLER, **group)
    else:
        inside = place
    after = inside
    for task in inner:
        shards = [other for other in inner if task.loop and other.loop == task.loop]
        if not shards:
            after = argo.task(after, inside, task)
        elif task is shards[0]:
            after = argo.loop(after, inside, shards)
    for task in tasks:
        if task.hook:
            hook = {"start": inner_end or 0.0, "end": task.end, "state": _group_state([task])}
            exit_group = argo.retried(f"{place}.{HANDLER}", f"{place}.{HANDLER}.onExit", f"{HANDLER}.onExit", **hook)
            argo.task(exit_group, exit_group, task)
    return _answer(argo, run_id, end=end, state=whole["state"], cancelled=cancelled)


def _answer(argo: _Workflow, run_id: str, *, end: float | None, state: str, cancelled: float | None) -> dict[str, Any]:
    history = [{"update_time": stamp(0), "state": "PENDING"}, {"update_time": stamp(0)}]  # one without a state
    history.append({"update_time": stamp(HEARD), "state": "RUNNING"})
    if cancelled is not None:
        history.append({"update_time": stamp(cancelled), "state": "CANCELING"})
    if end is not None:
        # The run's own end is heard of before that of its last tasks.
        history.append({"update_time": stamp(end + HEARD), "state": state})
    nameless = {
        "run_id": run_id,
        "task_id": "nameless",
        "create_time": stamp(25),
        "start_time": stamp(25),
        "end_time": stamp(25),
        "execution_id": "13",
    }
    return {
        "experiment_id": "0f0f0f0f-0000-4000-8000-0000000000e1",
        "run_id": run_id,
        "display_name": "tiny-00000000",
        "storage_state": "AVAILABLE",
        "service_account": "star",
        "created_at": stamp(0),
        "scheduled_at": stamp(0),
        "finished_at": NOT_FINISHED if end is None else stamp(end),
        "state": history[-1]["state"],
        "state_history": history,
        "run_details": {"task_details": [_entry(argo, run_id, node) for node in argo.nodes.values()] + [nameless]},
    }


def _entry(argo: _Workflow, run_id: str, node: Node) -> dict[str, Any]:
    heard: list[dict[str, Any]] = []
    entry: dict[str, Any] = {
        "run_id": run_id,
        "task_id": f"{fnv1a32(run_id + node.name):08x}",
        "display_name": node.display,
        "create_time": stamp(0),
        "start_time": stamp(node.start),
        "end_time": stamp(node.end),
    }
    if node.state == "OMITTED":
        heard.append({"update_time": stamp(node.start + HEARD)})
    else:
        going = "PENDING" if node.is_pod else "RUNNING"
        if node.state != "SKIPPED":
            heard.append({"update_time": stamp(node.start + HEARD), "state": going})
        is_running = node.is_pod and node.waits is not None
        if is_running and (node.end is None or node.start + (node.waits or 0) + HEARD < node.end):
            heard.append({"update_time": stamp(node.start + (node.waits or 0.0) + HEARD), "state": "RUNNING"})
        if node.end is not None and node.state in FINAL:
            heard.append({"update_time": stamp(node.end + 2 * HEARD), "state": node.state})
        entry["state"] = heard[-1]["state"]
    entry["state_history"] = heard
    if children := argo.children.get(node.name):
        entry["child_tasks"] = [{"pod_name": node_id(argo.name, child)} for child in children]
    return entry
