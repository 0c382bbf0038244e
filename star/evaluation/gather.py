"""Asks the models of an evaluation their shard of every suite, and collects what the report says about them.

Nothing is scored here. star/evaluation/evaluate.py scores what was gathered, all at once or in shards.
"""

import gc
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from star.config.experiment import Config
from star.evaluation.bases import PretrainedBase, settled_base
from star.evaluation.candidate import Candidate
from star.evaluation.gathered import Gathered, GatheredModel, Timing
from star.evaluation.journal import Journal
from star.evaluation.suites import SUITES
from star.folders.manifest import METRICS, read_manifest
from star.folders.shard import WHOLE, Shard
from star.json_file import write_json
from star.tracking.accelerators import SECONDS

TRAINING_PHASES = ("warmup", "sft", "heal", "ckd", "simrl")  # in the order in which they happen
ModelSource = Path | str | PretrainedBase  # a model's folder, its hub id, or a base that is settled first


def gather(
    models: Mapping[str, ModelSource],
    data: Path | None,
    *,
    config: Config,
    state: Path,
    title: str,
    shard: Shard = WHOLE,
) -> Gathered:
    """Asks each model its shard of every suite. A model that was finished before a kill is not asked again.

    Args:
        models: by the name they are shown under, in the order of the report.
        data: the folder of `star synthesize`; needed for the suite heldout only.
        state: the folder that a killed evaluation resumes from.
    """
    folders = {name: model for name, model in models.items() if isinstance(model, Path)}
    bases = {name: model for name, model in models.items() if isinstance(model, PretrainedBase)}
    base_of = {trained: name for name, base in bases.items() for trained in base.trained}
    found = {
        name: _gather_model_once(
            name, models[name], data, config=config, state=state, shard=shard, base=base_of.get(name)
        )
        # The bases last: what was trained for hours is asked first.
        for name in sorted(models, key=lambda name: name in bases)
    }
    return Gathered(
        title=title,
        settings=json.loads(config.slice(("seed", "evaluate"))),
        models=[found[name] for name in models],
        curves={name: curve for folder in folders.values() for name, curve in _learning_curves(folder)},
        # A hub id has no manifest, so only folders have curves and digests.
        lineage=_digests({**({"data": data} if data else {}), **folders})
        | {name: base.identity for name, base in bases.items()},
        stages=_stages_of(list(models.values())[-1]),
    )


def _gather_model_once(
    name: str, model: ModelSource, data: Path | None, *, config: Config, state: Path, shard: Shard, base: str | None
) -> GatheredModel:
    # Not the name alone: `star evaluate --model ..` names a model so, and this folder is removed below.
    finished, settled = state / f"{name}.json", state / f"{name}-settled"
    if not finished.exists():
        source = (
            settled_base(model, settled, precision=config.precision) if isinstance(model, PretrainedBase) else model
        )
        gathered = _gather_model(name, source, data, config=config, state=state, shard=shard)
        write_json(finished, replace(gathered, base=base).to_json())
    # Also what a kill left, before the next model needs the room.
    shutil.rmtree(settled, ignore_errors=True)
    # Read back also when it was just written: a resumed evaluation must not differ, not even by a tuple for a list.
    return GatheredModel.from_json(json.loads(finished.read_text(encoding="utf-8")))


def _gather_model(
    name: str, model: Path | str, data: Path | None, *, config: Config, state: Path, shard: Shard
) -> GatheredModel:
    from star.modeling.models import count_parameters, load_model, load_tokenizer
    from star.teacher.vllm_engine import TeacherEngine

    tokenizer, loaded = load_tokenizer(model), load_model(model, precision=config.precision)
    journal = Journal(state / f"{name}.jsonl")
    engine = TeacherEngine(model, config.evaluate.vllm) if config.evaluate.vllm else None
    candidate = Candidate(
        name,
        loaded,
        tokenizer,
        config.evaluate,
        config.seed,
        journal,
        shard,
        sampler=engine.generate if engine else None,
    )
    suites: dict[str, Any] = {suite: SUITES[suite].ask(candidate, data) for suite in config.evaluate.suites}
    # Measured after the suites, on prompts that the model was asked. With all answers in the journal there are none.
    latency = candidate.measure_latency() if candidate.seconds else None
    gathered = GatheredModel(
        name=name,
        parameters=count_parameters(loaded),
        memory=loaded.get_memory_footprint(),
        timing=Timing(candidate.tokens, candidate.seconds, latency, _training_time(model)),
        suites=suites,
    )
    # The next model must fit into the memory that this one leaves.
    del loaded, candidate
    if engine:
        engine.close()
    gc.collect()
    return gathered


def _training_time(model: Path | str) -> float | None:
    """Accelerator-seconds of the stage that wrote a model's folder; None for other models, and where it held no accelerator."""
    file = model / METRICS if isinstance(model, Path) else None
    return json.loads(file.read_text(encoding="utf-8")).get(SECONDS) if file and file.is_file() else None


def _learning_curves(folder: Path) -> Iterator[tuple[str, list[dict[str, float]]]]:
    """The learning curves that a model's folder holds, each under "stage: phase", in the order of the trainings."""
    # Sorted, because a file system lists files in any order. Unknown phases keep this order, after the known ones.
    files = {file.stem.removesuffix("_curve"): file for file in sorted(folder.glob("*_curve.json"))}

    def position(phase: str) -> int:
        return TRAINING_PHASES.index(phase) if phase in TRAINING_PHASES else len(TRAINING_PHASES)

    for phase in sorted(files, key=position):
        yield f"{read_manifest(folder).stage}: {phase}", json.loads(files[phase].read_text(encoding="utf-8"))


def _digests(folders: dict[str, Path]) -> dict[str, str]:
    """The digest of every folder that a stage made."""
    made_by_stages = {name: folder for name, folder in folders.items() if (folder / "manifest.json").is_file()}
    return {name: read_manifest(folder).digest for name, folder in made_by_stages.items()}


def _stages_of(model: ModelSource) -> list[dict[str, str]]:
    """The stages that made a model, the last one first: what each wrote, with which settings and code."""
    if not isinstance(model, Path) or not (model / "manifest.json").is_file():
        return []
    manifest = read_manifest(model)
    shown = ("stage", "config_digest", "code_digest", "code_version")
    # The ancestors are in the manifest, so the stages are known also where their folders are gone.
    summaries = {manifest.digest: manifest.summary(), **manifest.ancestors}
    return [{"digest": digest, **{key: summary[key] for key in shown}} for digest, summary in summaries.items()]
