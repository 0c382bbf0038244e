"""KFP component of the stage refine."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def refine(
    config: str,
    code: str,
    student: dsl.Input[dsl.Model],
    data: dsl.Input[dsl.Dataset],
    refined: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Refines the distilled student with Sim-RL on the similarity reward.

    Args:
        config: the stage's sections of the configuration, as JSON.
        code: digest of the stage's code, by which its result is cached.
        student: the distilled student's model folder.
        data: the data set of synthesize.
        refined: the refined student's model folder.
        metrics: the stage's figures.
    """
    import json
    from pathlib import Path

    from star import stages
    from star.cluster import launch
    from star.config.experiment import Config

    stages.require_code("refine", code)
    values = launch.train(
        "refine", Config.from_json(config), student=Path(student.path), data=Path(data.path), out=Path(refined.path)
    )
    for key, value in values.items():
        metrics.log_metric(key, value)
    # A cached result counts only while there is a file for each of its artifacts.
    Path(metrics.path).write_text(json.dumps(values))
