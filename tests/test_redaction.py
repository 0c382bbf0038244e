"""What is masked in a text, what in an error, and what a text shows by its form."""

import io
import json
import subprocess
import sys
import traceback
from html import escape
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from star.redaction import (
    find_secret,
    known_masked,
    looks_random,
    names_secret,
    redact_error,
    redacted,
    redacted_values,
)
from star.terminal import guarded

SECRET = 'a"quoted/secret&7'
URL = "http://me:hunter22@host/x"
WITH_SECRET = {
    "postgres://me:hunter22@host/x": "postgres://host/x",
    "to http://me:p@ss@host:5000, now": "to http://host:5000, now",
    "redis://:hunter22@host": "redis://host",
    "mysql+pymysql://me:pass/word@host/x": "mysql+pymysql://host/x",
    "https://host/x?api_key=abc&page=2": "https://host/x?api_key=***&page=2",
    "https://host/x?X-Amz-Signature=abc": "https://host/x?X-Amz-Signature=***",
    "host=db user=me password=hunter22": "host=db user=me password=***",
    "{'Authorization': 'Bearer abcdefg'}": "{'Authorization': 'Bearer ***'}",
    "Authorization: Basic dXNlcjpwYXNz": "Authorization: Basic ***",
    "Bearer 0123456789abcdef": "Bearer ***",
    "token hf_" + "aB3" * 11: "token ***",
    "id AKIAABCDEFGHIJKLMNOP": "id ***",
    "ghp_" + "aB3" * 12: "***",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-_": "***",
    "-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: AES-128-CBC\nabc\n-----END RSA PRIVATE KEY-----\nend": "***\nend",
    "DefaultEndpointsProtocol=https;AccountKey=abc==;EndpointSuffix=x": "DefaultEndpointsProtocol=https;AccountKey=***;EndpointSuffix=x",
}
WITHOUT_SECRET = (
    "http://mlflow.star.svc.cluster.local:5000",
    "http://host:5000/users/@me",
    "http://[::1]:8000/a@b",
    "s3://bucket/folder@v2",
    "sqlite:////home/me/mlflow.db",
    "registry.example.com/star-python@sha256:" + "0a" * 32,
    "docker://busybox:1@sha256:" + "0a" * 32,
    "b968826d9c46dd6066d109eabc6255188de91218",
    "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6",
    "Llama3Instruct8BContext128k",
    "arn:aws:iam::123456789012:role/MyRoleForTraining2024",
    "expandable_segments:True,max_split_size_mb:128",
    "the bearer of the token, and its author",
    "task-0123456789abcdef0123456789",
)


@pytest.mark.parametrize("text", WITH_SECRET)
def test_what_shows_by_its_form_is_masked_and_named(text: str) -> None:
    assert redacted(text) == WITH_SECRET[text]
    assert find_secret(text)
    assert redacted(redacted(text)) == redacted(text)


@pytest.mark.parametrize("text", WITHOUT_SECRET)
def test_ordinary_values_are_left_alone(text: str) -> None:
    assert redacted(text) == text
    assert find_secret(text) is None
    assert not looks_random(text)


def test_a_user_without_a_password_is_not_refused_and_not_shown() -> None:
    assert find_secret("postgresql://mlflow@db/mlflow") is None
    assert find_secret("http://mlflow:$(MLFLOW_PASSWORD)@mlflow:5000") is None
    assert redacted("ssh://git@host/x") == "ssh://host/x"


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        *((name, True) for name in ("HF_TOKEN", "PGPASS", "DB_DSN", "HF_HUB_PAT", "MY_PW", "SMTP_PASS", "AWS_ACCESS_KEY_ID")),
        *((name, False) for name in ("TOKENIZERS_PARALLELISM", "PWD", "OLDPWD", "PATH", "AUTHOR", "SA_TOKEN_PATH", "NPATCH")),
    ],
)  # fmt: skip
def test_names_of_secrets(name: str, is_secret: bool) -> None:
    assert names_secret(name) == is_secret


@pytest.mark.parametrize("name", ["MY_API_TOKEN", "PGPASS", "SOME_DSN"])
def test_a_secret_of_the_environment_is_masked_in_every_form(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, SECRET)
    twice = json.dumps(json.dumps(SECRET))
    forms = [SECRET, json.dumps(SECRET), repr(SECRET), escape(SECRET), quote(SECRET), quote(SECRET, safe=""), twice]
    for text in forms:
        assert "secret" not in known_masked(f"a {text} b")
    monkeypatch.delenv(name)
    assert known_masked(SECRET) == SECRET


def test_what_addresses_of_the_environment_hold_is_masked_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:hunter22@proxy:3128")
    monkeypatch.setenv("SERVICE", "https://host/x?access_token=wonderland")
    monkeypatch.setenv(
        "STAR_WEBHOOK", "https://hooks.example.com/services/T0AAAAAAA/B0BBBBBBB/abcdefghijkl?sig=opensesame"
    )
    said = "hunter22, wonderland; url: /services/T0AAAAAAA/B0BBBBBBB/abcdefghijkl?sig=opensesame (host='hooks.example.com')"
    assert known_masked(said) == "***, ***; url: /*** (host='hooks.example.com')"
    assert known_masked("abcdefghijkl opensesame") == "*** ***"


def test_a_referred_key_is_masked_and_its_reference_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_LEDGER_KEY", "env:SIGNING")
    monkeypatch.setenv("SIGNING", "-----BEGIN PRIVATE KEY-----\nabcdefghijkl\n-----END PRIVATE KEY-----\n")
    assert known_masked("env:SIGNING, abcdefghijkl") == "env:SIGNING, ***"


def test_short_values_and_paths_are_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    monkeypatch.setenv("GOOGLE_CREDENTIALS", str(tmp_path))
    assert known_masked(f"abc {tmp_path}") == f"abc {tmp_path}"


def test_keys_of_objects_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "mlflow")
    event = {"kind": "tags", "values": {"mlflow.user": "the mlflow user"}, "step": 3, "list": ["mlflow"]}
    assert redacted_values(event) == {
        "kind": "tags", "values": {"mlflow.user": "the *** user"}, "step": 3, "list": ["***"],
    }  # fmt: skip


def test_random_values_look_random() -> None:
    assert looks_random("Zx81mQ0rT7uVb2Yk9LdEw4Sg6HnPj3Fc5Aa")
    assert not looks_random("averylongnameofabucketwithoutdigits")


class OddError(Exception):
    """An error whose text is not in its arguments."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url

    def __str__(self) -> str:
        return f"no answer from {self.url}"


def printed(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def fail_in_three_steps(url: str) -> None:
    try:
        try:
            raise OddError(url)
        except OddError:
            raise KeyError(url, ValueError(f"within {url}"))  # noqa: B904 - an error without a cause
    except KeyError as error:
        error.add_note(f"seen at {url}")
        raise FileNotFoundError(2, "missing", url) from error


def test_an_error_is_masked_with_all_that_is_behind_it() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        fail_in_three_steps(URL)
    assert printed(caught.value).count("hunter22") == 5
    assert redact_error(caught.value) is caught.value
    assert "hunter22" not in printed(caught.value)
    assert printed(caught.value).count("http://host/x") == 5
    assert "RedactedError: OddError: no answer from" in printed(caught.value)


def test_an_error_that_cannot_be_masked_has_a_stand_in() -> None:
    try:
        raise OddError("http://me:hunter22@host/x") from ValueError("because")
    except OddError as error:
        masked = redact_error(error)
    assert str(masked) == "OddError: no answer from http://host/x"
    assert "because" in printed(masked) and "in test_an_error_that_cannot" in printed(masked)


def test_an_error_without_secrets_keeps_its_arguments() -> None:
    error = ValueError("plain", 3, {"a": 1})
    arguments = error.args
    assert redact_error(error) is error and error.args == arguments
    group = ExceptionGroup("several", [ValueError("http://me:hunter22@host")])
    assert "hunter22" not in printed(redact_error(group))


def test_a_guarded_process_prints_no_secret_in_its_last_traceback() -> None:
    program = (
        "from star.terminal import guard_terminal; guard_terminal(); import threading, logging\n"
        "def fail(): raise ValueError('http://me:hunter22@host')\n"
        "thread = threading.Thread(target=fail); thread.start(); thread.join()\n"
        "logging.warning('http://me:hunter22@host'); print('http://me:hunter22@host')\n"
        "import os, rich.table; os.environ['HF_TOKEN'] = 'hunter22'; table = rich.table.Table('h', width=8)\n"
        "table.add_row('hunter22'); from star.terminal import console; console().print(table)\n"
        "fail()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert (done.stdout + done.stderr).count("http://host") == 4
    assert "hunt" not in done.stdout + done.stderr and "***" in done.stdout


def test_data_on_stdout_keeps_what_only_looks_like_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "wonderland")
    screen = io.StringIO()
    guarded(screen, mask=known_masked).write('{"url": "https://host?key=abc", "token": "wonderland"}')
    assert screen.getvalue() == '{"url": "https://host?key=abc", "token": "***"}'


@given(
    secret=st.text(min_size=6, max_size=30).map(str.strip).filter(lambda text: len(text) > 5),
    around=st.text(max_size=20),
)
def test_no_secret_of_the_environment_is_left(secret: str, around: str) -> None:
    assume("\0" not in secret and secret not in around and not set(secret) <= set("*"))
    with pytest.MonkeyPatch.context() as patch:
        try:
            patch.setenv("SOME_TOKEN", secret)
        except UnicodeEncodeError:  # half of a surrogate pair is no variable's value
            return
        for text in (around + secret + around, json.dumps({"a": around + secret}), quote(secret, safe="") + around):
            masked = known_masked(text)
            assert "***" in masked
            assert secret not in masked.replace("***", "\0")


@pytest.mark.parametrize(
    "text",
    [
        "://" * 100_000, "a" * 300_000 + "://", "http://a:b" * 20_000, "?key=" * 60_000, "authorization " * 20_000,
        "eyJ" + "a." * 150_000, "-----BEGIN PRIVATE KEY-----" * 10_000, "bearer " * 40_000, "sk-" * 60_000,
    ],
    ids=range(9),
)  # fmt: skip
def test_no_text_takes_long(text: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, resource; from star.redaction import redacted; text = sys.stdin.read()\n"
         "resource.setrlimit(resource.RLIMIT_CPU, (5, 5)); redacted(text)"],
        input=text, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
