"""Defines what an evaluation gathers from its models before it scores anything, and its JSON.

A shard of an evaluation (`star evaluate --shard 2/4`) writes this as gathered.json and timing.json. It holds the
answers of whole batches and whole categories only, so that the shards put together are scored as if one process had
asked them all. For example, with one model, one suite and three rows in two batches, shard 1/2 gathers:

    {"title": "...", "settings": {"seed": 7, "evaluate": {...}},
     "models": [{"name": "refined", "parameters": 596049920, "memory": 1192099840,
                 "suites": {"heldout": [{"row": 0, "id": "...", ...}, {"row": 2, "id": "...", ...}]}}],
     "curves": {"refine: simrl": [{"step": 1, ...}]}, "lineage": {"refined": "<digest>"}, "stages": [...]}

and in timing.json {"refined": {"tokens": 420, "seconds": 1.93, "latency": 0.21}}.
"""

from dataclasses import asdict, dataclass
from typing import Any

from star.config.base import canonical
from star.evaluation.suite_scores import ScoringSettings
from star.hashing import digest_of

# Settings of the evaluation that change no answer of a model.
NOT_DECODING = ("bases",)


@dataclass(frozen=True)
class Timing:
    """What one process generated and how long that took, without the answers that it recalled after a kill.

    Attributes:
        latency: median seconds per answer, asked alone; None where the process generated nothing.
        training: accelerator-seconds of the stage that made the model, if it held accelerators and its folder says so.
    """

    tokens: int
    seconds: float
    latency: float | None = None
    training: float | None = None

    def to_json(self) -> dict[str, float]:
        """The measured values; one of None is left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class GatheredModel:
    """One model's size, its answers by suite, and the time they took.

    Attributes:
        memory: bytes of the weights.
        suites: by suite, what its `ask` returned; None where the shard holds nothing of the suite.
        base: name of the evaluated model that this one was trained from; None where that is not evaluated.
    """

    name: str
    parameters: int
    memory: int
    timing: Timing
    suites: dict[str, Any]
    base: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object, which `from_json` reads; a base of None is left out."""
        found = {**asdict(self), "timing": self.timing.to_json()}
        return {key: value for key, value in found.items() if key != "base" or value}

    @classmethod
    def from_json(cls, model: dict[str, Any]) -> "GatheredModel":
        """Reads what `to_json` wrote."""
        return cls(**{**model, "timing": Timing(**model["timing"])})


@dataclass(frozen=True)
class Gathered:
    """What one process gathered from all models.

    Attributes:
        settings: the sections `seed` and `evaluate` of the configuration.
        curves: learning curves of the models' trainings by "stage: phase".
        lineage: digest of the data's and every model's folder, and of every base or its hub id.
        stages: the stages that made the last model, the last stage first.
    """

    title: str
    settings: dict[str, Any]
    models: list[GatheredModel]
    curves: dict[str, list[dict[str, float]]]
    lineage: dict[str, str]
    stages: list[dict[str, str]]

    @property
    def decoding(self) -> str:
        """Digest of the settings by which every model was asked: scores of different digests are not compared by the gate."""
        asked = {key: value for key, value in self.settings["evaluate"].items() if key not in NOT_DECODING}
        return digest_of(canonical({**self.settings, "evaluate": asked}))

    @property
    def scoring_settings(self) -> ScoringSettings:
        """The settings that scoring needs."""
        return ScoringSettings.from_json(self.settings)
