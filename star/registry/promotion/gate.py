"""Checks a candidate against the gate, the bars it must clear to become champion. Each check gives its reason in a sentence.

Minimums and maximums hold for every candidate. Where the champion was measured on the same rows with the same decoding,
the candidate must not be worse: overall by more than the allowed regression, and in no category by more than that with
95% confidence (paired on the rows that both answered).

Example: `max_regression` is 0.01, champion and candidate answer 92% and 91.5% of the same rows exactly. The check
`exact_match` passes with "exact match 0.9150 reaches 0.9100 (the champion's 0.9200 less 0.0100)". If the candidate's
interval for the category `dates` is [-0.08, -0.03] against the champion, the check `category dates` fails.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from star.config.evaluation import Gate

ROUNDING = 1e-9  # 0.4 - 0.1 is a little more than 0.3
FEWEST_ROWS = 5  # rows of a category that its interval needs to be meaningful
# The mean of the reward that Sim-RL trains on, which reads answers as the official code does.
_NAMES = {"mean_reward": "mean reward (official reading)"}


@dataclass(frozen=True)
class Check:
    """One bar."""

    name: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class Verdict:
    """The checks of all bars, and notes on what was not compared."""

    checks: list[Check]
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the version passed every check."""
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """One sentence per check, passed or not, then the notes."""
        return [check.reason for check in self.checks] + self.notes


@dataclass(frozen=True)
class Measurements:
    """What an evaluation measured of one model.

    `older_reading` says that an older STAR measured it: its format errors are those of the official reward, and its
    exact match counts answers without words as refusals.
    """

    scores: Mapping[str, float]
    benchmark: str = ""  # digest of the rows
    decoding: str = ""  # digest of the settings by which they were answered
    parameters: float | None = None
    tokens_per_second: float | None = None
    outcomes: Mapping[str, tuple[str, float]] = field(default_factory=dict)  # row -> category, 1 for an exact match
    older_reading: bool = False


def check_gate(candidate: Measurements, champion: Measurements | None, gate: Gate, *, seed: int = 0) -> Verdict:
    """Checks all bars of the gate.

    Args:
        champion: measurements of the champion, None where there is none.
        seed: of the bootstrap of the categories' intervals.
    """
    # On other rows, or with other decoding, a score differs for reasons that are not the model's.
    comparable = champion is not None and _comparable(candidate, champion)
    verdict = check_scores(candidate.scores, champion.scores if champion and comparable else None, gate)
    checks = [*verdict.checks, *_check_reading(candidate), *_check_size_and_speed(candidate, gate)]
    notes = []
    if champion is not None and comparable:
        checks += _check_categories(candidate.outcomes, champion.outcomes, gate, seed=seed)
        if champion.older_reading:
            # Compared all the same: of the same answers the older exact match is never lower, so the bar is never lower.
            notes.append(
                "an older STAR measured the champion, and counted answers without words as refusals: its exact match can "
                "be too high, and the bars that follow from it too"
            )
    elif champion is not None:
        notes.append("the champion was measured on other rows or with other decoding, and is not compared")
    return Verdict(checks, notes)


def check_scores(
    candidate_scores: Mapping[str, float], champion_scores: Mapping[str, float] | None, gate: Gate
) -> Verdict:
    """Compares a candidate's `exact_match`, `format_errors` and `mean_reward` with the gate and the champion's, if any.

    A score that the candidate lacks, or that is NaN, does not pass. One that the champion lacks is not compared.
    """
    bars = [("exact_match", gate.min_exact_match, "the gate's minimum")]
    for score in ("exact_match", "mean_reward"):
        if champion_scores and score in champion_scores:
            label = f"the champion's {champion_scores[score]:.4f} less {gate.max_regression:.4f}"
            bars.append((score, champion_scores[score] - gate.max_regression, label))
    checks = [_check_minimum(candidate_scores, score, bar=bar, label=label) for score, bar, label in bars]
    return Verdict([*checks, _check_format_errors(candidate_scores, gate)])


def _comparable(candidate: Measurements, champion: Measurements) -> bool:
    return (candidate.benchmark, candidate.decoding) == (champion.benchmark, champion.decoding)


def _check_reading(candidate: Measurements) -> Iterator[Check]:
    # Format errors of the official reading are fewer, so they must not pass the bar.
    if candidate.older_reading:
        reason = "an older STAR counted the format errors, by the official reading: run `star evaluate` again"
        yield Check("reading", False, reason)


def _check_minimum(scores: Mapping[str, float], score: str, *, bar: float, label: str) -> Check:
    name = _NAMES.get(score, score.replace("_", " "))
    if score not in scores:
        return Check(score, False, f"{name} was not measured, and {bar:.4f} is needed ({label})")
    # NaN must not pass. Every comparison with NaN is false, so the condition says what passes, not what fails.
    passed = scores[score] >= bar - ROUNDING
    reason = f"{name} {scores[score]:.4f} {'reaches' if passed else 'is below'} {bar:.4f} ({label})"
    return Check(score, passed, reason)


def _check_format_errors(scores: Mapping[str, float], gate: Gate) -> Check:
    limit = f"{gate.max_format_errors:.4f} (the gate's maximum)"
    if "format_errors" not in scores:
        return Check("format_errors", False, f"format errors were not measured, and may be at most {limit}")
    passed = scores["format_errors"] <= gate.max_format_errors + ROUNDING
    reason = f"format errors {scores['format_errors']:.4f} {'stay within' if passed else 'exceed'} {limit}"
    return Check("format_errors", passed, reason)


def _check_size_and_speed(candidate: Measurements, gate: Gate) -> Iterator[Check]:
    if gate.max_parameters is not None:
        # A bar that is set must not pass only because nothing was measured.
        size = candidate.parameters
        passed = size is not None and size <= gate.max_parameters
        found = "was not measured" if size is None else f"is {size:,.0f}"
        yield Check("size", passed, f"the number of parameters {found}, and may be at most {gate.max_parameters:,}")
    if gate.min_tokens_per_second is not None:
        speed = candidate.tokens_per_second
        passed = speed is not None and speed >= gate.min_tokens_per_second
        found = "was not measured" if speed is None else f"is {speed:,.1f} tokens a second"
        yield Check("speed", passed, f"the speed {found}, and must be {gate.min_tokens_per_second:,.1f} at least")


def _check_categories(
    candidate: Mapping[str, tuple[str, float]], champion: Mapping[str, tuple[str, float]], gate: Gate, *, seed: int
) -> Iterator[Check]:
    """Yields one check per category, on the rows that both answered."""
    from star.evaluation.intervals import paired_difference

    shared = sorted(candidate.keys() & champion.keys())
    for category in sorted({candidate[row][0] for row in shared}):
        rows = [row for row in shared if candidate[row][0] == category]
        if len(rows) < FEWEST_ROWS:
            continue
        found = paired_difference([candidate[row][1] for row in rows], [champion[row][1] for row in rows], seed=seed)
        # The candidate fails only if even the upper end of the interval is below the allowed regression.
        passed = found.high >= -gate.max_regression - ROUNDING
        difference = f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}] against the champion on {len(rows)} rows"
        verdict = "no worse" if passed else f"worse by more than {gate.max_regression:.4f}"
        yield Check(f"category {category}", passed, f"{category}: {difference}: {verdict}")
