"""Makes the teacher: trains a base from scratch on the rows, where the settings say so, then refines it with Sim-RL.

base (Qwen3, or from scratch) ─► fine-tuning, with teacher.sft ─► state/trained ─► Sim-RL, with teacher.refine ─► out
"""

import shutil
from functools import partial
from typing import Any

import pyarrow as pa
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from star import distributed
from star.config.experiment import Config
from star.config.models import Architecture, Scratch
from star.config.training import Precision, Training
from star.folders.workspace import Workspace
from star.modeling.models import base_source, load_model, load_tokenizer, save_model_atomically
from star.modeling.precision import computes_in_bf16
from star.modeling.prompts import Prompt, render_rows, within_length
from star.modeling.scratch import build_base
from star.modeling.tokenizer import TOKENIZED_AT_ONCE, bootstrap_tokenizer, tokenize, train_tokenizer
from star.modeling.training import (
    IGNORE_INDEX,
    LogMetrics,
    collate_completions,
    copy_learning_curves,
    seed_everything,
    supervised_arguments,
    train,
)
from star.simrl.refine import SIMRL_METRICS, LogArtifact, refine_model


def make_teacher(
    config: Config,
    rows: list[dict[str, Any]],
    *,
    workspace: Workspace,
    log_metrics: LogMetrics,
    log_artifact: LogArtifact,
) -> dict[str, float]:
    """Writes the teacher's model folder to `workspace.out`. Finished steps of a killed run are read from its state.

    Args:
        rows: the training rows.
        log_metrics: called with the metrics and the step whenever a trainer logs.
        log_artifact: called with Sim-RL's page of completions whenever it has grown.

    Returns:
        the last training metrics by phase; prompts: their number; too_long: rows left out because of their length.
    """
    tokenizer = _tokenizer(config, rows)
    prompts = render_rows(rows, tokenizer)
    kept = within_length(prompts, tokenizer, max_prompt_tokens=config.max_prompt_tokens)
    trained = workspace.state / "trained"
    # Rank 0 decides for all ranks, because all of them must train or none.
    if not distributed.broadcast_from_rank0((trained / "config.json").is_file()):
        model = _base(config, tokenizer, workspace=workspace, log_metrics=log_metrics)
        if config.teacher.sft:
            _fine_tune(
                model,
                tokenizer,
                kept,
                settings=config.teacher.sft,
                seed=config.seed,
                precision=config.precision,
                workspace=workspace,
                log_metrics=log_metrics,
            )
        save_model_atomically(model, tokenizer, trained)
    # From the folder and not from memory, so that a resumed run starts Sim-RL from the same weights.
    if config.teacher.refine:
        refine_model(
            trained,
            tokenizer,
            kept,
            settings=config.teacher.refine,
            seed=config.seed,
            precision=config.precision,
            workspace=workspace,
            label="refine the teacher (Sim-RL)",
            log_metrics=log_metrics,
            log_artifact=log_artifact,
        )
    else:
        shutil.copytree(trained, workspace.out, dirs_exist_ok=True)
    counts = {"prompts": len(kept), "too_long": len(prompts) - len(kept)}
    return counts | copy_learning_curves(workspace.state, out=workspace.out, metrics=SIMRL_METRICS)


def _tokenizer(config: Config, rows: list[dict[str, Any]]) -> PreTrainedTokenizerBase:
    """Loads the base's tokenizer, or trains one on the rows for a base from scratch."""
    base = config.teacher.base
    if not isinstance(base, Architecture):
        return load_tokenizer(base_source(base), revision=config.teacher.revision)
    assert config.scratch is not None  # noqa: S101 - the configuration requires it for an Architecture
    return scratch_tokenizer(rows, config.scratch)


def scratch_tokenizer(rows: list[dict[str, Any]], scratch: Scratch) -> PreTrainedTokenizerBase:
    """Trains the tokenizer of models from scratch on the rows."""
    # The texts to train on need a chat template, which needs a tokenizer: hence one of single bytes.
    rendered = render_rows(rows, bootstrap_tokenizer())
    return train_tokenizer((prompt.text + prompt.target for prompt in rendered), vocab_size=scratch.vocab_size)


def _base(
    config: Config, tokenizer: PreTrainedTokenizerBase, *, workspace: Workspace, log_metrics: LogMetrics
) -> PreTrainedModel:
    """Loads the base's model, or trains one from scratch to copy (see star/modeling/scratch.py)."""
    base = config.teacher.base
    if isinstance(base, Architecture):
        assert config.scratch is not None  # noqa: S101 - the configuration requires it for an Architecture
        return build_base(
            base,
            config.scratch,
            tokenizer=tokenizer,
            state=workspace.state,
            label="warm up the teacher's base",
            seed=config.seed,
            precision=config.precision,
            log_metrics=log_metrics,
        )
    revision = config.teacher.revision
    return load_model(base_source(base), revision=revision, precision=config.precision, training=True)


def _fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    *,
    settings: Training,
    seed: int,
    precision: Precision,
    workspace: Workspace,
    log_metrics: LogMetrics,
) -> None:
    """Trains on the targets of the rows; the loss is over the target's tokens only."""
    # Seeded here, so that a base that is only read and one that was trained just now give the same fine-tuning.
    seed_everything(seed)
    bf16 = computes_in_bf16(precision, model.config)
    trainer = Trainer(
        model=model,
        args=supervised_arguments(settings, folder=workspace.state / "sft", seed=seed, bf16=bf16),
        train_dataset=SupervisedRows(prompts, tokenizer),
        data_collator=partial(collate_completions, pad_id=tokenizer.pad_token_id),
    )
    train(trainer, phase="sft", label="train the teacher", state=workspace.state, log_metrics=log_metrics)


class SupervisedRows(Dataset):
    """The tokens of prompts and targets; the labels are those of what the model has to write.

    They are kept as Arrow arrays, four bytes per token, and become lists one row at a time.
    """

    def __init__(self, prompts: list[Prompt], tokenizer: PreTrainedTokenizerBase) -> None:
        # Tokenized apart, as in use, where the prompt's tokens are fixed before the model writes.
        self._prompts = _token_arrays([prompt.text for prompt in prompts], tokenizer)
        self._targets = _token_arrays([prompt.target_after_opening for prompt in prompts], tokenizer)
        self._count, self._end = len(prompts), tokenizer.eos_token_id

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        array, row = divmod(index, TOKENIZED_AT_ONCE)
        prompt_ids, target_ids = (
            arrays[array][row].values.to_numpy().tolist() for arrays in (self._prompts, self._targets)
        )
        target_ids.append(self._end)
        return {"input_ids": prompt_ids + target_ids, "labels": [IGNORE_INDEX] * len(prompt_ids) + target_ids}


def _token_arrays(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[pa.Array]:
    """The ids of the texts, TOKENIZED_AT_ONCE texts per array."""
    return [pa.array(batch, pa.list_(pa.int32())) for batch in tokenize(texts, tokenizer)]
