"""Signs the ledger's records, and checks their signatures, with the Ed25519 key that STAR_LEDGER_KEY refers to.

    STAR_LEDGER_KEY=/run/secrets/ledger.pem    a file
    STAR_LEDGER_KEY=env:LEDGER_PEM             a variable that holds the file's text

The text is PEM. Who promotes needs the private key (`openssl genpkey -algorithm ed25519`). Who only reads needs the
public one (`openssl pkey -pubout`). Several keys may follow each other: the first private one signs, all are accepted,
so that records of a key that was replaced stay valid. A key and not a password of both sides, because who can check a
signature must not be able to make one.

A signature has the form `<first 16 digits of the public key's sha256>:<base64>`.
"""

import base64
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from star.errors import InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KEY_VARIABLE = "STAR_LEDGER_KEY"
LONGEST_TEXT = 1 << 20  # characters of keys
_PREFIX = b"star ledger record "  # so that a signature made for something else is none of a record
_PEM = re.compile(r"-----BEGIN (PRIVATE|PUBLIC) KEY-----.*?-----END \1 KEY-----", re.DOTALL)


@dataclass(frozen=True)
class LedgerKeys:
    """The keys of STAR_LEDGER_KEY."""

    private: "Ed25519PrivateKey | None"
    public: "dict[str, Ed25519PublicKey]"  # by id

    def sign(self, digest: str) -> str:
        """The signature of a record with that digest.

        Raises:
            InputError: there is only a public key.
        """
        if self.private is None:
            raise InputError(f"{KEY_VARIABLE} holds no private key, so nothing can be decided: give the private key")
        signature = base64.b64encode(self.private.sign(_PREFIX + digest.encode())).decode()
        return f"{_key_id(self.private.public_key())}:{signature}"

    def verify(self, digest: str, signature: str) -> bool:
        """Whether the signature is of one of these keys over that digest."""
        from cryptography.exceptions import InvalidSignature

        key_id, _, encoded = signature.partition(":")
        try:
            self.public[key_id].verify(base64.b64decode(encoded, validate=True), _PREFIX + digest.encode())
        except (KeyError, ValueError, InvalidSignature):
            return False
        return True


def ledger_keys() -> LedgerKeys | None:
    """The keys of STAR_LEDGER_KEY, or None where it is not set.

    Raises:
        InputError: it refers to nothing, or to something that is not PEM with an Ed25519 key.
    """
    if not (given := os.environ.get(KEY_VARIABLE)):
        return None
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    form = f"{KEY_VARIABLE} must be the path of a PEM file with an Ed25519 key, or env:NAME"
    private, public = None, {}
    for block in _PEM.finditer(_text(given, form=form)):
        try:
            if block[1] == "PRIVATE":
                found = serialization.load_pem_private_key(block[0].encode(), password=None)
                if not isinstance(found, Ed25519PrivateKey):
                    raise InputError(f"{form}: it holds a key of another kind")
                private = private or found
                key = found.public_key()
            else:
                read = serialization.load_pem_public_key(block[0].encode())
                if not isinstance(read, Ed25519PublicKey):
                    raise InputError(f"{form}: it holds a key of another kind")
                key = read
        except ValueError as error:  # its message could quote the key
            raise InputError(f"{form}: a key in it cannot be read") from error
        public[_key_id(key)] = key
    if not public:
        raise InputError(f"{form}: there is no PRIVATE KEY or PUBLIC KEY in it")
    return LedgerKeys(private, public)


def _text(given: str, *, form: str) -> str:
    if given.startswith("-----"):
        raise InputError(f"{form}, not the key itself")
    if given.startswith("env:"):
        name = given.removeprefix("env:")
        if name not in os.environ:
            raise InputError(f"{form}: there is no variable {name}")
        return os.environ[name]
    try:
        with Path(given).expanduser().open(encoding="utf-8") as file:
            return file.read(LONGEST_TEXT)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InputError(f"{form}: the file cannot be read ({reason})") from error


def _key_id(key: "Ed25519PublicKey") -> str:
    from cryptography.hazmat.primitives import serialization

    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]
