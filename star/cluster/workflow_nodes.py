"""Names the nodes of a run's Argo workflow. KFP's API gives their ids only, and only as children of other nodes.

    star-x(0).root(0).exit-handler-1(0).for-loop-3(0).iteration-iterations(1:1)(0).iteration-item(0).rollout(0).executor(0)

is the pod of the first attempt of the second shard of `rollout`. Its id is `star-x-<fnv1a32 of the name>`, which is also the name of the
pod, and what KFP gives logs by. So names are found by building those that can be, from the workflow's own name down, and looking which
of their ids occur. `NAME(0)` is an attempt, `NAME(1:1)` one turn of a loop; both belong to the node NAME.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

OFFSET, PRIME = 0x811C9DC5, 0x01000193  # of the 32-bit hash FNV-1a
# Nodes that KFP puts between a task and the group that it stands in.
INNER = ("executor", "iteration-item", "iteration-iterations")
# Nodes of KFP's own: drivers, and groups of tasks.
INTERNAL = re.compile(r".*-driver|exit-handler-\d+|for-loop-\d+(-.+)?|condition(-branches)?-\d+|iteration")


@dataclass(frozen=True)
class Node:
    """One node of a workflow.

    Attributes:
        display: The part of its name that the API shows.
        place: Where it stands in the pipeline: the keys of the groups and the task that it belongs to, and `#1` for a loop's second turn.
    """

    id: str
    name: str
    display: str
    place: tuple[str, ...]

    @property
    def boundary(self) -> str:
        """What the names of all nodes of the same group start with."""
        return self.name.removesuffix(self.display)

    @property
    def attempt(self) -> tuple[int, ...]:
        """The numbers of the attempts that it belongs to: (0, 1) for `distill(0).executor(1)`."""
        return tuple(int(number) for number in re.findall(r"\((\d+)\)", self.name))


def hash_of(text: str, start: int = OFFSET) -> int:
    """The 32-bit FNV-1a hash of a text, or of a text whose first part has the hash `start`."""
    value = start
    for byte in text.encode():
        value = ((value ^ byte) * PRIME) & 0xFFFFFFFF
    return value


@dataclass
class Workflow:
    """The nodes of one run that are known by now."""

    nodes: dict[str, Node] = field(default_factory=dict)  # by id
    _tried: dict[str, tuple[int, set[str]]] = field(
        default_factory=dict
    )  # id -> hash of the name, texts tried behind it

    def learn(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Names the nodes in an answer of the API: its `task_details`."""
        entries = list(entries)
        ids = {
            child["pod_name"] for entry in entries for child in entry.get("child_tasks") or [] if child.get("pod_name")
        }
        displays = {entry["display_name"] for entry in entries if entry.get("display_name")}
        if not self.nodes and ids:
            name = min(ids).rpartition("-")[0]
            self._add(Node(name, name, name, ()))
        plain = [display for display in displays if not display.endswith(")")]
        attempts: dict[str, list[str]] = {}  # by what stands before a bracket in them
        for display in displays:
            for bracket in re.finditer(r"\(", display):
                attempts.setdefault(display[: bracket.start()], []).append(display)
        # Also the nodes of earlier answers: each of them may have got another attempt.
        waiting = list(self.nodes.values()) if ids - set(self.nodes) else []
        while waiting:
            parent = waiting.pop()
            waiting += self._children(parent, [*plain, *attempts.get(parent.display, ())], ids)

    def _add(self, node: Node) -> None:
        self.nodes[node.id] = node
        self._tried[node.id] = (hash_of(node.name), set())

    def _children(self, parent: Node, displays: Collection[str], ids: Collection[str]) -> list[Node]:
        """Adds the nodes whose names are a node's name and one of these texts, and returns them."""
        found = []
        state, tried = self._tried[parent.id]
        workflow = next(iter(self.nodes))
        for display in displays:
            is_attempt = display.startswith(f"{parent.display}(")
            text = display.removeprefix(parent.display) if is_attempt else f".{display}"
            node_id = f"{workflow}-{hash_of(text, state)}"
            if node_id not in ids or text in tried:
                continue
            tried.add(text)
            place = _turn(parent, text) if is_attempt else _place(parent, display, workflow)
            self._add(Node(node_id, parent.name + text, display, place))
            found.append(self.nodes[node_id])
        return found


def _turn(parent: Node, suffix: str) -> tuple[str, ...]:
    """The place of an attempt, which is that of its node, or of one turn of a loop."""
    number, is_turn, _ = suffix.strip("()").partition(":")
    return (*parent.place, f"#{number}") if is_turn else parent.place


def _place(parent: Node, display: str, workflow: str) -> tuple[str, ...]:
    is_root = display == "root" and parent.display.partition("(")[0] == workflow
    is_between = display in INNER or display.endswith(".onExit")
    return parent.place if is_root or is_between else (*parent.place, display)
