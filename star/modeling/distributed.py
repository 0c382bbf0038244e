"""Several processes at one training, as torchrun starts them: the first keeps the stage's folder, all of them train.

RANK and WORLD_SIZE in the environment say who a process is; one without them is alone, and every function here does nothing.
All processes must see the same files.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

PATIENCE = timedelta(hours=2)  # the others wait while the first verifies inputs, or fetches and keeps checkpoints


def count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process locks, writes and reports for all."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def together() -> Iterator[None]:
    """Work in company. It ends with a parting, as torch aborts a process that just leaves."""
    yield
    if count() > 1:
        _join().destroy_process_group()


def told_by_first(word: Any) -> Any:
    """What the first process says, in every process, once all have asked; the others' own word counts for nothing."""
    if count() == 1:
        return word
    from accelerate.utils import broadcast_object_list

    meet()
    return broadcast_object_list([word])[0]


def any_of(word: bool) -> bool:
    """Whether any process says so, in every process, once all have asked."""
    if count() == 1:
        return word
    from accelerate.utils import gather_object

    _join()
    return any(gather_object([word]))


def meet() -> None:
    """Waits until every process is here."""
    if count() > 1:
        _join().wait_for_everyone()


def _join():
    """accelerate's state of this process; trainers made later find the same process group."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
