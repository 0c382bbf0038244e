"""Cleans a year of synthetic runs while a real training runs, and kills the clean in the middle, again and again.

   python benchmarks/clean.py --work /tmp/clean          # a new or empty folder; about 100 MB

1. Makes a year: each month a data set, a teacher, rollouts and a top-k store, and 25 runs on them (distill, refine,
   evaluate), as folders that STAR's own publishing code writes, with manifests of their day. Every run's refined model has a
   copy in S3 (moto, on loopback). Each tenth run is registered in a registry on SQLite, and the champion is one of the
   oldest. Beside them: killed work, spools, logs, and things that STAR did not make.
2. Runs the stages up to extract-topk for real with the micro profile of the tests, gives their folders a date of a hundred
   days ago, and starts `star distill` on them, in a process of its own.
3. Runs `star clean --yes` and kills it (SIGKILL) at several moments after it has shown its plan. After each kill every
   folder with a manifest must be whole. The last clean runs to its end.
4. Prints what went, what stayed, the lineage of all versions before and after, and how the training ended: its weights must
   be those of the same training without a clean.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from star.config.load import load_config
from star.folders.manifest import Manifest, open_input, read_manifest
from star.folders.reuse import finished_folders
from star.folders.run_once import Result, draft_manifest, run_once
from star.folders.s3 import upload_folder
from star.folders.workspace import Workspace
from star.hashing import sha256_of
from star.json_file import write_json
from star.registry.lineage import LINEAGE_FILE, build_lineage
from star.registry.lineage_tree import print_lineage
from star.registry.promotion.promote_and_rollback import promote
from star.registry.promotion.register_model import register_model
from star.stages import STAGES
from star.tracking.spool import Spool

DAY = 86_400
ROOT = Path(__file__).resolve().parents[1]
MONTHLY = {
    "synthesize": (),
    "refine-teacher": ("synthesize",),
    "rollout": ("synthesize", "refine-teacher"),
    "extract-topk": ("rollout", "refine-teacher"),
}
PER_RUN = {
    "distill": ("extract-topk",),
    "refine": ("distill", "synthesize"),
    "evaluate": ("synthesize", "refine-teacher", "distill", "refine"),
}
SIZES = {"extract-topk": 400_000, "rollout": 100_000, "refine-teacher": 100_000}  # bytes; 20,000 for others
DISTILL = "{steps: 2000, save_steps: 50}"
# Moments of the kills, after the plan was shown, and how much of it must have happened: folders renamed, folders deleted of
# those that were renamed, objects in S3 deleted.
KILLS = (
    ("at once", 0),
    ("renamed", 1),
    ("renamed", 20),
    ("deleted", 1),
    ("deleted", 30),
    ("objects", 1),
    ("objects", 40),
)
BUCKET = "models"
S3_SERVER = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
import moto.s3.models as models
from datetime import timedelta
now = models.utcnow
models.utcnow = lambda: now() - timedelta(days=100)
make_server("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app), threaded=False).serve_forever()
"""


def make_result(stage: str, out: Path, *, content: str, inputs: Mapping[str, Path]) -> Path:
    """A folder as its stage publishes it, with random bytes in place of weights."""

    def describe() -> Manifest:
        manifests = {name: read_manifest(folder) for name, folder in inputs.items()}
        return draft_manifest(stage, settings=content, code="c" * 64, inputs=manifests)

    def work(workspace: Workspace, manifest: Manifest) -> Result:
        size = SIZES.get(stage, 20_000)
        noise = hashlib.shake_128(f"{stage} {content}".encode()).digest(size)
        (workspace.out / "model.safetensors").write_bytes(noise)
        for name in ("config.json", "tokenizer.json"):
            (workspace.out / name).write_text(f'"{stage} {content}"')
        return Result({"rows": 1.0})

    run_once(describe, work, out=out, resume=False, sources=inputs.values())
    return out


def make_old(path: Path, day: float) -> None:
    """Gives the path and all below it the time of so many days ago."""
    then = time.time() - day * DAY
    for entry in (path, *path.rglob("*")):
        os.utime(entry, (then, then), follow_symlinks=False)


def make_year(home: Path, runs: int) -> list[dict[str, Path]]:
    """The folders of each run, the oldest first, as RUN/STAGE or pipeline/RUN/TASK/OUTPUT."""
    made: list[dict[str, Path]] = []
    monthly: dict[str, Path] = {}
    for number in range(runs):
        day = 365.0 * (1 - number / runs)
        named, root = number % 5 == 0, home / "pipeline" / f"star-{number:04}"
        stages = {**(MONTHLY if number % (runs // 60 * 5 or 5) == 0 else {}), **PER_RUN}
        folders = dict(monthly)
        for stage, sources in stages.items():
            inputs = {source: folders[source] for source in sources}
            out = home / f"night-{number:04}" / stage if named else root / stage / "out"
            folders[stage] = make_result(stage, out, content=str(number), inputs=inputs)
            if not named:
                (root / stage / "executor_output.json").write_text("{}")
        # After all of the run, because a stage gives its inputs the time of their use.
        for folder in folders.values():
            make_old(folder, day)
        monthly = {stage: folders[stage] for stage in MONTHLY}
        made.append(folders)
        log = home / "logs" / f"{time.strftime('%Y%m%d', time.localtime(time.time() - day * DAY))}-{number:06}.log"
        log.parent.mkdir(exist_ok=True)
        log.write_text("log\n" * 100)
        make_old(log, day)
    latest = home / "latest"
    latest.mkdir()
    for stage, folder in made[-1].items():
        (latest / stage).symlink_to(folder)
    return made


def make_rest(home: Path) -> None:
    """Killed work, spools, and what STAR did not make."""
    for number in range(20):
        folder = home / "work" / f"distill-{number:016x}"
        (folder / "state").mkdir(parents=True)
        (folder / "state" / "checkpoint").write_bytes(bytes(50_000))
        (folder / "fingerprint").write_text(f"{number:064x}")
        make_old(folder, 3 if number < 2 else 20 * number)
    for key, sent in (("sent", True), ("waiting", False)):
        spool = Spool.open(home / "spool" / key, {"name": key, "start": 1})
        spool.append(kind="end", status="FINISHED")
        if sent:
            spool.mark_sent(spool.events_file.stat().st_size)
        spool.owner_lock.release()
        make_old(spool.folder, 100)
    (home / "thesis").mkdir()
    (home / "thesis" / "chapter.tex").write_text("mine")


def register(folders: Mapping[str, Path], scratch: Path) -> int:
    """Registers a run's model as `star register` does, without the gate."""
    refined, evaluation = folders["refine"], folders["evaluate"]
    digest = read_manifest(refined).digest
    report = {"lineage": {"data": read_manifest(folders["synthesize"]).digest}, "suite": {}}
    lineage = build_lineage(refined, evaluation, report=report, model=digest, published=refined)
    model = scratch / digest
    model.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (model / name).write_bytes((refined / name).read_bytes())
    write_json(model / LINEAGE_FILE, lineage)
    tags = {"evaluation": lineage["evaluation"]["digest"], "data": lineage["data"]}
    return register_model(model, name="star", scores={}, lineage=tags, model_digest=digest).version


def lineages(versions: int) -> tuple[list[str], int]:
    """The mismatches in `star lineage` of all versions, and how many digests it verified."""
    mismatches, verified = [], 0
    for version in range(1, versions + 1):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            mismatches += print_lineage(str(version), name="star")
        verified += len(re.findall(r"\bok\b", printed.getvalue()))
    return mismatches, verified


def missing_of_lineage(home: Path, scratch: Path) -> int:
    """How many folders that a version's lineage names are not whole on this machine (`star lineage` looks at some places only)."""
    whole = {read_manifest(folder).digest for folder in finished_folders(home)}
    named: set[str] = set()
    for file in scratch.glob(f"*/{LINEAGE_FILE}"):
        lineage = json.loads(file.read_text())
        named |= {*lineage["stages"], lineage["evaluation"]["digest"]}
    return len(named - whole)


def check_all_whole(home: Path) -> int:
    """Verifies every file of every folder with a manifest, and returns how many there are."""
    folders = list(finished_folders(home))
    for folder in folders:
        open_input(folder, stage=read_manifest(folder).stage)
    return len(folders)


def objects_in_s3() -> int:
    """The number of objects, whatever their number."""
    from star.folders.s3_client import s3_client

    pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    return sum(len(page.get("Contents", [])) for page in pages)


@contextlib.contextmanager
def s3_store() -> Iterator[None]:
    """A store on loopback with one bucket; its address is in the environment of this process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", S3_SERVER, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "loopback",
        "AWS_SECRET_ACCESS_KEY": "loopback",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    from star.folders.s3_client import s3_client

    try:
        for _ in range(300):
            with contextlib.suppress(Exception):
                s3_client().create_bucket(Bucket=BUCKET)
                break
            time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()


def real_inputs(home: Path, profile: Path) -> dict[str, Path]:
    """The real stages up to extract-topk, a hundred days old."""
    config, folders = load_config(profile), {}
    for stage in STAGES[:4]:
        inputs = {name: folders[source] for name, source in stage.inputs.items()}
        folders[stage.name] = home / "hand" / stage.name
        stage.function(config, **inputs, out=folders[stage.name])
    for folder in folders.values():
        make_old(folder, 100)
    return folders


def distill(topk: Path, out: Path, profile: Path, log: Path) -> subprocess.Popen:
    """Starts `star distill` and returns when it trains."""
    command = [sys.executable, "-m", "star.cli", "distill", "--config", str(profile)]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--topk", str(topk), "--out", str(out)], stdout=file, stderr=file, cwd=out.parents[1]
        )
    state = out.with_name(f".{out.name}.partial") / "state"
    while process.poll() is None and not (state.is_dir() and any(state.iterdir())):
        time.sleep(0.1)
    return process


def clean(profile: Path, *, home: Path, kill: tuple[str, int] | None = None) -> tuple[str, int]:
    """Runs `star clean --yes`, killed at a moment of KILLS; returns what it printed and its status."""
    command = [sys.executable, "-u", "-m", "star.cli", "clean", "--yes", "--config", str(profile)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if kill and line.strip().startswith("Stays:"):
            wait_for(process, *kill, home=home)
            process.send_signal(signal.SIGKILL)
            break
    lines += process.stdout.readlines()
    return "".join(lines), process.wait()


def wait_for(process: subprocess.Popen, what: str, number: int, *, home: Path) -> None:
    """Returns once the clean has come so far, or has ended."""
    objects, most = objects_in_s3() if what == "objects" else 0, renamed(home)
    while process.poll() is None:
        now = renamed(home) if what != "objects" else 0
        most = max(most, now)
        done = {"at once": 0, "renamed": now, "deleted": most - now}
        if (done[what] if what in done else objects - objects_in_s3()) >= number:
            return


def renamed(home: Path) -> int:
    """The number of folders that a clean has renamed away and not deleted."""
    # Not with rglob, which fails when a folder vanishes while it looks.
    return sum(name.endswith(".removed") for _, folders, files in os.walk(home) for name in (*folders, *files))


def state_of(home: Path) -> str:
    """How far a killed clean came."""
    renamed = sum(1 for _ in home.rglob(".*.removed"))
    return (
        f"{check_all_whole(home)} results whole, {renamed} renamed and not deleted yet, {objects_in_s3()} objects in S3"
    )


def main() -> None:
    """Makes the year, cleans it, and prints what became of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a new or empty folder")
    parser.add_argument("--runs", type=int, default=300)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    home, scratch = work / "runs", work / "published"
    home.mkdir(parents=True)
    os.chdir(work)
    for name in ("MLFLOW_TRACKING_URI", "STAR_WORK", "STAR_REGISTRY", "STAR_CHECKPOINTS", "STAR_REUSE"):
        os.environ.pop(name, None)
    os.environ |= {"STAR_HOME": str(home), "PYTHONPATH": str(ROOT)}
    profile = work / "year.yaml"
    profile.write_text(
        f"extends: {ROOT / 'tests' / 'micro.yaml'}\ndistill: {DISTILL}\n"
        f"keep: {{days: 30, s3: ['s3://{BUCKET}/results']}}\n"
    )
    with s3_store():
        real = real_inputs(home, profile)
        reference = distill(real["extract-topk"], work / "reference" / "model", profile, work / "reference.log")
        made = make_year(home, arguments.runs)
        make_rest(home)
        versions = [register(folders, scratch) for folders in made[::10]]
        promote("star", 2, reason="the champion is old")
        for number, folders in enumerate(made):
            upload_folder(folders["refine"], f"s3://{BUCKET}/results/{number:04}/refine")
        assert reference.wait() == 0, (work / "reference.log").read_text()[-2000:]
        before = lineages(len(versions))
        make_old(home / "hand", 100)
        print(f"{check_all_whole(home)} results, {len(versions)} versions, {objects_in_s3()} objects in S3")
        print(f"lineage before: {before[1]} digests verified, mismatches {before[0]}")
        training = distill(real["extract-topk"], home / "hand" / "model", profile, work / "training.log")
        print(f"the training runs: {training.poll() is None}")
        report(home, work, profile, training, before=before, versions=len(versions), scratch=scratch)


def report(
    home: Path,
    work: Path,
    profile: Path,
    training: subprocess.Popen,
    *,
    before: tuple[list[str], int],
    versions: int,
    scratch: Path,
) -> None:
    """Cleans with kills, waits for the training, and prints the rest."""
    for kill in KILLS:
        _, status = clean(profile, home=home, kill=kill)
        print(f"killed at `{kill[0]} {kill[1]}` (status {status}): {state_of(home)}", flush=True)
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    printed, status = clean(profile, home=home)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"to its end (status {status}): {state_of(home)}")
    print(f"the training runs still: {training.poll() is None}")
    print(printed[printed.index("Stays:") - 10 :])
    print(f"CPU of this clean: {end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime:.1f} s")
    code = training.wait()
    same = sha256_of(home / "hand/model/model.safetensors") == sha256_of(work / "reference/model/model.safetensors")
    print(f"the training ended with {code}; its weights are those without a clean: {same}")
    again, status = clean(profile, home=home)
    print(f"once more (status {status}): {'nothing to remove' in again}")
    after = lineages(versions)
    print(f"lineage after: {after[1]} digests verified, mismatches {after[0]}; same as before: {after == before}")
    print(f"folders that a lineage names and that are missing: {missing_of_lineage(home, scratch)}")
    left = Counter(read_manifest(folder).stage for folder in finished_folders(home))
    print(f"results that stay: {dict(left)}; not touched: {(home / 'thesis' / 'chapter.tex').read_text()!r}")


if __name__ == "__main__":
    main()
