"""Runs torchrun and reports to the supervisor of the task (supervisor.py) if a signal ended a rank.

    python -m star.cluster.ranks --standalone --nproc-per-node=2 -m star.cli distill ...

Ranks report their errors themselves (failure.py). A rank that was killed cannot, and torchrun itself has one exit status for all. Its
error is not printed: it would stand after the reason, which a rank has printed.
"""

import os
import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from star.cluster.failure import FAILED, Failure, Kind, report
from star.progress import exit_with_runner
from star.sigterm import EXIT_STATUS


def main() -> None:
    """Runs torchrun with the arguments of this process and exits with status 1 if a rank failed."""
    # The ranks watch this process. If it is killed while the supervisor lives, they would train on beside the next attempt.
    exit_with_runner()
    os.environ["STAR_RUNNER"] = str(os.getpid())
    try:
        run(parse_args(sys.argv[1:]))
    except ChildFailedError as error:
        first = min(failure.timestamp for failure in error.failures.values())
        for rank, failure in error.failures.items():
            # torchrun ends the other ranks by SIGTERM, and 30 seconds later by SIGKILL.
            is_cause = failure.timestamp <= first + 1 and failure.exitcode not in (-signal.SIGTERM, 0)
            if failure.exitcode < 0 and is_cause:
                report(Failure(Kind.KILLED, f"rank {rank}", signal=-failure.exitcode))
        sys.exit(FAILED)
    except SignalException:  # it has passed SIGTERM on to the ranks and waited for them
        sys.exit(EXIT_STATUS)


if __name__ == "__main__":
    main()
