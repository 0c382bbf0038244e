"""What every training of STAR shares: deterministic, checkpointed, resumed bit for bit, with progress and learning curves.

The loops are transformers' Trainer and TRL's GRPOTrainer; this module only sets them up and drives them.
"""

import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments

from star import distributed
from star.config.training import Training
from star.errors import InputError
from star.folders import checkpoints_s3
from star.progress import Bar, say
from star.sigterm import EXIT_STATUS, SigtermFlag

# TRL and transformers tell each other about renamed arguments; a user can do nothing about it.
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

logger = logging.getLogger(__name__)
LogMetrics = Callable[[dict[str, float], int], None]
IGNORE_INDEX = -100  # the label of tokens without a loss
TIMINGS = ("tokens_per_second", "memory_mib")  # logged and charted by the tracking server, kept out of the curve's file
COMPLETE = "complete"  # marks a checkpoint that was written to its end


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch, and on a GPU asks torch for deterministic kernels (on a CPU the plain ones are)."""
    from transformers import set_seed

    set_seed(seed)
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def hardware_arguments() -> dict[str, Any]:
    """bf16 where a GPU has it, and activations recomputed to save its memory; plain fp32 on a CPU."""
    on_gpu = torch.cuda.is_available()
    bf16 = on_gpu and torch.cuda.is_bf16_supported()
    return {"use_cpu": not on_gpu, "bf16": bf16, "gradient_checkpointing": on_gpu}


def common_arguments(
    training: Any, *, folder: Path, seed: int, batch_size: int, logging_steps: int | None = None
) -> dict[str, Any]:
    """TrainingArguments of every trainer. `batch_size` sequences make an optimiser step over all
    ranks, `micro_batch_size` a forward pass of one; about 50 steps are logged, or every `logging_steps`-th.

    Raises:
        InputError: the ranks cannot share the batch evenly.
    """
    processes = distributed.world_size()
    if batch_size % processes:
        raise InputError(f"a batch of {batch_size} cannot be shared by {processes} processes: choose a multiple")
    share = batch_size // processes
    micro = min(training.micro_batch_size or share, share)
    if share % micro:
        raise InputError(f"micro_batch_size {micro} must divide the {share} sequences of each of {processes} processes")
    return {
        "output_dir": str(folder),
        "max_steps": training.steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": share // micro,
        "learning_rate": training.learning_rate,
        "save_strategy": "steps",
        "save_steps": training.save_steps,
        "save_total_limit": 2,
        "logging_steps": logging_steps or _logging_steps(training),
        "seed": seed,
        "data_seed": seed,
        "disable_tqdm": True,
        "report_to": [],
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
        **hardware_arguments(),
    }


def _logging_steps(training: Any) -> int:
    # Sums that are logged at a checkpoint are empty there: a resumed run then logs the same values as one left alone.
    most = max(1, training.steps // 50)
    return next(steps for steps in range(min(most, training.save_steps), 0, -1) if training.save_steps % steps == 0)


def supervised_arguments(
    training: Training, *, folder: Path, seed: int, logging_steps: int | None = None
) -> TrainingArguments:
    """Arguments of a supervised training: AdamW, warm-up over 5% of the steps, a plateau, decay over the last 30%."""
    common = common_arguments(
        training, folder=folder, seed=seed, batch_size=training.batch_size, logging_steps=logging_steps
    )
    arguments = TrainingArguments(
        **common,
        weight_decay=training.weight_decay,
        adam_beta2=0.98,  # a short training has no time for the long memory of 0.999
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": training.steps * 3 // 10, "decay_type": "linear", "min_lr_ratio": 0.05},
        warmup_steps=max(1, training.steps // 20),
        max_grad_norm=1.0,
    )
    return on_one_device(arguments)


def on_one_device(arguments: TrainingArguments) -> TrainingArguments:
    """One process trains on one GPU: transformers would spread every batch over all that it sees, and change its size."""
    if arguments.n_gpu > 1:
        logger.warning(
            "%d GPUs are visible and this process trains on one of them; start one process a GPU for all of them",
            arguments.n_gpu,
        )
        arguments._n_gpu = 1
    return arguments


def collate_completions(rows: list[dict[str, Any]], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Pads rows of input_ids and labels on the right, and joins teacher rows in the order of the batch where there are some."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, filler: int) -> torch.Tensor:
        return torch.tensor([list(row[key]) + [filler] * (longest - len(row[key])) for row in rows])

    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    batch = {
        "input_ids": padded("input_ids", pad_id),
        "labels": padded("labels", IGNORE_INDEX),
        "attention_mask": (torch.arange(longest)[None, :] < lengths[:, None]).long(),
    }
    if "teacher_ids" in rows[0]:
        batch["teacher_ids"] = torch.cat([row["teacher_ids"] for row in rows])
        batch["teacher_logprobs"] = torch.cat([row["teacher_logprobs"] for row in rows])
    return batch


def train(trainer: Trainer, *, phase: str, label: str, state: Path, log_metrics: LogMetrics) -> None:
    """Runs a trainer to its last step, from its last whole checkpoint where there is one, and writes its learning curve.

    Args:
        phase: what this training is called in the curve's file name and in the logged figures.
        label: what the progress bar says.
        state: folder for `<phase>_curve.json`: the logged values by step, the ones from before a kill included.
        log_metrics: called with the values and the step whenever the trainer logs.

    Raises:
        RuntimeError: the trainer stopped before its last step.
        SystemExit: the process was told to end (SIGTERM); a checkpoint of where it was is on disk.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_MarkComplete(state))
    sigterm = SigtermFlag(
        on_first=lambda: say("told to end: saving a checkpoint first"),
        # A rank receives it twice: from whoever ends all ranks, and from torchrun, which kills a rank that stays too long.
        ignore_repeats=distributed.world_size() > 1,
    )
    trainer.add_callback(_StopWithCheckpoint(sigterm))
    if distributed.is_rank0():
        trainer.add_callback(
            _ShowProgress(label, lambda values, step: log_metrics({f"{phase}/{k}": v for k, v in values.items()}, step))
        )
    checkpoint = distributed.broadcast_from_rank0(
        last_checkpoint(Path(trainer.args.output_dir)) if distributed.is_rank0() else None
    )
    if checkpoint and checkpoint.endswith(f"-{trainer.args.max_steps}"):
        # Trainer would take one step more from its last checkpoint.
        trainer._load_from_checkpoint(checkpoint)
        trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    else:
        with sigterm:
            trainer.train(resume_from_checkpoint=checkpoint)
    if sigterm.received and trainer.state.global_step < trainer.args.max_steps:
        sys.exit(EXIT_STATUS)
    if trainer.state.global_step != trainer.args.max_steps:
        raise RuntimeError(f"{phase} stopped at step {trainer.state.global_step} of {trainer.args.max_steps}")
    history = [_timeless(entry) for entry in trainer.state.log_history if "train_runtime" not in entry]
    if distributed.is_rank0():
        curve = json.dumps(history, indent=1, sort_keys=True) + "\n"
        (state / f"{phase}_curve.json").write_text(curve, encoding="utf-8")
    distributed.barrier()


def copy_learning_curves(state: Path, *, out: Path, metrics: tuple[str, ...]) -> dict[str, float]:
    """Copies the learning curves of a stage to its output.

    Returns:
        The last logged value of each of `metrics`, as `<phase>_<metric>`.
    """
    last: dict[str, float] = {}
    for curve in sorted(state.glob("*_curve.json")):
        shutil.copyfile(curve, out / curve.name)
        phase = curve.name.removesuffix("_curve.json")
        for entry in json.loads(curve.read_text(encoding="utf-8")):
            last |= {f"{phase}_{metric}": entry[metric] for metric in metrics if metric in entry}
    return last


def _timeless(entry: dict[str, float]) -> dict[str, float]:
    # What differs from run to run must not make equal results look different.
    return {key: value for key, value in entry.items() if key not in ("step_time", *TIMINGS)}


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint written to its end; half-written ones are removed."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    whole = [path for path in checkpoints if (path / COMPLETE).is_file()]
    for path in set(checkpoints) - set(whole):
        shutil.rmtree(path)
    return str(whole[-1]) if whole else None


class _MarkComplete(TrainerCallback):
    """Marks a checkpoint when all of it is on disk: a kill in the middle of saving must not leave one that looks whole."""

    def __init__(self, kept: Path) -> None:
        self.kept = kept

    def on_save(self, args, state, control, **kwargs) -> None:
        os.sync()
        distributed.barrier()  # every process writes a part of the checkpoint
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()
        if state.is_world_process_zero:
            checkpoints_s3.keep(self.kept)


class _StopWithCheckpoint(TrainerCallback):
    """After SIGTERM, saves a checkpoint at the next logged step and stops the training there.

    At each logged step the ranks agree whether any of them received SIGTERM, and stop together: only one of several nodes may be leaving.
    The stop waits for a logged step because the sums of the logged metrics are empty there. So a resumed run logs the same values as an
    uninterrupted one.
    """

    def __init__(self, sigterm: SigtermFlag) -> None:
        self.sigterm = sigterm

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step % args.logging_steps == 0 and distributed.any_rank(self.sigterm.received):
            self.sigterm.received = True
            control.should_save = control.should_training_stop = True


class _ShowProgress(TrainerCallback):
    def __init__(self, label: str, log_metrics: LogMetrics) -> None:
        self.label, self.log_metrics = label, log_metrics

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        self.log_metrics(
            {key: value for key, value in logs.items() if isinstance(value, int | float)}, state.global_step
        )

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.bar = Bar(self.label, state.max_steps, start=state.global_step)
        self.bar.__enter__()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.bar.advance()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.bar.__exit__()
