"""Splits rows into training and held-out ones: by the content of a row, or by tool, never by the position in the file.

By row: rows are sorted by a hash of (seed, query, target), their rank, and the lowest ones of each kind are held out. So the order of the
rows does not matter, and rows that are added change the side of few others, because all ranks stay.

The turns of one conversation stay on one side: an earlier answer stands in the prompt of a later turn. Conversations are sorted by a hash
of their id, and the lowest ones are held out. Their rows that no kind has room for are left out.

By tool: tools are sorted by a hash, and the lowest ones are held out with all rows that call them, until there are enough rows. Rows that
call nothing but show one of these tools are held out too, in proportion, so that refusals are evaluated as well. Training prompts show none
of these tools: where one was only shown beside others, it is removed from the prompt.
"""

import hashlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from star.data.rows import Reject, is_answered, query_of, target_of
from star.errors import InputError


def split(rows: list[dict], *, heldout: int, seed: int) -> tuple[list[dict], list[dict]]:
    """Returns (train, held-out rows), both in the order given, `heldout` of them held out.

    Every kind is held out in proportion to its rows. Rows with the same query and target stay on one side.

    Raises:
        InputError: nothing would be left to train on, or repeated rows leave no split of that size.
    """
    chosen = choose_heldout_rows(rows, heldout=heldout, seed=seed)
    sides: dict[str, list[dict]] = {"train": [], "heldout": []}
    for side, row in split_by_row(rows, chosen, seed=seed):
        if isinstance(row, dict):
            sides[side].append(row)
    return sides["train"], sides["heldout"]


@dataclass
class HeldOut:
    """Which rows are held out.

    Attributes:
        ranks: of the rows that belong to no conversation.
        conversations: by their rank, the number of rows of each kind.
    """

    ranks: set[int] = field(default_factory=set)
    conversations: dict[int, Counter] = field(default_factory=dict)


def choose_heldout_rows(rows: Iterable[dict], *, heldout: int, seed: int) -> HeldOut:
    """Chooses the rows to hold out: all that a second pass over the file needs. Takes 10 bytes of memory per row.

    Rows without an answer are not held out, and do not count.

    Raises:
        InputError: as `split`.
    """
    # Arrays instead of lists: a list of integers would take several times the memory.
    ranks, kinds, in_conversation = array("Q"), array("B"), array("B")
    names: dict[str, int] = {}
    for row in filter(is_answered, rows):
        ranks.append(_rank_in_split(row, seed))
        in_conversation.append(conversation_id(row) is not None)
        kinds.append(names.setdefault(row["kind"], len(names)))
    if not 0 <= heldout < len(ranks):
        raise InputError(f"cannot hold out {heldout} of {len(ranks)} rows and train on the rest: hold out fewer")
    if len(names) > 255:
        raise InputError(f"the rows have {len(names)} kinds; a split by kind takes at most 255")
    by_number = dict(enumerate(names))
    quota = _quotas({by_number[number]: size for number, size in Counter(kinds).items()}, heldout, total=len(ranks))
    chosen = HeldOut()
    for value, group in groupby(places_by_rank(ranks), key=lambda place: ranks[place]):
        if not any(quota.values()):
            break
        places = list(group)
        if in_conversation[places[0]]:
            if counts := _take(Counter(by_number[kinds[place]] for place in places), quota):
                chosen.conversations[value] = counts
            continue
        # Rows with the same query and target have one rank and must stay on one side, whatever their kinds.
        kind = min(by_number[kinds[place]] for place in places)
        # A group that is larger than what is left of the quota stays in training, and a later one fills the quota.
        if len(places) <= quota[kind]:
            quota[kind] -= len(places)
            chosen.ranks.add(value)
    if any(quota.values()):
        raise InputError(
            f"cannot hold out {heldout} of {len(ranks)} rows: too many repeat each other; clean them first"
        )
    return chosen


def _take(counts: Counter, quota: dict[str, int]) -> Counter:
    """Takes as many rows of each kind as the quota has left. Returns their numbers."""
    taken = +Counter({kind: min(count, quota[kind]) for kind, count in counts.items()})
    for kind, count in taken.items():
        quota[kind] -= count
    return taken


def split_by_row(rows: Iterable[dict], chosen: HeldOut, *, seed: int) -> Iterator[tuple[str, dict | Reject]]:
    """Yields ("train" | "heldout" | "reject", row or Reject) for each row, in order.

    Of a conversation with held-out rows, the rows that are not held out are rejected.

    Args:
        chosen: its conversations are used up.
    """
    for row in rows:
        rank = _rank_in_split(row, seed)
        if conversation_id(row) is None:
            yield "heldout" if is_answered(row) and rank in chosen.ranks else "train", row
        elif (left := chosen.conversations.get(rank)) is None:
            yield "train", row
        elif is_answered(row) and left[row["kind"]]:
            left[row["kind"]] -= 1
            yield "heldout", row
        else:
            yield "reject", _reject_of_conversation(row)


def _reject_of_conversation(row: dict) -> Reject:
    return Reject(row["id"], "heldout_conversation", "other turns of its conversation are held out", row)


def conversation_id(row: dict) -> str | None:
    """Returns the id of the conversation of which the row is one turn (`every_turn`), or None for a row of its own.

    The id of such a row ends in the place of its last message, as in `toolace-7#3`.
    """
    conversation, mark, place = row["id"].rpartition("#")
    return conversation if mark and place == str(len(row["messages"]) - 1) else None


def _rank_in_split(row: dict, seed: int) -> int:
    if (conversation := conversation_id(row)) is None:
        return row_rank(row, seed)
    return _hash_of(f"{seed}\nconversation\n{conversation}")


def places_by_rank(ranks: array) -> Iterator[int]:
    """Yields the positions of the rows by ascending rank, without a Python object per row in memory."""
    import numpy as np

    return map(int, np.argsort(np.frombuffer(ranks, dtype=np.uint64), kind="stable")) if len(ranks) else iter(())


def row_rank(row: dict, seed: int | str) -> int:
    """Returns the rank of a row: 64 bits of a hash of its content.

    Args:
        seed: of the split. A choice before the split puts a word in front of the seed: with the same ranks in both, the rows that
            it takes would be those that are held out.
    """
    return _hash_of(f"{seed}\n{query_of(row)}\n{target_of(row)}")


def _hash_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _quotas(sizes: dict[str, int], heldout: int, *, total: int) -> dict[str, int]:
    """Returns how many rows of each kind to hold out: its share rounded down; the rest goes to the largest remainders."""
    quota = {kind: heldout * size // total for kind, size in sizes.items()}
    # Equal remainders go by name, because the split must not depend on the order of the rows.
    by_remainder = sorted(sizes, key=lambda kind: (-(heldout * sizes[kind] % total), kind))
    for kind in by_remainder[: heldout - sum(quota.values())]:
        quota[kind] += 1
    return quota


def tool_identity(tool: dict) -> str:
    """Returns what identifies a tool: its description, which masking does not change, else its name."""
    return " ".join(tool["description"].casefold().split()) or tool["name"]


def choose_heldout_tools(rows: Iterable[dict], *, heldout: int, seed: int) -> set[str]:
    """Returns the identities of the tools to hold out, so that at least `heldout` rows call one of them.

    Raises:
        InputError: no row would be left to train on.
    """
    calling: Counter = Counter()
    rows_calling_both: dict[str, Counter] = defaultdict(Counter)
    total = 0
    for row in rows:
        called = sorted(_called(row))
        total += bool(called)
        calling.update(called)
        for one in called:
            rows_calling_both[one].update(other for other in called if other != one)
    chosen: set[str] = set()
    rows_held_out = 0
    for tool in sorted(calling, key=lambda tool: hashlib.sha256(f"{seed}\n{tool}".encode()).digest()):
        if rows_held_out >= heldout:
            break
        # Rows that call this tool and one that is held out already are counted once.
        rows_held_out += calling[tool] - sum(rows_calling_both[tool][other] for other in chosen)
        chosen.add(tool)
    if rows_held_out < heldout or len(chosen) == len(calling) or rows_held_out >= total:
        raise InputError(
            f"cannot hold out tools with {heldout} rows: {len(calling)} tools have {total} calling rows in all; hold out fewer rows"
        )
    return chosen


def _called(row: dict) -> set[str]:
    names = {call["name"] for call in row["messages"][-1].get("tool_calls") or []}
    return {tool_identity(tool) for tool in row["tools"] if tool["name"] in names}


def count_heldout_without_call(rows: Iterable[dict], *, tools: set[str], heldout: int) -> int:
    """Returns how many of `heldout` rows shall call nothing: their share of all rows, as far as such rows show a held-out tool."""
    total = without_call = showing = 0
    for row in rows:
        total += 1
        if _answers_without_call(row):
            without_call += 1
            showing += _shows(row, tools)
    return min(heldout * without_call // max(1, total), showing)


def _answers_without_call(row: dict) -> bool:
    return is_answered(row) and not row["messages"][-1].get("tool_calls")


def _shows(row: dict, tools: set[str]) -> bool:
    return any(tool_identity(tool) in tools for tool in row["tools"])


def split_by_tool(
    rows: Iterable[dict], *, tools: set[str], heldout: int, without_call: int = 0
) -> Iterator[tuple[str, dict | Reject]]:
    """Yields ("train" | "heldout" | "reject", row or Reject) for each row, in order.

    Held out are the first rows that call a held-out tool, and the first `without_call` rows that call nothing and show one: a refusal, or a
    question for a missing value. Further rows that call a held-out tool are rejected, because training must not see the tool. From all
    other rows the held-out tools are removed; a row without any tool left is rejected.

    Args:
        heldout: number of held-out rows, `without_call` of them without a call.
    """
    left_to_hold = {True: heldout - without_call, False: without_call}  # by whether the row calls a held-out tool
    conversations: set[str] = set()  # with a held-out row
    for row in rows:
        conversation = conversation_id(row)
        calls = bool(_called(row) & tools)
        may_hold = calls or (_answers_without_call(row) and _shows(row, tools))
        if may_hold and left_to_hold[calls]:
            left_to_hold[calls] -= 1
            conversations.update(filter(None, [conversation]))
            yield "heldout", row
            continue
        # A later turn shows the held-out answer in its prompt.
        if conversation in conversations:
            yield "reject", _reject_of_conversation(row)
            continue
        if calls:
            why = "calls a held-out tool, and enough rows of it are held out"
            yield "reject", Reject(row["id"], "heldout_tool", why, row)
            continue
        # An earlier turn may call a held-out tool as well.
        used = {call["name"] for message in row["messages"] for call in message.get("tool_calls") or []}
        left = [tool for tool in row["tools"] if tool_identity(tool) not in tools]
        # A question for a value may be about the tool that is removed.
        asks = row["kind"] == "missing-parameter" and len(left) < len(row["tools"])
        if not left or asks or not used <= {tool["name"] for tool in left}:
            yield "reject", Reject(row["id"], "heldout_tool", "needs a held-out tool in its prompt", row)
        else:
            yield "train", row if len(left) == len(row["tools"]) else {**row, "tools": left}
