"""Folders in S3, against a real server of the protocol over loopback, and a proxy before it that fails on demand."""

import http.client
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from star.errors import InputError
from star.folders import s3_client, s3_transfer
from star.folders.manifest import Manifest, open_input
from star.folders.publish import publish
from star.folders.s3 import download_folder, manifests_below, upload_folder
from star.folders.s3_client import S3Folder, is_s3_url
from star.folders.workspace import open_workspace
from star.hashing import sha256_of
from star.registry.location import split_s3

URL = "s3://bucket/runs/topk"


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


class Proxy(ThreadingHTTPServer):
    """Passes requests on to the server; `fault(method, path)` names what goes wrong with one: 500, 503 or cut."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.upstream, self.seen = upstream, []
        self.fault: Callable[[str, str], str | None] = lambda method, path: None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        self.server.seen.append((self.command, self.path))
        fault = self.server.fault(self.command, self.path)
        if fault == "cut" and self.command != "GET":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault in ("500", "503"):
            code = "InternalError" if fault == "500" else "SlowDown"
            self.answer(int(fault), {"Content-Type": "application/xml"}, f"<Error><Code>{code}</Code></Error>".encode())
            return
        upstream = http.client.HTTPConnection(self.server.upstream)
        upstream.request(self.command, self.path, body, dict(self.headers))
        response = upstream.getresponse()
        content = response.read()
        headers = {k: v for k, v in response.getheaders() if k.lower() not in ("transfer-encoding", "connection")}
        self.answer(response.status, headers, content, cut=fault == "cut")

    def answer(self, status: int, headers: dict[str, str], content: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in (
            headers if self.command == "HEAD" else headers | {"Content-Length": str(len(content))}
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def proxy(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    server = Proxy(moto)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    for module in (s3_transfer, s3_client):
        monkeypatch.setattr(module, "ATTEMPTS", 2)  # what eight attempts do, in seconds
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    yield server
    for entry in client.list_objects_v2(Bucket="bucket").get("Contents", []):
        client.delete_object(Bucket="bucket", Key=entry["Key"])
    for upload in client.list_multipart_uploads(Bucket="bucket").get("Uploads", []):
        client.abort_multipart_upload(Bucket="bucket", Key=upload["Key"], UploadId=upload["UploadId"])
    server.shutdown()
    server.server_close()


def make_folder(out: Path, *, fill: str = "a", size: int = 1000) -> Path:
    with open_workspace(out, stage="extract-topk", fingerprint=fill, resume=True) as workspace:
        (workspace.out / "tokenizer").mkdir()
        (workspace.out / "tokenizer" / "tokenizer.json").write_text("{}")
        (workspace.out / "shard").write_bytes(fill.encode() * size)
        publish(workspace.out, out=out, manifest=Manifest("extract-topk", fill, "c", "d", "0", {}))
    return out


def keys() -> set[str]:
    return {entry["Key"] for entry in boto3.client("s3").list_objects_v2(Bucket="bucket").get("Contents", [])}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def failing(times: int, fault: str, *parts: str) -> Callable[[str, str], str | None]:
    """The fault for the first `times` requests whose method or path has all of `parts`."""
    left = [times]

    def fail(method: str, path: str) -> str | None:
        if left[0] and all(part in f"{method} {path}" for part in parts):
            left[0] -= 1
            return fault
        return None

    return fail


def test_a_folder_comes_back_as_it_was_and_is_sent_once(proxy: Proxy, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "topk")
    upload_folder(folder, URL)
    assert next(path for method, path in reversed(proxy.seen) if method == "PUT").endswith("manifest.json")
    copy = download_folder(Path(URL), tmp_path / "here")
    assert contents(copy) == contents(folder)
    assert open_input(copy, stage="extract-topk")
    proxy.seen.clear()
    upload_folder(folder, URL)
    assert {method for method, _ in proxy.seen} == {"GET"}
    proxy.seen.clear()
    download_folder(URL, tmp_path / "here")
    assert all("manifest.json" in path for _, path in proxy.seen)


@pytest.mark.parametrize(
    ("fault", "where"),
    [("500", ("PUT", "shard")), ("503", ("PUT", "manifest")), ("cut", ("PUT", "shard")), ("cut", ("GET", "shard"))],
)
def test_a_store_that_fails_is_asked_again(proxy: Proxy, tmp_path: Path, fault: str, where: tuple[str, ...]) -> None:
    folder = make_folder(tmp_path / "topk")
    proxy.fault = failing(1, fault, *where)
    upload_folder(folder, URL)
    proxy.fault = failing(1, fault, "GET", "shard")
    assert contents(download_folder(URL, tmp_path / "here")) == contents(folder)


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("500", "shard"),
        ("cut", "manifest.json"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in [("503", "shard"), ("500", "manifest.json"), ("cut", "tokenizer.json")]
        ),
    ],
)
def test_a_store_that_keeps_failing_publishes_nothing(proxy: Proxy, tmp_path: Path, fault: str, name: str) -> None:
    folder = make_folder(tmp_path / "topk")
    proxy.fault = failing(1000, fault, "PUT", name)
    with pytest.raises(InputError, match=r"s3://bucket/runs/topk.*(again later|run again)") as error:
        upload_folder(folder, URL)
    assert "\n" not in str(error.value)
    assert "runs/topk/manifest.json" not in keys()
    with pytest.raises(InputError, match=r"s3://bucket/runs/topk has no manifest\.json"):
        download_folder(URL, tmp_path / "here")
    proxy.fault = failing(0, "")
    upload_folder(folder, URL)
    assert contents(download_folder(URL, tmp_path / "here")) == contents(folder)


def test_a_newer_result_is_never_mixed_with_an_older_one(proxy: Proxy, tmp_path: Path) -> None:
    upload_folder(make_folder(tmp_path / "old"), URL)
    newer = make_folder(tmp_path / "new", fill="b")
    proxy.fault = failing(1000, "500", "PUT", "shard")
    with pytest.raises(InputError):
        upload_folder(newer, URL)
    with pytest.raises(InputError, match=r"no manifest\.json"):
        download_folder(URL, tmp_path / "here")
    proxy.fault = failing(0, "")
    upload_folder(newer, URL)
    assert contents(download_folder(URL, tmp_path / "here")) == contents(newer)


def test_a_cut_upload_of_a_large_file_goes_on(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_transfer, "PART_BYTES", 5 * 2**20)
    folder = make_folder(tmp_path / "topk", size=12 * 2**20)
    proxy.fault = failing(1000, "cut", "PUT", "partNumber=3")
    with pytest.raises(InputError):
        upload_folder(folder, URL)
    proxy.fault = failing(0, "")
    proxy.seen.clear()
    upload_folder(folder, URL)
    sent = [path for method, path in proxy.seen if method == "PUT" and "partNumber" in path]
    assert len(sent) == 1 and "partNumber=3" in sent[0]
    assert contents(download_folder(URL, tmp_path / "here")) == contents(folder)


def test_a_begun_upload_of_another_content_is_not_continued(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_transfer, "PART_BYTES", 5 * 2**20)
    proxy.fault = failing(1000, "500", "PUT", "partNumber=2")
    with pytest.raises(InputError):
        upload_folder(make_folder(tmp_path / "old", size=6 * 2**20), URL)
    proxy.fault = failing(0, "")
    newer = make_folder(tmp_path / "new", fill="b", size=6 * 2**20)
    upload_folder(newer, URL)
    assert contents(download_folder(URL, tmp_path / "here")) == contents(newer)
    head = boto3.client("s3").head_object(Bucket="bucket", Key="runs/topk/shard")
    assert head["Metadata"]["sha256"] == sha256_of(newer / "shard")


def test_a_file_that_was_changed_there_is_refused_by_name(proxy: Proxy, tmp_path: Path) -> None:
    upload_folder(make_folder(tmp_path / "topk"), URL)
    boto3.client("s3").put_object(Bucket="bucket", Key="runs/topk/shard", Body=b"b" * 1000)
    with pytest.raises(InputError, match="runs/topk/shard is not what its manifest says"):
        download_folder(URL, tmp_path / "here")


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_others_put_in_a_files_place_is_replaced(proxy: Proxy, tmp_path: Path, when: str) -> None:
    folder = make_folder(tmp_path / "topk")
    if when == "after":
        upload_folder(folder, URL)
    # Of the right size, and with the right sha256 as far as its metadata go.
    planted = {"Body": b"b" * 1000, "Metadata": {"sha256": sha256_of(folder / "shard")}}
    boto3.client("s3").put_object(Bucket="bucket", Key="runs/topk/shard", **planted)
    upload_folder(folder, URL)
    assert contents(download_folder(URL, tmp_path / "here")) == contents(folder)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"files": [{"path": 5, "size": 1, "sha256": "", "rows": null}]}', "[]"]
)
def test_a_manifest_of_another_form_is_refused_by_name(proxy: Proxy, tmp_path: Path, text: str) -> None:
    boto3.client("s3").put_object(Bucket="bucket", Key="runs/topk/manifest.json", Body=text.encode())
    with pytest.raises(InputError, match=r"runs/topk/manifest\.json is damaged"):
        download_folder(URL, tmp_path / "here")


def test_a_manifest_cannot_name_files_elsewhere(proxy: Proxy, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "topk")
    upload_folder(folder, URL)
    manifest = (folder / "manifest.json").read_text().replace('"shard"', '"../../shard"')
    boto3.client("s3").put_object(Bucket="bucket", Key="runs/topk/manifest.json", Body=manifest.encode())
    with pytest.raises(InputError, match="outside its folder"):
        download_folder(URL, tmp_path / "here")


def test_what_a_killed_download_left_is_removed(proxy: Proxy, tmp_path: Path) -> None:
    upload_folder(make_folder(tmp_path / "topk"), URL)
    fetched = download_folder(URL, tmp_path / "fetched")
    (fetched / ".rows.bin.tmp.1a2B3c4D").write_bytes(b"half")
    (fetched / "of-an-older-result.jsonl").touch()
    download_folder(URL, tmp_path / "fetched")
    assert contents(fetched) == contents(tmp_path / "topk")


def test_a_missing_bucket_and_a_dead_store_are_one_line(proxy: Proxy, tmp_path: Path, monkeypatch) -> None:
    folder = make_folder(tmp_path / "topk")
    with pytest.raises(InputError, match="NoSuchBucket, the bucket or a file is missing"):
        upload_folder(folder, "s3://nowhere/topk")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(InputError, match="check AWS_ENDPOINT_URL"):
            upload_folder(folder, URL)


@pytest.mark.parametrize("url", ["s3://", "s3://bucket", "s3://bucket/"])
def test_a_place_needs_a_bucket_and_a_folder(url: str) -> None:
    assert is_s3_url(url) and is_s3_url(Path(url + "x"))
    with pytest.raises(InputError, match="is not like s3://bucket/folder"):
        S3Folder.parse(url)


@pytest.mark.slow
@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/../../planted",
        "s3://bucket/a/../../../planted",
        "s3://../planted",
        "s3:/bucket/..",
        "s3://bucket/a/./b",
    ],
)
def test_a_place_does_not_lead_out_of_the_local_copies(url: str, tmp_path: Path) -> None:
    for at in (url, Path(url)):
        # A Path has no `.` parts any more.
        if not (isinstance(at, Path) and "/./" in url):
            with pytest.raises(InputError, match=r"is refused: a part of it is `\.` or `\.\.`"):
                download_folder(at, tmp_path / "a" / "b" / "fetched")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="is refused"):
        split_s3(str(url).replace("s3:/b", "s3://b"))


def test_an_object_whose_key_leads_out_does_not_hide_others(
    proxy: Proxy, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    upload_folder(make_folder(tmp_path / "topk"), URL)
    client = boto3.client("s3")
    client.put_object(Bucket="bucket", Key="runs/../../planted/manifest.json", Body=b"{}")
    assert [found for found, _ in manifests_below("s3://bucket/runs")] == [URL]
    assert "s3://bucket/runs/../../planted/manifest.json is refused" in capsys.readouterr().err


def test_a_stage_reads_from_and_writes_to_s3(proxy: Proxy, finished: dict[str, Path], tmp_path: Path) -> None:
    for name in ("rollout", "refine-teacher"):
        upload_folder(finished[name], f"s3://bucket/{name}")
    config = Path(__file__).parents[1] / "micro.yaml"
    command = [sys.executable, "-m", "star.cli", "extract-topk", f"--config={config}", f"--out={URL}"]
    options = ["--rollouts=s3://bucket/rollout", "--teacher=s3://bucket/refine-teacher"]
    for _ in range(2):
        done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    copy = download_folder(URL, tmp_path / "here")
    made = open_input(copy, stage="extract-topk")
    assert made.digest == open_input(finished["extract-topk"], stage="extract-topk").digest
    shutil.rmtree(copy)
