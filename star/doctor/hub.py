"""Asks the Hugging Face hub once, with a deadline, before other checks read models from it.

The hub's own client retries every file of every model for minutes where no network answers.
"""

import os
import re
from collections.abc import Sequence
from functools import partial

from star.config.experiment import Config
from star.config.files import HUB_ID, inputs_in
from star.config.hub_files import HUB_FILE
from star.config.models import Student, Teacher
from star.doctor.check import Check, run_check
from star.errors import InputError
from star.http_client import send
from star.http_exchange import NoAnswerError

ANSWER_SECONDS = 4.0
COMMIT = re.compile("[0-9a-f]{40}")
HUB = "model hub"  # name of the check


def hub_models(config: Config) -> list[Teacher | Student]:
    """Those of teacher and student whose base is an id of the hub, and no folder or model from scratch."""
    return [
        model
        for model in (config.teacher, config.student)
        if isinstance(model.base, str) and HUB_ID.fullmatch(model.base)
    ]


def hub_inputs(config: Config) -> list[str]:
    """The addresses of the files that a configuration reads from the hub."""
    return [found.path for _, found in inputs_in(config) if found.is_on_hub]


def ask_hub(config: Config) -> Check | None:
    """Runs `check_hub` on the models and files of a configuration; None where no model is on the hub."""
    models = hub_models(config)
    return run_check(HUB, partial(check_hub, models, hub_inputs(config))) if models else None


def check_hub(models: list[Teacher | Student], files: Sequence[str] = ()) -> str:
    """Checks that the hub answers, or that the cache of this machine has the models. Without an answer nobody asks it again.

    Args:
        files: addresses of files on the hub. They were read when the configuration was loaded, and are named if they have no commit.

    Raises:
        InputError: the hub does not answer, and a model is not in the cache.
    """
    from huggingface_hub import constants

    unpinned = _without_commit(models, files)
    reason = "the offline mode is on (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else _why_no_answer(models[0])
    if reason is None:
        return f"{constants.ENDPOINT} answers{unpinned}"
    # transformers and the hub's client read these at each call, and take the cache then.
    constants.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"] = True, "1"
    if missing := sorted({str(model.base) for model in models if not _is_cached(model)}):
        raise InputError(
            f"{reason}, and {', '.join(missing)} not in the cache: tokenizers and memory of the models are not checked; connect to the "
            "network, set HF_ENDPOINT to a mirror, or name a model folder"
        )
    return f"{reason}; the models are in the cache{unpinned}"


def _without_commit(models: list[Teacher | Student], files: Sequence[str]) -> str:
    """Says which models and files are named without a commit: what a branch or tag names on the hub can change."""
    said = ""
    if names := sorted({str(model.base) for model in models if not COMMIT.fullmatch(model.revision or "")}):
        said += f"; {', '.join(names)} may change there unnoticed: set `revision` to a commit"
    if names := sorted(file for file in files if not _has_commit(file)):
        said += f"; {', '.join(names)} may change there: write a commit behind the @"
    return said


def _has_commit(file: str) -> bool:
    named = HUB_FILE.fullmatch(file)
    return bool(named and COMMIT.fullmatch(named["revision"]))


def _why_no_answer(model: Teacher | Student) -> str | None:
    """Asks for the head of one file: None if any answer comes, else the reason."""
    from huggingface_hub import constants

    url = f"{constants.ENDPOINT}/{model.base}/resolve/{model.revision or 'main'}/config.json"
    try:
        answer = send("HEAD", url, name="HF_ENDPOINT", seconds=ANSWER_SECONDS, follow=False)
    except NoAnswerError as error:
        return f"{constants.ENDPOINT} cannot be reached ({error})"
    # Also 404 and 401 are answers: the checks of the model say what is wrong with it.
    return f"{constants.ENDPOINT} answers {answer.status}" if answer.status >= 500 else None


def _is_cached(model: Teacher | Student) -> bool:
    from huggingface_hub import try_to_load_from_cache

    files = ("config.json", "tokenizer.json")
    return all(
        isinstance(try_to_load_from_cache(str(model.base), file, revision=model.revision), str) for file in files
    )
