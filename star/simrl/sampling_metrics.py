"""Sums up what a step of Sim-RL sampled: the metrics that are logged, and a warning where no format is right."""

from collections.abc import Sequence
from statistics import fmean

from star.modeling.prompts import Prompt
from star.rewards.format_errors import describe_format_errors
from star.simrl.filter_and_refill import Group


def sampling_metrics(groups: list[Group], *, kept: int, refills: int, missing: int) -> dict[str, float]:
    """Means over all sampled rollouts, those of dropped groups included.

    Args:
        kept: groups that the filter kept.
        refills: rounds in which new prompts replaced dropped ones.
        missing: groups of the batch without a learning signal.
    """
    scores = [rollout.score for group in groups for rollout in group.rollouts]
    # `format_rate` is of the strict reading, as in the evaluation; the others explain the reward, by the official one.
    values: dict[str, Sequence[float | None]] = {
        "sampled_reward": [score.trained.total for score in scores],
        "content": [score.trained.content for score in scores],
        "format_rate": [score.parts.format for score in scores],
        "name_accuracy": [score.parts.name_accuracy for score in scores],
        "argument_similarity": [score.parts.argument_similarity for score in scores],
        "call_count_error": [score.parts.call_count_error for score in scores],
        "kept_fraction": [kept / len(groups)],
        "refill_rounds": [refills],
        "unfilled_groups": [missing],
    }
    known = {name: [value for value in column if value is not None] for name, column in values.items()}
    # A part may apply to no rollout of a step, and there is no mean of nothing.
    return {name: fmean(column) for name, column in known.items() if column}


def describe_broken_formats(groups: list[Group], prompts: list[Prompt]) -> str | None:
    """The warning where every sampled completion is a format error.

    Args:
        prompts: of the training set; a group's row holds an index into them.
    """
    if any(rollout.score.trained.format >= 0 for group in groups for rollout in group.rollouts):
        return None
    samples = [
        (prompt.text, rollout.completion, prompt.tools)
        for group in groups
        for prompt in [prompts[group.row["row"]]]
        for rollout in group.rollouts
    ]
    return (
        f"all {len(samples)} completions break the format (official reading): {describe_format_errors(samples, strict=False)}. "
        "Sim-RL seldom finds a format that the model never writes: train the model on it first, a teacher with "
        "teacher.sft and a student with more distill.steps"
    )
