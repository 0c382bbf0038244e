"""Makes the base of a student that has fewer layers than a published model: drops layers, then heals what is left.

    base (30 layers) ─► 15 of them ─► healing, with student.heal ─► state/shortened ─► CKD

A model that has just lost half of its layers predicts worse than if it knew nothing: the layers after a gap get states that they have
never seen. CKD starts badly from there, because its tail term then pushes down ids that are only wrong by accident. The
healing is a supervised training on the same samples of the teacher with the forward KL on its stored distributions: it
has no tail term, and tells more per token than the sampled ids alone.
"""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from star import distributed
from star.ckd.trainer import CKDTrainer
from star.config.experiment import Config
from star.config.models import Architecture
from star.config.training import Distill, Training
from star.folders.workspace import Workspace
from star.modeling.bases import open_base
from star.modeling.layers import keep_layers
from star.modeling.models import base_source, save_model_atomically
from star.modeling.training import LogMetrics, seed_everything, train


def make_shortened(
    config: Config,
    topk: Path,
    *,
    tokenizer: PreTrainedTokenizerBase,
    workspace: Workspace,
    log_metrics: LogMetrics,
) -> Path:
    """Writes the student's base with `student.layers` of its layers, healed if the settings say so. Collective.

    Args:
        topk: the store with the teacher's samples.

    Returns:
        The model folder, in the workspace's state. A finished one is not made twice, and a killed healing resumes.

    Raises:
        InputError: the base has fewer layers, or layers that need each other; or adapters are trained on it without a healing, and it
            gets new tokens.
    """
    finished, student = workspace.state / "shortened", config.student
    # Rank 0 decides for all ranks, because all of them must train or none.
    if distributed.broadcast_from_rank0((finished / "config.json").is_file()):
        return finished
    assert student.layers is not None  # noqa: S101 - the caller asks for it
    assert not isinstance(student.base, Architecture)  # noqa: S101 - the configuration refuses layers of one
    whole = open_base(
        student,
        tokenizer=tokenizer,
        precision=config.precision,
        training=True,
        adapters_first=config.adapters_come_first(student),
    )
    model = keep_layers(whole, student.layers, source=base_source(student.base))
    del whole  # its memory
    if student.heal:
        _heal(
            model,
            topk,
            config=config,
            settings=student.heal,
            pad_id=tokenizer.pad_token_id,
            state=workspace.state,
            log_metrics=log_metrics,
        )
    save_model_atomically(model, tokenizer, finished)
    return finished


def _heal(
    model: PreTrainedModel,
    topk: Path,
    *,
    config: Config,
    settings: Training,
    pad_id: int,
    state: Path,
    log_metrics: LogMetrics,
) -> None:
    seed_everything(config.seed)
    trainer = CKDTrainer(
        model,
        topk,
        settings=Distill(kind="fkl", **settings.model_dump()),
        state=state / "heal",
        pad_id=pad_id,
        seed=config.seed + 1,  # another order of the rows than that of CKD
        precision=config.precision,
    )
    train(trainer, phase="heal", label="heal the shortened student", state=state, log_metrics=log_metrics)
