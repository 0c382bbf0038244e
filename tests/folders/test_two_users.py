"""Two users of one machine share STAR_WORK, a bucket and an MLflow: processes with their own user ids, one of them hostile.

Needs root, which alone can start processes of two users.
"""

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
VICTIM, ATTACKER = 20001, 20002
# Nothing of a user but the files decides here: no groups, no capabilities.
RIGHTS = ["--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv, to run processes of two users"
)

# Work of two steps. STOP ends it after the first, as a kill would.
WORK = """
import os
from pathlib import Path
from star.folders.run_once import Result, draft_manifest, run_once

def work(workspace, manifest):
    resumed = (workspace.state / "checkpoint").exists()
    (workspace.state / "checkpoint").write_text("half of it")
    if os.environ.get("STOP"):
        os._exit(9)
    (workspace.out / "rows.jsonl").write_text("{}\\n")
    return Result({"resumed": resumed, "user": os.geteuid()})

print(run_once(lambda: draft_manifest("counting", settings="{}", code="c", inputs={}), work, out=Path(os.environ["OUT"])))
"""
# Everything that the attacker can reach below a folder of the victim is printed.
REACH = """
import fcntl, os, sys
for root in sys.argv[1:]:
    for place, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            for act in (
                lambda: print("read", open(path).read()),
                lambda: open(path, "a"),
                lambda: fcntl.flock(open(path), fcntl.LOCK_EX | fcntl.LOCK_NB),
                lambda: os.rename(path, path + ".moved"),
                lambda: os.chmod(path, 0o777),
                lambda: os.link(path, os.path.join(sys.argv[1], "link")),
                lambda: os.listdir(path),
            ):
                try:
                    act()
                    print("done to", path)
                except OSError:
                    pass
"""


class User:
    """Runs Python code as a user of its own, with a home of its own."""

    def __init__(self, uid: int, place: Path, door: list[str]) -> None:
        self.uid, self.door = uid, door
        self.home = place / f"home-{uid}"
        self.home.mkdir()
        os.chown(self.home, uid, uid)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "TMPDIR": str(self.home),
            "STAR_HOME": str(self.home / "runs"),
            "STAR_WORK": str(place / "work"),
            "OUT": str(self.home / "results" / "data"),
            "PYTHONPATH": str(CHECKOUT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def run(
        self, code: str, *arguments: object, umask: int = 0o022, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        command = [*self.door, "setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", *RIGHTS]
        python = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
        return subprocess.run(
            [*command, *python],
            env=self.environment | environment,
            cwd="/",
            umask=umask,
            capture_output=True,
            text=True,
            timeout=300,
        )


@pytest.fixture(scope="session")
def door() -> Iterator[list[str]]:
    """A command that opens Python to other users. Where it lies in the home of root, it is mounted elsewhere for them."""
    blocked = next((path for path in reversed(Path(sys.base_prefix).parents) if not path.stat().st_mode & 0o001), None)
    if blocked is None:
        yield []
        return
    inside = Path(sys.base_prefix).relative_to(blocked)
    folder = Path(mkdtemp(prefix="star-door-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / inside).mkdir(parents=True)
    mounts = f"mount --bind {sys.base_prefix} {folder / inside} && mount --rbind {folder} {blocked}"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", f'{mounts} && exec "$@"', "sh"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        shutil.rmtree(folder)
        pytest.skip(f"other users cannot read Python in {blocked}, and this machine allows no mounts")
    yield command
    # The mounts were seen by the processes of the test only.
    shutil.rmtree(folder)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user can enter, which pytest's own is not, with a STAR_WORK that every user can write to."""
    folder = Path(mkdtemp(prefix="star-users-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "work").mkdir()
    (folder / "work").chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def victim(place: Path, door: list[str]) -> User:
    return User(VICTIM, place, door)


@pytest.fixture
def attacker(place: Path, door: list[str]) -> User:
    return User(ATTACKER, place, door)


def succeeded(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout


def test_two_honest_users_do_the_same_work_without_meeting(victim: User, attacker: User, place: Path) -> None:
    assert victim.run(WORK, STOP="1").returncode == 9
    theirs = succeeded(attacker.run(WORK))
    assert "'resumed': False" in theirs and "cached=False" in theirs
    ours = succeeded(victim.run(WORK))
    assert "'resumed': True" in ours and "'user': 20001" in ours
    assert "cached=True" in succeeded(victim.run(WORK))


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_another_user_reaches_nothing_of_unfinished_work(victim: User, attacker: User, place: Path, umask: int) -> None:
    assert victim.run(WORK, STOP="1", umask=umask).returncode == 9
    assert succeeded(attacker.run(REACH, place / "work", victim.home / "runs")) == ""
    ours = succeeded(victim.run(WORK, umask=umask))
    assert "'resumed': True" in ours
    # Beside the results, which others may read, and the same after a kill without STAR_WORK.
    del victim.environment["STAR_WORK"]
    assert victim.run(WORK, STOP="1", umask=umask, OUT=str(victim.home / "results" / "more")).returncode == 9
    partial = victim.home / "results" / ".more.partial"
    assert partial.exists() and succeeded(attacker.run(REACH, partial)) == ""
    assert "Permission denied" in attacker.run("import sys; open(sys.argv[1])", f"{partial}.lock").stderr


PLANT = """
import os, sys
from pathlib import Path
work, target = Path(sys.argv[1]), sys.argv[2]
os.umask(0)
for name in sys.argv[3:]:
    if name.endswith("/"):
        for folder in ("out", "state"):
            (work / name / folder).mkdir(parents=True)
        (work / name / "fingerprint").write_text(Path(name).name)
        (work / name / "out" / "notes.txt").symlink_to(target)
        (work / name / "state" / "checkpoint").write_text("poison")
    else:
        (work / name).symlink_to(target)
"""


def test_what_another_user_plants_in_the_work_folder_changes_nothing(victim: User, attacker: User, place: Path) -> None:
    credentials = victim.home / "credentials"
    succeeded(victim.run("import sys; open(sys.argv[1], 'w').write('PLANTED')", credentials, umask=0o077))
    fingerprint = succeeded(
        victim.run(
            "from star.folders.run_once import draft_manifest as draft\n"
            "print(draft('counting', settings='{}', code='c', inputs={}).fingerprint)"
        )
    ).strip()
    name = f"counting-{fingerprint[:16]}"
    planted = [f"{name}/", f"{name}.lock", f"{name}.done", "user-20001/"]
    succeeded(attacker.run(PLANT, place / "work", credentials, *planted))
    ours = succeeded(victim.run(WORK))
    assert "'resumed': False" in ours
    assert credentials.read_text() == "PLANTED" and credentials.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in (victim.home / "results" / "data").iterdir()) == [
        "manifest.json",
        "metrics.json",
        "rows.jsonl",
    ]


def test_what_another_user_plants_beside_the_output_is_named(victim: User, attacker: User, place: Path) -> None:
    del victim.environment["STAR_WORK"]
    credentials = victim.home / "credentials"
    succeeded(victim.run("import sys; open(sys.argv[1], 'w').write('PLANTED')", credentials, umask=0o077))
    for name in (".data.partial/", ".data.incoming/", ".other.partial", ".third.partial.lock"):
        succeeded(attacker.run(PLANT, place / "work", credentials, name))
    for name in ("data", "other", "third"):
        process = victim.run(WORK, OUT=str(place / "work" / name))
        assert process.returncode and "InputError" in process.stderr, process.stderr
        assert f"{place / 'work'}/.{name}" in process.stderr and "uid 20002" in process.stderr
        assert not (place / "work" / name).exists()
    assert credentials.read_text() == "PLANTED" and credentials.stat().st_mode & 0o777 == 0o600


def test_a_result_that_another_user_forged_is_refused(victim: User, attacker: User, place: Path) -> None:
    """A folder with the right fingerprint and a manifest of its own making, at the output, and in a home that is open."""
    out = place / "work" / "data"
    succeeded(attacker.run(WORK, OUT=str(out)))
    process = victim.run(WORK, OUT=str(out))
    assert f"{out} belongs to" in process.stderr and "uid 20002" in process.stderr
    runs = victim.home / "runs"
    succeeded(victim.run("import os, sys; os.umask(0); os.mkdir(sys.argv[1])", runs))
    succeeded(attacker.run(WORK, OUT=str(runs / "evil" / "data")))
    assert "'user': 20001" in succeeded(victim.run(WORK))


REGISTER = """
import sys
from pathlib import Path
from star.registry.promotion.promote_and_rollback import promote
from star.registry.promotion.register_model import register_model

folder = Path(sys.argv[1])
folder.mkdir(parents=True)
(folder / "config.json").write_text('{"model_type": "qwen3"}')
(folder / "model.safetensors").write_bytes(sys.argv[2].encode() * 1000)
version = register_model(folder, name="shared", scores={"exact_match": 0.9}, lineage={}, model_digest=sys.argv[2])
if sys.argv[3:]:
    promote("shared", version.version, reason="mine")
print("version", version.version)
"""
DOWNLOAD = """
import sys
from pathlib import Path
from star.folders.owners import create_in_home
from star.registry.find_model import download_model

folder = download_model("shared@champion", create_in_home("models"))
print((folder / "model.safetensors").read_bytes()[:6].decode(), folder)
"""
MOVE_ALIAS = """
from mlflow import MlflowClient
MlflowClient().set_registered_model_alias("shared", "champion", "2")
"""
OVERWRITE = """
import boto3
client = boto3.client("s3")
for entry in client.list_objects_v2(Bucket="models")["Contents"]:
    if client.get_object(Bucket="models", Key=entry["Key"])["Body"].read().startswith(b"victim"):
        client.put_object(Bucket="models", Key=entry["Key"], Body=b"poison" * 1000)
        print("overwritten", entry["Key"])
"""


@pytest.mark.slow
def test_two_users_of_one_registry(victim: User, attacker: User, team, place: Path) -> None:
    """MLflow without accounts and a bucket that both may write to: what counts is what was recorded and verified."""
    for user in (victim, attacker):
        user.environment |= {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "MLFLOW_"))}
        user.environment["STAR_REGISTRY"] = f"s3://models/{place.name}"
    assert "version 1" in succeeded(victim.run(REGISTER, victim.home / "model", "victim", "promote"))
    assert "version 2" in succeeded(attacker.run(REGISTER, attacker.home / "model", "attack"))
    # Caches and databases of one are closed to the other.
    assert succeeded(victim.run(DOWNLOAD)).startswith("victim")
    assert succeeded(attacker.run(REACH, place / "work", victim.home / "runs")) == ""
    # A moved alias of a version that passed no gate is no promotion, for both of them.
    succeeded(attacker.run(MOVE_ALIAS))
    for user in (victim, attacker):
        assert succeeded(user.run(DOWNLOAD)).startswith("victim")
    # A file that was overwritten is refused by name, and a copy that was verified before goes on.
    assert "overwritten" in succeeded(attacker.run(OVERWRITE))
    assert succeeded(victim.run(DOWNLOAD)).startswith("victim")
    shutil.rmtree(victim.home / "runs")
    process = victim.run(DOWNLOAD)
    assert "are not those registered (model.safetensors)" in process.stderr and "poison" not in process.stdout
