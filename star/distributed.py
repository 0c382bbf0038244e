"""Tells which rank this process is and runs the collectives that ranks share: broadcast, any, barrier.

torchrun starts one process per GPU and puts RANK and WORLD_SIZE into its environment; this is the only module that
reads them. A process without them is alone: it is rank 0 of 1 and every collective here returns at once, without
importing torch.

Rank 0 locks and writes the stage's folder for all ranks. All ranks train, and all of them must see the same files.
Every rank has to call the same collectives in the same order; a rank that skips one leaves the others waiting until
TIMEOUT. A stage on two ranks:

    rank 0                                          rank 1
    verifies the inputs, locks the folder           waits in broadcast_from_rank0(None)
    broadcast_from_rank0(workspace.state)    ---->  receives the path of the state folder
    trains: any_rank(got_sigterm) at each logged step, barrier() when a checkpoint is complete
    barrier()                                <--->  barrier()
    publishes the folder                            drops its own output and exits
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from accelerate import PartialState

Value = TypeVar("Value")
# Rank 0 may verify large inputs, fetch checkpoints or upload them while the other ranks wait in a collective.
TIMEOUT = timedelta(hours=2)


def world_size() -> int:
    """The number of ranks that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_rank0() -> bool:
    """Whether this process is rank 0, which locks, writes and reports for all ranks."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def process_group() -> Iterator[None]:
    """Context manager for work shared by all ranks; destroys the process group on exit.

    torch aborts a process that exits without destroying it. After an exception the group is left as it is: torchrun
    ends all ranks.
    """
    yield
    if world_size() > 1:
        _join_process_group().destroy_process_group()


def broadcast_from_rank0(value: Value) -> Value:
    """Returns rank 0's value on every rank. Collective; the other ranks' arguments are ignored."""
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    barrier()
    return broadcast_object_list([value])[0]


def any_rank(flag: bool) -> bool:
    """Whether the flag is true on any rank; the same answer on every rank. Collective."""
    if world_size() == 1:
        return flag
    from accelerate.utils import gather_object

    _join_process_group()
    return any(gather_object([flag]))


def barrier() -> None:
    """Waits until every rank is here. Collective."""
    if world_size() > 1:
        _join_process_group().wait_for_everyone()


def _join_process_group() -> "PartialState":
    """Returns accelerate's state of this process. The first call makes the process group that trainers use too."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)
