"""Checks what a run reads from elsewhere: tools, rows, bases, what the suites need; and that there are rows enough for Sim-RL.

Each check returns what it found, as one phrase, or raises InputError with what is wrong and what to do.
"""

from star.config.experiment import Config
from star.config.files import inputs_in
from star.doctor.sample_rows import most_rows
from star.errors import InputError


def check_inputs(config: Config) -> str:
    """Reads every input, those in S3 too, and compares it with its digest. What is fetched is kept for the stages.

    Raises:
        InputError: one is missing or changed; the message names the setting.
    """
    names = []
    for name, source in inputs_in(config):
        try:
            source.read_verified()
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        names.append(name)
    return f"{', '.join(names)}: read and compared with the digest"


def check_prompts(config: Config) -> str:
    """Checks that the training rows can fill a rollout of Sim-RL, which otherwise ends when its training starts.

    Raises:
        InputError: there are too few, or a set of rows cannot be read.
    """
    heldout, found = config.data.heldout_rows, []
    for name, settings in (("teacher.refine", config.teacher.refine), ("refine", config.refine)):
        if settings is None:
            continue
        needed = settings.prompts_per_rollout
        rows = most_rows(config.data, enough=needed + heldout)
        if rows - heldout < needed:
            several = settings.updates_per_rollout > 1
            raise InputError(
                f"{name} samples {needed} prompts at a time (prompts_per_step = {settings.prompts_per_step}"
                f"{f' for {settings.updates_per_rollout} updates' if several else ''}), and at most {max(0, rows - heldout)} of {rows} "
                f"rows are left to train on, because {heldout} are held out: give or generate more rows, hold out fewer, or lower "
                f"`{name}.prompts_per_step`{f' or `{name}.updates_per_rollout`' if several else ''}"
            )
        found.append(f"{needed} at a time for {name}")
    return f"{', '.join(found)}: there are rows enough"


def check_suites(config: Config, *, on_cluster: bool) -> str:
    """Checks that the suites of the evaluation have their data and programs.

    Args:
        on_cluster: whether the evaluation runs in a pod, which may not reach a package index.

    Raises:
        InputError: something is missing.
    """
    settings, found = config.evaluate, []
    for suite in settings.suites:
        if suite == "acebench" and settings.acebench is not None:
            from star.evaluation.acebench import CATEGORIES, check_calls, read_category

            checkout = settings.acebench.read_verified()
            rows = [read_category(checkout, category, 1) for category in CATEGORIES]
            row = next(one for conversation in rows for one in conversation)
            check_calls([row], [[{"none": {}}]], checkout)
            found.append("acebench: its data and its checker are there")
        elif suite == "bfcl":
            found.append(f"bfcl: {_about_the_harness(on_cluster=on_cluster)}")
        else:
            found.append(suite)
    return "; ".join(found)


def _about_the_harness(*, on_cluster: bool) -> str:
    from star.evaluation.bfcl.environment import find_environment

    if (folder := find_environment()) is not None:
        return f"the harness is in {folder}"
    if on_cluster:
        raise InputError(
            "the suite bfcl needs the environment of its harness, which this image does not have: use the image of target "
            "`bfcl`, or leave the suite out"
        )
    return "its harness is installed at the first use, from the package index"
