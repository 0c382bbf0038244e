"""Promotions: decided once, shown by the aliases, undone, repaired, and all of it in the ledger."""

from pathlib import Path

import pytest

from star.errors import InputError
from star.registry.location import split_s3
from star.registry.promotion.audit import read_history
from star.registry.promotion.ledger import Ledger
from star.registry.promotion.ledger_store import SqlLedgerStore
from star.registry.promotion.open_ledger import open_ledger
from star.registry.promotion.promote_and_rollback import (
    Overtaken,
    champion,
    current_decision,
    delete_version,
    promote,
    rollback,
)
from star.registry.promotion.reconcile import reconcile
from star.registry.promotion.records import Attempt
from star.registry.promotion.register_model import register_model, update_registration
from star.registry.versions import find_version, list_versions
from star.tracking.server import connect

GOOD = {"exact_match": 0.8, "mean_reward": 0.9, "format_errors": 0.02}


def aliases() -> dict[int, tuple[str, ...]]:
    return {version.version: version.aliases for version in list_versions("tiny")}


def outcomes() -> list[tuple[str, int | None, str]]:
    history, wrong = read_history(open_ledger("tiny", connect()))
    assert wrong == []
    return [(attempt.action, attempt.version, outcome) for attempt, outcome in history]


@pytest.fixture
def three_versions(home: Path, model: Path) -> None:
    for digest in ("d1", "d2", "d3"):
        register_model(model, name="tiny", scores=GOOD, lineage={}, model_digest=digest)


def test_promotion_and_rollback(three_versions: None) -> None:
    assert champion("tiny") is None
    assert promote("tiny", 1).version == 1
    assert aliases() == {3: (), 2: (), 1: ("champion",)}
    promote("tiny", 3, reason="fewer wrong dates")
    assert aliases() == {3: ("champion",), 2: (), 1: ("previous-champion",)}
    assert promote("tiny", 3).aliases == ("champion",)  # again: nothing changes, above all not the previous one
    assert aliases() == {3: ("champion",), 2: (), 1: ("previous-champion",)}
    assert rollback("tiny", reason="more refusals").version == 1
    assert aliases() == {3: ("previous-champion",), 2: (), 1: ("champion",)}
    assert rollback("tiny").version == 3
    assert champion("tiny").scores == GOOD
    assert outcomes() == [
        ("promote", 1, "won"),
        ("promote", 3, "won"),
        ("rollback", 1, "won"),
        ("rollback", 3, "won"),
    ]
    attempts = [attempt for attempt, _ in read_history(open_ledger("tiny", connect()))[0]]
    assert [attempt.reason for attempt in attempts] == ["", "fewer wrong dates", "more refusals", ""]
    assert all("@" in attempt.actor for attempt in attempts)
    assert [attempt.at for attempt in attempts] == sorted(attempt.at for attempt in attempts)


def test_a_challenger_stands_beside_the_champion_and_takes_its_place(three_versions: None) -> None:
    promote("tiny", 1)
    promote("tiny", 2, to="challenger")
    assert aliases() == {3: (), 2: ("challenger",), 1: ("champion",)}
    with pytest.raises(InputError, match="version 1 is the champion: a challenger is another version"):
        promote("tiny", 1, to="challenger")
    promote("tiny", 2)
    assert aliases() == {3: (), 2: ("champion",), 1: ("previous-champion",)}
    with pytest.raises(InputError, match="champion or challenger, not to 'winner'"):
        promote("tiny", 2, to="winner")


def test_what_cannot_be_promoted(three_versions: None) -> None:
    with pytest.raises(InputError, match="no model 'nobody' is registered"):
        reconcile("nobody")
    with pytest.raises(InputError, match="no version 4: choose one of 3, 2, 1"):
        promote("tiny", 4)
    promote("tiny", 2)
    with pytest.raises(InputError, match="tiny has no previous-champion to go back to"):
        rollback("tiny")
    assert champion("tiny").version == 2
    with pytest.raises(InputError, match="no model 'small' is registered"):
        rollback("small")


def test_of_two_that_weighed_the_same_champion_one_wins(three_versions: None) -> None:
    before = current_decision("tiny").seq
    promote("tiny", 2, over=before)
    with pytest.raises(Overtaken, match=r"tiny version 3 was not promoted: promote of version 2 by .* came first"):
        promote("tiny", 3, over=before)
    assert aliases() == {3: (), 2: ("champion",), 1: ()}
    assert outcomes() == [("promote", 2, "won"), ("promote", 3, "lost")]


def test_a_decision_whose_answer_was_lost_is_not_lost(three_versions: None, monkeypatch: pytest.MonkeyPatch) -> None:
    create = SqlLedgerStore.create
    # The write arrives, the answer does not, and the client library tries again.
    monkeypatch.setattr(SqlLedgerStore, "create", lambda *arguments: create(*arguments) and create(*arguments))
    assert promote("tiny", 2).aliases == ("champion",)
    assert outcomes() == [("promote", 2, "won")]


@pytest.mark.parametrize("cure", ["reconcile", "promote"])
def test_a_promotion_killed_before_the_aliases_is_completed(three_versions: None, cure: str) -> None:
    promote("tiny", 1)
    ledger = open_ledger("tiny", connect())
    attempt = ledger.write_attempt(Attempt("promote", 2, 1, ""))
    ledger.write_decision(attempt, over=ledger.newest(), aliases={"champion": 2, "previous-champion": 1})
    connect().set_registered_model_alias("tiny", "previous-champion", "1")  # and no further
    assert aliases()[1] == ("champion", "previous-champion")
    if cure == "reconcile":
        assert reconcile("tiny") == (
            ["the aliases show decision 2 now: champion is version 2, previous-champion is version 1"],
            [],
        )
        assert aliases() == {3: (), 2: ("champion",), 1: ("previous-champion",)}
    else:
        promote("tiny", 3)
        assert aliases() == {3: ("champion",), 2: ("previous-champion",), 1: ()}
    assert reconcile("tiny") == ([], [])
    assert [outcome for _, _, outcome in outcomes()][:2] == ["won", "won"]


def test_an_attempt_killed_before_its_decision_changed_nothing(three_versions: None) -> None:
    promote("tiny", 1)
    open_ledger("tiny", connect()).write_attempt(Attempt("promote", 2, 1, ""))
    assert outcomes()[-1] == ("promote", 2, "cut short")
    assert reconcile("tiny") == ([], [])
    assert champion("tiny").version == 1
    promote("tiny", 3)
    assert outcomes()[-2:] == [("promote", 2, "lost"), ("promote", 3, "won")]


@pytest.mark.parametrize("notice", ["reconcile", "promote", "rollback"])
def test_an_alias_moved_in_mlflow_is_taken_into_the_ledger(three_versions: None, notice: str) -> None:
    promote("tiny", 1)
    update_registration(find_version("tiny", version=2), scores={}, lineage={}, gate="passed")
    connect().set_registered_model_alias("tiny", "champion", "2")
    if notice == "reconcile":
        done, wrong = reconcile("tiny")
        assert done == ["moved in MLflow: champion from 1 to 2: in the ledger as decision 2"] and wrong == []
        assert champion("tiny").version == 2
    elif notice == "promote":
        promote("tiny", 3)
        assert aliases() == {3: ("champion",), 2: ("previous-champion",), 1: ()}
    else:
        assert rollback("tiny").version == 1
        assert aliases() == {3: (), 2: ("previous-champion",), 1: ("champion",)}
    assert outcomes()[1] == ("adopt", 2, "won")


def test_an_alias_from_before_the_ledger_makes_no_champion(three_versions: None) -> None:
    connect().set_registered_model_alias("tiny", "champion", "2")
    assert champion("tiny") is None
    done, wrong = reconcile("tiny")
    assert (
        done == []
        and "has not passed the gate: there is no champion; `star promote 2 --name tiny` adopts it" in wrong[0]
    )
    assert aliases() == {3: (), 2: ("champion",), 1: ()}  # nobody has decided that it is wrong
    promote("tiny", 3)
    assert aliases() == {3: ("champion",), 2: (), 1: ()}
    assert outcomes() == [("adopt", 2, "refused"), ("promote", 3, "won"), ("repair", 2, "refused")]


def test_an_alias_moved_during_a_promotion_is_not_overwritten_unseen(
    three_versions: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote("tiny", 1)
    write_decision = Ledger.write_decision

    def write_decision_while_somebody_clicks(*arguments, **keywords):
        connect().set_registered_model_alias("tiny", "champion", "3")
        return write_decision(*arguments, **keywords)

    monkeypatch.setattr(Ledger, "write_decision", write_decision_while_somebody_clicks)
    promote("tiny", 2)
    assert aliases()[2] == ("champion",)
    assert outcomes()[-1] == ("repair", 3, "refused")


def test_an_aliased_version_is_not_deleted(three_versions: None) -> None:
    promote("tiny", 1)
    promote("tiny", 2)
    for version, alias in ((2, "champion"), (1, "previous-champion")):
        with pytest.raises(InputError, match=f"tiny version {version} is the {alias}: promote another version"):
            delete_version("tiny", version)
    delete_version("tiny", 3)
    assert aliases() == {2: ("champion",), 1: ("previous-champion",)}


def test_a_champion_deleted_in_mlflow_is_reported(three_versions: None) -> None:
    promote("tiny", 1)
    promote("tiny", 2)
    connect().delete_model_version("tiny", "2")  # its alias goes with it
    done, wrong = reconcile("tiny")
    assert done == ["moved in MLflow: champion from 2 to none: in the ledger as decision 3"] and wrong == []
    assert champion("tiny") is None
    assert rollback("tiny").version == 1


def test_there_is_one_place_for_decisions(three_versions: None, environment: pytest.MonkeyPatch) -> None:
    promote("tiny", 1)
    environment.setenv("STAR_REGISTRY", "s3://elsewhere/star")
    with pytest.raises(InputError, match="are in tracking database, not in STAR_REGISTRY=s3://elsewhere/star"):
        promote("tiny", 2)
    environment.setenv("STAR_REGISTRY", "elsewhere")
    with pytest.raises(InputError, match="STAR_REGISTRY must be s3://BUCKET/PREFIX"):
        open_ledger("tiny", connect())
    assert split_s3("s3://bucket") == ("bucket", "")
    assert split_s3("s3://bucket/a/b/") == ("bucket", "a/b/")
