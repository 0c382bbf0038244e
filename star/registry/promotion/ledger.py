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
record of this registry, each signature valid where there is a key. `audit` follows it from the first one. What a record
says is used only after that; its number is never counted up to.
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
WON, LOST, REFUSED, CUT_SHORT = "won", "lost", "refused", "cut short"


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

    def decisions(self, first: int, last: int) -> list[Decision]:
        """The decisions of these numbers. They must have been checked by `newest` or `audit` before."""
        names = [entry_name(seq) for seq in range(max(first, 1), last + 1)]
        return [parse_record(text, Decision) for _, text in self._texts("decisions", names) if text is not None]

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
        for name, text in self._texts(kind, names):
            if text is None:
                continue
            try:
                read = parse_record(text, record)
            except DamagedRecordError as error:
                logger.warning("%s: %s/%s is left out: %s", self._where(), kind, name[:80], error)
                continue
            signed = not self.keys or (bool(read.signature) and not self._wrong_signature(read))
            if read.registry == self.registry and signed:
                found.append(read)
            else:
                logger.warning(
                    "%s: %s/%s is left out: it is not of this registry or not signed", self._where(), kind, name[:80]
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

    def history(self) -> tuple[list[tuple[Attempt, str]], list[str]]:
        """Every attempt with its outcome, the oldest first; and as `audit`."""
        decisions, wrong = self._all_decisions()
        winners = {made.seq: made.attempt for made in decisions if made.attempt}
        attempts, damaged = self._all_attempts(decisions)
        return [(attempt, _outcome(attempt, winners)) for attempt in attempts], wrong + damaged

    def audit(self) -> list[str]:
        """Checks every record from the first one on: a sentence for each that is not right, with what to do."""
        return self.history()[1]

    def check(self) -> list[str]:
        """`audit` of the decisions alone, which decide who is champion."""
        return self._all_decisions()[1]

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
        for name, text in self._texts("decisions", right):
            before = self._checked(name, text, before)
            yield before
        # Whoever can write can put a million entries. Nothing is read of those behind the first with a wrong name.
        if len(names) > len(right):
            self._checked(names[len(right)], None, before)

    def _texts(self, kind: str, names: Sequence[str]) -> Iterator[tuple[str, str | None]]:
        """Names and texts of entries. Few are in memory at a time, because each can be of any length."""
        for start in range(0, len(names), BATCH):
            batch = names[start : start + BATCH]
            yield from zip(batch, self.store.read_many(self.folder_of(kind), batch), strict=True)

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
        if fault := self._wrong_signature(found):
            raise self._damage(seq, fault, cure=self._restore(seq))
        return found

    def _checked(self, name: str, text: str | None, before: Decision) -> Decision:
        """The decision in this entry, if it follows from the one before."""
        seq = before.seq + 1
        if name != entry_name(seq):
            if name.isdecimal() and len(name) == len(entry_name(seq)) and name > entry_name(seq):
                raise self._damage(seq, f"is missing, though there is decisions/{name}", cure=self._restore(seq))
            raise DamagedLedgerError(
                f"{self._where()}: decisions/{typed(name)[:80]} is no decision's name: {self._set_aside(f'decisions/{name}')}"
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
        # An older STAR wrote no registry. After the first record that has one, all have.
        if {made.registry, attempt.registry} != {self.registry} and not (
            self.is_older and not (made.registry or attempt.registry or before.registry)
        ):
            return "was made in another registry"
        if before.signature and not made.signature:
            return f"is not signed, though decision {before.seq} is"
        return self._wrong_signature(made)

    def _wrong_signature(self, record: AnyRecord) -> str | None:
        if self.keys and record.signature and not self.keys.verify(signed_digest(record), record.signature):
            return f"has a signature that is of no key in {KEY_VARIABLE}"
        return None

    def _all_decisions(self) -> tuple[list[Decision], list[str]]:
        """All decisions up to the first that is not right, and what is wrong with it."""
        found: list[Decision] = []
        try:
            found.extend(self._chain(Decision()))  # those before an error stay in it
            self._check_head(found)
        except DamagedLedgerError as error:
            return found, [str(error)]
        return found, []

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
                f"`star registry sign --name {self.name}`; if not, {self._set_aside(_decision_record(newest.seq))}",
            )

    def _all_attempts(self, decisions: Sequence[Decision]) -> tuple[list[Attempt], list[str]]:
        names = self.store.names(self.folder_of("attempts"))
        found, wrong = [], []
        for name, text in self._texts("attempts", names):
            try:
                attempt = parse_record(text or "", Attempt)
                if name != f"{attempt.at}-{attempt.attempt}":
                    raise DamagedRecordError("it was copied to another name")
                found.append(attempt)
            except DamagedRecordError as error:
                wrong.append(
                    f"{self._where()}: attempts/{typed(name)[:80]} is not readable: {error}: {self._set_aside(f'attempts/{name}')}"
                )
        return found, wrong + list(self._wrong_attempts(found, decisions))

    def _wrong_attempts(self, attempts: Sequence[Attempt], decisions: Sequence[Decision]) -> Iterator[str]:
        by_id = {attempt.attempt: attempt for attempt in attempts}
        for made in decisions:
            if made.attempt and by_id.get(made.attempt.attempt) != made.attempt:
                cure = f"restore {self._entry(made.attempt)}; if the decision was forged, {self._set_aside(_decision_record(made.seq))}"
                yield f"{self._where()}: the attempt of decision {made.seq} is missing or was changed: {cure}"
        # With a key the first decision that comes will be signed. What it will make wrong is named now.
        next_signed = len(decisions) + 1 if self.keys else None
        signed_from = next((made.seq for made in decisions if made.signature), next_signed)
        for attempt in attempts:
            bad = self._wrong_signature(attempt)
            unsigned = not attempt.signature and signed_from is not None and attempt.over >= signed_from - 1
            if bad or unsigned:
                said = bad or "is not signed"
                yield f"{self._where()}: {self._entry(attempt)} {said}: {self._set_aside(self._entry(attempt))}"

    def _entry(self, attempt: Attempt) -> str:
        return f"attempts/{attempt.at}-{attempt.attempt}"

    def _signed(self, record: Record) -> Record:
        if self.keys:
            return replace(record, signature=self.keys.sign(signed_digest(record)))
        # An unsigned record in a signed ledger would be refused by everybody who has the key.
        if (self._newest or self._follow()).signature:
            raise InputError(f"the ledger of {self.name} is signed: set {KEY_VARIABLE} to its key (see docs/mlflow.md)")
        return record

    def _where(self) -> str:
        return f"the ledger of {self.name} in {self.store.place}"

    def _damage(self, seq: int, fault: str, *, cure: str) -> DamagedLedgerError:
        return DamagedLedgerError(f"{self._where()}: decision {seq} {fault}: {cure}")

    def _restore(self, seq: int) -> str:
        name = _decision_record(seq)
        return f"restore {self.folder}/{name} from a backup or the bucket's versions, or {self._set_aside(name)}"

    def _set_aside(self, name: str) -> str:
        return f"take it out with `star registry set-aside {typed(name)} --name {quote(self.name)}`"


def entry_name(seq: int) -> str:
    """Name of a decision's entry; names sort as the numbers do."""
    return f"{seq:08d}"


def typed(name: str) -> str:
    """An entry's name as a person can type it: what no record of ours has in its name is written as in a URL."""
    return percent_encoded(name, safe="/:+")


def _decision_record(seq: int) -> str:
    return f"decisions/{entry_name(seq)}"


def _outcome(attempt: Attempt, winners: dict[int, Attempt]) -> str:
    """The outcome of an attempt; `winners` holds the attempt that each decision names."""
    if attempt.refused:
        return REFUSED
    winner = winners.get(attempt.over + 1)
    # Until somebody makes that decision, a killed attempt and one that is still under way look the same.
    if winner is None:
        return CUT_SHORT
    return WON if winner.attempt == attempt.attempt else LOST
