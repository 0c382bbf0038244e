"""Says what each stage will cost, as lines of text: time of a card or of this CPU, disk, money. docs/scale.md has the formulas."""

from collections.abc import Iterator

from star.config.experiment import Config
from star.config.models import Architecture
from star.doctor.costs import CARD, Cost, Workload, stage_costs
from star.doctor.cpu_costs import measure_cpu, stage_seconds
from star.doctor.estimates import describe_base, workload
from star.doctor.sample_rows import measure_lengths
from star.errors import InputError
from star.units import format_bytes, format_number, format_seconds


def has_pretrained_base(config: Config) -> bool:
    """Whether teacher or student starts from a pretrained model."""
    return not all(isinstance(model.base, Architecture) for model in (config.teacher, config.student))


def cpu_computes_in_bf16(config: Config) -> bool:
    """Whether the profile's models compute in bf16 on this machine's CPU.

    Raises:
        InputError: a model's configuration cannot be loaded.
    """
    from star.modeling.precision import computes_in_bf16

    described, _ = describe_base(config.teacher)
    return computes_in_bf16(config.precision, described)


def cost_lines(config: Config, *, here: bool = True) -> Iterator[str]:
    """Yields what each stage will cost.

    Args:
        here: whether the run is to be on this machine: without a GPU its CPU computes.
    """
    try:
        work, measured = _work(config, here=here)
        on_cpu = here and _is_for_this_cpu(config)
        on_this_cpu = stage_seconds(config, work, measure_cpu(bf16=cpu_computes_in_bf16(config))) if on_cpu else {}
    except InputError as error:
        yield f"     costs                  not known: {error}"
        return
    yield (
        f"about the costs of {work.rows:,} rows (samples of each: {work.samples}), for prompts of {work.prompt_tokens:,.0f} "
        f"and answers of {work.completion_tokens:,.0f} tokens ({'measured on some rows, ' if measured else ''}docs/scale.md):"
    )
    if on_this_cpu:
        yield from _lines_of_cpu(stage_costs(work), on_this_cpu)
    else:
        yield from _lines_of_cards(stage_costs(work), config)


def _work(config: Config, *, here: bool) -> tuple[Workload, bool]:
    """The work of a configuration, and whether its rows were measured."""
    # A tokenizer from scratch is trained on the rows first. What a cluster reads may be out of reach here.
    if not here or isinstance(config.teacher.base, Architecture):
        return workload(config), False
    return workload(config, measure_lengths(config)), True


def _is_for_this_cpu(config: Config) -> bool:
    import torch

    return has_pretrained_base(config) and not torch.cuda.is_available()


def _lines_of_cpu(costs: dict[str, Cost], on_cpu: dict[str, float]) -> Iterator[str]:
    for stage, cost in costs.items():
        seconds = on_cpu.get(stage, cost.core_seconds)
        time = [f"{format_seconds(round(seconds))} of this CPU"] if seconds >= 1 else []
        yield _line(stage, [*time, f"{format_bytes(cost.disk)} on disk"])
    yield _line("all of them", [f"{format_seconds(round(sum(on_cpu.values())))} of this CPU"])


def _lines_of_cards(costs: dict[str, Cost], config: Config) -> Iterator[str]:
    prices: dict[str, float | None] = {}
    for stage, cost in costs.items():
        parts = [f"{format_bytes(cost.disk)} on disk"]
        node = config.cluster.node_of(stage)
        if cost.card_seconds and (has_pretrained_base(config) or node.accelerator):
            price = node.accelerator_price
            prices[stage] = None if price is None else cost.card_seconds / 3600 * price
            parts.insert(0, _of_cards(cost.card_seconds, prices[stage], config))
        if cost.core_seconds >= 1:
            parts.insert(0, f"{format_seconds(round(cost.core_seconds))} of one core")
        yield _line(stage, parts)
    if prices:
        known = [price for price in prices.values() if price is not None]
        total = sum(known) if len(known) == len(prices) else None
        yield _line("all of them", [_of_cards(sum(costs[stage].card_seconds for stage in prices), total, config)])


def _line(name: str, parts: list[str]) -> str:
    return f"     {name:<22} {', '.join(parts)}"


def _of_cards(seconds: float, price: float | None, config: Config) -> str:
    """A time of one card, and what it costs if the profile says what an hour does."""
    money = f" ({format_number(price)} {config.cluster.currency})" if price is not None else ""
    return f"{format_seconds(round(seconds) if seconds >= 1 else seconds)} of one {CARD}{money}"
