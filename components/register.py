"""KFP component of the stage register."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def register(
    config_digest: str,
    code: str,
    refined: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    registration: dsl.Output[dsl.Artifact],
    gate: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
):
    """Registers the refined student in MLflow. It becomes champion if it passes the gate.

    Args:
        config_digest: Digest of STAR_CONFIG, which has the sections that the stage reads. It is part of the cache key.
        code: Digest of the stage's code. It is part of the cache key.
        refined: Model folder of the refined student.
        evaluation: Folder with evaluation.json and the reports.
        registration: What was registered, and why it was promoted or not.
        gate: Every criterion of the gate and its result, as Markdown.
        metrics: The stage's metrics.
    """
    import json
    import shutil
    from pathlib import Path

    from star.cluster import launch

    values = launch.run_stage(
        "register",
        config_digest=config_digest,
        code=code,
        refined=Path(refined.path),
        evaluation=Path(evaluation.path),
        out=Path(registration.path),
    )
    Path(gate.path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(registration.path) / "gate.md", gate.path)
    for key, value in values.items():
        metrics.log_metric(key, value)
    # A cached result counts only while there is a file for each of its artifacts.
    Path(metrics.path).write_text(json.dumps(values))
