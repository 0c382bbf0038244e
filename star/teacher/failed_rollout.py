"""Explains a rollout without a single kept sample: what is wrong with the samples, and what to do about each cause."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from star.config.teacher_signal import Rollout
from star.modeling.prompts import Prompt
from star.rewards.format_errors import describe_format_errors


def explain_failure(files: list[Path], counts: dict[str, int], prompts: list[Prompt], settings: Rollout) -> str:
    """One line that names the causes, the most frequent first, with their counts and cures.

    Args:
        files: those of the batches, with all samples and their verdicts; none of them is `kept`.
        counts: the number of samples per verdict.
        prompts: those that were sampled, among others.
    """
    cures = {
        "truncated": f"reached the limit of {settings.max_new_tokens} tokens: raise rollout.max_new_tokens",
        "low_reward": f"have a reward below {settings.min_reward}: lower rollout.min_reward, or train the teacher",
    }
    causes = [
        f"{count} {cures.get(verdict) or _explain_format_errors(files, prompts)}"
        for verdict, count in Counter(counts).most_common()
        if count
    ]
    return f"the teacher gave no valid completion in {sum(counts.values())} samples. {'. '.join(causes)}"


def _explain_format_errors(files: list[Path], prompts: list[Prompt]) -> str:
    by_id = {prompt.row_id: prompt for prompt in prompts}
    # One file at a time: all samples of a large rollout are more than memory holds.
    samples = (
        (by_id[row["row_id"]].text, row["completion"], by_id[row["row_id"]].tools)
        for file in files
        for row in pq.read_table(file, columns=["row_id", "completion", "verdict"]).to_pylist()
        if row["verdict"] == "format_errors"
    )
    return (
        f"break the format: {describe_format_errors(samples)}. A completion must be one <think> block and then a reply "
        "or <tool_call> blocks: train the teacher on the rows with teacher.sft, or choose one that answers so"
    )
