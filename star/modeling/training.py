"""Runs every training of STAR: deterministic, checkpointed, resumed bit for bit, with progress and a learning curve.

The training loops are transformers' Trainer and TRL's GRPOTrainer. This module has their common arguments, and `train`,
which drives them. What it keeps of a training with phase "ckd" in the stage's state folder:

    ckd/checkpoint-50/, ckd/checkpoint-100/   the last two checkpoints; a complete one has a file `complete` in it
    ckd_curve.json                            the logged metrics by step, written when the training is done

A killed training is called again with the same state folder. It resumes from the last complete checkpoint, removes an
incomplete one, and logs the same metrics as an uninterrupted training.
"""

import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments

from star import distributed
from star.config.training import HALF_MICRO_BATCH, Schedule, SimRL, Training
from star.errors import GpuMemoryError, InputError
from star.folders import checkpoints_s3
from star.modeling.freed_memory import ReturnFreedMemory
from star.progress import Bar, print_line
from star.sigterm import EXIT_STATUS, SigtermFlag

# TRL calls transformers with arguments that were renamed; a user cannot do anything about it.
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

logger = logging.getLogger(__name__)
LogMetrics = Callable[[dict[str, float], int], None]  # called with metrics by name, and the step
IGNORE_INDEX = -100  # the label of tokens without a loss
# Logged to the tracking server, and left out of the curve's file: they differ between runs whose results are equal.
RUN_DEPENDENT_METRICS = ("step_time", "tokens_per_second", "memory_mib")
COMPLETE = "complete"  # file that marks a checkpoint as written to its end


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch, and asks torch for deterministic kernels on a GPU; a CPU's are by default."""
    from transformers import set_seed

    set_seed(seed)
    if torch.cuda.is_available():
        # cuBLAS is deterministic only with this workspace. Kernels without a deterministic form only warn.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def hardware_arguments() -> dict[str, Any]:
    """On a GPU, activations are computed again in the backward pass, to save its memory."""
    on_gpu = torch.cuda.is_available()
    return {"use_cpu": not on_gpu, "activation_checkpointing": on_gpu}


def common_arguments(
    settings: Training | SimRL,
    *,
    folder: Path,
    seed: int,
    bf16: bool,
    batch_size: int,
    steps: int,
    logging_steps: int | None = None,
    logged_with: int = 1,
) -> dict[str, Any]:
    """TrainingArguments that every trainer has.

    With a batch of 128, 4 ranks and micro_batch_size 8, each rank's share is 32: 4 forward passes of 8 sequences.

    Args:
        folder: where checkpoints go.
        bf16: whether forward and backward passes compute in bf16 (`precision.computes_in_bf16`).
        batch_size: sequences per optimiser step over all ranks.
        steps: number of optimiser steps.
        logging_steps: steps between logged metrics; by default such that about 50 steps are logged.
        logged_with: the default is a multiple of this number, of which `settings.save_steps` is a multiple, too.

    Raises:
        InputError: the ranks cannot share the batch evenly, or micro batches do not fill a rank's share.
    """
    ranks = distributed.world_size()
    if batch_size % ranks:
        raise InputError(f"a batch of {batch_size} cannot be shared by {ranks} processes: choose a multiple")
    share = batch_size // ranks
    micro_batch_size = min(settings.micro_batch_size or share, share)
    if share % micro_batch_size:
        raise InputError(
            f"micro_batch_size {micro_batch_size} must divide the {share} sequences of each of {ranks} processes"
        )
    if os.environ.get(HALF_MICRO_BATCH):
        micro_batch_size = _halved(micro_batch_size, share=share)
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": micro_batch_size,
        "gradient_accumulation_steps": share // micro_batch_size,
        "learning_rate": settings.learning_rate,
        **_schedule_arguments(settings.schedule, steps=steps),
        "adam_beta2": settings.beta2,
        "max_grad_norm": 1.0,  # OpenRLHF's default
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "save_total_limit": 2,  # one more than needed: a kill may cut the newest one short
        "logging_steps": logging_steps
        or _default_logging_steps(steps, save_steps=settings.save_steps, multiple_of=logged_with),
        "seed": seed,
        "data_seed": seed,
        "disable_tqdm": True,
        "report_to": [],
        # Columns such as teacher_ids are no arguments of `forward`; Trainer would remove them.
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
        "bf16": bf16,
        **hardware_arguments(),
    }


def _halved(micro_batch_size: int, *, share: int) -> int:
    """Half a micro batch, or the next smaller one that divides a process's share of the batch."""
    half = max(1, micro_batch_size // 2)
    return next(size for size in range(half, 0, -1) if share % size == 0)


def _default_logging_steps(steps: int, *, save_steps: int, multiple_of: int) -> int:
    """The largest divisor of save_steps that logs at least 50 steps, or the smallest, where all log fewer."""
    # A divisor, so that metrics are logged at every checkpoint and no half-made sum is lost with a kill: a resumed
    # training then logs the same values as an uninterrupted one.
    divisors = [size for size in range(multiple_of, save_steps + 1, multiple_of) if save_steps % size == 0]
    return max((size for size in divisors if size <= steps // 50), default=divisors[0])


def _schedule_arguments(schedule: Schedule, *, steps: int) -> dict[str, Any]:
    """A schedule in transformers' terms."""
    curves: dict[str, tuple[str, dict[str, Any]]] = {
        "cosine": ("cosine_with_min_lr", {"min_lr_rate": schedule.final}),
        "stable-decay": (
            "warmup_stable_decay",
            {"num_decay_steps": steps * 3 // 10, "decay_type": "linear", "min_lr_ratio": schedule.final},
        ),
    }
    kind, arguments = curves[schedule.kind]
    return {
        "lr_scheduler_type": kind,
        "lr_scheduler_kwargs": arguments,
        # Of the decimal number that is written, which in binary may be a little less.
        "warmup_steps": int(Fraction(str(schedule.warmup)) * steps),
    }


def supervised_arguments(
    settings: Training, *, folder: Path, seed: int, bf16: bool, sequences: int, logging_steps: int | None = None
) -> TrainingArguments:
    """Arguments of supervised training and distillation.

    Args:
        sequences: those of the training set, of which epochs are counted.
    """
    values = supervised_values(
        settings, folder=folder, seed=seed, bf16=bf16, sequences=sequences, logging_steps=logging_steps
    )
    return use_one_gpu(TrainingArguments(**values))


def supervised_values(
    settings: Training, *, folder: Path, seed: int, bf16: bool, sequences: int, logging_steps: int | None = None
) -> dict[str, Any]:
    """`supervised_arguments` by name, for trainers that have a class of arguments of their own."""
    common = common_arguments(
        settings,
        folder=folder,
        seed=seed,
        bf16=bf16,
        batch_size=settings.batch_size,
        steps=settings.count_steps(sequences),
        logging_steps=logging_steps,
    )
    return {
        **common,
        "weight_decay": settings.weight_decay,
        "optim": "adafactor" if settings.optimizer == "adafactor" else "adamw_torch_fused",
    }


def use_one_gpu(arguments: TrainingArguments) -> TrainingArguments:
    """Makes this process train on one GPU: transformers would spread larger batches over all visible ones."""
    if arguments.n_gpu > 1:
        logger.warning(
            "%d GPUs are visible and this process trains on one of them; start one process per GPU to use all of them",
            arguments.n_gpu,
        )
        arguments._n_gpu = 1
    return arguments


def collate_completions(rows: list[dict[str, Any]], *, pad_id: int) -> dict[str, torch.Tensor]:
    """Makes a batch: pads input_ids and labels on the right.

    Returns:
        input_ids, labels and attention_mask [B, L]. B sequences, L longest length.
    """
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    longest = int(lengths.max())

    def padded(key: str, filler: int) -> torch.Tensor:
        batch_BL = np.full((len(rows), longest), filler, np.int64)
        for place_L, row in zip(batch_BL, rows, strict=True):
            place_L[: len(row[key])] = row[key]
        return torch.from_numpy(batch_BL)

    return {
        "input_ids": padded("input_ids", pad_id),
        "labels": padded("labels", IGNORE_INDEX),
        "attention_mask": (torch.arange(longest)[None, :] < lengths[:, None]).long(),
    }


def train(trainer: Trainer, *, phase: str, label: str, state: Path, log_metrics: LogMetrics) -> None:
    """Runs a trainer to its last step, from its last complete checkpoint, and writes its learning curve. Collective.

    Args:
        phase: name of this training: in the curve's file name, and before a `/` in the names of the logged metrics.
        label: text beside the progress bar.
        state: the stage's state folder, for `<phase>_curve.json`: all logged metrics, also from
            before a kill.
        log_metrics: called on rank 0 whenever the trainer logs.

    Raises:
        GpuMemoryError: a step did not fit into the GPU's memory.
        RuntimeError: the trainer stopped before its last step.
        SystemExit: the process received SIGTERM; a checkpoint of its last step is on disk.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_MarkCheckpointComplete(state))
    sigterm = SigtermFlag(
        on_first=lambda: print_line("received SIGTERM: saving a checkpoint before the training stops"),
        # A rank receives it twice: from whoever ends all ranks, and from torchrun, which kills ranks that stay.
        ignore_repeats=distributed.world_size() > 1,
    )
    trainer.add_callback(_StopWithCheckpoint(sigterm))
    if trainer.args.use_cpu:
        trainer.add_callback(ReturnFreedMemory())
    if distributed.is_rank0():
        trainer.add_callback(
            _ShowProgress(label, lambda values, step: log_metrics({f"{phase}/{k}": v for k, v in values.items()}, step))
        )
    assert trainer.args.output_dir is not None  # noqa: S101 - transformers sets a default
    # Rank 0 alone looks, because `last_checkpoint` removes folders and the ranks must resume from the same one.
    checkpoint = distributed.broadcast_from_rank0(
        last_checkpoint(Path(trainer.args.output_dir)) if distributed.is_rank0() else None
    )
    if checkpoint and checkpoint.endswith(f"-{trainer.args.max_steps}"):
        # Killed after the last step. Trainer would take one more step from this checkpoint.
        trainer._load_from_checkpoint(checkpoint)
        trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    else:
        with sigterm:
            try:
                trainer.train(resume_from_checkpoint=checkpoint)
            except torch.OutOfMemoryError as error:
                raise _with_smaller_batch(label, trainer.args) from error
    # If SIGTERM came during the last step, the training is complete and goes on to write its result.
    if sigterm.received and trainer.state.global_step < trainer.args.max_steps:
        sys.exit(EXIT_STATUS)
    if trainer.state.global_step != trainer.args.max_steps:
        raise RuntimeError(f"{phase} stopped at step {trainer.state.global_step} of {trainer.args.max_steps}")
    # Trainer restores the history with a checkpoint, so the curve includes the steps from before a kill.
    history = [
        _without_run_dependent_metrics(entry) for entry in trainer.state.log_history if "train_runtime" not in entry
    ]
    if distributed.is_rank0():
        curve = json.dumps(history, indent=1, sort_keys=True) + "\n"
        (state / f"{phase}_curve.json").write_text(curve, encoding="utf-8")
    # The caller copies the curve to its output, so no rank goes on before it is written.
    distributed.barrier()


def _with_smaller_batch(label: str, arguments: TrainingArguments) -> GpuMemoryError:
    """The error of a step that did not fit into the GPU's memory, with the setting that makes it smaller."""
    size = arguments.per_device_train_batch_size
    smaller = _halved(size, share=size * arguments.gradient_accumulation_steps)
    cure = f"set its micro_batch_size to {smaller}, which changes no batch" if size > 1 else "shorten its sequences"
    return GpuMemoryError(
        f"{label}: the memory of the GPU is too small for {size} sequences at a time: {cure}, or take a larger GPU; "
        "the last checkpoint is kept",
        micro_batch_size=size,
    )


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


def _without_run_dependent_metrics(entry: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in entry.items() if key not in RUN_DEPENDENT_METRICS}


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint, or None. Removes incomplete ones."""
    # By number: as text, checkpoint-100 comes before checkpoint-50.
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    complete = [path for path in checkpoints if (path / COMPLETE).is_file()]
    # The trainer's limit counts folders, so an incomplete one would push out a complete one.
    for path in set(checkpoints) - set(complete):
        shutil.rmtree(path)
    return str(complete[-1]) if complete else None


class _MarkCheckpointComplete(TrainerCallback):
    """Marks a checkpoint as complete when all of it is on disk, so that one cut short by a kill is not resumed from.

    Then copies the state folder to S3, where that is set up, so that a retry on another node can resume.
    """

    def __init__(self, state: Path) -> None:
        self.state_folder = state

    def on_save(self, args, state, control, **kwargs) -> None:
        os.sync()  # the marker must not reach the disk before the checkpoint does
        distributed.barrier()  # every rank writes a part of the checkpoint
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()
        # After the marker, so that the copy counts as complete too.
        if state.is_world_process_zero:
            checkpoints_s3.upload_state(self.state_folder)


class _StopWithCheckpoint(TrainerCallback):
    """After SIGTERM, saves a checkpoint at the next logged step and stops the training there.

    At each logged step the ranks agree whether any of them received SIGTERM, and stop together: only one of several
    nodes may be leaving. The stop waits for a logged step because the sums of the logged metrics are empty there. So a
    resumed run logs the same values as an uninterrupted one.
    """

    def __init__(self, sigterm: SigtermFlag) -> None:
        self.sigterm = sigterm

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step % args.logging_steps == 0 and distributed.any_rank(self.sigterm.received):
            # On every rank, because each one exits by its own flag.
            self.sigterm.received = True
            control.should_save = control.should_training_stop = True


class _ShowProgress(TrainerCallback):
    """Shows a progress bar, and passes on the numbers that the trainer logs."""

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
