"""Dynamic filtering: which groups of rollouts teach something, and which prompts replace the others.

The rollouts of one prompt are a group. Where all of them score alike, or nearly nothing or nearly everything, the advantages say
nothing; such a group is dropped and a new prompt takes its place (STAR, section on Sim-RL; after DAPO, arXiv 2503.14476).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean
from typing import Any

from star.rewards.breakdown import Score

LEAST_KEPT = 1 / 8  # the kept fraction that a refill reckons with, at least: it would else draw prompts without end


@dataclass(frozen=True)
class Rollout:
    """One completion of a prompt: its tokens, its text, its score; the sampler's log-probs where it gives them (vLLM)."""

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
    def spread(self) -> float:
        """Between its best and its worst trained reward: 0 means advantages of 0."""
        totals = [rollout.score.trained.total for rollout in self.rollouts]
        return max(totals) - min(totals)


def teaches(contents: Sequence[float], *, between: tuple[float, float] | None) -> bool:
    """Whether a group of these content scores (a format error is 0) is kept; without bounds every group is.

    It is when their mean lies strictly between the bounds and not all are the same.
    """
    if between is None:
        return True
    low, high = between
    return low < fmean(contents) < high and max(contents) > min(contents)


def fill(kept: Sequence[Group], dropped: Sequence[Group], *, count: int) -> list[Group]:
    """The batch: the kept groups in the order they came, and where they are too few the dropped ones of the widest spread."""
    spare = sorted(dropped, key=lambda group: -group.spread)
    return [*kept, *spare][:count]


def refill_size(*, missing: int, kept: int, tried: int, limit: int, multiple: int) -> int:
    """How many new prompts a round draws: as many as should give the missing groups at the kept fraction seen so far.

    At most `limit`, and a multiple of `multiple` (the processes that share them).
    """
    wanted = min(limit, ceil(missing / max(kept / tried, LEAST_KEPT)))
    return ceil(wanted / multiple) * multiple


def refill_rows(*, seed: int, step: int, count: int, rows: int, tried: set[int]) -> list[int]:
    """Indices of `count` rows that this step has not tried, fewer when there are no more.

    The next ones of the step's own order, which comes from seed and step alone: a resumed training draws the same, and however
    the rounds cut the order, the first groups of it that are kept are the same.
    """
    draw, taken = random.Random(f"{seed} {step}"), set(tried)
    chosen: list[int] = []
    while len(chosen) < count and len(taken) < rows:
        row = draw.randrange(rows)
        if row not in taken:
            taken.add(row)
            chosen.append(row)
    return chosen
