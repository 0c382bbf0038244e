"""Makes an ordinary model folder of a base that is a GGUF file, so that everything else reads one form.

    <home>/inputs/<sha256 of the file>/model-<version>/     config.json, model.safetensors in fp32, tokenizer, chat template

It is made once per home, by a child process (gguf_child.py) after the file's header was checked (gguf_header.py), and
found again by the file's sha256. `star clean` removes it when it has not been used for a while. The stages treat it as a
folder that somebody else has made: chat template and tokenizer are tried before they are loaded (trial.py).
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from transformers import __version__ as transformers_version

from star.config.model_files import digest_of_model_folder
from star.config.safety import current_safety
from star.digest_cache import remember_moved
from star.errors import InputError
from star.folders.owners import create_private, file_mode, refuse_others, write_own_file
from star.folders.s3_inputs import fetched_place, only_one
from star.modeling.gguf_header import GgufHeader, read_gguf_header
from star.modeling.trial import PASSED_ON, WAITED
from star.progress import Bar

CHILD = Path(__file__).with_name("gguf_child.py")
CONVERSION = f"2-{transformers_version}"  # of the code that makes the folder; another version makes it again
THREADS = 4
# What Python, numpy, torch and the loader of libraries say when they get no memory.
WITHOUT_MEMORY = ("MemoryError", "llocate", "ot enough memory", "failed to map")
START_SECONDS, START_BYTES = 60, 2**30  # for the imports of torch and transformers
# Of CPU time and of memory for each parameter: the slowest formats take 50 ns, and a model is held twice for a moment.
SECONDS_PER_PARAMETER, BYTES_PER_PARAMETER = 500e-9, 12


def folder_of_gguf(file: Path, *, sha256: str) -> Path:
    """The model folder of a GGUF file; made unless it is there.

    Args:
        file: whose content has this sha256; the caller has verified it.

    Raises:
        InputError: the file is damaged, is no model that transformers can read, or takes more than `safety` allows.
    """
    place = fetched_place(sha256)
    folder, digest = place / f"model-{CONVERSION}", place / f"model-{CONVERSION}.sha256"
    with only_one(sha256):
        if not _is_whole(folder, digest):
            header = read_gguf_header(file)
            create_private(place)
            for old in (folder, *place.glob(f".{folder.name}-*")):
                refuse_others(old)
                shutil.rmtree(old, ignore_errors=True)
            # A name of its own: the child of a killed process may still be writing.
            partial = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
            with Bar(f"convert {file.name}", 1) as bar:
                _convert(file, header, out=partial)
                bar.advance()
            write_own_file(digest, digest_of_model_folder(partial))
            partial.rename(folder)
            remember_moved(partial, folder)
        os.utime(place)  # `star clean` counts from the last use
    return folder


def _is_whole(folder: Path, digest: Path) -> bool:
    """Whether the folder is there with the content that was written."""
    if not (folder.is_dir() and digest.is_file()):
        return False
    refuse_others(folder)
    refuse_others(digest)
    return digest_of_model_folder(folder, trust="own") == digest.read_text(encoding="utf-8")


def _convert(file: Path, header: GgufHeader, *, out: Path) -> None:
    safety = current_safety()
    limits = {
        "seconds": int(START_SECONDS + safety.model_seconds + SECONDS_PER_PARAMETER * header.parameters),
        "bytes": int(START_BYTES + safety.model_memory * 2**30 + BYTES_PER_PARAMETER * header.parameters),
    }
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    # Each thread and each arena of malloc takes address space, which is limited.
    environment |= {"OMP_NUM_THREADS": str(min(THREADS, os.cpu_count() or 1)), "MALLOC_ARENA_MAX": "2"}
    names = {"tensors": list(header.tensors), "architecture": header.metadata.get("general.architecture")}
    request = {"file": str(file.resolve()), "out": str(out), **names, **limits}
    try:
        # -P: what lies beside the child or in the current folder is not imported.
        done = subprocess.run(
            [sys.executable, "-P", str(CHILD)],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=WAITED * limits["seconds"],
            env={**environment, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            check=False,
        )
        reason = _reason(done, limits)
    except subprocess.TimeoutExpired:
        reason = _limit_reason(limits)
    if reason:
        shutil.rmtree(out, ignore_errors=True)
        raise InputError(f"no model can be made of {file}: {reason}")
    # transformers closes its files to all others, also to those who share the home.
    for made in out.iterdir():
        made.chmod(file_mode())


def _reason(done: subprocess.CompletedProcess[bytes], limits: dict[str, int]) -> str | None:
    """Why the child made no folder; None if it did."""
    said = (done.stdout.decode(errors="replace").strip().splitlines() or [""])[-1]
    if said == "done":
        return None
    fault = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
    killed = done.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
    if killed or any(words in said + fault for words in WITHOUT_MEMORY):
        return _limit_reason(limits)
    if said.startswith("refused: "):
        return (
            f"{said.removeprefix('refused: ')}; choose a file whose architecture and tokenizer transformers "
            f"{transformers_version} reads, or give the model as a folder with safetensors"
        )
    return f"its conversion failed ({fault[:300]}); download it again, or give the model as a folder with safetensors"


def _limit_reason(limits: dict[str, int]) -> str:
    return (
        f"that takes more than {limits['seconds']} s of CPU time or {limits['bytes'] / 2**30:.1f} GiB of memory "
        "(`safety.model_seconds` and `safety.model_memory` of the configuration raise both)"
    )
