"""Makes star-ab22758.tar.xz: what STAR at commit ab22758 left on a disk, which later versions must still read.

    CHECKOUT/.venv/bin/python make_fixture.py CHECKOUT OUT

It calls the commands and the Python API of that commit, so it runs with that commit only; a fixture of a later version
needs a copy of it that calls that version's API. CHECKOUT is a clone of ab22758 with its virtual environment in
`.venv`; nothing is written there. star-ab22758.tar.xz is written into the folder OUT. profile.yaml must lie beside this
script. It takes about five minutes on one core. Everything is made below /tmp/star-fixture, which is removed first and
kept afterwards, so no other path of the machine gets into the archive. As root on Linux, the host's name does not
either.

What it does:

1.  `star run` three times: the profile (version 1, passes the gate: first promotion), with another learning rate and a
    gate that it cannot pass (version 2, refused), with a third learning rate (version 3, passes: second promotion).
2.  `star promote 2 --to challenger`, then `star rollback`: version 1 is the champion again, 3 the previous one.
3.  Ends `star refine` by SIGTERM and `star distill` by SIGKILL, each after a complete checkpoint. Without that, both
    would have made the folders of the first run. Events of the killed run that were not sent yet remain in
    `home/spool`.
4.  Writes expected.json: what the API of that commit reads from all this.
5.  Vacuums mlflow.db, leaves out `home/logs` and the `mlruns` of the working directory, and packs the rest.

The archive's only folder is `star-fixture`. Its root.txt names the folder that absolute paths in it start with
(`/tmp/star-fixture`). A test that unpacks it elsewhere replaces that start, in tables of `home/mlflow.db` and in text
files below `home` that no manifest covers. It must not replace anything in the table `star_records`, because the
decisions are chained by digests.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import time
from pathlib import Path

COMMIT = "ab22758"
ROOT = Path("/tmp/star-fixture")
HOME, INTERRUPTED = ROOT / "home", ROOT / "interrupted"
PROFILE = Path(__file__).resolve().parent / "profile.yaml"
QUERY = "Book a flight from Oslo to Rome"
PROMPT_TOKENS, NEW_TOKENS = 64, 12  # of the champion's answer that is compared


def main(checkout: Path, out: Path) -> None:
    hide_host_name()
    head = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    commit = head.stdout.strip()
    assert commit.startswith(COMMIT), f"{checkout} is at {commit}, not at {COMMIT}"
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir()
    os.chdir(ROOT)
    set_environment()
    shutil.copyfile(PROFILE, ROOT / "profile.yaml")
    change("refused.yaml", "distill: {learning_rate: 8.0e-3}\nregistry: {gate: {min_exact_match: 1.0}}")
    change("second.yaml", "distill: {learning_rate: 6.0e-3}")

    first = run_pipeline(checkout, "profile.yaml")
    run_pipeline(checkout, "refused.yaml")
    run_pipeline(checkout, "second.yaml")
    star(checkout, "promote", 2, "--to", "challenger", "--reason", "next to be tried")
    star(checkout, "rollback", "--reason", "more refusals in production")

    data, topk, distilled = (first[name] for name in ("synthesize", "extract-topk", "distill"))
    # The refinement first: a command that runs after the kill would send the events that the killed run left.
    interrupt(checkout, "refine", signal.SIGTERM, "simrl/checkpoint-4", ["--student", distilled, "--data", data])
    interrupt(checkout, "distill", signal.SIGKILL, "ckd/checkpoint-50", ["--topk", topk])

    hide_checkout(checkout)
    write_expected(commit, first)
    pack(out / f"star-{COMMIT}.tar.xz")


def hide_host_name() -> None:
    """Starts this script again under another host name, because the ledger and Trainer write it into their files."""
    if os.geteuid() == 0 and "STAR_FIXTURE_HOST" not in os.environ:
        os.environ["STAR_FIXTURE_HOST"] = "hidden"
        again = 'hostname star-fixture && exec "$0" "$@"'
        os.execvp("unshare", ["unshare", "--uts", "sh", "-c", again, sys.executable, *sys.argv])


def set_environment() -> None:
    for name in [name for name in os.environ if name.startswith(("STAR_", "MLFLOW_", "KFP_", "AWS_"))]:
        del os.environ[name]
    os.environ |= {
        "STAR_HOME": str(HOME),
        "LOGNAME": "fixture",  # getpass.getuser()
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "COLUMNS": "120",
    }


def change(name: str, text: str) -> None:
    (ROOT / name).write_text(f"extends: profile.yaml\n{text}\n")


def command(checkout: Path, *arguments: object) -> list[str]:
    return [str(checkout / ".venv/bin/star"), *map(str, arguments)]


def star(checkout: Path, *arguments: object) -> None:
    print("star", *arguments, flush=True)
    subprocess.run(command(checkout, *arguments), check=True)


def run_pipeline(checkout: Path, profile: str) -> dict[str, Path]:
    """Runs a profile, and returns the folder of each stage."""
    star(checkout, "run", "--config", ROOT / profile)
    return {link.name: link.resolve() for link in (HOME / "latest").iterdir()}


def interrupt(checkout: Path, stage: str, sign: signal.Signals, checkpoint: str, inputs: list) -> None:
    """Starts a stage, ends it once it has written a complete checkpoint, and leaves the partial folder."""
    out = INTERRUPTED / stage / "out"
    out.parent.mkdir(parents=True)
    arguments = command(checkout, stage, "--config", ROOT / "profile.yaml", *inputs, "--out", out)
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    mark = INTERRUPTED / stage / ".out.partial" / "state" / checkpoint / "complete"
    while not mark.exists():
        assert process.poll() is None, f"{stage} ended before {checkpoint}"
        time.sleep(0.002)
    process.send_signal(sign)
    process.wait()
    assert mark.exists() and not out.exists()
    print(f"star {stage} was ended by {sign.name} after {checkpoint}", flush=True)


def hide_checkout(checkout: Path) -> None:
    """Removes the checkout's path from what MLflow noted about the runs, and shrinks the database; not from the ledger."""
    for noted in HOME.glob("spool/*/run.json"):
        noted.write_text(noted.read_text().replace(str(checkout), str(ROOT / "checkout")))
    connection = sqlite3.connect(HOME / "mlflow.db")
    with connection:
        for table, column in text_columns(connection):
            statement = f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?)'
            connection.execute(statement, (str(checkout), str(ROOT / "checkout")))
    connection.execute("VACUUM")
    connection.close()
    assert not list(HOME.glob("mlflow.db-*"))


def text_columns(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """Every column with text, except those of the ledger."""
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    columns = [
        (table, row[1], row[2]) for table in tables for row in connection.execute(f'PRAGMA table_info("{table}")')
    ]
    return [
        (table, column)
        for table, column, kind in columns
        if table != "star_records" and kind.upper().startswith(("VARCHAR", "TEXT", "CLOB"))
    ]


def write_expected(commit: str, first: dict[str, Path]) -> None:
    """Writes what the API of this commit reads from the fixture. Stage folders are those of the first run."""
    expected = {
        "commit": commit,
        "root": str(ROOT),
        "versions": package_versions(),
        "stages": {name: expected_stage(name, folder) for name, folder in sorted(first.items())},
        "latest": {link.name: within(link.resolve()) for link in sorted((HOME / "latest").iterdir())},
        "topk": expected_topk(first["extract-topk"]),
        "interrupted": {
            "distill": expected_interruption("distill", "ckd", first["distill"]),
            "refine": expected_interruption("refine", "simrl", first["refine"]),
        },
        "registry": expected_registry(),
        "spool": [within(folder) for folder in sorted((HOME / "spool").iterdir()) if folder.is_dir()],
    }
    assert expected["spool"], "the killed run left no spool"
    (ROOT / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    (ROOT / "root.txt").write_text(f"{ROOT}\n")


def within(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def package_versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("star-distill", "torch", "transformers", "trl", "accelerate", "tokenizers", "safetensors", "mlflow", "kfp")
    return {"python": sys.version.split()[0], **{name: version(name) for name in names}}


def expected_stage(name: str, folder: Path) -> dict:
    from star.storage import open_input

    manifest = open_input(folder, stage=name)
    return {
        "folder": within(folder),
        "digest": manifest.digest,
        "fingerprint": manifest.fingerprint,
        "inputs": manifest.inputs,
        "files": {entry.path: entry.sha256 for entry in manifest.files},
        "ancestors": sorted(summary["stage"] for summary in manifest.ancestors.values()),
        "metrics": json.loads((folder / "metrics.json").read_text()),
    }


def expected_topk(folder: Path) -> dict:
    from star.teacher.store import TopKStore
    from star.teacher.topk import read_sequences

    store = TopKStore(folder)
    ids, sequences = read_sequences(folder)
    read = {}
    for name, sequence in list(zip(ids, sequences, strict=True))[:3]:
        ids_TK, logprobs_TK = store[name]
        read[name] = {
            "prompt_tokens": len(sequence.prompt_ids),
            "completion_ids": sequence.completion_ids,
            "shape": list(ids_TK.shape),
            "sum_of_ids": int(ids_TK.sum()),
            "first_ids": ids_TK[0, :4].tolist(),
            "first_logprobs": [round(float(value), 6) for value in logprobs_TK[0, :4]],
            "mean_best_logprob": round(float(logprobs_TK[:, 0].mean()), 6),
        }
    return {
        "top_k": store.top_k,
        "vocab_size": store.vocab_size,
        "tokens": store.tokens,
        "shards": store.shards,
        "provenance": store.provenance,
        "sequence_ids": list(store),
        "read": read,
    }


def expected_interruption(stage: str, phase: str, whole: Path) -> dict:
    """Where a training was interrupted, and its result: that of the first run, bit for bit on the same kind of CPU."""
    from star.config import sha256_of
    from star.storage import read_manifest

    partial = INTERRUPTED / stage / ".out.partial"
    marks = partial.glob(f"state/{phase}/checkpoint-*/complete")
    step = max(int(mark.parent.name.split("-")[1]) for mark in marks)
    state = json.loads((partial / "state" / phase / f"checkpoint-{step}" / "trainer_state.json").read_text())
    curve = json.loads((whole / f"{phase}_curve.json").read_text())
    fingerprint = (partial / "fingerprint").read_text()
    assert fingerprint == read_manifest(whole).fingerprint, "the interrupted work is not that of the first run"
    assert state["global_step"] == step < state["max_steps"]
    return {
        "out": within(partial.with_name("out")),
        "partial": within(partial),
        "fingerprint": fingerprint,
        "phase": phase,
        "step": step,
        "max_steps": state["max_steps"],
        "losses_before": [entry["loss"] for entry in state["log_history"]],
        "losses": [entry["loss"] for entry in curve],
        "digest": read_manifest(whole).digest,
        "weights": sha256_of(whole / "model.safetensors"),
    }


def expected_registry() -> dict:
    from star.registry import ledger
    from star.registry.promotion import champion, standing
    from star.registry.records import records_of
    from star.registry.tracking import connect
    from star.registry.versions import list_versions

    records = records_of("star", connect())
    assert ledger.broken_links(records, "star") == []
    best = champion("star")
    return {
        "name": "star",
        "champion": best.version,
        "aliases": standing("star").aliases,
        "versions": {
            version.version: {
                "aliases": list(version.aliases),
                "model_digest": version.model_digest,
                "files": version.files,
                "scores": version.scores,
                "lineage": version.lineage,
            }
            for version in list_versions("star")
        },
        "attempts": [
            {"action": made.action, "version": made.version, "over": made.over, "actor": made.actor, "outcome": outcome}
            | {"reason": made.reason, "refused": made.refused}
            for made, outcome in ledger.history(records, "star")
        ],
        "decisions": [
            {"seq": made.seq, "aliases": made.aliases, "digest": made.digest, "parent": made.parent}
            for made in ledger.decisions(records, "star")
        ],
        "answer": expected_answer(best),
    }


def expected_answer(version) -> dict:
    """The champion's first tokens and logits, for token ids, because a later version may render prompts in another way."""
    import torch

    from star.models import load_model, load_tokenizer
    from star.registry.fetch import fetch_version

    folder = fetch_version(version, HOME / "models")
    model, tokenizer = load_model(folder).eval(), load_tokenizer(folder)
    prompt = tokenizer(f"<|im_start|>user\n{QUERY}<|im_end|>\n<|im_start|>assistant\n")["input_ids"][:PROMPT_TOKENS]
    with torch.no_grad():
        logits_V = model(torch.tensor([prompt])).logits[0, -1]
    output = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW_TOKENS)[0, len(prompt) :]
    return {
        "query": QUERY,
        "folder": within(folder),
        "prompt_ids": prompt,
        "first_logits": [round(float(value), 5) for value in logits_V[:5]],
        "best": int(logits_V.argmax()),
        "greedy_ids": output.tolist(),
    }


def pack(archive: Path) -> None:
    def neutral(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    shutil.rmtree(HOME / "logs", ignore_errors=True)
    shutil.rmtree(ROOT / "mlruns", ignore_errors=True)
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(
        archive, "w:xz", preset=9
    ) as tar:  # the window is larger than the archive, so copies of a file cost nothing
        tar.add(ROOT, arcname=ROOT.name, filter=neutral)
    print(f"{archive}: {archive.stat().st_size} bytes")


if __name__ == "__main__":
    here = Path.cwd()
    main((here / sys.argv[1]).absolute(), (here / sys.argv[2]).absolute())
