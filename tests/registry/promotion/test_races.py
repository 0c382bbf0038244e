"""Sixteen promoters at once, and kills at every step: there is always one whole champion, and the ledger knows why."""

import json
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from star.registry.find_model import download_model
from star.registry.promotion.audit import read_history
from star.registry.promotion.open_ledger import open_ledger
from star.registry.promotion.promote_and_rollback import current_decision, promote
from star.registry.promotion.reconcile import reconcile
from star.registry.promotion.register_model import register_model
from star.registry.versions import list_versions
from star.tracking.server import connect

pytestmark = pytest.mark.slow
PROMOTERS, ROUNDS = 16, 20

# Processes, forked before any of them has a connection. In every round all weigh the same decision.
RACE = """
import json, multiprocessing, sys
import mlflow, sqlalchemy, boto3
from star.registry.promotion.promote_and_rollback import Overtaken, promote

def promoter(me, promoters, rounds, barrier, won):
    for number in range(rounds):
        barrier.wait()
        try:
            # Version 1 and 2 take turns, so that every round changes the champion.
            promote("raced", number % 2 + 1, over=number, reason=f"{number}/{me}")
            won.put((number, me))
        except Overtaken:
            pass
        except BaseException:
            barrier.abort()  # the others must not wait for this one
            raise
        barrier.wait()

if __name__ == "__main__":
    promoters, rounds = int(sys.argv[1]), int(sys.argv[2])
    fork = multiprocessing.get_context("fork")
    barrier, won = fork.Barrier(promoters), fork.Queue()
    workers = [fork.Process(target=promoter, args=(me, promoters, rounds, barrier, won)) for me in range(promoters)]
    for worker in workers:
        worker.start()
    winners = []
    while any(worker.is_alive() for worker in workers) or not won.empty():
        try:
            winners.append(won.get(timeout=0.5))
        except Exception:
            pass
    codes = [worker.exitcode for worker in workers]
    print(json.dumps({"winners": winners, "codes": codes}))
"""


def race(model: Path, *, rounds: int) -> None:
    for digest in ("d1", "d2"):
        (model / "config.json").write_text(json.dumps({"model_type": "qwen3", "for": f"race {digest}"}))
        register_model(model, name="raced", scores={}, lineage={}, model_digest=digest)
    arguments = [sys.executable, "-c", RACE, str(PROMOTERS), str(rounds)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["codes"] == [0] * PROMOTERS, done.stderr[-3000:]
    assert sorted(number for number, _ in told["winners"]) == list(range(rounds))  # exactly one a round

    ledger = open_ledger("raced", connect())
    history, wrong = read_history(ledger)
    assert wrong == []
    assert Counter(outcome for _, outcome in history) == {"won": rounds, "lost": (PROMOTERS - 1) * rounds}
    assert {attempt.reason for attempt, outcome in history if outcome == "won"} == {
        f"{number}/{me}" for number, me in told["winners"]
    }
    head = ledger.newest()
    assert head.seq == rounds
    shown = {alias: version.version for version in list_versions("raced") for alias in version.aliases}
    assert shown == head.aliases == {"champion": (rounds - 1) % 2 + 1, "previous-champion": rounds % 2 + 1}
    assert reconcile("raced") == ([], [])


def test_one_of_sixteen_wins_each_round_in_a_bucket(
    home: Path, model: Path, s3_store: dict[str, str], environment: pytest.MonkeyPatch
) -> None:
    for name, value in s3_store.items():
        environment.setenv(name, value)
    environment.setenv("STAR_REGISTRY", "s3://models/race")
    race(model, rounds=ROUNDS)


def test_one_of_sixteen_wins_each_round_in_the_default_database(home: Path, model: Path) -> None:
    race(model, rounds=ROUNDS)


def test_one_of_sixteen_wins_each_round_in_postgres(
    environment: pytest.MonkeyPatch, postgres_database: str, model: Path, tmp_path: Path
) -> None:
    environment.setenv("MLFLOW_TRACKING_URI", postgres_database)
    connect().create_experiment("races", artifact_location=(tmp_path / "artifacts").as_uri())
    environment.setenv("MLFLOW_EXPERIMENT_NAME", "races")
    race(model, rounds=ROUNDS)


# For every line `n work name folder` of its input, forks a process that kills itself at its n-th step with an effect outside:
# a commit of the database, or a copied file. Answers with the process's exit status. It forks before it connects to anything.
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
import mlflow, sqlalchemy.dialects.sqlite, sqlalchemy.engine.default
# All that a child would import, which takes longer than its work.
from mlflow.store.artifact import local_artifact_repo
from mlflow.store.model_registry import sqlalchemy_store
from mlflow.store.tracking import sqlalchemy_store
from star.registry.promotion.promote_and_rollback import promote
from star.registry.promotion.register_model import register_model
from star.tracking.server import connect

def counted(function, left):
    def call(*arguments, **keywords):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)
    return call

for line in sys.stdin:
    step, work, name, folder = line.split()
    child = os.fork()
    if not child:
        connect()
        left = [int(step)]
        dialect = sqlalchemy.engine.default.DefaultDialect
        for owner, part in [(dialect, "do_commit"), (shutil, "copyfile"), (shutil, "copy2"), (shutil, "copytree")]:
            setattr(owner, part, counted(getattr(owner, part), left))
        if work == "promote":
            promote(name, 2)
        else:
            register_model(Path(folder), name=name, scores={"exact_match": 1.0}, lineage={}, model_digest="d3")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def killed_at(home: Path) -> Iterator[Callable[[int, str, str, Path], bool]]:
    """Does the work in a process that is killed at a step, and says whether the kill came before the work was done."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    driver = subprocess.Popen([sys.executable, "-c", KILLED], **pipes)

    def run(step: int, work: str, name: str, folder: Path) -> bool:
        driver.stdin.write(f"{step} {work} {name} {folder}\n")
        driver.stdin.flush()
        code = int(driver.stdout.readline())
        assert code in (0, -signal.SIGKILL)
        return code != 0

    yield run
    driver.stdin.close()
    driver.wait(60)


@pytest.fixture
def bring_back(home: Path, model: Path) -> Callable[[], None]:
    """Registers two versions of `killed` and promotes the first; brings the database back to that when it is called."""
    for digest in ("d1", "d2"):
        register_model(model, name="killed", scores={}, lineage={}, model_digest=digest)
    promote("killed", 1)
    copy(home / "mlflow.db", home / "saved.db")
    return lambda: copy(home / "saved.db", home / "mlflow.db")


def copy(origin: Path, goal: Path) -> None:
    """Copies a database through SQLite, because connections to it are open."""
    with closing(sqlite3.connect(origin)) as source, closing(sqlite3.connect(goal)) as target:
        source.backup(target)


def shown(name: str) -> dict[str, int]:
    return {alias: version.version for version in list_versions(name) for alias in version.aliases}


def test_a_promotion_killed_at_any_step_leaves_one_whole_champion(
    home: Path, model: Path, killed_at: Callable, bring_back: Callable
) -> None:
    seen, step, name = set(), 0, "killed"
    while True:
        step += 1
        bring_back()
        killed = killed_at(step, "promote", name, model)
        before = shown(name)["champion"]
        decided = open_ledger(name, connect()).newest().aliases["champion"]
        seen.add((before, decided))
        assert (download_model(name, home / "cache") / "model.safetensors").is_file()
        assert reconcile(name)[1] == []
        assert reconcile(name) == ([], [])
        assert shown(name) == current_decision(name).aliases
        assert shown(name)["champion"] == decided
        if not killed:
            break
    assert step > 5
    assert seen == {(1, 1), (1, 2), (2, 2)}  # before the decision, between it and the alias, after both
    assert shown(name) == {"champion": 2, "previous-champion": 1}


def test_a_publication_killed_at_any_step_leaves_the_champion_and_can_be_repeated(
    home: Path, model: Path, killed_at: Callable, bring_back: Callable
) -> None:
    step, name = 0, "killed"
    while True:
        step += 1
        bring_back()
        killed = killed_at(step, "publish", name, model)
        assert shown(name) == {"champion": 1}
        for version in list_versions(name):  # whatever is listed is whole
            assert download_model(f"{name}/{version.version}", home / "cache").is_dir()
        assert reconcile(name) == ([], [])
        register_model(model, name=name, scores={}, lineage={}, model_digest="d3")
        assert [version.model_digest for version in list_versions(name)] == ["d3", "d2", "d1"]
        assert download_model(f"{name}/3", home / "cache").is_dir()
        if not killed:
            break
    assert step > 5
