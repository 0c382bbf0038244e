"""Counts what a set is made of while it is written: the numbers of its card. Memory grows with the tools, not with the rows."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from star.data.rows import Reject, is_answered, query_of
from star.data.turn_labels import label_turn

WORD_BINS = (4, 8, 16, 32, 64, 128, 256, 512)  # upper edges of the bins; the last bin has none
TEXTS = ("uncalled", "tool_notes")  # fields that explain and count nothing
NUMBERED = ("turns", "turn_numbers", "calls", "shown_tools")  # counters whose names are numbers
MOST_TOOLS = 100_000  # names that are counted one by one; further ones are counted together


@dataclass
class SetStatistics:
    """Counters over rows and rejects.

    Attributes:
        fitted: number of rows with a value that was changed to the type its tool declares.
        unanswered: number of rows without an answer, for which the teacher gives one.
        uncalled: why no row calls a tool, by the tool's name; empty where all are called.
        tool_notes: what could not be used of a tool's schemas, by the tool's name.
    """

    read: int = 0
    rows: int = 0
    fitted: int = 0
    unanswered: int = 0
    kinds: Counter = field(default_factory=Counter)
    sources: Counter = field(default_factory=Counter)
    licences: Counter = field(default_factory=Counter)
    generators: Counter = field(default_factory=Counter)
    query_words: Counter = field(default_factory=Counter)
    turns: Counter = field(default_factory=Counter)
    labels: Counter = field(default_factory=Counter)
    turn_numbers: Counter = field(default_factory=Counter)
    calls: Counter = field(default_factory=Counter)
    shown_tools: Counter = field(default_factory=Counter)
    called: Counter = field(default_factory=Counter)
    rejects: Counter = field(default_factory=Counter)
    rejects_by_source: Counter = field(default_factory=Counter)
    overlaps: Counter = field(default_factory=Counter)
    split: Counter = field(default_factory=Counter)
    shortfalls: Counter = field(default_factory=Counter)
    uncalled: dict[str, str] = field(default_factory=dict)
    tool_notes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "SetStatistics":
        """Reads what `to_json` returned.

        Raises:
            TypeError, ValueError, AttributeError: it is anything else.
        """
        read = cls(**values)
        for key, empty in vars(cls()).items():
            value = getattr(read, key)
            if isinstance(empty, int):
                _require(type(value) is int and 0 <= value < 2**63, key)
                continue
            kind = str if key in TEXTS else int
            _require(all(isinstance(name, str) and type(said) is kind for name, said in value.items()), key)
            _require(kind is str or all(0 <= count < 2**63 for count in value.values()), key)
            _require(key not in NUMBERED or all(name.isdecimal() for name in value), key)
            if kind is int:
                setattr(read, key, Counter(value))
        return read

    def to_json(self) -> dict[str, Any]:
        """Returns the counters as JSON values, and the texts where there are any."""
        given = {key: value for key, value in vars(self).items() if value or key not in TEXTS}
        return {key: dict(value) if isinstance(value, Counter) else value for key, value in given.items()}

    def counts(self) -> dict:
        """Rows kept, records read, and rejects by reason, the most frequent first."""
        return {"rows": self.rows, "read": self.read, "rejects": dict(self.rejects.most_common())}

    def add(self, row: dict) -> None:
        """Counts a row that was kept."""
        target = row["messages"][-1]
        calls = target.get("tool_calls") or []
        self.rows += 1
        self.kinds[row["kind"]] += 1
        self.sources[row["source"]] += 1
        self.licences[str(row.get("licence", "unknown"))] += 1
        self.generators[str(row.get("generator", "unknown"))] += 1
        self.query_words[_bin(len(query_of(row).split()))] += 1
        # The keys are text, because the counters pass through JSON at every commit and JSON has no other keys.
        self.turns[str(sum(message["role"] == "user" for message in row["messages"]))] += 1
        turn = label_turn(row["messages"])
        self.labels.update(turn.labels)
        self.turn_numbers[str(turn.number)] += 1
        self.calls[str(turn.calls)] += 1
        self.unanswered += not is_answered(row)
        self.shown_tools[str(min(len(row["tools"]), 20))] += 1
        for call in calls:
            known = call["name"] in self.called or len(self.called) < MOST_TOOLS
            self.called[call["name"] if known else "(others)"] += 1

    def add_reject(self, reject: Reject) -> None:
        """Counts a reject, by its reason and source."""
        self.rejects[reject.reason] += 1
        source = reject.source or (reject.row.get("source") if isinstance(reject.row, dict) else None)
        self.rejects_by_source[f"{source or 'unread'}: {reject.reason}"] += 1


def _bin(words: int) -> str:
    return next((f"{edge}" for edge in WORD_BINS if words <= edge), f"over {WORD_BINS[-1]}")


def _require(holds: bool, key: str) -> None:
    if not holds:
        raise ValueError(f"{key} is no count of a set")
