"""KFP component of the stage register."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def register(
    config: str,
    code: str,
    refined: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    registration: dsl.Output[dsl.Artifact],
    gate: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
):
    """Registers the refined student in MLflow; behind the gate it becomes champion.

    Args:
        config: the stage's sections of the configuration, as JSON.
        code: digest of the stage's code, by which its result is cached.
        refined: the refined student's model folder.
        evaluation: evaluation.json and the reports.
        registration: what was registered and why it was promoted or not.
        gate: every bar of the gate and how it went.
        metrics: the stage's figures.
    """
    import json
    import shutil
    from pathlib import Path

    from star import stages
    from star.config.experiment import Config

    stages.require_code("register", code)
    values = stages.register(
        Config.from_json(config),
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
