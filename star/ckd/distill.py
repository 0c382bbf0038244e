"""Distillation of a student from a top-k store: the base, the check that both speak the same tokens, CKD."""

from pathlib import Path

from star.ckd.trainer import CKD_METRICS, CKDTrainer
from star.config.experiment import Config
from star.config.models import Architecture
from star.errors import InputError
from star.folders.workspace import Workspace
from star.modeling.models import base_source, load_model, load_tokenizer, save_model, with_adapters
from star.modeling.scratch import build_base
from star.modeling.tokenizer import tokenizer_digest
from star.modeling.training import LogMetrics, copy_learning_curves, seed_everything, train
from star.topk.sequences import TOKENIZER


def distill_student(config: Config, topk: Path, *, workspace: Workspace, log_metrics: LogMetrics) -> dict[str, float]:
    """Trains the student on the store of `topk` and writes it to `workspace.out`.

    Returns:
        the last training values: loss, fkl, tail, ce, entropy of the student, overlap of its most probable ids with the teacher's.

    Raises:
        InputError: the student's tokenizer is not the one the teacher's signal was stored with.
    """
    tokenizer = load_tokenizer(topk / TOKENIZER)
    base = config.student.base
    if isinstance(base, Architecture):
        label = "warm up the student's base"
        model = build_base(
            base,
            config.scratch,
            tokenizer=tokenizer,
            state=workspace.state,
            label=label,
            seed=config.seed + 1,
            log_metrics=log_metrics,
        )
        if config.distill.lora:
            model = with_adapters(model, config.distill.lora)
    else:
        source, revision = base_source(base), config.student.revision
        require_same_tokenizer(load_tokenizer(source, revision=revision), tokenizer, student=str(source), topk=topk)
        model = load_model(source, revision=revision, training=True, lora=config.distill.lora)
    seed_everything(config.seed)
    trainer = CKDTrainer(
        model,
        topk,
        settings=config.distill,
        state=workspace.state / "ckd",
        pad_id=tokenizer.pad_token_id,
        seed=config.seed,
    )
    train(
        trainer,
        phase="ckd",
        label=f"distil the student ({config.distill.kind.upper()})",
        state=workspace.state,
        log_metrics=log_metrics,
    )
    save_model(trainer.model, tokenizer, workspace.out)
    return copy_learning_curves(workspace.state, out=workspace.out, metrics=("loss", *CKD_METRICS))


def require_same_tokenizer(student_tokenizer, tokenizer, *, student: str, topk: Path) -> None:
    """Raises InputError unless both tokenizers turn text into the same ids: stored ids mean nothing to another one."""
    if tokenizer_digest(student_tokenizer) != tokenizer_digest(tokenizer):
        raise InputError(
            f"the tokenizer of the student {student} is not the one that {topk} was stored with: "
            "choose a student of the teacher's family, or extract the top-k again with a teacher of the student's"
        )
