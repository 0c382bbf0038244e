"""Reads and writes the ledger of promotions: who wanted which version promoted, when and why, and which attempt won.

Records are only ever added. There are two kinds:

- An attempt says what somebody wants. It is written first, before anything else is done about it.
- A decision makes one attempt valid and holds all aliases from then on. Decision n is the entry `decisions/<n>`, which
  can be created once: of all attempts made over decision n - 1 exactly one becomes decision n.

Example: versions 1, 2 and 3 are registered. Version 1 is promoted, then versions 2 and 3 at the same time, then there
is a rollback:

    attempt      version  over  outcome        decision  aliases                                 parent
    promote      1        0     won            1         champion 1                              digest of decision 0
    promote      2        1     lost           -
    promote      3        1     won            2         champion 3, previous-champion 1         digest of decision 1
    rollback     1        2     won            3         champion 1, previous-champion 3         digest of decision 2

The outcome is not stored. It follows from which attempt decision `over + 1` names, so a kill cannot leave a wrong one:
an attempt whose process was killed before its decision is "cut short" while nobody else has made that decision, and
"lost" from then on.

Whoever can write to the store can write anything there. So every read follows the chain, from the last decision that is
known to be right (`Head`) to the newest: numbers without a gap, each `parent` the digest of the decision before, each
record of this registry, each signature valid where there is a key. What a record says is used only after that; its
number is never counted up to. So the costs of a command do not depend on how long the ledger is. An audit (audit.py)
follows the chain from the first decision on.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, takewhile
from shlex import quote
from urllib.parse import quote as percent_encoded

from star.errors import InputError
from star.folders.s3_client import s3_errors
from star.redaction import redacted
from star.registry.promotion.ledger_store import LedgerStore
from star.registry.promotion.records import (
    AnyRecord,
    Attempt,
    DamagedRecordError,
    Decision,
    Record,
    parse_record,
    record_text,
    signed_digest,
)
from star.registry.promotion.signatures import KEY_VARIABLE, LedgerKeys

logger = logging.getLogger(__name__)

HEAD_TAG = (
    "star.verified"  # tag of the registered model: registry, number and digest of the newest decision found right
)
BATCH = 64  # entries that are read at a time


class DamagedLedgerError(InputError):
    """The ledger is not what was written, so nobody can know who is champion. The message names the record and the cure."""


@dataclass(frozen=True)
class Head:
    """A decision that was found right before, to read on from. Number 0 stands for: none."""

    seq: int = 0
    digest: str = ""


@dataclass
class Ledger:
    """The ledger of one registered model in one registry."""

    name: str  # of the model
    store: LedgerStore
    folder: str  # of its records in the store
    registry: str  # id
    keys: LedgerKeys | None = None
    head: Head = Head()
    _newest: Decision | None = field(default=None, init=False)
    _all: list[Decision] = field(default_factory=list, init=False)  # those from the first one on, once they were read

    @property
    def is_older(self) -> bool:
        """Whether an older STAR began it, whose records hold no registry."""
        return self.folder == self.name

    def folder_of(self, kind: str) -> str:
        """Folder of the `decisions` or the `attempts` in the store."""
        return f"{self.folder}/{kind}"

    def newest(self) -> Decision:
        """The newest decision, after everything since the last one that was found right has been checked; 0 for none.

        Raises:
            DamagedLedgerError: a record is not what was written.
        """
        newest = self._follow()
        self._require_signed(newest)
        return newest

    def require_key(self) -> None:
        """Checks that a decision can be signed, where there is a key or the ledger is signed.

        Raises:
            InputError: it cannot.
        """
        self._signed(Attempt("check", None, 0, ""))

    @property
    def is_far_from_head(self) -> bool:
        """Whether the newest decision that was read is so far behind the head that it should be noted anew."""
        return self._newest is not None and self._newest.seq - self.head.seq > BATCH

    def all_decisions(self) -> tuple[list[Decision], list[str]]:
        """All decisions from the first one on, up to the first that is not right, and what is wrong with it.

        Each is read once: a second call reads those that were made since the first.
        """
        try:
            for made in self._chain(self._all[-1] if self._all else Decision()):
                self._all.append(made)  # those before an error stay in it
            self._check_head(self._all)
        except DamagedLedgerError as error:
            return self._all, [str(error)]
        if self._all:
            self._newest = self._all[-1]
        return self._all, []

    def decisions_back_to(self, first: int) -> Iterator[Decision]:
        """The decisions from the newest one that was read back to number `first`, each after it was checked.

        The newest one is known to be right. It names the digest of the one before, and so on.

        Raises:
            DamagedLedgerError: a record is not what was written.
        """
        after = self._newest or self._follow()
        first = max(first, 1)
        if after.seq >= first:
            yield after
        if len(self._all) >= after.seq:
            yield from reversed(self._all[first - 1 : max(after.seq - 1, 0)])
            return
        for name, text in self.texts("decisions", [entry_name(seq) for seq in range(after.seq - 1, first - 1, -1)]):
            after = self._before(after, text=text, name=name)
            yield after

    def write_attempt(self, attempt: Attempt) -> Attempt:
        """Adds an attempt, before anything else is done about it; returns it as it was written."""
        # Reasons come from people and from errors of other packages, and a record stays for ever.
        reason, refused = redacted(attempt.reason), redacted(attempt.refused)
        written = self._signed(replace(attempt, registry=self.registry, reason=reason, refused=refused))
        # Names sort by time, because `at` has the same width always.
        with s3_errors(self.store.place):
            self.store.create(self.folder_of("attempts"), f"{written.at}-{written.attempt}", record_text(written))
        return written

    def write_decision(self, attempt: Attempt, *, over: Decision, aliases: dict[str, int]) -> Decision | None:
        """Makes the attempt the decision after `over`, with these aliases; returns None when another attempt became it."""
        made = self._signed(Decision(over.seq + 1, aliases, attempt, over.digest, self.registry))
        name = entry_name(made.seq)
        with s3_errors(self.store.place):
            created = self.store.create(self.folder_of("decisions"), name, record_text(made))
        if created:
            return made
        # A client library that retries after a lost answer finds the entry that it wrote itself.
        return made if self.store.read(self.folder_of("decisions"), name) == record_text(made) else None

    def write_note(self, kind: str, name: str, record: Record) -> Record | None:
        """Adds a record beside the chain, in the folder `kind`; returns None when there is one of that name."""
        written = self._signed(replace(record, registry=self.registry))
        with s3_errors(self.store.place):
            return written if self.store.create(self.folder_of(kind), name, record_text(written)) else None

    def read_notes(self, kind: str, names: Sequence[str], record: type[Record]) -> list[Record]:
        """Those of the entries that exist and are records of this registry, signed where there is a key. Others are logged.

        A record beside the chain only adds to what is known, so one that is not right is as good as none.
        """
        found = []
        for name, text in self.texts(kind, names):
            if text is None:
                continue
            try:
                read = parse_record(text, record)
            except DamagedRecordError as error:
                logger.warning("%s: %s/%s is left out: %s", self.where, kind, name[:80], error)
                continue
            signed = not self.keys or (bool(read.signature) and not self.wrong_signature(read))
            if read.registry == self.registry and signed:
                found.append(read)
            else:
                logger.warning(
                    "%s: %s/%s is left out: it is not of this registry or not signed", self.where, kind, name[:80]
                )
        return found

    def sign_newest(self, attempt: Attempt) -> Decision:
        """Makes a signed decision with the newest one's aliases. By its parent it vouches for all decisions before it.

        Raises:
            InputError: there is no private key, or somebody decided at the same time.
        """
        if self.keys is None:
            raise InputError(f"set {KEY_VARIABLE} to the key to sign with")
        over = self._follow()
        attempt = self.write_attempt(replace(attempt, over=over.seq))
        if made := self.write_decision(attempt, over=over, aliases=over.aliases):
            return made
        raise InputError("somebody decided at the same time: look at the ledger, and sign again")

    def texts(self, kind: str, names: Sequence[str]) -> Iterator[tuple[str, str | None]]:
        """Names and texts of entries. Few are in memory at a time, because each can be of any length."""
        for start in range(0, len(names), BATCH):
            batch = names[start : start + BATCH]
            yield from zip(batch, self.store.read_many(self.folder_of(kind), batch), strict=True)

    def _follow(self) -> Decision:
        before = self._newest or Decision()
        if self._newest is None and self.head.seq:
            before = self._read_head()
        *_, self._newest = (before, *self._chain(before))
        return self._newest

    def _chain(self, before: Decision) -> Iterator[Decision]:
        """The decisions after this one, each after it was checked; ends in the error about the first that is not right."""
        first = before.seq + 1
        names = self.store.names(self.folder_of("decisions"), after=entry_name(before.seq) if before.seq else "")
        right = [
            name for name, _ in takewhile(lambda it: it[0] == entry_name(it[1]), zip(names, count(first), strict=False))
        ]
        for name, text in self.texts("decisions", right):
            before = self._checked(name, text, before)
            yield before
        # Whoever can write can put a million entries. Nothing is read of those behind the first with a wrong name.
        if len(names) > len(right):
            self._checked(names[len(right)], None, before)

    def _read_head(self) -> Decision:
        """The decision that is known to be right."""
        seq = self.head.seq
        text = self.store.read(self.folder_of("decisions"), entry_name(seq))
        if text is None:
            raise self._damage(
                seq, f"is missing, though MLflow's tag {HEAD_TAG} names decision {seq}", cure=self._restore(seq)
            )
        try:
            found = parse_record(text, Decision)
        except DamagedRecordError as error:
            raise self._damage(seq, f"is not readable: {error}", cure=self._restore(seq)) from error
        if (found.seq, found.digest) != (seq, self.head.digest):
            raise self._damage(
                seq,
                f"is not the one that MLflow's tag {HEAD_TAG} has the digest of: somebody changed one of the two",
                cure=f"correct the tag if it was that, or {self._restore(seq)}",
            )
        if fault := self._of_another_registry(found, Decision()) or self.wrong_signature(found):
            raise self._damage(seq, fault, cure=self._restore(seq))
        return found

    def _before(self, after: Decision, *, text: str | None, name: str) -> Decision:
        """The decision in this entry, if it is the one that the decision `after` it was made over."""
        seq = after.seq - 1
        try:
            found = parse_record(text or "", Decision)
        except DamagedRecordError as error:
            fault = "is missing" if text is None else f"is not readable: {error}"
            raise self._damage(seq, fault, cure=self._restore(seq)) from error
        if (entry_name(found.seq), found.digest) != (name, after.parent):
            raise self._damage(seq, "was changed after it was made", cure=self._restore(seq))
        return found

    def _checked(self, name: str, text: str | None, before: Decision) -> Decision:
        """The decision in this entry, if it follows from the one before."""
        seq = before.seq + 1
        if name != entry_name(seq):
            if name.isdecimal() and len(name) == len(entry_name(seq)) and name > entry_name(seq):
                raise self._damage(seq, f"is missing, though there is decisions/{name}", cure=self._restore(seq))
            raise DamagedLedgerError(
                f"{self.where}: decisions/{typed(name)[:80]} is no decision's name: {self.set_aside(f'decisions/{name}')}"
            )
        if text is None:
            raise self._damage(seq, "is missing", cure=self._restore(seq))
        try:
            made = parse_record(text, Decision)
        except DamagedRecordError as error:
            raise self._damage(seq, f"is not readable: {error}", cure=self._restore(seq)) from error
        if fault := self._fault(made, before):
            raise self._damage(seq, fault, cure=self._restore(seq))
        return made

    def _fault(self, made: Decision, before: Decision) -> str | None:
        """Why a decision does not follow from the one before; None when it does."""
        attempt = made.attempt
        if made.seq != before.seq + 1 or attempt is None or attempt.over != before.seq:
            return f"holds number {made.seq}: it was copied or put in another's place"
        if made.parent != before.digest:
            return f"does not follow from decision {before.seq}: one of the two was changed after it was made"
        if fault := self._of_another_registry(made, before):
            return fault
        if before.signature and not made.signature:
            return f"is not signed, though decision {before.seq} is"
        return self.wrong_signature(made)

    def _of_another_registry(self, made: Decision, before: Decision) -> str | None:
        registries = {made.registry, made.attempt.registry if made.attempt else ""}
        # An older STAR wrote no registry. After the first record that has one, all have.
        if registries == {self.registry} or (self.is_older and registries == {""} and not before.registry):
            return None
        return "was made in another registry"

    def wrong_signature(self, record: AnyRecord) -> str | None:
        """What is wrong with a record's signature; None if nothing is, or if nobody here has a key."""
        if self.keys and record.signature and not self.keys.verify(signed_digest(record), record.signature):
            return f"has a signature that is of no key in {KEY_VARIABLE}"
        return None

    def _check_head(self, found: list[Decision]) -> None:
        head = self.head
        if head.seq > len(found):
            fault = f"is missing, though MLflow's tag {HEAD_TAG} names decision {head.seq}"
            raise self._damage(len(found) + 1, fault, cure=self._restore(len(found) + 1))
        if head.seq and found[head.seq - 1].digest != head.digest:
            self._read_head()  # raises the error that says so
        if found:
            self._require_signed(found[-1])

    def _require_signed(self, newest: Decision) -> None:
        if self.keys and newest.seq and not newest.signature:
            raise self._damage(
                newest.seq,
                f"is not signed, though {KEY_VARIABLE} is set",
                cure=f"if every line of `star registry ledger --name {self.name}` is yours, sign them with "
                f"`star registry sign --name {self.name}`; if not, {self.set_aside(decision_record(newest.seq))}",
            )

    def _signed(self, record: Record) -> Record:
        if self.keys:
            return replace(record, signature=self.keys.sign(signed_digest(record)))
        # An unsigned record in a signed ledger would be refused by everybody who has the key.
        if (self._newest or self._follow()).signature:
            raise InputError(f"the ledger of {self.name} is signed: set {KEY_VARIABLE} to its key (see docs/mlflow.md)")
        return record

    @property
    def where(self) -> str:
        """Which ledger it is, for messages."""
        return f"the ledger of {self.name} in {self.store.place}"

    def _damage(self, seq: int, fault: str, *, cure: str) -> DamagedLedgerError:
        return DamagedLedgerError(f"{self.where}: decision {seq} {fault}: {cure}")

    def _restore(self, seq: int) -> str:
        name = decision_record(seq)
        return f"restore {self.folder}/{name} from a backup or the bucket's versions, or {self.set_aside(name)}"

    def set_aside(self, name: str) -> str:
        """What to do about a record that is not right and has no other cure."""
        return f"take it out with `star registry set-aside {typed(name)} --name {quote(self.name)}`"


def entry_name(seq: int) -> str:
    """Name of a decision's entry; names sort as the numbers do."""
    return f"{seq:08d}"


def typed(name: str) -> str:
    """An entry's name as a person can type it: what no record of ours has in its name is written as in a URL."""
    return percent_encoded(name, safe="/:+")


def decision_record(seq: int) -> str:
    """A decision as `star registry set-aside` takes it."""
    return f"decisions/{entry_name(seq)}"
