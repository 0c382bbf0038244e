"""This version reads what an older one left on a disk: stage folders, top-k store, checkpoints, ledger, models.

star-ab22758.tar.xz was made by make_fixture.py with the code of commit ab22758. Its expected.json holds what that code
read from it. A test that fails here means that users' folders and ledgers can no longer be read: correct the code, not
the archive.

The archive holds a tracking database of MLflow 3.17. An MLflow with a newer schema refuses it until `mlflow db
upgrade`, like the database of every user; then `unpacked` has to upgrade it first.
"""

import dataclasses
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from star.config.load import load_config
from star.config.training import Schedule
from star.errors import InputError
from star.folders.manifest import open_input
from star.folders.workspace import open_workspace
from star.registry.promotion.audit import audit, read_history
from star.registry.promotion.open_ledger import open_ledger
from star.registry.promotion.promote_and_rollback import champion, current_decision, promote, rollback
from star.registry.promotion.reconcile import reconcile
from star.registry.versions import list_versions
from star.stages import STAGES
from star.tracking.server import connect, experiment_id

ARCHIVE = Path(__file__).with_name("star-ab22758.tar.xz")
STAGE_NAMES = ("synthesize", "refine-teacher", "rollout", "extract-topk", "distill", "refine", "evaluate", "register")


@dataclasses.dataclass(frozen=True)
class Older:
    """The unpacked archive."""

    root: Path
    expected: dict

    @property
    def home(self) -> Path:
        return self.root / "home"

    def folder(self, stage: str) -> Path:
        return self.root / self.expected["stages"][stage]["folder"]


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, unpacked once per session. `older` has a copy of it that a test may change."""
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(folder, filter="data")
    return folder / "star-fixture"


@pytest.fixture
def older(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Older:
    root = tmp_path / "older"
    shutil.copytree(unpacked, root, symlinks=True)
    replace_root(root)
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "STAR_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("STAR_HOME", str(root / "home"))
    monkeypatch.chdir(tmp_path)
    return Older(root, json.loads((root / "expected.json").read_text()))


def replace_root(root: Path) -> None:
    """Replaces the start of absolute paths by the folder it was unpacked into. What a digest covers holds no such path."""
    before, home = (root / "root.txt").read_text().strip(), root / "home"
    texts = [*home.glob("cache/*.json"), *home.glob("work/*.done"), *home.glob("spool/*/run.json")]
    for file in [*texts, *home.glob("pipeline/*/*/executor_output.json")]:
        file.write_text(file.read_text().replace(before, str(root)))
    connection = sqlite3.connect(home / "mlflow.db")
    with connection:
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("logged_models", "artifact_location"),
            ("model_versions", "storage_location"),
            ("datasets", "dataset_source"),
        ):
            connection.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (before, str(root)))
    connection.close()


def star(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "star.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "160"})


def test_the_stages_have_the_same_names() -> None:
    assert tuple(stage.name for stage in STAGES) == STAGE_NAMES


def test_every_stage_folder_is_a_valid_input(older: Older) -> None:
    for stage in STAGE_NAMES:
        expected = older.expected["stages"][stage]
        manifest = open_input(older.folder(stage), stage=stage)
        assert manifest.digest == expected["digest"]
        assert manifest.fingerprint == expected["fingerprint"]
        assert manifest.inputs == expected["inputs"]
        assert {entry.path: entry.sha256 for entry in manifest.files} == expected["files"]
        assert sorted(summary["stage"] for summary in manifest.ancestors.values()) == expected["ancestors"]
        assert manifest.origin["commit"] == older.expected["commit"]


def test_the_links_to_the_latest_run_lead_to_whole_folders(older: Older) -> None:
    for stage, target in older.expected["latest"].items():
        link = older.home / "latest" / stage
        assert link.resolve() == (older.root / target).resolve()
        open_input(link, stage=stage)


def test_the_profiles_are_valid(older: Older) -> None:
    config = load_config(older.root / "profile.yaml")
    assert (config.name, config.seed, config.distill.steps) == ("fixture", 7, 200)
    assert load_config(older.root / "second.yaml").distill.learning_rate == 6e-3


def test_the_rows_are_read(older: Older) -> None:
    from star.data.rows import read_rows

    metrics = older.expected["stages"]["synthesize"]["metrics"]
    for split in ("train", "heldout"):
        assert len(list(read_rows(older.folder("synthesize") / f"{split}.jsonl"))) == metrics[split]


def test_the_topk_store_is_read(older: Older) -> None:
    from star.topk.sequences import read_sequences
    from star.topk.store import TopKStore

    expected, folder = older.expected["topk"], older.folder("extract-topk")
    store = TopKStore(folder)
    for name in ("top_k", "vocab_size", "tokens", "provenance"):
        assert getattr(store, name) == expected[name]
    assert list(store) == expected["sequence_ids"] and len(store) == len(expected["sequence_ids"])
    ids, sequences = read_sequences(folder)
    by_id = dict(zip(ids, sequences, strict=True))
    assert set(ids) == set(expected["sequence_ids"])
    for name, read in expected["read"].items():
        ids_TK, logprobs_TK = store[name]
        assert list(ids_TK.shape) == list(logprobs_TK.shape) == read["shape"]
        assert int(ids_TK.sum()) == read["sum_of_ids"]
        assert ids_TK[0, :4].tolist() == read["first_ids"]
        np.testing.assert_allclose(logprobs_TK[0, :4], read["first_logprobs"], atol=2e-6)
        assert float(logprobs_TK[:, 0].mean()) == pytest.approx(read["mean_best_logprob"], abs=2e-6)
        assert len(by_id[name].prompt_ids) == read["prompt_tokens"]
        assert by_id[name].completion_ids == read["completion_ids"]


def test_the_ledger_is_read_and_its_chain_is_whole(older: Older) -> None:
    expected = older.expected["registry"]
    ledger = open_ledger("star", connect())
    assert ledger.is_older
    found, wrong = read_history(ledger)
    assert wrong == []
    history = [{**dataclasses.asdict(made), "outcome": outcome} for made, outcome in found]
    attempts = expected["attempts"]
    assert [{key: made[key] for key in entry} for made, entry in zip(history, attempts, strict=True)] == attempts
    # The digests are over all fields: a field added to Attempt or Decision changes them.
    decisions = ledger.all_decisions()[0]
    assert expected["decisions"] == [
        {"seq": made.seq, "aliases": made.aliases, "digest": made.digest, "parent": made.parent} for made in decisions
    ]
    assert current_decision("star").aliases == expected["aliases"]


def test_the_versions_and_their_aliases_are_read(
    older: Older, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from star.registry.tables import print_ledger, print_versions

    versions = {str(version.version): version for version in list_versions("star")}
    assert versions.keys() == older.expected["registry"]["versions"].keys()
    for number, expected in older.expected["registry"]["versions"].items():
        version = versions[number]
        assert sorted(version.aliases) == sorted(expected["aliases"])
        assert (version.model_digest, version.files) == (expected["model_digest"], expected["files"])
        assert (version.scores, version.lineage) == (expected["scores"], expected["lineage"])
    monkeypatch.setenv("COLUMNS", "160")
    print_versions("star")
    table = capsys.readouterr().out
    assert all(alias in table for alias in ("champion", "previous-champion", "challenger"))
    print_ledger("star")
    assert "more refusals in" in capsys.readouterr().out


def test_its_evaluation_is_compared_with_itself_and_not_with_one_of_today(
    older: Older, capsys: pytest.CaptureFixture[str]
) -> None:
    from star.evaluation.compare import print_comparison

    folder = older.folder("evaluate")
    print_comparison(Path(f"{folder}:teacher"), folder)
    assert "Format errors (official" in " ".join(capsys.readouterr().out.split())
    today = older.root / "today"
    shutil.copytree(folder, today)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    (today / "evaluation.json").write_text(json.dumps({**evaluation, "reading": "strict"}))
    with pytest.raises(InputError, match="was written by an older STAR"):
        print_comparison(folder, today)


def test_promotions_go_on_from_the_ledger(older: Older) -> None:
    assert rollback("star", reason="decided by a newer version").version == 3
    assert promote("star", current_decision("star").aliases["challenger"]).version == 2
    ledger = open_ledger("star", connect())
    assert champion("star").version == 2
    assert ledger.newest().seq == len(older.expected["registry"]["decisions"]) + 2
    assert audit(ledger) == []
    assert reconcile("star") == ([], [])


def test_the_champion_is_downloaded_and_computes_the_same_logits(older: Older) -> None:
    import torch

    from star.modeling.models import load_model, load_tokenizer
    from star.registry.download import is_download_of
    from star.registry.find_model import get_model_folder

    registry = older.expected["registry"]
    expected = registry["answer"]
    assert champion("star").version == registry["champion"]
    shutil.rmtree(older.home / "models")  # so that it is downloaded from the artifacts
    folder = get_model_folder("champion", name="star")
    older_place = older.root / expected["folder"]
    assert folder.parent == older_place.parent and is_download_of(older_place.name, folder.name)
    model, prompt = load_model(folder).eval(), expected["prompt_ids"]
    # Token ids and not a rendered prompt: a later version may render prompts in another way.
    text = f"<|im_start|>user\n{expected['query']}<|im_end|>\n<|im_start|>assistant\n"
    assert load_tokenizer(folder)(text)["input_ids"] == prompt
    with torch.no_grad():
        logits_V = model(torch.tensor([prompt])).logits[0, -1]
    assert logits_V[:5].tolist() == pytest.approx(expected["first_logits"], abs=1e-3)
    output = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=len(expected["greedy_ids"]))
    assert output[0, len(prompt) :].tolist() == expected["greedy_ids"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["distill", "refine"])
def test_an_interrupted_training_resumes_from_its_checkpoint(stage: str, older: Older) -> None:
    """Calls what the stage calls: by its own rule a stage starts anew when the code has changed, and here it has."""
    from star.modeling.training import last_checkpoint

    expected, config = older.expected["interrupted"][stage], load_config(older.root / "profile.yaml")
    # What is a setting now was the same for all trainings.
    former = {"schedule": Schedule(kind="stable-decay", warmup=0.05, final=0.05), "beta2": 0.98}
    config = config.model_copy(update={"distill": config.distill.model_copy(update=former)})
    out, phase = older.root / expected["out"], expected["phase"]
    steps = []

    def log_metrics(metrics: dict[str, float], step: int) -> None:
        if f"{phase}/loss" in metrics:
            steps.append(step)

    with open_workspace(out, stage=stage, fingerprint=expected["fingerprint"], resume=True) as workspace:
        checkpoint = last_checkpoint(workspace.state / phase)
        assert checkpoint and Path(checkpoint).name == f"checkpoint-{expected['step']}"
        if stage == "distill":
            from star.ckd.distill import distill_student

            distill_student(config, older.folder("extract-topk"), workspace=workspace, log_metrics=log_metrics)
        else:
            from star.data.rows import read_rows
            from star.simrl.refine import refine_student

            refine_student(
                older.folder("distill"),
                list(read_rows(older.folder("synthesize") / "train.jsonl")),
                config=config,
                workspace=workspace,
                log_metrics=log_metrics,
                log_artifact=lambda *_, **__: None,
            )
        shutil.copytree(workspace.out, out)
    assert steps == list(range(expected["step"] + 1, expected["max_steps"] + 1))
    losses = [entry["loss"] for entry in json.loads((out / f"{phase}_curve.json").read_text()) if "loss" in entry]
    assert losses[: expected["step"]] == expected["losses_before"]
    if stage == "distill":  # a refinement may sample other tokens on another CPU, and its losses differ then
        assert losses == pytest.approx(expected["losses"], rel=1e-2, abs=1e-3)
    assert not (older.root / expected["partial"]).exists()


@pytest.mark.slow
def test_the_commands_read_it(older: Older) -> None:
    for command, found in (
        (("models",), "previous-champion"),
        (("models", "diff", "champion", "previous-champion"), "exact_match"),
        (("registry", "ledger"), "more refusals in"),
        (("lineage",), "refine-teacher"),
    ):
        done = star(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        assert found in done.stdout and "MISMATCH" not in done.stdout


@pytest.mark.slow
def test_the_champion_answers_a_call(older: Older) -> None:
    from star.config.files import packaged_file

    done = star("call", "Book a flight from Oslo to Rome", "--tools", packaged_file("travel.json"))
    # It was trained for seconds, so a broken format is an answer too.
    assert done.returncode == 0 or (done.returncode == 1 and "breaks the format" in done.stderr), done.stderr


@pytest.mark.slow
def test_its_model_is_registered_once(older: Older) -> None:
    done = star(
        "register", "--config", older.root / "profile.yaml", "--refined", older.folder("refine"),
        "--evaluation", older.folder("evaluate"), "--out", older.root / "registered",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    registration = json.loads((older.root / "registered" / "registration.json").read_text())
    # The model's digest is known, and the gate has decided on it: no new version, and the champion stays.
    assert (registration["version"], registration["champion"]) == (1, 1)
    assert len(list_versions("star")) == 3


@pytest.mark.slow
def test_the_events_of_the_killed_run_are_sent(older: Older) -> None:
    assert all((older.root / folder / "run.json").is_file() for folder in older.expected["spool"])
    done = star("tracking", "replay")
    assert done.returncode == 0, done.stderr
    assert "1 runs brought to their end" in done.stdout
    client = connect()
    killed = client.search_runs([experiment_id(client)], "attributes.status = 'KILLED'")
    assert sorted(run.info.run_name for run in killed) == ["distill", "refine"]
