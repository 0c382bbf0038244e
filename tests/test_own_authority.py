"""Servers with a certificate of a company's own authority: every client trusts it by the variables that the profile's tasks get."""

import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from threading import Thread

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from star.config.cluster import CERTIFICATES_PATH, Cluster

# Asks the server as the hub's client, boto3, MLflow's client (requests) and STAR's own do. Any answer of HTTP is one.
ASK = """
import json, os, sys
import requests
from huggingface_hub import HfApi
from star.folders.s3_client import _client_of
from star.http_client import send

url, refused = sys.argv[1], {}
for name, ask in {
    "hub": lambda: HfApi().model_info("team/base"),
    "boto3": lambda: _client_of(url, 1, 0).head_object(Bucket="star", Key="key"),
    "requests": lambda: requests.get(url, timeout=5),
    "star": lambda: send("GET", url, name="a server", seconds=5),
}.items():
    try:
        ask()
    except Exception as error:
        refused[name] = any(word in repr(error).lower() for word in ("certificate", "ssl"))
print(json.dumps(sorted(name for name, by_certificate in refused.items() if by_certificate)))
"""


class NotFound(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


def issue(folder: Path) -> None:
    """Writes the certificate of an authority, ca.pem, and one of a server at 127.0.0.1 with its key, server.pem."""
    now, pem = datetime.now(UTC), serialization.Encoding.PEM
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name, name = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("Own authority", "server"))
    usage = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    )

    def certificate(subject: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        named = x509.CertificateBuilder().subject_name(subject).issuer_name(ca_name).public_key(public_key)
        valid = named.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        return valid.serial_number(x509.random_serial_number()).add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )

    ca = certificate(ca_name, ca_key.public_key()).add_extension(x509.BasicConstraints(True, None), critical=True)
    ca = ca.add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
    ca = ca.add_extension(
        x509.KeyUsage(**usage, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False),
        critical=True,
    )
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    server = certificate(name, key.public_key()).add_extension(names, critical=False)
    (folder / "ca.pem").write_bytes(ca.sign(ca_key, hashes.SHA256()).public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(server.sign(ca_key, hashes.SHA256()).public_bytes(pem) + private)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """The address of a server with such a certificate."""
    issue(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), NotFound) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_every_client_trusts_the_certificates_of_the_profile(tmp_path: Path, url: str) -> None:
    given = Cluster(certificates="company-ca").variables
    assert set(given.values()) == {f"{CERTIFICATES_PATH}/ca.pem"}

    def refused_by(variables: dict[str, str]) -> list[str]:
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
        own = {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", **keys, **variables}
        environment = {name: value for name, value in os.environ.items() if name not in given} | own
        asked = subprocess.run(
            [sys.executable, "-c", ASK, url], env=environment, capture_output=True, text=True, check=True
        )
        return json.loads(asked.stdout)

    assert refused_by({}) == ["boto3", "hub", "requests", "star"]
    assert refused_by(dict.fromkeys(given, str(tmp_path / "ca.pem"))) == []
