"""Names the scores of an evaluation and says how each is read: its label, its unit, and whether more is better."""

from typing import NamedTuple


class Metric(NamedTuple):
    """How one score is shown: `better` is 1 if more is better, -1 if less is better, 0 if neither."""

    label: str
    percent: bool = False
    better: int = 1


METRICS = {
    "exact_match": Metric("Exact match", percent=True),
    # What Sim-RL trains on. It reads answers as the official code does, which accepts calls that are never closed.
    "mean_reward": Metric("Mean reward (official reading)"),
    "format_errors": Metric("Format errors", percent=True, better=-1),
    "entropy": Metric("Policy entropy (nats)", better=0),
    "bfcl_overall_v3": Metric("BFCL overall (v3)", percent=True),
    "bfcl_overall_v4_without_agentic": Metric("BFCL overall (v4, no agentic)", percent=True),
    "bfcl_non_live": Metric("BFCL non-live", percent=True),
    "bfcl_live": Metric("BFCL live", percent=True),
    "bfcl_multi_turn": Metric("BFCL multi-turn", percent=True),
    "bfcl_irrelevance_both": Metric("BFCL irrelevance, both", percent=True),
    "bfcl_irrelevance_began_call": Metric("BFCL irrelevance, answers that begin a call", percent=True, better=-1),
    "bfcl_live_irrelevance_began_call": Metric(
        "BFCL live irrelevance, answers that begin a call", percent=True, better=-1
    ),
    "bfcl_live_relevance_began_call": Metric("BFCL live relevance, answers that begin a call", percent=True),
    "bfcl": Metric("BFCL entries right", percent=True),
    "acebench_normal": Metric("ACEBench normal", percent=True),
    "acebench": Metric("ACEBench conversations right", percent=True),
}


def is_same_in_both_readings(name: str) -> bool:
    """Whether a score of an older STAR, which counted other answers as valid, has the same meaning as today."""
    return name in ("mean_reward", "entropy") or name == "bfcl" or name.startswith("bfcl_")


def metric_of(name: str) -> Metric:
    """The metric of a score: pass@k and the categories of BFCL by a rule, an unknown score by its plain name."""
    if name in METRICS:
        return METRICS[name]
    if name.startswith("pass_at_"):
        return Metric(f"pass@{name.removeprefix('pass_at_')}", percent=True)
    if name.startswith("bfcl_"):
        return Metric(f"BFCL {name.removeprefix('bfcl_').replace('_', ' ')}", percent=True)
    return Metric(name.replace("_", " "), better=0)
