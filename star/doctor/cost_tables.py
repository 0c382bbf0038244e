"""Writes the tables of docs/scale.md: `python -m star.doctor.cost_tables > tables.md`. A test compares them."""

from star.doctor.costs import ModelSize, Workload, stage_costs
from star.units import format_bytes

QWEN3_8B, QWEN3_06B = ModelSize(8.19e9, 147_456, 36), ModelSize(0.596e9, 114_688, 28)
ROWS = (20_000, 128_000, 1_000_000, 100_000_000)
CARDS = (1, 8, 64)
SHARDED = ("rollout", "extract-topk", "evaluate")  # their work on the host is divided too


def paper_workload(rows: int, *, teacher: ModelSize = QWEN3_8B) -> Workload:
    """The paper's recipe on so many rows: 8 samples of each, one pass of distillation, three of Sim-RL per model; bases evaluated too."""
    return Workload(
        teacher=teacher,
        student=QWEN3_06B,
        training_rows=rows,
        rows=rows,
        made_rows=rows,
        heldout_rows=1000,
        samples=8,
        evaluated_samples=9,
        top_k=100,
        vocab_size=151_936,
        warm_sequences=0,
        healed_sequences=0,
        distilled_sequences=rows * 8,
        samples_per_distilled_prompt=1,
        samples_per_extracted_prompt=8,
        teacher_refine=3 * rows * 8,
        student_refine=3 * rows * 8,
        teacher_group=8,
        student_group=8,
        bases=tuple(dict.fromkeys((teacher, QWEN3_06B))),
    )


def stage_table(work: Workload) -> str:
    """A table of all stages: hours of one core and of one card, bytes on disk."""
    lines = ["| stage | hours of a core | hours of a card | on disk |", "|---|---:|---:|---:|"]
    for name, cost in stage_costs(work).items():
        cells = (_hours(cost.core_seconds), _hours(cost.card_seconds), format_bytes(cost.disk))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def size_table() -> str:
    """A table by the number of rows: hours of the stages that grow with it, and of all stages on 1, 8 and 64 cards."""
    heads = ["rows", "teacher", "synthesize (a core)", "rollout", "extract-topk", "distill", "signal on disk"]
    heads += [f"all on {cards}" for cards in CARDS]
    lines = [f"| {' | '.join(heads)} |", "|---:|---|" + "---:|" * (len(heads) - 2)]
    for rows in ROWS:
        for name, teacher in (("0.6B", QWEN3_06B), ("8B", QWEN3_8B)):
            costs = stage_costs(paper_workload(rows, teacher=teacher))
            cells = [f"{rows:,}", name, _hours(costs["synthesize"].core_seconds)]
            cells += [_hours(costs[stage].card_seconds) for stage in ("rollout", "extract-topk", "distill")]
            cells.append(format_bytes(costs["extract-topk"].disk))
            for cards in CARDS:
                alone = sum(cost.core_seconds for stage, cost in costs.items() if stage not in SHARDED)
                divided = sum(cost.card_seconds for cost in costs.values())
                divided += sum(costs[stage].core_seconds for stage in SHARDED)
                cells.append(_hours(alone + divided / cards))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _hours(seconds: float) -> str:
    # Three digits: an estimate has no more.
    return f"{float(f'{seconds / 3600:.3g}'):,}" if seconds else "-"


if __name__ == "__main__":
    print(stage_table(paper_workload(128_000)), size_table(), sep="\n\n")
