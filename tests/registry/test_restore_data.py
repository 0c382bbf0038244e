"""From a champion back to the rows and tools that its data set was made of: `star lineage` and `star data restore`."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from typer.testing import CliRunner

from star.cli.main import app
from star.config.experiment import Config
from star.config.files import FileRef
from star.config.load import load_config
from star.errors import InputError
from star.folders.manifest import read_manifest
from star.registry.lineage_tree import print_lineage
from star.registry.restore_data import restore_data
from star.stages import synthesize
from tests.clean.conftest import CHAIN, make_result, register_run
from tests.conftest import BUCKET
from tests.s3_server import s3_client
from tests.team_data import dvc, git, make_repository, use_server, write_rows

pytest.importorskip("dvc", reason="needs dvc: pip install 'star-distill[dvc]'")
TOOLS = (Path(__file__).resolve().parents[2] / "configs" / "travel.json").read_text()


@pytest.fixture
def register(home: Path, environment: pytest.MonkeyPatch) -> Callable[[Config], str]:
    """Registers a model whose data set was made with this configuration; returns its version's number."""
    environment.chdir(home)
    environment.setenv("COLUMNS", "400")

    def made_with(config: Config) -> str:
        folders = {"synthesize": home / "latest" / "synthesize"}
        synthesize(config, out=folders["synthesize"])
        content = read_manifest(folders["synthesize"]).digest  # so that other rows make another model
        for stage, sources in list(CHAIN.items())[1:]:
            inputs = {source: folders[source] for source in sources}
            folders[stage] = make_result(stage, home / "latest" / stage, content=content, inputs=inputs)
        return str(register_run(folders, home / "publish"))

    return made_with


def settings(**data: object) -> Config:
    file = Path("my.yaml")
    file.write_text(json.dumps({"extends": "tiny", "data": {"generated_rows": 30, "heldout_rows": 4, **data}}))
    return load_config(file)


def names_below(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


@pytest.mark.slow
def test_a_set_of_dvc_and_uploaded_tools_come_back(
    s3_server: dict[str, str],
    home: Path,
    register: Callable[[Config], str],
    capsys: pytest.CaptureFixture,
    environment: pytest.MonkeyPatch,
) -> None:
    use_server(environment, s3_server)
    made = make_repository(home / "ann" / "team-data", remote=f"s3://{BUCKET}/restore", server=s3_server)
    (home / "tools.json").write_text(TOOLS)
    config = settings(tools=str(home / "tools.json"), seed_data={"dvc": "data/tickets", "repo": str(made), "rev": "v2"})
    # As `star pipeline submit` uploads a file of the laptop.
    client, sha256 = s3_client(s3_server), config.data.tools.sha256
    client.put_object(Bucket=BUCKET, Key=f"inputs/{sha256}", Body=TOOLS.encode())
    uploaded = FileRef(path=f"s3://{BUCKET}/inputs/{sha256}", sha256=sha256, name="tools.json")
    number = register(config.model_copy(update={"data": config.data.model_copy(update={"tools": uploaded})}))
    commit = git(made, "rev-parse", "HEAD~1")

    assert print_lineage(number, name="star") == []
    printed = "".join(capsys.readouterr().out.split())
    source = f"data/tickets of {made} at v2, commit {commit[:12]}"
    assert f"data.seed_data {config.data.seed_data.sha256[:12]} ok {source}".replace(" ", "") in printed
    assert f"data.tools{sha256[:12]}oks3://{BUCKET}/inputs/{sha256}" in printed

    # Another machine, on which nothing was fetched yet, and the repository with its history is gone.
    expected = {name: file.read_bytes() for name, file in rows_at(made, "v2").items()}
    made.rename(home / "gone")
    shutil.rmtree(home / "inputs")
    done = CliRunner().invoke(app, ["data", "restore", number, "--to", "back"])
    assert done.exit_code == 0, done.output
    assert f"data.seed_data: back/tickets, sha256 {config.data.seed_data.sha256[:12]}, from {source}" in done.output
    assert names_below(home / "back") == ["tickets/old/closed.jsonl", "tickets/open.jsonl", "tools.json"]
    assert {name: (home / "back" / "tickets" / name).read_bytes() for name in expected} == expected
    assert (home / "back" / "tools.json").read_text() == TOOLS
    with pytest.raises(InputError, match="back is there already: give --to a new folder"):
        restore_data(number, name="star", to=Path("back"))

    # The remote lost an object. Then the repository's own cache, where there is one, brings it back.
    shutil.rmtree(home / "inputs")
    client.delete_object(Bucket=BUCKET, Key=config.data.seed_data.path.removeprefix(f"s3://{BUCKET}/"))
    with pytest.raises(InputError, match=r"cannot be brought back: .* NoSuchKey.* Through DVC: .*") as gone:
        restore_data(number, name="star", to=Path("again"))
    assert "\n" not in str(gone.value) and not Path("again").exists()
    (home / "gone").rename(made)
    restored = {one.setting: one.place for one in restore_data(number, name="star", to=Path("again"))}
    assert (restored["data.seed_data"] / "open.jsonl").read_bytes() == expected["open.jsonl"]


def rows_at(repository: Path, revision: str) -> dict[str, Path]:
    """The files of data/tickets at a revision, by DVC's own checkout."""
    git(repository, "checkout", "--quiet", revision)
    dvc(repository, "checkout")
    folder = repository / "data" / "tickets"
    return {name: folder / name for name in names_below(folder)}


def test_a_lineage_that_anybody_wrote_leads_nowhere_else(tmp_path: Path, own_home: Path) -> None:
    write_rows(tmp_path / "rows" / "a.jsonl", range(2))
    (tmp_path / "rows" / ".git").mkdir()
    rows = load_config(_profile_with(tmp_path, str(tmp_path / "rows"))).data.seed_data.model_dump(exclude_none=True)
    (tmp_path / "model").mkdir()
    for setting, said in {
        f"data.{tmp_path}/planted": "is not what `star register` writes",
        "data.seed_data": None,
    }.items():
        stages = {"d": {"origin": {"inputs": {setting: rows}}}}
        (tmp_path / "model" / "lineage.json").write_text(json.dumps({"data": "d", "stages": stages}))
        with pytest.raises(InputError, match=said) if said else nullcontext():
            restore_data(f"{tmp_path}/model", name="star", to=tmp_path / "back")
    assert not (tmp_path / "planted").exists() and names_below(tmp_path / "back") == ["seed_data/a.jsonl"]
    assert not (tmp_path / "back" / "seed_data" / ".git").exists()


def test_rows_of_a_list_of_sources_come_back(tmp_path: Path, own_home: Path) -> None:
    write_rows(tmp_path / "rows" / "a.jsonl", range(2))
    write_rows(tmp_path / "b.jsonl", range(3))
    sources = [{"path": str(tmp_path / name), "source": name} for name in ("rows", "b.jsonl")]
    config = Config.model_validate({"data": {"sources": sources}})
    inputs = {
        f"data.sources.{place}.path": source.path.model_dump(exclude_none=True)
        for place, source in enumerate(config.data.sources)
    }
    (tmp_path / "model").mkdir()
    stages = {"d": {"origin": {"inputs": inputs}}}
    (tmp_path / "model" / "lineage.json").write_text(json.dumps({"data": "d", "stages": stages}))
    restored = restore_data(f"{tmp_path}/model", name="star", to=tmp_path / "back")
    assert [one.setting for one in restored] == list(inputs)
    assert names_below(tmp_path / "back") == ["b.jsonl", "source-0/a.jsonl"]


def _profile_with(folder: Path, seed_data: str) -> Path:
    file = folder / "my.yaml"
    file.write_text(json.dumps({"extends": "tiny", "data": {"seed_data": seed_data}}))
    return file


def test_rows_of_a_plain_file_come_back_while_they_are_there(
    home: Path, register: Callable[[Config], str], capsys: pytest.CaptureFixture
) -> None:
    generated = register(settings())
    with pytest.raises(InputError, match="names no rows or tools of yours"):
        restore_data(generated, name="star", to=Path("back"))
    write_rows(home / "rows.jsonl", range(10))
    number = register(settings(seed_data=str(home / "rows.jsonl")))
    [restored] = restore_data(number, name="star", to=Path("back"))
    assert restored.place.read_bytes() == (home / "rows.jsonl").read_bytes()
    origin = read_manifest(home / "latest" / "synthesize").origin
    assert origin["inputs"]["data.seed_data"]["path"] == str(home / "rows.jsonl")
    write_rows(home / "rows.jsonl", range(11))
    with pytest.raises(
        InputError, match=r"`data.seed_data` was .*rows.jsonl, sha256 .*, and is not there now .*look for a copy"
    ):
        restore_data(number, name="star", to=Path("again"))
    # Rows that have grown since are no mismatch.
    assert print_lineage(number, name="star") == []
    assert "the copy here has changed" in " ".join(capsys.readouterr().out.split())
