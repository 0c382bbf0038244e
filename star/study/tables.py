"""Writes the tables of a study's page: distillation by reward, exploration, and sweeps beside the grid's own cells."""

from collections.abc import Callable
from statistics import fmean

from star.config.study import KD, RL, Study, Sweep
from star.study.paper import NEIGHBOURS, PAPER
from star.study.scores import KD_NAMES, RL_NAMES, Scores, paragraph, table

OWN = "the profile's own"


def grid_section(study: Study, scores: Scores) -> str:
    """Distillations by rewards: exact match, mean reward, time, and the paper's scores."""
    rewards = [RL_NAMES[rl] for rl in study.rl]

    def by_reward(value: Callable[[str], str]) -> str:
        body = [[KD_NAMES[kd], *(value(f"{kd}+{rl}") for rl in study.rl)] for kd in study.kd]
        return table(["distillation", *rewards], body)

    return (
        "\n## Distillation and reward\n\n"
        + paragraph(
            """Exact match on the held-out rows in percent: mean over the seeds ± half of the 95% interval. Rows are kinds of distillation,
            columns rewards of the reinforcement learning after it."""
        )
        + by_reward(scores.percent)
        + _order(study, scores)
        + _papers(study)
        + "\nMean similarity reward on the held-out rows, from −1 to 1:\n\n"
        + by_reward(lambda cell: scores.number(cell, "mean_reward"))
        + "\nTime of a student's own trainings, which are the distillation and Sim-RL, as a mean over the seeds:\n\n"
        + by_reward(scores.training_time)
    )


def _order(study: Study, scores: Scores) -> str:
    """Both orders of the distillations after Sim-RL, best first, by the seeds that all of them have."""
    cells = {kd: f"{kd}+similarity" for kd in study.kd if f"{kd}+similarity" in PAPER}
    recorded = {kd: found for kd, cell in cells.items() if (found := scores.by_seed(cell, "exact_match"))}
    seeds = sorted(set.intersection(*(set(found) for found in recorded.values()))) if recorded else []
    if len(recorded) < 2 or not seeds:
        return ""
    here = {kd: fmean(found[seed] for seed in seeds) for kd, found in recorded.items()}
    ours = sorted(here, key=lambda kd: -here[kd])
    papers = sorted(here, key=lambda kd: -(PAPER[cells[kd]].bfcl or 0))
    same = "The two are the same." if ours == papers else "They differ."
    listed = [", ".join(KD_NAMES[kd] for kd in order) for order in (ours, papers)]
    of_seeds = f" of seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}" if len(seeds) < len(study.seeds) else ""
    text = paragraph(
        f"""By the means after Sim-RL{of_seeds}, from the best: {listed[0]}. In the paper (BFCLv3): {listed[1]}. {same} Neighbours in this
        order may differ by chance: the table of claims compares pairs, CKD with each of the others."""
    )
    return f"\n{text}".removesuffix("\n")


def _papers(study: Study) -> str:
    """The paper's two tables for the distillations of the study, where there are several to compare."""
    kinds = [kd for kd in study.kd if any(f"{kd}+{rl}" in PAPER for rl in study.rl)]
    if len(kinds) < 2:
        return ""
    body = [
        [KD_NAMES[kd]] + [_papers_score(f"{kd}+{rl}", number) for number in (0, 1) for rl in study.rl] for kd in kinds
    ]
    names = [f"{suite}, {RL_NAMES[rl]}" for suite in ("BFCL", "ACEBench") for rl in study.rl]
    return (
        "\n"
        + paragraph(
            """The paper's scores of the same ways to train (Qwen3-0.6B; BFCLv3 overall, then ACEBench normal). They are of another task
            and another student: compare the order, not the values."""
        )
        + table(["distillation", *names], body)
    )


def _papers_score(cell: str, number: int) -> str:
    score = PAPER[cell][number] if cell in PAPER else None
    return "-" if score is None else f"{score:g}"


def exploration_section(study: Study, scores: Scores) -> str:
    """What each student can still find before Sim-RL, and what Sim-RL then added."""
    body = []
    further = [(f"{name}/", kd) for name, varied in study.sweeps.items() if not varied.values for kd in varied.kd]
    for place, kd in [*(("", kd) for kd in study.kd), *further]:
        before, after = f"{place}{kd}+none", f"{place}{kd}+similarity"
        columns = ("exact_match", "pass_at_1", "pass_at_4", "pass_at_8")
        shares = [scores.percent(before, column) for column in columns]
        body.append([KD_NAMES[kd], *shares, scores.number(before, "entropy"), scores.gain(after, before)])
    return (
        "\n## Exploration before Sim-RL\n\n"
        + paragraph(
            """The paper explains CKD's gain by what it leaves to explore: a student that still finds right answers among several samples
            (pass@8), and is not sure too early (entropy, nats per token), has more to learn from. The last column is what Sim-RL then added
            to exact match."""
        )
        + table(["distillation", "exact match", "pass@1", "pass@4", "pass@8", "entropy", "gained by Sim-RL"], body)
    )


def sweeps_section(study: Study, scores: Scores) -> str:
    """The cells beside the grid, each with its difference to the cell of the grid that it is compared with."""
    text = "".join(f"\n### {name}\n\n{_sweep(name, varied, scores)}" for name, varied in study.sweeps.items())
    if not text:
        return ""
    return (
        "\n## Further cells\n\n"
        + paragraph(
            """Exact match in percent, as above. The difference is to the cell of the grid beside, in points, paired by seed, with its 95%
            interval; with the same settings it is the same student. The time is that of a student's own trainings."""
        ).rstrip("\n")
        + "\n"
        + text
    )


def _sweep(name: str, varied: Sweep, scores: Scores) -> str:
    body = []
    for kd in varied.kd:
        for rl in varied.rl:
            if varied.values:
                own = f"{kd}+{rl}"
                body.append([OWN, f"`{own}`", *_values(own, None, scores)])
                body += [[value, f"`{own}`", *_values(f"{name}={value}/{own}", own, scores)] for value in varied.values]
            else:
                own = f"{NEIGHBOURS.get(kd, kd)}+{rl}"
                body.append([_named(kd, rl), f"`{own}`", *_values(f"{name}/{kd}+{rl}", own, scores)])
    head = [
        name if varied.values else "way to train",
        "cell of the grid",
        "exact match",
        "difference",
        "mean reward",
        "time",
    ]
    return table([*head, "teacher's exact match"], body, text_columns=2)


def _named(kd: KD, rl: RL) -> str:
    return f"{KD_NAMES[kd]}; {RL_NAMES[rl]}"


def _values(cell: str, own: str | None, scores: Scores) -> list[str]:
    """The columns of a cell, with its difference to another one."""
    compared = "-" if own is None else "the same" if scores.are_same(cell, own) else scores.gain(cell, own)
    teacher = scores.percent(cell, "teacher_exact_match").partition(" ")[0]  # one teacher for all seeds
    return [scores.percent(cell), compared, scores.number(cell, "mean_reward"), scores.training_time(cell), teacher]
