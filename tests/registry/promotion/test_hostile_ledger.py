"""Whoever writes to the ledger's store can break the ledger, and cannot choose the champion: a state machine of honest
commands, kills between their steps, and hostile writes, on two registries that share one STAR_REGISTRY. Some of the
writes are to MLflow's tag that says from which decision on a ledger is read.

MLflow and the store are kept in memory, so that many histories are tried in seconds. test_ledger.py and test_races.py have
the same over real stores.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from star.errors import InputError
from star.registry import versions
from star.registry.promotion import ledger as chain
from star.registry.promotion import moved_aliases, promote_and_rollback, reconcile, repair
from star.registry.promotion import open_ledger as opening
from star.registry.promotion.audit import audit
from star.registry.promotion.conditional_writes import require_conditional_writes
from star.registry.promotion.ledger import HEAD_TAG, Ledger, entry_name
from star.registry.promotion.records import Attempt, DamagedRecordError, Decision, parse_record, record_text

NAME = "tiny"
REGISTRIES = ("dev", "prod")
VERSIONS = {"dev": (1, 2, 3), "prod": (1, 2, 3, 4, 5, 6)}
TORN = ["", "{", "not json", "[" * 5000, "null", "1e400", '{"seq": 1}', '"\\ud800"']
CURE = re.compile(r"`star registry set-aside (\S+) --name tiny`")


class Killed(BaseException):
    """The process ended here."""


class MemoryStore:
    """A store of the ledger; `put` and `remove` write to it as no honest command does."""

    place = "memory"

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], str] = {}

    def create(self, folder: str, name: str, text: str) -> bool:
        # One call, because the writers are threads.
        return self.entries.setdefault((folder, name), text) is text

    def read(self, folder: str, name: str) -> str | None:
        return self.entries.get((folder, name))

    def names(self, folder: str, *, after: str = "", until: str = "") -> list[str]:
        names = sorted(name for place, name in self.entries if place == folder and name > after)
        return [name for name in names if not until or name <= until]

    def read_many(self, folder: str, names: list[str]) -> list[str | None]:
        return [self.read(folder, name) for name in names]

    def delete(self, folder: str, name: str, *, versions: bool) -> None:
        self.entries.pop((folder, name), None)

    def put(self, folder: str, name: str, text: str) -> None:
        self.entries[folder, name] = text

    def remove(self, folder: str, name: str) -> None:
        self.entries.pop((folder, name), None)

    def content(self) -> dict[tuple[str, str], str]:
        return dict(self.entries)


class MemoryMlflow:
    """The part of MLflow's registry that promotions use, with one model."""

    def __init__(self, created: int, versions: tuple[int, ...]) -> None:
        self.created, self.versions = created, versions
        self.tags: dict[str, str] = {}
        self.aliases: dict[str, str] = {}

    def get_registered_model(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(
            name=name, creation_timestamp=self.created, tags=dict(self.tags), aliases=dict(self.aliases)
        )

    def search_model_versions(self, filter_string: str, **_: object) -> list:
        class Page(list):
            token = ""

        return Page(self.get_model_version(NAME, number) for number in reversed(self.versions))

    def get_model_version(self, name: str, version: str | int) -> SimpleNamespace:
        if int(version) not in self.versions:
            raise MlflowException("no such version", RESOURCE_DOES_NOT_EXIST)
        return SimpleNamespace(
            name=NAME, version=version, tags={}, aliases=[], creation_timestamp=0, source="", run_id=""
        )

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        self.tags[key] = value

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        self.tags.pop(key, None)

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self.aliases[alias] = version

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        self.aliases.pop(alias, None)


class Counted:
    """Passes calls on, and ends the process at the n-th one that writes."""

    WRITES = ("create", "delete", "set_", "delete_")

    def __init__(self, inner: object, left: list[int]) -> None:
        self._inner, self._left = inner, left

    def __getattr__(self, attribute: str):
        found = getattr(self._inner, attribute)
        if not attribute.startswith(self.WRITES):
            return found

        def call(*arguments, **keywords):
            self._left[0] -= 1
            if self._left[0] == 0:
                raise Killed
            return found(*arguments, **keywords)

        return call


def no_files(*_: object) -> Path:
    """The versions have no files, so no alias that MLflow shows counts by itself."""
    raise InputError("there are no files")


class World:
    """Two registries and one store, and the environment of one process that works on one of them at a time."""

    def __init__(self, patch: pytest.MonkeyPatch, *, key: Path | None) -> None:
        self.patch, self.left, self.store = patch, [0], MemoryStore()
        self.mlflow = {
            "dev": MemoryMlflow(1_700_000_000_000, VERSIONS["dev"]),
            "prod": MemoryMlflow(1_800_000_000_000, VERSIONS["prod"]),
        }
        patch.setenv("STAR_REGISTRY", "s3://models/hostile")
        if key is None:
            patch.delenv("STAR_LEDGER_KEY", raising=False)
        else:
            patch.setenv("STAR_LEDGER_KEY", str(key))
        require_conditional_writes(self.store)  # so that no kill falls into it
        patch.setattr(opening, "require_conditional_writes", lambda store: None)
        patch.setattr(promote_and_rollback, "require_conditional_writes", lambda store: None)
        patch.setattr(reconcile, "require_conditional_writes", lambda store: None)
        patch.setattr(repair, "require_conditional_writes", lambda store: None)
        patch.setattr(chain, "BATCH", 2)  # so that short histories are read in several parts, and far from the head
        patch.setattr(reconcile, "remove_unfinished_publications", lambda name: [])
        patch.setattr(moved_aliases, "download_unchecked", no_files)
        patch.setattr(opening, "_store_at", lambda name, place: Counted(self.store, self.left))
        for module in (promote_and_rollback, reconcile, repair, versions):
            patch.setattr(module, "connect", lambda: Counted(self.client(), self.left))
        self.at = "dev"

    def client(self) -> MemoryMlflow:
        return self.mlflow[self.at]

    def ledger(self, registry: str) -> Ledger:
        self.at, self.left[0] = registry, 0
        return opening.open_ledger(NAME, self.client())


class HostileLedger(RuleBasedStateMachine):
    """Honest commands, kills and hostile writes; `promoted` are the versions that an honest command made champion."""

    key: ClassVar[Path | None] = None

    @initialize()
    def start(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.world = World(self.patch, key=self.key)
        self.promoted: dict[str, set[int | None]] = {registry: {None} for registry in REGISTRIES}
        self.honest: dict[str, dict[tuple[str, str], str]] = {}
        self.over_damage = dict.fromkeys(REGISTRIES, False)
        for registry in REGISTRIES:
            self.world.ledger(registry)
            self.learn(registry)

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()

    # What holds after every step

    @invariant()
    def the_champion_was_promoted_or_nobody_can_know(self) -> None:
        if not hasattr(self, "world"):
            return
        for registry in REGISTRIES:
            whole = self.is_whole(registry)
            ledger = self.world.ledger(registry)
            champion, said = answer(lambda ledger=ledger: ledger.newest().aliases.get("champion"))
            assert not (whole and said), said
            assert not said or "restore" in said or CURE.search(said), said
            assert champion in self.promoted[registry]

    # Honest commands, some of them killed

    @rule(registry=st.sampled_from(REGISTRIES), number=st.integers(1, 6), kill=st.integers(0, 14))
    def promote(self, registry: str, number: int, kill: int) -> None:
        if number in VERSIONS[registry]:
            self.act(registry, lambda: promote_and_rollback.promote(NAME, number), wanted=number, kill=kill)

    @rule(registry=st.sampled_from(REGISTRIES), kill=st.integers(0, 14))
    def rollback(self, registry: str, kill: int) -> None:
        self.act(registry, lambda: promote_and_rollback.rollback(NAME), wanted=None, kill=kill)

    @rule(registry=st.sampled_from(REGISTRIES), kill=st.integers(0, 8))
    def reconcile(self, registry: str, kill: int) -> None:
        self.act(registry, lambda: reconcile.reconcile(NAME), wanted=None, kill=kill)
        if self.is_whole(registry):
            newest = self.world.ledger(registry).newest()
            wrong = reconcile.reconcile(NAME)[1]
            if not newest.seq:  # aliases of decisions that were taken out stay in MLflow, and hold nothing
                assert all("in MLflow points to version" in line for line in wrong)
                return
            assert wrong == []
            shown = promote_and_rollback.read_aliases(NAME, self.world.client()).aliases
            assert shown == self.world.ledger(registry).newest().aliases

    @rule(registry=st.sampled_from(REGISTRIES))
    def follow_the_cures(self, registry: str) -> None:
        """What the messages say, until there is none."""
        for _ in range(40):
            ledger = self.world.ledger(registry)
            wrong, said = answer(lambda ledger=ledger: [*audit(ledger), *reconcile.reconcile(NAME)[1]])
            # An alias from before the first decision is nothing that a cure of the ledger takes away.
            wrong = (
                [said] if said else [sentence for sentence in wrong if "in MLflow points to version" not in sentence]
            )
            cures = [found[1] for sentence in wrong if (found := CURE.search(sentence))]
            if not cures:
                assert not wrong or all("restore" in sentence for sentence in wrong), wrong
                break
            _, said = answer(partial(repair.set_aside_record, NAME, cures[0]))  # typed as it was printed
            assert not said or CURE.search(said), said  # what is left can be damaged too
        else:
            raise AssertionError(f"no end of cures: {wrong}")
        if not wrong:
            self.learn(registry)

    def act(self, registry: str, command: Callable[[], object], *, wanted: int | None, kill: int) -> None:
        whole = self.is_whole(registry)
        self.world.at, self.world.left[0] = registry, kill
        with suppress(Killed):
            _, said = answer(command)
            assert not (whole and said) or "no previous-champion" in said, said
        self.world.left[0] = 0
        if wanted is not None and (not whole or self.won(registry, wanted)):
            self.promoted[registry].add(wanted)
        if whole:
            self.learn(registry)
        else:
            self.over_damage[registry] = True  # the backup does not have what this has written

    def won(self, registry: str, wanted: int) -> bool:
        return any(made.aliases.get("champion") == wanted for made in self.world.ledger(registry).all_decisions()[0])

    def learn(self, registry: str) -> None:
        """Everything in the registry's ledger is honest now."""
        self.honest[registry] = self.content(registry)
        self.over_damage[registry] = False

    def is_whole(self, registry: str) -> bool:
        """Whether nothing hostile is in the registry's ledger, and nothing of it is gone."""
        whole = self.content(registry) == self.honest[registry] and not self.over_damage[registry]
        return whole and self.head_is_right(registry)

    def head_is_right(self, registry: str) -> bool:
        """Whether MLflow's tag names a decision of the ledger, or none at all."""
        folder, _, registry_id = self.found(registry)
        head = opening._head(self.world.client().tags.get(HEAD_TAG, ""), registry=registry_id)
        text = self.honest[registry].get((folder, entry_name(head.seq)))
        return not head.seq or (text is not None and parse_record(text, Decision).digest == head.digest)

    def content(self, registry: str) -> dict[tuple[str, str], str]:
        parts = {self.found(registry)[0].replace("decisions", part) for part in ("decisions", "attempts")}
        return {place: text for place, text in self.world.store.content().items() if place[0] in parts}

    # Hostile writes

    def found(self, registry: str) -> tuple[str, list[str], str]:
        """Folder and names of a registry's decisions, and its id: all that somebody with the store's key sees."""
        self.world.at = registry
        registry_id = self.world.client().get_registered_model(NAME).tags["star.registry_id"]
        folder = f"{NAME}/{registry_id}/decisions"
        return folder, self.world.store.names(folder), registry_id

    @rule(registry=st.sampled_from(REGISTRIES), where=st.integers(0, 20), text=st.sampled_from(TORN))
    def tear(self, registry: str, where: int, text: str) -> None:
        folder, names, _ = self.found(registry)
        places = [*names, entry_name(len(names) + 1), "99999999", "zzz", "00000001 copy", "!", "\x1b/..", "10%/7"]
        self.world.store.put(folder, places[where % len(places)], text)

    @rule(registry=st.sampled_from(REGISTRIES), where=st.integers(0, 20))
    def delete(self, registry: str, where: int) -> None:
        folder, names, _ = self.found(registry)
        if names:
            self.world.store.remove(folder, names[where % len(names)])

    @rule(registries=st.tuples(*[st.sampled_from(REGISTRIES)] * 2), one=st.integers(0, 20), two=st.integers(0, 20))
    def copy_or_swap(self, registries: tuple[str, str], one: int, two: int) -> None:
        """A decision under another's number, or in the other registry's ledger."""
        (origin, names, _), (goal, others, _) = (self.found(registry) for registry in registries)
        if not names:
            return
        mine, theirs = names[one % len(names)], [*others, entry_name(len(others) + 1)][two % (len(others) + 1)]
        text, before = self.world.store.read(origin, mine), self.world.store.read(goal, theirs)
        self.world.store.put(goal, theirs, text)
        if before and origin == goal:
            self.world.store.put(origin, mine, before)

    @rule(registry=st.sampled_from(REGISTRIES), number=st.integers(1, 6), seq=st.sampled_from([0, 1, 99_999_999]))
    def forge_without_its_parent(self, registry: str, number: int, seq: int) -> None:
        folder, names, registry_id = self.found(registry)
        seq = seq or len(names) + 1
        attempt = Attempt("promote", number, seq - 1, "", registry=registry_id)
        self.forge(folder, Decision(seq, {"champion": number}, attempt, "f" * 64, registry_id))

    @precondition(lambda self: self.key is not None)
    @rule(
        registry=st.sampled_from(REGISTRIES),
        number=st.integers(1, 6),
        signed=st.sampled_from(["no", "other", "copied"]),
    )
    def forge_the_whole_chain(self, registry: str, number: int, signed: str) -> None:
        """Right in everything but the signature, with a matching attempt."""
        folder, names, registry_id = self.found(registry)
        before = Decision()
        with suppress(DamagedRecordError):
            before = parse_record(self.world.store.read(folder, names[-1]), Decision) if names else before
        signature = {"no": "", "other": f"{'0' * 16}:AAAA", "copied": before.signature}[signed]
        attempt = Attempt("promote", number, before.seq, "", registry=registry_id, signature=signature)
        self.forge(
            folder, Decision(before.seq + 1, {"champion": number}, attempt, before.digest, registry_id, signature)
        )

    @rule(
        registry=st.sampled_from(REGISTRIES),
        said=st.sampled_from(["gone", "torn", "another", "ahead", "forged"]) | st.integers(0, 20),
    )
    def change_the_head(self, registry: str, said: str | int) -> None:
        """MLflow's tag is torn or forged, or names an earlier decision, where the ledger is right from there on."""
        folder, names, registry_id = self.found(registry)
        other = self.world.mlflow[REGISTRIES[registry == "dev"]].tags.get(HEAD_TAG, "")
        if isinstance(said, int):
            seq = said % (len(names) + 1)
            # Without signatures, who writes to both MLflow and the store can add a decision that looks right.
            store = self.world.store.content() if self.key else self.honest[registry]
            with suppress(DamagedRecordError):
                text = store.get((folder, entry_name(seq)), "")
                self.world.client().tags[HEAD_TAG] = f"{registry_id} {seq} {parse_record(text, Decision).digest}"
            return
        self.world.client().tags[HEAD_TAG] = {
            "gone": "",
            "torn": f"{registry_id} 1",
            "another": other,
            "ahead": f"{registry_id} {len(names) + 5} {'f' * 64}",
            "forged": f"{registry_id} {max(len(names), 1)} {'f' * 64}",
        }[said]

    @rule(registry=st.sampled_from(REGISTRIES), where=st.integers(0, 20), replay=st.booleans())
    def forge_decision_and_head(self, registry: str, where: int, replay: bool) -> None:
        """The other registry's decision, with MLflow's tag naming it; where records are signed, also one without a parent."""
        folder, names, registry_id = self.found(registry)
        other = REGISTRIES[registry == "dev"]
        origin = self.found(other)[0]
        # Without signatures, a forged decision that comes back from there would be one that looks right.
        store = self.world.store.content() if self.key else self.honest[other]
        others = sorted(text for (place, _), text in store.items() if place == origin)
        self.world.at = registry
        with suppress(DamagedRecordError):
            if replay or self.key is None:
                text = others[where % len(others)] if others else ""
            else:
                seq = where % (len(names) + 2) + 1
                attempt = Attempt("promote", 6, seq - 1, "", registry=registry_id)
                text = record_text(Decision(seq, {"champion": 6}, attempt, "f" * 64, registry_id))
            made = parse_record(text, Decision)
            for name in names:
                if name > entry_name(made.seq):  # it is to be the newest
                    self.world.store.remove(folder, name)
            self.world.store.put(folder, entry_name(made.seq), text)
            self.world.client().tags[HEAD_TAG] = f"{registry_id} {made.seq} {made.digest}"

    def forge(self, folder: str, decision: Decision) -> None:
        attempt = decision.attempt
        self.world.store.put(folder, entry_name(decision.seq), record_text(decision))
        attempts = folder.replace("decisions", "attempts")
        self.world.store.put(attempts, f"{attempt.at}-{attempt.attempt}", record_text(attempt))

    @rule(registry=st.sampled_from(REGISTRIES))
    def restore(self, registry: str) -> None:
        """The backup comes back, and the tag is emptied where it names something else."""
        if not self.head_is_right(registry):
            self.world.client().tags[HEAD_TAG] = ""
        for folder, name in self.content(registry).keys() - self.honest[registry].keys():
            self.world.store.remove(folder, name)
        for (folder, name), text in self.honest[registry].items():
            self.world.store.put(folder, name, text)


def answer(command: Callable[[], object]) -> tuple[Any, str]:
    """What a command returns, and what it says where it refuses."""
    try:
        return command(), ""
    except InputError as error:
        return None, str(error)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("key") / "ledger.pem"
    file.write_bytes(private_pem(Ed25519PrivateKey.generate()))
    return file


def private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def run(examples: int, *, key: Path | None, steps: int = 20) -> None:
    machine = type("Machine", (HostileLedger,), {"key": key})
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks
        ),
    )


@pytest.mark.parametrize("signed", [True, False])
def test_a_champion_was_promoted_whatever_is_written_to_the_store(key: Path, signed: bool) -> None:
    run(25, key=key if signed else None)


@pytest.mark.slow
@pytest.mark.parametrize("signed", [True, False])
def test_the_same_over_longer_histories(key: Path, signed: bool) -> None:
    run(400, key=key if signed else None, steps=40)
