"""The chain of the ledger: each damage is named with its cure, signatures hold, and each registry has its own ledger."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from star.cli.registry import registry_app
from star.errors import InputError
from star.registry.promotion.audit import read_history
from star.registry.promotion.ledger import HEAD_TAG, Ledger, entry_name
from star.registry.promotion.ledger_store import S3LedgerStore, SqlLedgerStore
from star.registry.promotion.open_ledger import LOCATION_TAG, open_ledger, require_ledger
from star.registry.promotion.overview import look_at_versions
from star.registry.promotion.promote_and_rollback import champion, promote, rollback
from star.registry.promotion.promote_by_reference import promote_model
from star.registry.promotion.reconcile import reconcile
from star.registry.promotion.records import Attempt, Decision, parse_record, record_text
from star.registry.promotion.register_model import register_model
from star.registry.promotion.registry_id import ID_TAG
from star.registry.promotion.repair import set_aside_record, sign_ledger
from star.registry.versions import find_version, list_versions
from star.tracking.server import connect, tracking_uri, use_tracking_uri

PRIVATE = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()


@pytest.fixture(scope="module")
def decided_database(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking database with three versions, promoted one after the other."""
    home, model = tmp_path_factory.mktemp("decided"), tmp_path_factory.mktemp("model")
    shutil.copy(empty_database, home / "mlflow.db")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (model / name).write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("MLFLOW_TRACKING_URI", "STAR_REGISTRY", "STAR_LEDGER_KEY"):
            patch.delenv(variable, raising=False)
        patch.setenv("STAR_HOME", str(home))
        for digest in ("d1", "d2", "d3"):
            register_model(model, name="tiny", scores={}, lineage={}, model_digest=digest)
        for version in (1, 2, 3):
            promote("tiny", version)
    return home / "mlflow.db"


@pytest.fixture
def decided(decided_database: Path, home: Path) -> Ledger:
    """The ledger of three versions, promoted one after the other."""
    shutil.copy(decided_database, home / "mlflow.db")
    return open_ledger("tiny", connect())


def put(ledger: Ledger, entry: str, text: str, *, kind: str = "decisions") -> None:
    ledger.store.delete(ledger.folder_of(kind), entry, versions=True)
    assert ledger.store.create(ledger.folder_of(kind), entry, text)


def stored(ledger: Ledger, seq: int) -> str:
    return ledger.store.read(ledger.folder_of("decisions"), entry_name(seq)) or ""


def forged(ledger: Ledger, **other: object) -> str:
    """A decision that follows from the newest one, but for what is given."""
    newest = ledger.newest()
    attempt = Attempt("promote", 1, newest.seq, "", registry=ledger.registry)
    fields = {"seq": newest.seq + 1, "aliases": {"champion": 1}, "attempt": attempt, "parent": newest.digest}
    return record_text(Decision(**{**fields, "registry": ledger.registry, **other}))


DAMAGE: dict[str, tuple[Callable[[Ledger], None], str]] = {
    "a number far away": (lambda it: put(it, "99999999", forged(it, seq=99_999_999)), "decision 4 is missing, though"),
    "another number inside": (lambda it: put(it, "00000004", forged(it, seq=99_999_999)), "holds number 99999999"),
    "a name that is none": (lambda it: put(it, "zzz", "not json"), "decisions/zzz is no decision's name"),
    "torn": (lambda it: put(it, "00000003", stored(it, 3)[:90]), "decision 3 is not readable: it is not JSON"),
    "too deep": (lambda it: put(it, "00000004", "[" * 100_000), "decision 4 is not readable: it is not JSON"),
    "too long": (lambda it: put(it, "00000004", " " * (1 << 20) + "{}"), "has more than 1,048,576 characters"),
    "half a pair": (lambda it: put(it, "00000004", '{"parent": "\\ud800"}'), "decision 4 is not readable"),
    "another type": (lambda it: put(it, "00000004", forged(it, aliases={"champion": "1"})), r"\(aliases.champion\)"),
    "a field too many": (lambda it: put(it, "00000004", '{"x": 1, ' + forged(it)[1:]), "not readable"),
    "an alias of its own": (lambda it: put(it, "00000004", forged(it, aliases={"best": 1})), "an alias that no"),
    "the newest missing": (
        lambda it: it.store.delete(it.folder_of("decisions"), "00000003", versions=True),
        "decision 3 is missing",
    ),
    "the newest changed": (
        lambda it: put(it, "00000003", stored(it, 3).replace('"version": 3', '"version": 1')),
        "decision 3 is not the one",
    ),
    "another parent": (lambda it: put(it, "00000004", forged(it, parent="f" * 64)), "does not follow from decision 3"),
    "copied": (lambda it: put(it, "00000004", stored(it, 3)), "decision 4 holds number 3"),
    "another registry": (lambda it: put(it, "00000004", forged(it, registry="0" * 32)), "was made in another registry"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_after_the_last_known_decision_stops_every_command(decided: Ledger, damage: str) -> None:
    change, said = DAMAGE[damage]
    change(decided)
    for command in (
        lambda: promote("tiny", 1),
        lambda: rollback("tiny"),
        lambda: champion("tiny"),
        lambda: require_ledger("tiny", connect()),
    ):
        with pytest.raises(InputError, match=said) as raised:
            command()
    assert find_version("tiny").version == 3  # MLflow shows what was decided
    done, [wrong] = reconcile("tiny")
    assert done == [] and str(raised.value) == wrong
    record = re.search(r"star registry set-aside (\S+) --name tiny`", wrong)[1]
    set_aside_record("tiny", record)
    assert reconcile("tiny") == ([], [])
    assert champion("tiny").version in (2, 3)  # 2 where decision 3 itself was damaged
    assert promote("tiny", 1).aliases == ("champion",)
    copies = decided.store.names(f"{decided.folder}/set-aside")
    assert len(copies) == (0 if damage == "the newest missing" else 1)


def test_damage_before_the_last_known_decision_is_found_by_the_audit(decided: Ledger) -> None:
    put(decided, "00000002", stored(decided, 2).replace('"version": 2', '"version": 1'))
    assert champion("tiny").version == 3  # nothing of decision 2 is used
    done, [wrong] = reconcile("tiny")
    assert done == [] and "decision 3 does not follow from decision 2: one of the two was changed" in wrong
    _, moved = read_history(open_ledger("tiny", connect()))
    assert moved[0] == wrong
    put(decided, "00000002", stored(decided, 2).replace('"version": 1', '"version": 2'))
    assert reconcile("tiny") == ([], [])


def test_attempts_that_are_not_what_was_written_are_named(decided: Ledger) -> None:
    folder = decided.folder_of("attempts")
    first, second, _ = decided.store.names(folder)
    text = decided.store.read(folder, first)
    put(decided, first, text.replace('"version": 1', '"version": 2'), kind="attempts")
    put(decided, second, "{", kind="attempts")
    wrong = reconcile("tiny")[1]
    assert [re.search(r"attempts/\S+ is not readable|attempt of decision \d", line)[0] for line in wrong] == [
        f"attempts/{second} is not readable",
        "attempt of decision 1",
        "attempt of decision 2",
    ]
    assert promote("tiny", 1).version == 1  # an attempt decides nothing


def test_the_commands_name_damage_and_take_it_out(decided: Ledger) -> None:
    put(decided, "99999999", "not json")
    done = CliRunner().invoke(registry_app, ["ledger", "--name", "tiny"])
    assert done.exit_code == 1 and "won" in done.output
    assert "star registry set-aside decisions/00000004 --name tiny" in done.output
    done = CliRunner().invoke(registry_app, ["set-aside", "decisions/00000004", "--name", "tiny"])
    assert done.output.splitlines() == [
        "decisions/99999999",
        "the ledger ends with decision 3: champion is version 3, previous-champion is version 2",
    ]
    with pytest.raises(InputError, match="'the last one' is no record"):
        set_aside_record("tiny", "the last one")


def write_key(file: Path, key: Ed25519PrivateKey) -> Path:
    file.write_bytes(key.private_bytes(serialization.Encoding.PEM, *PRIVATE))
    return file


def public_pem(key: Ed25519PrivateKey) -> str:
    encoding = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(*encoding).decode()


def test_a_signed_ledger_takes_signed_records_only(
    decided: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Ed25519PrivateKey.generate()
    monkeypatch.setenv("STAR_LEDGER_KEY", str(write_key(tmp_path / "key.pem", key)))
    with pytest.raises(
        InputError, match=r"decision 3 is not signed, though STAR_LEDGER_KEY is set: .*star registry sign"
    ):
        promote("tiny", 1)
    assert sign_ledger("tiny").aliases == decided.newest().aliases
    assert promote("tiny", 1).version == 1
    assert reconcile("tiny") == ([], [])
    # Somebody who has the bucket and not the key:
    monkeypatch.delenv("STAR_LEDGER_KEY")
    with pytest.raises(InputError, match="the ledger of tiny is signed: set STAR_LEDGER_KEY to its key"):
        promote("tiny", 2)
    put(decided, "00000006", forged(open_ledger("tiny", connect())))
    for reader in ("env:PUBLIC", ""):  # also without the key
        monkeypatch.setenv("PUBLIC", public_pem(key))
        monkeypatch.setenv("STAR_LEDGER_KEY", reader)
        with pytest.raises(InputError, match="decision 6 is not signed, though decision 5 is"):
            champion("tiny")
    set_aside_record("tiny", "decisions/00000006")
    monkeypatch.setenv("STAR_LEDGER_KEY", "env:PUBLIC")
    assert champion("tiny").version == 1
    with pytest.raises(InputError, match="holds no private key"):
        promote("tiny", 2)
    # A key that replaces the first one, which stays to check what it signed.
    file = write_key(tmp_path / "next.pem", Ed25519PrivateKey.generate())
    monkeypatch.setenv("STAR_LEDGER_KEY", str(file))
    with pytest.raises(InputError, match="signature that is of no key in STAR_LEDGER_KEY"):
        champion("tiny")
    file.write_text(file.read_text() + public_pem(key))
    assert promote("tiny", 3).version == 3
    assert reconcile("tiny") == ([], [])


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("absent.pem", "the file cannot be read"),
        ("env:ABSENT", "there is no variable ABSENT"),
        ("-----BEGIN PRIVATE KEY-----", "not the key itself"),
        ("env:OTHER", "a key of another kind"),
        ("env:TORN", "cannot be read"),
        ("env:HOME", "there is no PRIVATE KEY"),
    ],
)
def test_a_reference_that_leads_to_no_key(
    reference: str, said: str, home: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = generate_private_key(SECP256R1()).private_bytes(serialization.Encoding.PEM, *PRIVATE)
    monkeypatch.setenv("OTHER", other.decode())
    monkeypatch.setenv("TORN", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----")
    register_model(model, name="tiny", scores={}, lineage={}, model_digest="d1")
    monkeypatch.setenv("STAR_LEDGER_KEY", reference)
    with pytest.raises(InputError, match=f"STAR_LEDGER_KEY must be the path .*{said}"):
        promote("tiny", 1)


@pytest.fixture
def shared(home: Path, s3_store: dict[str, str], environment: pytest.MonkeyPatch, tmp_path: Path) -> S3LedgerStore:
    """One place for the ledgers of all MLflows of a test."""
    for name, value in s3_store.items():
        environment.setenv(name, value)
    place = f"s3://models/shared-{tmp_path.name}"
    environment.setenv("STAR_REGISTRY", place)
    return S3LedgerStore(place)


def test_two_registries_with_one_place_have_a_ledger_each(shared: S3LedgerStore, home: Path, model: Path) -> None:
    for number in (1, 2, 3):
        (model / "config.json").write_text(json.dumps({"model_type": "qwen3", "number": number}))
        register_model(model, name="tiny", scores={}, lineage={}, model_digest=f"d{number}")
    promote("tiny", 3)
    there = promote_model("champion", name="tiny", to="champion", reason="", to_registry=f"sqlite:///{home}/prod.db")
    assert there.version == 1
    assert reconcile("tiny") == ([], []) and champion("tiny").version == 3
    with use_tracking_uri(f"sqlite:///{home}/prod.db"):
        assert reconcile("tiny") == ([], []) and champion("tiny").version == 1
        there = open_ledger("tiny", connect())
        put(there, "00000002", stored(open_ledger_of(home), 1))
        with pytest.raises(InputError, match="decision 2 holds number 1"):
            champion("tiny")
        # With MLflow's tag naming it too, so that the chain would be read from there on.
        copied = stored(open_ledger_of(home), 1)
        put(there, "00000001", copied)
        noted = f"{there.registry} 1 {parse_record(copied, Decision).digest}"
        connect().set_registered_model_tag("tiny", HEAD_TAG, noted)
        with pytest.raises(InputError, match="decision 1 was made in another registry"):
            champion("tiny")
    assert len(shared.names("tiny/registries")) == 2


def open_ledger_of(home: Path) -> Ledger:
    with use_tracking_uri(f"sqlite:///{home}/mlflow.db"):
        return open_ledger("tiny", connect())


def older_ledger(store: S3LedgerStore | SqlLedgerStore, *versions: int) -> None:
    """What an older STAR wrote: records without a registry, under the model's name alone."""
    before = Decision()
    for version in versions:
        attempt = Attempt("promote", version, before.seq, "")
        store.create("tiny/attempts", f"{attempt.at}-{attempt.attempt}", record_text(attempt))
        before = Decision(before.seq + 1, {"champion": version}, attempt, before.digest)
        store.create("tiny/decisions", entry_name(before.seq), record_text(before))


def test_the_ledger_of_an_older_star_stays_with_one_registry(
    shared: S3LedgerStore, home: Path, model: Path, older_star: Callable
) -> None:
    """The first that claims it goes on with it. Another begins its own."""
    for database, digest in (("mlflow", "d1"), ("prod", "d2")):
        with use_tracking_uri(f"sqlite:///{home}/{database}.db"):
            older_star(model, digest=digest)
            for tag, value in ((LOCATION_TAG, shared.place.split()[0]), ("star.projected", "2")):
                connect().set_registered_model_tag("tiny", tag, value)
            connect().set_registered_model_alias("tiny", "champion", "1")
    older_ledger(shared, 1, 1)
    assert open_ledger("tiny", connect()).is_older
    assert champion("tiny").version == 1
    with use_tracking_uri(f"sqlite:///{home}/prod.db"):
        ledger = open_ledger("tiny", connect())
        assert not ledger.is_older and ledger.newest() == Decision()
        assert promote("tiny", 1).version == 1
        assert reconcile("tiny") == ([], [])
    assert open_ledger("tiny", connect()).newest().seq == 2
    assert reconcile("tiny") == ([], [])


def test_an_older_ledger_that_began_before_the_model_is_another_registrys(
    shared: S3LedgerStore, home: Path, model: Path, older_star: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("star.registry.promotion.registry_id.CLOCKS", -1 * timedelta(days=1))
    older_star(model, digest="d1")
    connect().set_registered_model_tag("tiny", LOCATION_TAG, shared.place.split()[0])
    older_ledger(shared, 1)
    assert not open_ledger("tiny", connect()).is_older


def test_a_tag_and_a_store_that_contradict_each_other_are_named(decided: Ledger) -> None:
    connect().set_registered_model_tag("tiny", ID_TAG, "0" * 32)
    with pytest.raises(
        InputError, match=f"is that of registry 0{{32}}, and tiny/registries/.* says {decided.registry}"
    ):
        champion("tiny")
    connect().delete_registered_model_tag("tiny", ID_TAG)
    assert champion("tiny").version == 3  # the store knows it
    [entry] = decided.store.names("tiny/registries")
    decided.store.delete("tiny/registries", entry, versions=True)
    with pytest.raises(InputError, match=r"has no tiny/registries/\d+ that says so: restore that file"):
        champion("tiny")
    decided.store.create("tiny/registries", entry, "[]")
    with pytest.raises(InputError, match="is not what STAR wrote: restore it"):
        champion("tiny")


def test_without_a_known_head_the_chain_is_followed_from_its_start(decided: Ledger) -> None:
    put(decided, "00000001", stored(decided, 1).replace("promote", "rollback"))
    connect().delete_registered_model_tag("tiny", HEAD_TAG)
    with pytest.raises(InputError, match="decision 2 does not follow from decision 1"):
        champion("tiny")


def test_a_record_of_today_is_read_back(decided: Ledger) -> None:
    newest = decided.newest()
    assert parse_record(record_text(newest), Decision) == newest
    assert newest.registry == newest.attempt.registry == decided.registry
    assert isinstance(decided.store, SqlLedgerStore) and tracking_uri().endswith("mlflow.db")
    assert len(list_versions("tiny")) == 3


@pytest.mark.parametrize("number", [4, 2**31])
def test_a_decision_for_a_version_that_is_not_there_is_named_and_overcome(decided: Ledger, number: int) -> None:
    """Without a key, whoever can write to the store can add a decision with the right digests."""
    put(decided, "00000004", forged(decided, aliases={"champion": number}))
    with pytest.raises(InputError, match="has no version 4" if number == 4 else r"\(aliases.champion\)"):
        champion("tiny")
    done, wrong = reconcile("tiny")
    assert done == [] and re.search(
        "not in MLflow: if it was deleted, promote another" if number == 4 else "decision 4", wrong[-1]
    )
    assert find_version("tiny").version == 3
    if number == 4:
        assert promote("tiny", 1).aliases == ("champion",)
        assert "the attempt of decision 4 is missing" in reconcile("tiny")[1][0]
    set_aside_record("tiny", "decisions/00000004")
    assert champion("tiny").version == 3


def test_what_mlflows_tags_say_of_the_ledger_is_not_believed(decided: Ledger) -> None:
    """Who reaches MLflow can set them: the decision they name must be there, with that digest."""
    client, good = connect(), connect().get_registered_model("tiny").tags[HEAD_TAG]
    for tag, said in (
        (f"{decided.registry} 99999999 {'f' * 64}", "decision 99999999 is missing, though MLflow's tag star.verified"),
        (
            f"{decided.registry} 2 {'f' * 64}",
            "decision 2 is not the one that MLflow's tag star.verified has .* correct the",
        ),
    ):
        client.set_registered_model_tag("tiny", HEAD_TAG, tag)
        with pytest.raises(InputError, match=said):
            champion("tiny")
        assert len(reconcile("tiny")[1]) == 1
    older = f"{decided.registry} 1 {decided.all_decisions()[0][0].digest}"
    for tag in (older, "", "x", f"{decided.registry} {10**18} x", f"{decided.registry} \u0663 x", f"{'0' * 32} 1 x"):
        client.set_registered_model_tag("tiny", HEAD_TAG, tag)
        assert champion("tiny").version == 3  # all that follows was checked
    client.set_registered_model_tag("tiny", HEAD_TAG, good)
    client.set_registered_model_tag("tiny", LOCATION_TAG, "elsewhere")
    with pytest.raises(InputError, match=r"MLflow's tag star.records of tiny is not what STAR wrote \(elsewhere\)"):
        champion("tiny")


def test_many_and_long_entries_are_named_without_reading_all(decided: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    put(decided, "00000004", "[" * (1 << 22))
    for number in range(300):
        put(decided, f"zz{number:03d} \x1b/..", "x")
    read: list[str] = []
    monkeypatch.setattr(
        SqlLedgerStore,
        "read_many",
        lambda self, folder, names, real=SqlLedgerStore.read_many: read.extend(names) or real(self, folder, names),
    )
    with pytest.raises(InputError, match="decision 4 is not readable: it has more than 1,048,576 characters"):
        champion("tiny")
    assert "00000004" in read and not [name for name in read if name.startswith("zz")]
    set_aside_record("tiny", "decisions/00000004")
    put(decided, "!%", "x")
    *_, wrong = reconcile("tiny")[1]
    assert "set-aside decisions/%21%25 --name tiny`" in wrong  # as it can be typed in a shell
    assert set_aside_record("tiny", "decisions/%21%25")[0] == ["decisions/!%"]
    assert reconcile("tiny") == ([], [])


def test_an_older_star_refuses_the_ledger(shared: S3LedgerStore, home: Path, model: Path, older_star: Callable) -> None:
    """It read the place of the ledger from the tag, and would begin a second ledger there or fail at a newer record."""
    place = shared.place.split()[0]
    for digest in ("d1", "d2"):
        older_star(model, digest=digest)
    connect().set_registered_model_tag("tiny", LOCATION_TAG, place)
    connect().set_registered_model_tag("tiny", "star.projected", "1")
    connect().set_registered_model_alias("tiny", "champion", "1")
    older_ledger(shared, 1)
    assert champion("tiny").version == 1

    def noted() -> str:
        return connect().get_registered_model("tiny").tags[LOCATION_TAG]

    assert noted() == place  # nothing was written that an older STAR cannot read
    promote("tiny", 2)
    assert noted() == f"registry {open_ledger('tiny', connect()).registry} in {place}"
    register_model(model, name="new", scores={}, lineage={}, model_digest="d1")
    promote("new", 1)
    assert re.fullmatch(f"registry [0-9a-f]{{32}} in {place}", connect().get_registered_model("new").tags[LOCATION_TAG])


def test_a_store_that_does_not_answer_is_named(decided: Ledger, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    environment.setattr("star.folders.s3_client.ATTEMPTS", 1)
    store = S3LedgerStore("s3://models/star")
    for command in (lambda: store.read("a", "b"), lambda: store.names("a"), lambda: store.read_many("a", ["b", "c"])):
        with pytest.raises(InputError, match=r"s3://models/star at .* cannot be used"):
            command()


def fill(ledger: Ledger, up_to: int) -> None:
    """Adds decisions in one transaction: promotions of the three versions in turn."""
    before, rows = ledger.newest(), []
    for seq in range(before.seq + 1, up_to + 1):
        attempt = Attempt("promote", seq % 3 + 1, seq - 1, "", registry=ledger.registry)
        aliases = {"champion": seq % 3 + 1, "previous-champion": before.aliases["champion"]}
        before = Decision(seq, aliases, attempt, before.digest, ledger.registry)
        rows.append((ledger.folder_of("attempts"), f"{attempt.at}-{attempt.attempt}", record_text(attempt)))
        rows.append((ledger.folder_of("decisions"), entry_name(seq), record_text(before)))
    with ledger.store.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO star_records (folder, name, content) VALUES (?, ?, ?)", rows)
    assert reconcile("tiny")[1] == []


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Counts the names and the entries that a SqlLedgerStore returns: (folder, name, what) -> times."""
    found, names, read_many = Counter(), SqlLedgerStore.names, SqlLedgerStore.read_many

    def counted_names(self: SqlLedgerStore, folder: str, **bounds: str) -> list[str]:
        answer = names(self, folder, **bounds)
        found.update((folder, name, "listed") for name in answer)
        return answer

    def counted_read(self: SqlLedgerStore, folder: str, wanted: list[str]) -> list[str | None]:
        found.update((folder, name, "read") for name in wanted)
        return read_many(self, folder, wanted)

    monkeypatch.setattr(SqlLedgerStore, "names", counted_names)
    monkeypatch.setattr(SqlLedgerStore, "read_many", counted_read)
    return found


def test_the_length_of_a_ledger_costs_its_audit_alone(decided: Ledger, seen: Counter) -> None:
    def costs() -> list[int]:
        totals = []
        for command in (
            lambda: look_at_versions("tiny"),
            lambda: promote("tiny", champion("tiny").version % 3 + 1),
            lambda: rollback("tiny"),
            lambda: require_ledger("tiny", connect()),
        ):
            seen.clear()
            command()
            totals.append(seen.total())
        return totals

    assert reconcile("tiny") == ([], [])
    short = costs()
    fill(decided, 300)
    assert costs() == short
    attempts, decisions = decided.folder_of("attempts"), decided.folder_of("decisions")
    for audit in (lambda: reconcile("tiny"), lambda: read_history(open_ledger("tiny", connect()))):
        seen.clear()
        audit()
        for folder in (attempts, decisions):
            read = [times for (place, _, what), times in seen.items() if (place, what) == (folder, "read")]
            assert len(read) == 302 and sum(read) <= 304  # the newest decision may be read again
    # Whoever finds the tag far behind notes it anew, and the next command reads on from there.
    connect().delete_registered_model_tag("tiny", HEAD_TAG)
    assert champion("tiny").version == promote("tiny", 1).version == 1
    assert costs() == short


@pytest.mark.parametrize("store", ["database", "bucket"])
def test_names_of_a_range(store: str, home: Path, s3_store: dict[str, str], environment: pytest.MonkeyPatch) -> None:
    for name, value in s3_store.items():
        environment.setenv(name, value)
    environment.setattr("star.registry.promotion.ledger_store.RANGE_PAGE", 2)
    made = SqlLedgerStore(tracking_uri()) if store == "database" else S3LedgerStore(f"s3://models/range-{home.name}")
    names = [
        "!",
        "00000001",
        "00000002",
        "00000002 copy",
        "00000003",
        "0000001",
        "aa-1",
        "aa-2",
        "aa.",
        "ab-1",
        "B",
        "ä",
    ]
    for name in names:
        made.create("tiny/decisions", name, "x")
        made.create("tiny/decisions2", name, "x")
    for after in ("", "00000001", "00000002", "aa-", "zz"):
        for until in ("", "00000002", "00000009", "aa.", "ä"):
            expected = sorted(name for name in names if name > after and (not until or name <= until))
            assert made.names("tiny/decisions", after=after, until=until) == expected
