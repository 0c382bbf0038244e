"""Remembers which rehearsals passed, so that a run that is started again does not repeat one.

A rehearsal that passed leaves an empty file `rehearsed/<key>`. The key is a digest of the settings that it reads (with
the sha256 of model folders and data files) and of the code, so that a change of any of them rehearses again.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from star.config.experiment import Config
from star.doctor.check import Check
from star.doctor.hub import ask_hub, hub_models
from star.doctor.rehearsal import rehearse
from star.folders.owners import create_private, is_own
from star.hashing import digest_of

SECTIONS = (
    "seed", "max_prompt_tokens", "precision", "data", "scratch", "teacher", "student", "rollout", "topk", "distill",
)  # fmt: skip


def rehearse_once(config: Config, folder: Path) -> Iterator[Check]:
    """Yields the results of a rehearsal, or one result if `folder` says that the same rehearsal passed before."""
    record = _record_of(config, folder)
    # Whoever can write to a volume can put a record there.
    if is_own(record):
        yield Check("rehearsal", True, "passed before with the same settings, models and code")
        return
    all_passed = True
    for check in rehearse(config):
        all_passed &= check.passed
        yield check
    if all_passed:
        # A folder that cannot be written costs a rehearsal per run, and is the business of the check of the volume.
        with suppress(OSError):
            create_private(record.parent)
            record.touch()


def passed_before(config: Config, folder: Path) -> bool:
    """Whether nothing is left to rehearse or to ask the hub, which this process can say without torch."""
    return not hub_models(config) and is_own(_record_of(config, folder))


def rehearsal_checks(config: Config, folder: Path) -> list[Check]:
    """The results of `rehearse_once` as a list, which one process can send to another.

    The hub is asked first, because its own client tries for minutes where no network answers.
    """
    hub = ask_hub(config)
    if hub and not hub.passed:
        return [hub]
    return list(rehearse_once(config, folder))


def _record_of(config: Config, folder: Path) -> Path:
    from star.folders.code_digest import code_digest

    return folder / "rehearsed" / digest_of([config.slice(SECTIONS), code_digest(_rehearsed_code)])


def _rehearsed_code() -> None:
    """Imports, for the code digest, what the rehearsal runs."""
    from star.doctor import rehearsal  # noqa: F401
