"""Inputs by content: on a disk, in S3 under any name, and uploaded for the pods, they are the same work; on a real S3 server."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from star import stages
from star.cluster.task_config import config_for_environment, digest_for_task
from star.config.cluster import Cluster
from star.config.experiment import Config
from star.config.files import Checkout, FileRef, inputs_in, paths_in
from star.config.load import load_config
from star.errors import InputError
from star.folders import s3_transfer
from star.folders.manifest import read_manifest
from star.folders.s3_client import s3_client
from star.hashing import sha256_of
from star.pipelines.star_pipeline import compile_pipeline, upload_and_compile
from star.pipelines.upload_inputs import upload_inputs
from tests.conftest import BUCKET

TOOLS = [{"name": "lamp", "description": "Switch a lamp", "parameters": {"type": "object", "properties": {}}}]
ROW = {"messages": [{"role": "user", "content": "on"}, {"role": "assistant", "content": "ok"}], "tools": TOOLS}
# A process that ends like a node that loses power, at its fourth part.
KILLED = """
import os, signal, sys
from star.config.load import load_config
from star.folders import s3_transfer
from star.folders.s3_client import s3_client
from star.pipelines.upload_inputs import upload_inputs

s3_transfer.PART_BYTES, sent = 5 * 2**20, []
def count(**request):
    sent.append(request)
    if len(sent) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
s3_client().meta.events.register("before-call.s3.UploadPart", count)
upload_inputs(load_config(sys.argv[1]))
"""


@pytest.fixture
def store(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A folder of its own in a real store, which the environment leads to."""
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{request.node.originalname}"


@pytest.fixture
def requests(store: str) -> Iterator[Counter]:
    """The number of requests of each kind that this process sends."""
    seen, events = Counter(), s3_client().meta.events

    def count(model: object, **others: object) -> None:
        seen[model.name] += 1

    events.register("before-call.s3", count)
    yield seen
    events.unregister("before-call.s3", count)


@pytest.fixture
def profile(tmp_path: Path, store: str) -> Callable[..., Path]:
    """Writes a profile with tools, rows and a base of this machine, or with what is given in their place."""
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    make_base(tmp_path / "base")

    def write(name: str, **given: str) -> Path:
        inputs = {"tools": "tools.json", "rows": "rows.jsonl", "base": "./base", **given}
        text = f"""
extends: tiny
data: {{tools: "{inputs["tools"]}", seed_data: "{inputs["rows"]}"}}
teacher: {{base: "{inputs["base"]}"}}
cluster:
  inputs: {store}/inputs
  secrets: {{star-s3: {{AWS_ACCESS_KEY_ID: access-key}}}}
"""
        file = tmp_path / f"{name}.yaml"
        file.write_text(text)
        return file

    return write


def make_base(folder: Path, *, size: int = 10) -> None:
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(size))
    (folder / "README.md").write_text("for people")
    (folder / "pytorch_model.bin").write_bytes(b"not loaded")


def put(url: str, file: Path) -> str:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    s3_client().put_object(Bucket=bucket, Key=key, Body=file.read_bytes())
    return url


def places(config: Config) -> dict[str, str]:
    return {name: source.path for name, source in inputs_in(config)}


def works(config: Config) -> list[str]:
    """What the caches of all runners look at."""
    sections = [("data",), ("teacher",), ("student",)]
    return [config.slice(of) for of in sections] + [
        digest_for_task(config_for_environment(config.for_stage(of))) for of in sections
    ]


def test_the_same_bytes_are_the_same_work(
    tmp_path: Path, profile: Callable[..., Path], store: str, own_home: Path, requests: Counter
) -> None:
    local = load_config(profile("local"))
    for file in (tmp_path / "base").iterdir():
        put(f"{store}/team/base/{file.name}", file)
    given = {
        "tools": put(f"{store}/team/tools.json", tmp_path / "tools.json"),
        "rows": put(f"{store}/team/rows.jsonl", tmp_path / "rows.jsonl"),
        "base": f"{store}/team/base",
    }
    requests.clear()
    in_s3 = load_config(profile("in-s3", **given))
    assert requests["GetObject"] == 6  # tools, rows and the four files of the base that count
    requests.clear()
    assert load_config(tmp_path / "in-s3.yaml") == in_s3 and not requests["GetObject"]
    uploaded = upload_inputs(local)
    assert works(local) == works(in_s3) == works(uploaded)
    assert places(uploaded) == {
        name: f"{store}/inputs/{source.sha256}" for name, source in inputs_in(local) if name != "evaluate.acebench"
    }
    for config in (in_s3, uploaded):
        config = Config.from_json(config.model_dump_json())  # as a pod reads it
        shutil.rmtree(own_home / "inputs", ignore_errors=True)
        assert config.data.tools.read_verified().read_bytes() == (tmp_path / "tools.json").read_bytes()
        assert config.data.seed_data.read_verified().name == "rows.jsonl"
        folder = config.teacher.base.read_verified()
        assert sorted(file.name for file in folder.iterdir()) == [
            "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        ]  # fmt: skip
        assert set(paths_in(config.with_places(("data", "teacher")))) == {
            own_home / "inputs" / source.sha256 for _, source in inputs_in(config)
        }
        requests.clear()
        assert config.teacher.base.read_verified() == folder and not requests
        (folder / "config.json").write_text("[]")  # a damaged copy is fetched again
        assert (config.teacher.base.read_verified() / "config.json").read_text() == "{}"


def test_the_rows_of_every_source_are_uploaded(
    tmp_path: Path, profile: Callable[..., Path], store: str, own_home: Path
) -> None:
    (tmp_path / "more.jsonl").write_text(json.dumps(ROW) + "\n\n")
    sources = "[{path: rows.jsonl, source: xlam, rows: 5}, {path: more.jsonl, source: mine}]"
    (tmp_path / "sources.yaml").write_text(f"extends: {profile('local').name}\ndata: {{sources: {sources}}}\n")
    local = load_config(tmp_path / "sources.yaml")
    uploaded = upload_inputs(local)
    assert works(uploaded) == works(local)
    in_pod = Config.from_json(uploaded.model_dump_json()).data.sources
    assert [source.path.path for source in in_pod] == [
        f"{store}/inputs/{source.path.sha256}" for source in local.data.sources
    ]
    assert [source.path.read_verified().name for source in in_pod] == ["rows.jsonl", "more.jsonl"]
    assert [(source.source, source.rows) for source in in_pod] == [("xlam", 5), ("mine", None)]


def test_a_gguf_file_is_the_same_base_from_a_disk_from_s3_and_uploaded(
    tmp_path: Path, profile: Callable[..., Path], store: str, own_home: Path
) -> None:
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    local = load_config(profile("local", base="small.gguf"))
    in_s3 = load_config(profile("in-s3", base=put(f"{store}/team/other.gguf", tmp_path / "small.gguf")))
    uploaded = upload_inputs(local)
    assert works(local) == works(in_s3) == works(uploaded)
    for config, name in ((in_s3, "other.gguf"), (uploaded, "small.gguf")):
        base = Config.from_json(config.model_dump_json()).teacher.base  # as a pod reads it
        assert base.read_verified() == own_home / "inputs" / base.sha256 / name
        assert base.read_verified().read_bytes() == b"GGUF"


def test_what_is_there_is_not_uploaded_again(profile: Callable[..., Path], requests: Counter) -> None:
    config = load_config(profile("local"))
    upload_inputs(config)
    # Three files of the base have the same two bytes, and are one object.
    assert requests["PutObject"] == 2 + 2 + 1
    requests.clear()
    upload_inputs(config)
    assert requests == {"HeadBucket": 1, "HeadObject": 7}


def test_an_upload_that_was_killed_goes_on_within_the_file(
    tmp_path: Path, profile: Callable[..., Path], requests: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_base(tmp_path / "large", size=24 * 2**20)
    file = profile("local", base="./large")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(file)], check=False)
    assert killed.returncode == -signal.SIGKILL
    monkeypatch.setattr(s3_transfer, "PART_BYTES", 5 * 2**20)
    config = load_config(file)
    with pytest.raises(
        InputError, match="NoSuchKey, the bucket or a file is missing"
    ):  # the list of the files is the last to be written
        upload_inputs_of_pod(config).teacher.base.read_verified()
    requests.clear()
    uploaded = upload_inputs(config)
    # The first three parts are there, and so are tools, rows and the small files.
    assert (requests["UploadPart"], requests["PutObject"]) == (2, 1)
    assert uploaded.teacher.base.read_verified().is_dir()


def test_a_fetch_that_was_cut_keeps_the_files_that_arrived(
    profile: Callable[..., Path], requests: Counter, own_home: Path
) -> None:
    base = upload_inputs(load_config(profile("local"))).teacher.base
    events = s3_client().meta.events

    def cut(**request: object) -> None:
        if requests["GetObject"] >= 4:  # the list and two files are there
            raise ConnectionError("cut")

    events.register("before-call.s3", cut)
    try:
        with pytest.raises(InputError, match="check AWS_ENDPOINT_URL, the credentials and the network; run again"):
            base.read_verified()
    finally:
        events.unregister("before-call.s3", cut)
    assert not (own_home / "inputs" / base.sha256).exists()
    requests.clear()
    assert base.read_verified().is_dir() and requests["GetObject"] == 3


def test_for_a_look_at_a_base_its_weights_are_not_fetched(profile: Callable[..., Path], own_home: Path) -> None:
    base = upload_inputs(load_config(profile("local"))).teacher.base
    files = sorted(file.name for file in base.read_description().iterdir())
    assert files == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    assert base.read_description() != base.read_verified() == base.read_description()
    unread = base.model_copy(update={"sha256": ""})  # of a configuration that was loaded for another stage
    with pytest.raises(InputError, match="was not hashed"):
        unread.read_verified()
    assert base.read_verified().is_dir()


def upload_inputs_of_pod(config: Config) -> Config:
    """The configuration as it would be after an upload."""
    base = config.teacher.base
    uploaded = base.model_copy(update={"path": f"{config.cluster.inputs}/{base.sha256}"})
    return config.model_copy(update={"teacher": config.teacher.model_copy(update={"base": uploaded})})


def test_two_may_upload_the_same_at_once(
    tmp_path: Path, profile: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_transfer, "PART_BYTES", 5 * 2**20)
    make_base(tmp_path / "large", size=24 * 2**20)
    config = load_config(profile("local", base="./large"))
    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(upload_inputs, config) for _ in range(3)]:
            assert done.result().teacher.base.read_verified().is_dir()


def test_a_changed_byte_is_refused(tmp_path: Path, profile: Callable[..., Path], store: str) -> None:
    uploaded = upload_inputs(load_config(profile("local")))
    weights = tmp_path / "base" / "model.safetensors"
    digest = sha256_of(weights)
    for url, read in (
        (f"{store}/inputs/{digest}", uploaded.teacher.base.read_verified),
        (uploaded.teacher.base.path, uploaded.teacher.base.read_verified),
        (uploaded.data.seed_data.path, uploaded.data.seed_data.read_verified),
    ):
        weights.write_bytes(b"another one")
        put(url, weights)
        with pytest.raises(InputError, match=f"{url} is not what the run was configured with"):
            read()
    tools = put(f"{store}/team/tools.json", tmp_path / "tools.json")
    config = load_config(profile("in-s3", tools=tools))
    put(tools, weights)
    with pytest.raises(InputError, match=f"{tools} is not what the run was configured with"):
        config.data.tools.read_verified()
    given = f"{{path: {tools}, sha256: {'a' * 64}}}"
    text = profile("given").read_text().replace('"tools.json"', given)
    (tmp_path / "given.yaml").write_text(text)
    with pytest.raises(InputError, match=f"{tools} is not what the run was configured with"):
        load_config(tmp_path / "given.yaml").data.tools.read_verified()


def test_an_object_whose_name_leads_elsewhere_is_refused(
    tmp_path: Path, store: str, s3_store: dict[str, str], own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_store.items():  # moto: SeaweedFS makes one slash of two
        monkeypatch.setenv(name, value)
    (tmp_path / "data.json").write_text("{}")
    put(f"{store}/bench/data.json", tmp_path / "data.json")
    put(f"{store}/bench/{tmp_path}/planted", tmp_path / "data.json")  # s3://models/.../bench//tmp/...
    file = tmp_path / "my.yaml"
    file.write_text(f"{{extends: tiny, evaluate: {{acebench: {store}/bench}}}}")
    with pytest.raises(InputError, match="a part of its name is empty"):
        load_config(file)
    checkout = Checkout(path=f"{store}/bench", sha256="0" * 64)
    with pytest.raises(InputError, match="a part of its name is empty"):
        checkout.read_verified()
    assert not (tmp_path / "planted").exists()


def test_a_file_is_no_folder_and_dots_are_no_name(profile: Callable[..., Path], store: str, own_home: Path) -> None:
    uploaded = upload_inputs(load_config(profile("local")))
    tools = uploaded.data.tools
    with pytest.raises(InputError, match="is a file, and a folder is read here"):
        uploaded.teacher.base.model_copy(update={"path": tools.path, "sha256": tools.sha256}).read_verified()
    for name in ("..", ".", "a/b"):
        with pytest.raises(ValidationError):
            FileRef(path=tools.path, sha256=tools.sha256, name=name)


def test_who_shares_the_work_can_read_what_was_fetched(
    profile: Callable[..., Path], own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = upload_inputs(load_config(profile("local")))
    shutil.rmtree(own_home / "inputs", ignore_errors=True)
    monkeypatch.setenv("STAR_SHARED_WITH", "group")
    for path in (config.teacher.base.read_verified(), config.data.tools.read_verified()):
        folder = path if path.is_dir() else path.parent
        assert folder.stat().st_mode & 0o7777 == 0o2770
        assert {file.stat().st_mode & 0o770 for file in folder.iterdir()} == {0o660}
    shutil.rmtree(own_home / "inputs" / config.teacher.base.sha256)
    partial = own_home / "inputs" / f".{config.teacher.base.sha256}.arriving"
    partial.mkdir()
    (partial / ".config.json.arriving").symlink_to(own_home / "planted")
    with pytest.raises(InputError, match="is a link"):
        config.teacher.base.read_verified()
    assert not (own_home / "planted").exists()


def test_a_mistyped_bucket_is_not_made(profile: Callable[..., Path]) -> None:
    config = load_config(profile("local"))
    mistyped = config.cluster.model_copy(update={"inputs": "s3://modells/inputs"})
    with pytest.raises(InputError, match="has no bucket modells: make it, or correct the URL"):
        upload_inputs(config.model_copy(update={"cluster": mistyped}))


def test_a_file_that_changes_before_its_upload_is_refused(tmp_path: Path, profile: Callable[..., Path]) -> None:
    config = load_config(profile("local"))
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"rows\.jsonl has changed while it was read"):
        upload_inputs(config)


def test_a_compiled_pipeline_names_what_pods_can_read(tmp_path: Path, profile: Callable[..., Path], store: str) -> None:
    config = load_config(profile("local"))
    with pytest.raises(InputError, match=r"`data.tools` is /.*tools\.json on this machine.*star pipeline submit"):
        compile_pipeline(config, tmp_path / "star.yaml")
    trusting = config.cluster.model_copy(update={"certificates": "company-ca"})
    upload_and_compile(config.model_copy(update={"cluster": trusting}), tmp_path / "star.yaml")
    text = (tmp_path / "star.yaml").read_text()
    assert str(tmp_path) not in text and f"{store}/inputs/{config.teacher.base.sha256}" in text
    [pipeline, platforms] = yaml.load_all(text, Loader=yaml.CSafeLoader)
    executors = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    with_keys = {name.removeprefix("exec-") for name, given in executors.items() if "secretAsEnv" in given}
    assert with_keys == {"preflight", "synthesize", "refine-teacher", "evaluate", "register"}
    [mounted] = executors["exec-synthesize"]["configMapAsVolume"]
    assert (mounted["configMapName"], mounted["optional"]) == ("company-ca", True)
    container = pipeline["deploymentSpec"]["executors"]["exec-synthesize"]["container"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert variables["SSL_CERT_FILE"] == variables["REQUESTS_CA_BUNDLE"] == f"{mounted['mountPath']}/ca.pem"
    nowhere = config.model_copy(update={"cluster": config.cluster.model_copy(update={"inputs": None})})
    with pytest.raises(InputError, match=r"`data.tools` is on this machine.*set `cluster.inputs: s3://BUCKET/inputs`"):
        upload_and_compile(nowhere, tmp_path / "star.yaml")


@pytest.mark.slow
def test_rows_and_a_base_from_s3_give_the_same_bytes(
    tmp_path: Path, store: str, micro: Config, finished: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = (finished["synthesize"] / "heldout.jsonl").read_text().splitlines()
    rows.write_text("\n".join([*lines, "no JSON"]))  # its reject is named after the file
    base = tmp_path / "base"
    shutil.copytree(finished["distill"], base)
    for file in base.iterdir():
        put(f"{store}/base/{file.name}", file)
    local = with_inputs(micro, rows=str(rows), base=str(base))
    in_s3 = with_inputs(micro, rows=put(f"{store}/rows.jsonl", rows), base=f"{store}/base", name="in-s3")
    uploaded = upload_inputs(local.model_copy(update={"cluster": Cluster(inputs=f"{store}/inputs")}))
    made = [make(local, finished, tmp_path / "local", monkeypatch)]
    shutil.rmtree(base)
    rows.unlink()
    made += [make(config, finished, tmp_path / config.name, monkeypatch) for config in (in_s3, uploaded)]
    assert made[0] == made[1] == made[2]
    assert "rows.jsonl:13" in (tmp_path / "in-s3" / "data" / "rejects.jsonl").read_text()


def make(
    config: Config, finished: dict[str, Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, str]]:
    """The work and the content of two stages, done in a home of their own."""
    monkeypatch.setenv("STAR_HOME", str(home))
    home.mkdir()
    stages.synthesize(config, out=home / "data")
    stages.distill(config, topk=finished["extract-topk"], out=home / "model")
    return [(found.fingerprint, found.digest) for found in map(read_manifest, (home / "data", home / "model"))]


def with_inputs(config: Config, *, rows: str, base: str, name: str = "uploaded") -> Config:
    content = {**json.loads(config.model_dump_json()), "name": name}
    content["data"]["seed_data"] = rows
    content["student"]["base"] = base
    return Config.model_validate(content)
