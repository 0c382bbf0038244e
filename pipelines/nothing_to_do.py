"""Finds out whether a run on this machine has anything to do, without starting a process for it."""

from pathlib import Path

from star.config.experiment import Config
from star.errors import InputError
from star.folders.manifest import Manifest, open_input
from star.run_stage import draft_of
from star.stages import STAGES
from star.tracking.light_import import import_mlflow_without_pandas


def find_finished_run(config: Config, latest: Path) -> dict[str, Path] | None:
    """The folders of all stages, if all are finished: made with these settings and this code, whole, and still registered.

    The stages would find the same, each in a process of its own. What is not finished is theirs to say and to do.

    Args:
        latest: has a link to the newest folder of each stage.
    """
    folders: dict[str, Path] = {}
    manifests: dict[str, Manifest] = {}
    try:
        for stage in STAGES:
            inputs = {key: manifests[source] for key, source in stage.inputs.items()}
            wanted = draft_of(stage, config, inputs=inputs)
            folder = (latest / stage.name).resolve()
            manifests[stage.name] = open_input(folder, stage=stage.name)
            if manifests[stage.name].fingerprint != wanted.fingerprint:
                return None
            folders[stage.name] = folder
    except InputError:
        return None
    import_mlflow_without_pandas()
    return folders if all(stage.is_valid(folders[stage.name]) for stage in STAGES) else None
