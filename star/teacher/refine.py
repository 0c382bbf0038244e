"""Makes the teacher: trains a base from scratch on the rows, where the settings say so, then refines it with Sim-RL.

base (Qwen3, or from scratch) ─► fine-tuning, with teacher.sft ─► state/trained ─► Sim-RL, with teacher.refine ─► out
"""

import shutil
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from star import distributed
from star.chat import CHAT_TEMPLATE
from star.config.experiment import Config
from star.config.models import Architecture
from star.data.rows import is_answered
from star.folders.link import link_or_copy
from star.folders.workspace import Workspace
from star.modeling.bases import open_base, open_tokenizer
from star.modeling.chat_templates import with_open_think
from star.modeling.head import logits_are_head_output
from star.modeling.models import add_lora_adapters, save_model_atomically
from star.modeling.prompts import render_rows, within_length
from star.modeling.scratch import build_base
from star.modeling.tokenizer import bootstrap_tokenizer, train_tokenizer
from star.modeling.training import LogMetrics, copy_learning_curves, seed_everything
from star.progress import print_line
from star.simrl.refine import SIMRL_METRICS, LogArtifact, refine_model
from star.teacher.sft import fine_tune


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
        rows: the training rows. Those without an answer are left out: this teacher will give it.
        log_metrics: called with the metrics and the step whenever a trainer logs.
        log_artifact: called with Sim-RL's page of completions whenever it has grown.

    Returns:
        the last training metrics by phase; prompts: their number; too_long: rows left out because of their length.
    """
    tokenizer = _tokenizer(config, rows)
    prompts = render_rows(list(filter(is_answered, rows)), tokenizer)
    kept = within_length(prompts, tokenizer, max_prompt_tokens=config.max_prompt_tokens)
    trained = workspace.state / "trained"
    # Rank 0 decides for all ranks, because all of them must train or none.
    if not distributed.broadcast_from_rank0((trained / "config.json").is_file()):
        model = _base(config, tokenizer, workspace=workspace, log_metrics=log_metrics)
        if config.teacher.sft:
            fine_tune(
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
        # Linked, because the state goes with the workspace.
        shutil.copytree(trained, workspace.out, dirs_exist_ok=True, copy_function=link_or_copy)
    counts = {"prompts": len(kept), "too_long": len(prompts) - len(kept)}
    return counts | copy_learning_curves(workspace.state, out=workspace.out, metrics=SIMRL_METRICS)


def _tokenizer(config: Config, rows: list[dict[str, Any]]) -> PreTrainedTokenizerBase:
    """Opens the base's tokenizer, or trains one on the rows for a base from scratch."""
    base = config.teacher.base
    if not isinstance(base, Architecture):
        opened = open_tokenizer(config.teacher)
        if distributed.is_rank0():
            print_line(opened.about)
        return opened.tokenizer
    return scratch_tokenizer(rows, config)


def scratch_tokenizer(rows: list[dict[str, Any]], config: Config) -> PreTrainedTokenizerBase:
    """Trains the tokenizer of models from scratch on the rows."""
    assert config.scratch is not None  # noqa: S101 - the configuration requires it for an Architecture
    # The texts to train on need a chat template, which needs a tokenizer: hence one of single bytes.
    rendered = render_rows(rows, bootstrap_tokenizer())
    texts = (prompt.text + prompt.target for prompt in rendered)
    tokenizer = train_tokenizer(texts, vocab_size=config.scratch.vocab_size)
    if config.teacher.open_think:
        tokenizer.chat_template = with_open_think(CHAT_TEMPLATE, tokenizer)
    return tokenizer


def _base(
    config: Config, tokenizer: PreTrainedTokenizerBase, *, workspace: Workspace, log_metrics: LogMetrics
) -> PreTrainedModel:
    """Loads the base's model, or trains one from scratch to copy (see star/modeling/scratch.py)."""
    base = config.teacher.base
    lora = config.teacher.sft.lora if config.teacher.sft else None
    if isinstance(base, Architecture):
        assert config.scratch is not None  # noqa: S101 - the configuration requires it for an Architecture
        model = build_base(
            base,
            config.scratch,
            tokenizer=tokenizer,
            state=workspace.state,
            label="warm up the teacher's base",
            seed=config.seed,
            precision=config.precision,
            log_metrics=log_metrics,
        )
        seed_everything(config.seed)  # adapters start alike, whether the base was read from disk or built just now
        return add_lora_adapters(model, lora) if lora else model
    teacher = open_base(
        config.teacher,
        tokenizer=tokenizer,
        precision=config.precision,
        training=True,
        lora=lora,
        adapters_first=config.adapters_come_first(config.teacher),
    )
    # Only said, because this stage does not know who extracts the top-k. The rehearsal before a run does, and refuses it.
    if distributed.is_rank0() and not logits_are_head_output(teacher):
        print_line(
            "the teacher's logits are not its head's output alone (a cap or a scale): its top-k must come from vLLM or a server "
            "(`topk.vllm`, `topk.server`)"
        )
    return teacher
