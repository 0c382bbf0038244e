"""Distils a student from a top-k store.

Loads, shortens or builds the student's base, checks that its tokenizer is the teacher's, and trains it with CKD.
"""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from star.ckd.shorten import make_shortened
from star.ckd.trainer import CKD_METRICS, CKDTrainer
from star.config.experiment import Config
from star.config.models import Architecture
from star.folders.workspace import Workspace
from star.modeling.bases import open_base
from star.modeling.models import add_lora_adapters, load_model, load_tokenizer, save_model
from star.modeling.scratch import build_base
from star.modeling.training import LogMetrics, copy_learning_curves, seed_everything, train
from star.topk.replies import write_replies
from star.topk.sequences import TOKENIZER


def distill_student(config: Config, topk: Path, *, workspace: Workspace, log_metrics: LogMetrics) -> dict[str, float]:
    """Trains the student on the store in the folder `topk` and writes it to `workspace.out`, with the teacher's replies for Sim-RL.

    Returns:
        The last logged value of each metric, as `ckd_<metric>`: loss, fkl, tail, ce, entropy of the student, and
        overlap of its most probable ids with the teacher's.

    Raises:
        InputError: the store was written with another tokenizer than the student's.
    """
    tokenizer = load_tokenizer(topk / TOKENIZER)
    student = _load_or_build_base(config, tokenizer, topk=topk, workspace=workspace, log_metrics=log_metrics)
    # Seeded after the base, so that a base read from disk and one built just now give the same training.
    seed_everything(config.seed)
    trainer = CKDTrainer(
        student,
        topk,
        settings=config.distill,
        state=workspace.state / "ckd",
        pad_id=tokenizer.pad_token_id,
        seed=config.seed,
        precision=config.precision,
    )
    label = f"distil the student ({config.distill.kind.upper()})"
    train(trainer, phase="ckd", label=label, state=workspace.state, log_metrics=log_metrics)
    save_model(trainer.model, tokenizer, workspace.out)
    write_replies(topk, workspace.out)
    return copy_learning_curves(workspace.state, out=workspace.out, metrics=("loss", *CKD_METRICS))


def _load_or_build_base(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    *,
    topk: Path,
    workspace: Workspace,
    log_metrics: LogMetrics,
) -> PreTrainedModel:
    base, lora = config.student.base, config.distill.lora
    if isinstance(base, Architecture):
        assert config.scratch is not None  # noqa: S101 - Config requires it where a base is built from scratch
        student = build_base(
            base,
            config.scratch,
            tokenizer=tokenizer,
            state=workspace.state,
            label="warm up the student's base",
            seed=config.seed + 1,  # not the teacher's base, where both have the same sizes
            precision=config.precision,
            log_metrics=log_metrics,
        )
        seed_everything(config.seed)  # adapters start alike, whether the base was read from disk or built just now
        return add_lora_adapters(student, lora) if lora else student
    if config.student.layers is None:
        return open_base(
            config.student,
            tokenizer=tokenizer,
            precision=config.precision,
            training=True,
            lora=lora,
            adapters_first=config.adapters_come_first(config.student),
        )
    shortened = make_shortened(config, topk, tokenizer=tokenizer, workspace=workspace, log_metrics=log_metrics)
    seed_everything(config.seed)  # as above, also where it was healed just now
    return load_model(shortened, precision=config.precision, training=True, lora=lora)
