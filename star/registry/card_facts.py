"""Notes, in the manifest of each stage, what the card of the published model will say of it: base, trainings, data.

    synthesize       {"data": {"sources": {"xlam": 452}, "licences": {"CC-BY-4.0": 452}}}
    refine-teacher   {"base": {"kind": "hub", "name": "Qwen/Qwen3-8B", ...}, "trained": [{"phase": "sft", "steps": 300}, ...]}
    distill          {"base": {...}, "trained": [{"phase": "ckd", "epochs": 1}]}
    refine           {"trained": [{"phase": "simrl", "steps": 500, "reward": "similarity"}]}

The manifest of the refined model holds the origins of all stages before it, so whoever publishes it needs no other folder.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from star.config.experiment import Config
from star.config.models import Architecture, Student, Teacher
from star.config.training import SimRL, Training
from star.registry.base_facts import base_facts

STATISTICS = "figures.json"  # of `star synthesize`
NAMES = 20  # of sources and licences; the others are counted together


def card_facts(config: Config, sections: Collection[str], out: Path) -> dict[str, Any]:
    """What the card says of a finished stage: `data`, or `base` and `trained`, where the stage has them.

    Args:
        sections: those that the stage reads.
        out: its output.
    """
    facts: dict[str, Any] = {}
    if "data" in sections:
        facts["data"] = _facts_of_data(out / STATISTICS)
    for name in ("teacher", "student"):
        if name in sections:
            facts["base"] = base_facts(getattr(config, name))
    if "student" in sections and config.student.layers:
        facts["base"]["layers"] = config.student.layers
    if trained := list(_trainings(config, sections)):
        facts["trained"] = trained
    return facts


def _trainings(config: Config, sections: Collection[str]) -> Iterator[dict[str, Any]]:
    """The trainings of a stage in their order."""
    if "teacher" in sections:
        yield from _warmup(config, config.teacher)
        if config.teacher.sft:
            yield _training("sft", config.teacher.sft)
        if config.teacher.refine:
            yield _training("simrl", config.teacher.refine)
    if "student" in sections:
        yield from _warmup(config, config.student)
        if config.student.heal:
            yield _training("heal", config.student.heal)
    if "distill" in sections:
        yield _training(config.distill.kind, config.distill)
    if "refine" in sections:
        yield _training("simrl", config.refine)


def _warmup(config: Config, model: Teacher | Student) -> Iterator[dict[str, Any]]:
    if isinstance(model.base, Architecture) and config.scratch:
        yield _training("warmup", config.scratch.warmup)


def _training(phase: str, settings: Training | SimRL) -> dict[str, Any]:
    length = {"epochs": settings.epochs} if settings.steps is None else {"steps": settings.steps}
    return {"phase": phase, **length} | ({"reward": settings.reward} if isinstance(settings, SimRL) else {})


def _facts_of_data(statistics: Path) -> dict[str, dict[str, int]]:
    said = json.loads(statistics.read_text(encoding="utf-8"))
    return {key: _most_frequent(said.get(key, {})) for key in ("sources", "licences")}


def _most_frequent(counts: dict[str, int]) -> dict[str, int]:
    listed = Counter(counts).most_common()
    rest = {"others": sum(count for _, count in listed[NAMES:])} if len(listed) > NAMES else {}
    return dict(listed[:NAMES]) | rest
