"""Sets that a team tracks with DVC, on a real S3 server: resolved to a commit, fetched, verified, read without DVC and git."""

import filecmp
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from star.config.files import FileRef, RowsFolder, inputs_in
from star.config.load import load_config
from star.data.synthesize import make_data_set
from star.errors import InputError
from star.folders.dvc_digest import dvc_digest
from star.pipelines.upload_inputs import upload_inputs
from tests.conftest import BUCKET
from tests.s3_server import s3_client
from tests.team_data import git, make_repository, use_server

pytest.importorskip("dvc", reason="needs dvc: pip install 'star-distill[dvc]'")


@pytest.fixture(scope="module")
def team_data(s3_server: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The team's repository; another machine has it as a clone, and so an empty cache of DVC."""
    made = tmp_path_factory.mktemp("ann") / "team-data"
    with pytest.MonkeyPatch.context() as patch:
        use_server(patch, s3_server)
        make_repository(made, remote=f"s3://{BUCKET}/store", server=s3_server)
    clone = tmp_path_factory.mktemp("bob") / "team-data"
    git(made, "clone", "--quiet", "--bare", str(made), str(clone))
    return clone


@pytest.fixture(autouse=True)
def server(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    use_server(monkeypatch, s3_server)
    return s3_server


def profile(folder: Path, seed_data: object, **data: object) -> Path:
    file = folder / "my.yaml"
    file.write_text(json.dumps({"extends": "tiny", "data": {"seed_data": seed_data, **data}}))
    return file


def test_a_folder_is_the_same_from_dvc_from_the_store_and_from_a_disk(
    team_data: Path, tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"generated_rows": 30, "heldout_rows": 4}
    named = {"dvc": "data/tickets", "repo": str(team_data), "rev": "v2"}
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    config = load_config(profile(tmp_path, named, **few))
    assert not list(temporary.iterdir())  # where DVC clones to
    seed = config.data.seed_data
    assert isinstance(seed, RowsFolder) and seed.files == 2 and seed.path.startswith(f"s3://{BUCKET}/store/files/md5/")
    commit = git(team_data, "rev-parse", "v2^{commit}")
    assert (seed.dvc.commit, seed.dvc.rev, seed.dvc.md5) == (commit, "v2", dvc_digest(seed.read_verified()))
    # What a pod gets: no DVC, no git, an empty home.
    in_pod = type(config).from_json(config.with_places(("seed", "data")))
    monkeypatch.setenv("STAR_HOME", str(tmp_path / "pod"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "dvc.api", None)
    fetched = in_pod.data.seed_data.read_verified()
    assert fetched.is_relative_to(tmp_path / "pod")
    shutil.copytree(fetched, tmp_path / "copied" / "by-hand")
    from_disk = load_config(profile(tmp_path, str(tmp_path / "copied" / "by-hand"), **few))
    assert from_disk.slice(("data",)) == config.slice(("data",)) == in_pod.slice(("data",))
    for name, data in {"pod": in_pod.data, "disk": from_disk.data}.items():
        for folder in ("out", "state"):
            (tmp_path / name / folder).mkdir(parents=True)
        metrics = make_data_set(data, seed=7, out=tmp_path / name / "out", state=tmp_path / name / "state")
        assert metrics["imported"] == 22
    names = ("train.jsonl", "heldout.jsonl", "rejects.jsonl")
    assert filecmp.cmpfiles(tmp_path / "pod" / "out", tmp_path / "disk" / "out", names, shallow=False)[0] == [*names]


def test_a_revision_is_resolved_again_and_a_commit_is_asked_for_once(
    team_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "clone"
    git(team_data, "clone", "--quiet", str(team_data), str(clone))
    first, second = (git(clone, "rev-parse", f"v{number}^{{commit}}") for number in (1, 2))
    git(clone, "branch", "released", first)
    named = {"dvc": "data/rows.jsonl", "repo": "clone", "rev": "released"}  # relative to the profile
    old = load_config(profile(tmp_path, named)).data.seed_data
    assert isinstance(old, FileRef) and (old.name, old.dvc.commit) == ("rows.jsonl", first)
    assert len(old.read_verified().read_text().splitlines()) == 10
    git(clone, "branch", "--force", "released", second)
    new = load_config(profile(tmp_path, named)).data.seed_data
    assert new.dvc.commit == second and new.sha256 != old.sha256
    (tmp_path / "older.yaml").write_text(json.dumps({"extends": "my.yaml", "data": {"seed_data": {"rev": first}}}))
    assert load_config(tmp_path / "older.yaml").data.seed_data.sha256 == old.sha256
    (tmp_path / "disk.yaml").write_text(
        json.dumps({"extends": "my.yaml", "data": {"seed_data": {"path": str(old.read_verified())}}})
    )
    assert load_config(tmp_path / "disk.yaml").data.seed_data.dvc is None
    # Known commits need neither the repository nor DVC while the home has their content.
    shutil.rmtree(clone / ".git")
    monkeypatch.setitem(sys.modules, "dvc.api", None)
    again = load_config(profile(tmp_path, {**named, "rev": first})).data.seed_data
    assert again.sha256 == old.sha256
    shutil.rmtree(old.read_verified().parent)
    with pytest.raises(InputError, match=r"needs DVC, which is not installed: pip install 'star-distill\[dvc\]'"):
        load_config(profile(tmp_path, {**named, "rev": first}))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rev": "v9"}, "has no revision v9: give a tag, a branch or a commit"),
        ({"rev": "0" * 40}, "has no revision 0000"),
        ({"rev": "v3"}, "ran `dvc push`"),
        ({"dvc": "data/nothing"}, "there is no such path"),
        ({"dvc": "notes.txt"}, "notes.txt at v1 of .* is not tracked by DVC"),
        ({"dvc": "data/../data/tickets"}, "a part of it is `.` or `..`"),
        ({"repo": "/nowhere/team-data"}, "/nowhere/team-data cannot be read by git"),
        ({"repo": "ext::sh -c true"}, "neither starts with - or has ::"),
        ({"repo": "ext::sh -c true", "rev": "0" * 40}, "neither starts with - or has ::"),
        ({"repo": "--upload-pack=true"}, "neither starts with - or has ::"),
        ({"repo": "https://ann:hunter22hunter@git.example.com/team-data"}, "holds a password in an address"),
        ({"rev": ""}, "exactly the keys dvc .*, repo and rev"),
        ({"remote": "store"}, "exactly the keys dvc .*, repo and rev"),
    ],
)
def test_what_cannot_be_had_is_named(team_data: Path, tmp_path: Path, changed: dict, said: str) -> None:
    named = {"dvc": "data/tickets", "repo": str(team_data), "rev": "v1", **changed}
    with pytest.raises(InputError, match=said) as raised:
        load_config(profile(tmp_path, named))
    assert "\n" not in str(raised.value)


def test_a_folder_is_no_file_of_tools(team_data: Path, tmp_path: Path) -> None:
    named = {"dvc": "data/tickets", "repo": str(team_data), "rev": "v1"}
    with pytest.raises(InputError, match="data/tickets is a folder, and this setting needs a file: name one in it"):
        load_config(profile(tmp_path, None, tools=named))
    config = load_config(profile(tmp_path, {**named, "dvc": "data/tickets/old/closed.jsonl"}))
    assert dict(inputs_in(config))["data.seed_data"].file_name == "closed.jsonl"


def test_changed_bytes_in_the_remote_are_refused(
    team_data: Path, tmp_path: Path, server: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = load_config(profile(tmp_path, {"dvc": "data/tickets", "repo": str(team_data), "rev": "v1"})).data.seed_data
    client, key = s3_client(server), seed.path.removeprefix(f"s3://{BUCKET}/")
    entries = json.loads(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())
    outside = json.dumps([{**entry, "relpath": f"../{entry['relpath']}"} for entry in entries]).encode()
    other = json.dumps([{**entry, "md5": entries[0]["md5"]} for entry in entries]).encode()
    md5 = entries[0]["md5"]
    monkeypatch.setenv("STAR_HOME", str(tmp_path / "pod"))
    for place, content, said in (
        (key, outside, "its copy could be written elsewhere"),
        (key, other, "has been changed, it has the md5"),
        (key, b"<html>", "is no list of a folder, as DVC pushes it"),
        (f"store/files/md5/{md5[:2]}/{md5[2:]}", b"{}\n", "is not what the run was configured with"),
    ):
        before = client.get_object(Bucket=BUCKET, Key=place)["Body"].read()
        client.put_object(Bucket=BUCKET, Key=place, Body=content)
        with pytest.raises(InputError, match=said):
            seed.read_verified()
        client.put_object(Bucket=BUCKET, Key=place, Body=before)
    assert seed.read_verified().is_dir()


def test_a_repository_names_no_program_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "team-data"
    (made / ".dvc").mkdir(parents=True)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    aws = tmp_path / "aws"
    aws.write_text(f"[default]\ncredential_process = /usr/bin/touch {tmp_path}/ran\n")
    (made / ".dvc" / "config").write_text(
        "[core]\n remote=store\n['remote \"store\"']\n url=s3://models/none\n"
        f" endpointurl=http://127.0.0.1:1\n configpath={aws}\n"
    )
    (made / "rows.jsonl.dvc").write_text(f"outs:\n- {{md5: {'ab' * 16}, hash: md5, path: rows.jsonl}}\n")
    git(made, "init", "--quiet", "--initial-branch", "main")
    git(made, "add", "--force", ".")
    git(made, "commit", "--quiet", "--message", "Rows")
    before = dict(os.environ)
    for repo in (str(made), f"file://{made}"):
        with pytest.raises(InputError, match="cannot be fetched"):
            load_config(profile(tmp_path, {"dvc": "rows.jsonl", "repo": repo, "rev": "main"}))
    assert not (tmp_path / "ran").exists() and dict(os.environ) == before


def test_a_remote_that_is_not_on_s3_is_read_into_the_home_and_uploaded_for_pods(
    tmp_path: Path, own_home: Path, server: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_repository(tmp_path / "team-data", remote=str(tmp_path / "disk"), server=server)
    shutil.rmtree(made / ".dvc" / "cache")
    config = load_config(profile(tmp_path, {"dvc": "data/tickets", "repo": str(made), "rev": "v1"}))
    seed = config.data.seed_data
    assert seed.is_local and Path(seed.path).is_relative_to(own_home)
    inputs = config.cluster.model_copy(update={"inputs": f"s3://{BUCKET}/inputs"})
    uploaded = upload_inputs(config.model_copy(update={"cluster": inputs}))
    in_pod = uploaded.data.seed_data
    assert in_pod == seed.model_copy(update={"path": f"s3://{BUCKET}/inputs/{seed.sha256}"})
    assert uploaded.slice(("data",)) == config.slice(("data",))
    monkeypatch.setenv("STAR_HOME", str(tmp_path / "pod"))
    assert dvc_digest(in_pod.read_verified()) == seed.dvc.md5
