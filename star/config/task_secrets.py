"""Which tasks of a pipeline use which secret: only these get the variable. `cluster.secret_tasks` says otherwise for one variable.

| variables | tasks |
|---|---|
| `STAR_WEBHOOK` | the exit handler |
| `AWS_...` | `register`; trainings, if `cluster.checkpoints` is set; with an S3 address in `STAR_REUSE` all but the exit handler |
| `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN` | the stages that load a base: `refine-teacher`, `distill`, `evaluate` |
| `STAR_TEACHER_KEY` | the stages that a teacher's server answers: `rollout`, `extract-topk` |
| `STAR_LEDGER_KEY`, and the variable that it names as `env:NAME` | `register` |
| `MLFLOW_...` | every task that is tracked: all but the merges of rollout and top-k store |
| any other | every task, since nothing is known of it |

A task that reads an input from S3 gets `AWS_...` too, and one that reads a file of the hub its tokens
(`Config.cluster_of_tasks`). The pre-flight gets all, because it checks that they are there.
"""

from collections.abc import Mapping
from typing import Literal, get_args

TaskName = Literal[
    "preflight", "synthesize", "refine-teacher", "rollout", "merge-rollout", "extract-topk", "merge-extract-topk",
    "distill", "refine", "evaluate", "merge-evaluate", "register", "finish",
]  # fmt: skip
TASKS: tuple[TaskName, ...] = get_args(TaskName)
PREFLIGHT, EXIT_HANDLER = "preflight", "finish"
TRAININGS = ("refine-teacher", "distill", "refine")
LOAD_BASES = ("refine-teacher", "distill", "evaluate")
SERVED = ("rollout", "extract-topk")
PUBLISH = ("register",)
UNTRACKED = ("merge-rollout", "merge-extract-topk")
LEDGER_KEY, REUSE = "STAR_LEDGER_KEY", "STAR_REUSE"
S3_KEYS = ("AWS_",)  # beginnings of the variables
HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def tasks_that_use(variable: str, *, environment: Mapping[str, str], checkpoints: bool) -> tuple[str, ...]:
    """Names of the tasks that use a secret variable, by the table above.

    Args:
        variable: Name of the environment variable.
        environment: `cluster.environment`, which says where decisions, keys and reusable results are.
        checkpoints: Whether trainings copy their checkpoints to the object store.
    """
    if variable == "STAR_WEBHOOK":
        users: tuple[str, ...] = (EXIT_HANDLER,)
    elif variable.startswith(S3_KEYS):
        everywhere = "s3://" in environment.get(REUSE, "")
        users = tuple(name for name in TASKS if name != EXIT_HANDLER) if everywhere else PUBLISH
        users += TRAININGS if checkpoints else ()
    elif variable in HUB_TOKENS:
        users = LOAD_BASES
    elif variable == "STAR_TEACHER_KEY":
        users = SERVED
    elif variable in (LEDGER_KEY, environment.get(LEDGER_KEY, "").removeprefix("env:")):
        users = PUBLISH
    elif variable.startswith("MLFLOW_"):
        users = tuple(name for name in TASKS if name not in UNTRACKED)
    else:
        users = TASKS
    return (PREFLIGHT, *users)
