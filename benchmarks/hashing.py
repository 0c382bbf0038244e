"""Counts how often each byte is hashed in one whole run, and measures a run that has nothing to do beside a large base.

python benchmarks/hashing.py trace FOLDER --config tests/micro.yaml        # runs the pipeline in FOLDER, a few minutes
python benchmarks/hashing.py nothing FOLDER --gigabytes 8                  # after `trace`, in the same folder
python benchmarks/hashing.py stage FOLDER                                  # start-up of a finished stage of that run

`trace` hooks hashlib in every process of the run, by a `sitecustomize` module, so it measures any commit:
`PYTHONPATH=CHECKOUT python benchmarks/hashing.py ...` takes another checkout's `star`. Equal contents count as one file,
whatever their names are: what is hashed twice is bytes, not names.

`nothing` makes a base of the teacher of that run, with a sparse file of that size beside its weights. The file counts for
the digest of the base, and nobody loads it. A run from this base is done once, and then started again three times.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import yaml

SMALL = 1024  # bytes; digests of less are of settings and names, not of files
HOOK = '''
import hashlib, json, os

_file_digest, _log = hashlib.file_digest, os.environ["STAR_HASH_LOG"]

def _note(digest, size, name):
    if size >= {small}:
        with open(_log, "a") as log:
            log.write(json.dumps([digest.name, digest.hexdigest(), size, str(name)]) + "\\n")

def file_digest(file, digest, /, **options):
    made = _file_digest(file, digest, **options)
    name = getattr(file, "name", "?")
    _note(made, file.tell(), os.readlink(f"/proc/self/fd/{name}") if isinstance(name, int) else name)
    return made

class Hash:
    """One that is fed in pieces, such as by a download."""

    def __init__(self, made, data):
        self.made, self.size, self.noted = made, len(data), False
        self.name = made.name

    def update(self, data):
        self.size += len(data)
        self.made.update(data)

    def hexdigest(self):
        if not self.noted:
            self.noted = True
            _note(self.made, self.size, "bytes in memory")
        return self.made.hexdigest()

    def digest(self):
        self.hexdigest()
        return self.made.digest()

    def __getattr__(self, name):
        return getattr(self.made, name)

_sha256 = hashlib.sha256
hashlib.sha256 = lambda data=b"", **options: Hash(_sha256(data, **options), data)
hashlib.file_digest = file_digest
'''


def star(folder: Path, *arguments: object, **environment: str) -> tuple[float, float]:
    """Runs the command in the folder; returns its wall and its CPU seconds, with those of its processes."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    variables = {**os.environ, "STAR_HOME": str(folder / "runs"), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "star.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def trace(folder: Path, config: Path) -> None:
    """Runs the pipeline once with the hook, and prints how often each file's bytes were hashed."""
    hook = folder / "hook"
    hook.mkdir(parents=True)
    (hook / "sitecustomize.py").write_text(HOOK.replace("{small}", str(SMALL), 1))
    log = folder / "hashes.jsonl"
    star(
        folder, "run", "--config", config.resolve(),
        PYTHONPATH=os.pathsep.join([str(hook), os.environ.get("PYTHONPATH", str(Path.cwd()))]), STAR_HASH_LOG=str(log),
    )  # fmt: skip
    print_trace(log, folder)


def print_trace(log: Path, folder: Path) -> None:
    """Prints the table of a trace: the files of the run, the bytes in all, and the hashes per distinct byte."""
    times: dict[str, int] = defaultdict(int)
    md5: dict[str, int] = defaultdict(int)
    sizes: dict[str, int] = {}
    names: dict[str, str] = {}
    for line in log.read_text().splitlines():
        kind, digest, size, name = json.loads(line)
        (times if kind == "sha256" else md5)[digest] += 1
        if kind == "sha256":
            sizes[digest] = size
            if "/" in name or digest not in names:
                names[digest] = name
    stages = folder / "runs" / "latest"
    known: dict[str, str] = {}
    for manifest in sorted(stages.glob("*/manifest.json")):
        for entry in json.loads(manifest.read_text())["files"]:
            known.setdefault(entry["sha256"], f"{manifest.parent.name}/{entry['path']}")
    for digest in [one for one in times if one not in known and "/" not in names[one]]:
        del times[digest]  # texts that were hashed: of code, of rows
    print("| file | bytes | hashed |\n|---|---:|---:|")
    shown = {digest: known.get(digest) or "other: " + Path(names[digest]).name for digest in times}
    for digest in sorted(times, key=lambda one: (-sizes[one] * times[one], shown[one]))[:20]:
        print(f"| {shown[digest]} | {sizes[digest]:,} | {times[digest]} |")
    distinct, hashed = sum(sizes[one] for one in times), sum(sizes[one] * times[one] for one in times)
    print(f"{distinct:,} distinct bytes, {hashed:,} hashed, {hashed / distinct:.2f} times each")
    print(f"md5 (DVC's digests): {sum(md5.values())} files")


def nothing(folder: Path, config: Path, gigabytes: float) -> None:
    """Finishes a run whose teacher has a base of that size, and prints what the same run costs when it is started again."""
    base = folder / "base"
    base.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(folder / "runs" / "latest" / "refine-teacher" / name, base / name)
    header = b"{}" + b" " * 6
    with (base / "consolidated.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(int(gigabytes * 2**30))
    large = folder / "large.yaml"
    content = {"extends": str(config.resolve()), "teacher": {"base": "./base", "sft": None}}
    content["student"] = {"base": "./base"}
    large.write_text(yaml.safe_dump(content))
    wall, cpu = star(folder, "run", "--config", large)
    print(f"| {gigabytes:g} GiB base | wall s | CPU s |\n|---|---:|---:|\n| the run itself | {wall:.1f} | {cpu:.1f} |")
    for number in range(3):
        wall, cpu = star(folder, "run", "--config", large)
        print(f"| started again, {number + 1} | {wall:.2f} | {cpu:.2f} |")


def stage(folder: Path, config: Path) -> None:
    """Prints what a finished stage costs that is started again by hand, seven times."""
    latest = folder / "runs" / "latest"
    inputs = ("--student", latest / "distill", "--data", latest / "synthesize")
    command = ("refine", "--config", config.resolve(), *inputs, "--out", folder / "refined")
    seconds = [star(folder, *command) for _ in range(8)]
    walls, cpus = zip(*sorted(seconds[1:]), strict=True)
    print(f"finished `star refine`: {walls[3]:.2f} s wall, {sorted(cpus)[3]:.2f} s CPU (median of 7)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("trace", "nothing", "stage"))
    parser.add_argument("folder", type=Path, help="a new folder for `trace`, else that of an earlier `trace`")
    parser.add_argument("--config", type=Path, default=Path("tests/micro.yaml"))
    parser.add_argument("--gigabytes", type=float, default=8.0)
    arguments = parser.parse_args()
    place = arguments.folder.resolve()
    if arguments.what == "trace":
        trace(place, arguments.config)
    elif arguments.what == "nothing":
        nothing(place, arguments.config, arguments.gigabytes)
    else:
        stage(place, arguments.config)
