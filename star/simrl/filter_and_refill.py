"""Dynamic filtering: decides which groups of rollouts are kept, and which prompts replace the dropped ones.

The rollouts of one prompt are a group. GRPO's advantage is a rollout's reward relative to its group, so a group whose
rollouts all score alike has advantages of 0 and no learning signal. A group that scores nearly nothing or nearly
everything is noise. Both are dropped, and a prompt that this step has not tried takes the place (STAR, section on
Sim-RL; after DAPO, arXiv 2503.14476).

These are the pure rules; `star.simrl.trainer` applies them, and its docstring shows one step.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean
from typing import Any

from star.rewards.breakdown import Score

MIN_KEPT_FRACTION = 1 / 8  # a refill assumes at least this; a lower fraction would draw prompts without end


@dataclass(frozen=True)
class Rollout:
    """One completion of a prompt: tokens, text, score, and the sampler's log-probs where it gives them (vLLM).

    The text begins with the opening that the prompt holds; the completion's tokens are what was sampled.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    completion: str
    logprobs: list[float] | None
    score: Score


@dataclass(frozen=True)
class Group:
    """The rollouts of one prompt, with its row of the training set."""

    row: dict[str, Any]
    rollouts: list[Rollout]

    @property
    def reward_spread(self) -> float:
        """Best minus worst trained reward; 0 means that all advantages are 0."""
        totals = [rollout.score.trained.total for rollout in self.rollouts]
        return max(totals) - min(totals)

    @property
    def packed_tokens(self) -> int:
        """Tokens of the prompt, which is counted once, and of all completions."""
        return len(self.rollouts[0].prompt_ids) + sum(len(rollout.completion_ids) for rollout in self.rollouts)


def is_informative(contents: Sequence[float], *, between: tuple[float, float] | None) -> bool:
    """Whether a group is kept: its mean content score lies strictly between the bounds, and not all scores are equal.

    Args:
        contents: content score of each rollout; a format error is 0.
        between: the bounds; None keeps every group.
    """
    if between is None:
        return True
    low, high = between
    return low < fmean(contents) < high and max(contents) > min(contents)


def choose_batch(kept: Sequence[Group], dropped: Sequence[Group], *, count: int) -> list[Group]:
    """Chooses `count` groups to train on: kept ones in order of sampling, then dropped ones of the widest spread."""
    # The sort is stable: groups of equal spread stay in the order of sampling, so all ranks choose alike.
    spare = sorted(dropped, key=lambda group: -group.reward_spread)
    return [*kept, *spare][:count]


def share_of_rank(groups: Sequence[Group], *, updates: int, rank: int, processes: int) -> list[Group]:
    """A process's groups of a batch for `updates` updates, those of its first update first."""
    share: list[Group] = []
    for update in range(updates):
        # Every so many-th group: dropped ones that fill the batch come last, and are not all of one update.
        # By length, so that the rows of a micro batch pad each other little. Dealt, so that no rank waits for a longer one.
        ordered = sorted(groups[update::updates], key=lambda group: group.packed_tokens, reverse=True)
        share += ordered[rank::processes]
    return share


def refill_size(*, missing: int, kept: int, tried: int, limit: int, multiple: int) -> int:
    """How many new prompts a refill draws, so that the missing groups are expected at the kept fraction seen so far.

    With 3 groups missing and 1 of 4 kept so far it draws 12.

    Args:
        missing: groups that the batch still lacks.
        kept: groups kept in this step so far.
        tried: groups sampled in this step so far.
        limit: upper bound, before rounding up.
        multiple: number of processes that share the prompts; the result is a multiple of it.
    """
    # Rounded up, because a refill that is too small costs another round of sampling.
    wanted = min(limit, ceil(missing / max(kept / tried, MIN_KEPT_FRACTION)))
    return ceil(wanted / multiple) * multiple


def draw_refill_rows(*, seed: int, step: int, count: int, rows: int, tried: set[int]) -> list[int]:
    """Draws the indices of `count` rows that this step has not tried, fewer when there are no more.

    Each step has one random order of the rows, which depends on seed and step only, and a refill takes the next rows of
    it. A resumed training therefore draws the same rows, and the first kept groups do not depend on the sizes of the
    refills.

    Args:
        rows: number of rows in the training set.
        tried: indices of the rows that this step has sampled.
    """
    # Rows that were tried are skipped, not removed: the draws, and with them the order, stay the same.
    draw, taken = random.Random(f"{seed} {step}"), set(tried)  # noqa: S311 - a draw that can be repeated, no secret
    chosen: list[int] = []
    while len(chosen) < count and len(taken) < rows:
        row = draw.randrange(rows)
        if row not in taken:
            taken.add(row)
            chosen.append(row)
    return chosen
