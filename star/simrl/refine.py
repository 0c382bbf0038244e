"""Refines a model with Sim-RL and writes a model folder: the stage `refine`, and the second half of `refine-teacher`.

The student and the teacher are refined by the same function, `refine_model`. It puts together what lies in the other
modules of this room:

    trainer.py             the training itself: GRPO on TRL's trainer, with dynamic filtering
    grpo_config.py         TRL's arguments of the settings
    prompt_order.py        the order of the prompts in each epoch
    filter_and_refill.py   which groups of rollouts are kept, and which prompts replace the dropped ones
    shared_prompts.py      log-probs of rollouts with their prompt computed once
    sampling_metrics.py    what is logged of a step's sampling
    completion_tables.py   tables of sampled completions, shown as one page (completions_page.py)
    early_stop.py          ends a training whose reward collapses or whose KL grows too large
    heldout_check.py       exact match on held-out prompts, as a check against reward hacking
"""

from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from star.config.experiment import Config
from star.config.training import Precision, SimRL
from star.folders.workspace import Workspace
from star.modeling.models import load_model, load_tokenizer, save_model
from star.modeling.prompts import Prompt, render_rows, within_length
from star.modeling.training import LogMetrics, copy_learning_curves, seed_everything, train
from star.simrl.completion_tables import CompletionTables
from star.simrl.early_stop import EarlyStop
from star.simrl.heldout_check import HeldoutCheck, hold_out_prompts
from star.simrl.trainer import build_trainer
from star.topk.replies import with_replies

LogArtifact = Callable[[Path], None]  # uploads a file to the tracking run of the stage
SIMRL_METRICS = (
    "loss",
    "reward",
    "sampled_reward",
    "format_rate",
    "kept_fraction",
    "kl",
    "entropy",
    "heldout_exact_match",
)


def refine_student(
    student: Path,
    rows: list[dict],
    *,
    config: Config,
    workspace: Workspace,
    log_metrics: LogMetrics,
    log_artifact: LogArtifact,
) -> dict[str, float]:
    """Refines the student in the folder `student` on the prompts of `rows`; longer prompts are left out and counted.

    Rows without an answer get that of the student's teacher.

    Returns:
        The last logged value of each metric, as `simrl_<metric>`; `prompts` used, and `too_long` left out; `unanswered`:
        how many were left out because the teacher gave no reply either, where there are any.
    """
    tokenizer = load_tokenizer(student)
    answered = with_replies(rows, student)
    rendered = render_rows(answered, tokenizer)
    prompts = within_length(rendered, tokenizer, max_prompt_tokens=config.max_prompt_tokens)
    counts: dict[str, float] = {"prompts": len(prompts), "too_long": len(rendered) - len(prompts)}
    if unanswered := len(rows) - len(answered):
        counts["unanswered"] = unanswered
    refine_model(
        student,
        tokenizer,
        prompts,
        settings=config.refine,
        seed=config.seed,
        precision=config.precision,
        workspace=workspace,
        label="refine the student (Sim-RL)",
        log_metrics=log_metrics,
        log_artifact=log_artifact,
    )
    return counts | copy_learning_curves(workspace.state, out=workspace.out, metrics=SIMRL_METRICS)


def refine_model(
    model: Path,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    *,
    settings: SimRL,
    seed: int,
    precision: Precision = "auto",
    workspace: Workspace,
    label: str,
    log_metrics: LogMetrics,
    log_artifact: LogArtifact,
) -> None:
    """Refines a model and writes the result to `workspace.out`, with a page of sampled completions.

    Args:
        model: Hugging Face folder to start from; it is also the reference of the KL term.
        label: text beside the progress bar.
        log_metrics: called with the metrics and the step whenever the trainer logs.
        log_artifact: called with the page of completions whenever it has grown.

    Raises:
        PipelineError: the reward collapsed or the KL grew too large; the message names the last good model and
            the remedy.
    """
    seed_everything(seed)
    training_prompts, heldout_prompts = hold_out_prompts(prompts, settings=settings, seed=seed)
    trainer = build_trainer(
        load_model(model, precision=precision, training=True, lora=settings.lora),
        tokenizer,
        training_prompts,
        settings=settings,
        folder=workspace.state / "simrl",
        seed=seed,
        precision=precision,
    )
    tables = CompletionTables(
        trainer,
        state=workspace.state / "completions",
        page=workspace.out / "completions.html",
        log_artifact=log_artifact,
    )
    trainer.add_callback(EarlyStop(settings))
    trainer.add_callback(HeldoutCheck(trainer, heldout_prompts, file=workspace.state / "checks.json"))
    trainer.add_callback(tables)
    train(trainer, phase="simrl", label=label, state=workspace.state, log_metrics=log_metrics)
    # A training that was killed after its last step makes no further table, but its page is still due.
    tables.write_page()
    save_model(trainer.model, tokenizer, workspace.out)
