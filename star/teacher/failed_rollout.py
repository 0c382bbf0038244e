"""Explains a rollout without a single kept sample: what is wrong with the samples, and what to do about each cause."""

from collections import Counter

import pyarrow as pa

from star.config.teacher_signal import Rollout
from star.modeling.prompts import Prompt
from star.rewards.format_errors import describe_format_errors


def explain_failure(table: pa.Table, prompts: list[Prompt], settings: Rollout) -> str:
    """One line that names the causes, the most frequent first, with their counts and cures.

    Args:
        table: all samples with their verdicts; none of them is `kept`.
        prompts: those that were sampled, among others.
    """
    counts = Counter(table["verdict"].to_pylist())
    cures = {
        "truncated": f"reached the limit of {settings.max_new_tokens} tokens: raise rollout.max_new_tokens",
        "low_reward": f"have a reward below {settings.min_reward}: lower rollout.min_reward, or train the teacher",
    }
    causes = [
        f"{count} {cures.get(verdict) or _explain_format_errors(table, prompts)}"
        for verdict, count in counts.most_common()
    ]
    return f"the teacher gave no valid completion in {counts.total()} samples. {'. '.join(causes)}"


def _explain_format_errors(table: pa.Table, prompts: list[Prompt]) -> str:
    by_id = {prompt.row_id: prompt for prompt in prompts}
    wrong = [row for row in table.to_pylist() if row["verdict"] == "format_errors"]
    samples = [(by_id[row["row_id"]].text, row["completion"], by_id[row["row_id"]].tools) for row in wrong]
    return (
        f"break the format: {describe_format_errors(samples)}. A completion must be one <think> block and then a reply "
        "or <tool_call> blocks: train the teacher on the rows with teacher.sft, or choose one that answers so"
    )
