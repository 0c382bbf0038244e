"""KFP component of the stage refine-teacher."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def refine_teacher(
    config: str,
    code: str,
    data: dsl.Input[dsl.Dataset],
    teacher: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Makes the teacher fit the data: trained where its base is from scratch, refined with Sim-RL.

    Args:
        config: the stage's sections of the configuration, as JSON.
        code: digest of the stage's code, by which its result is cached.
        data: the data set of synthesize.
        teacher: the teacher's model folder.
        metrics: the stage's figures.
    """
    import json
    from pathlib import Path

    from star import stages
    from star.cluster import launch
    from star.config.experiment import Config

    stages.require_code("refine-teacher", code)
    values = launch.train("refine-teacher", Config.from_json(config), data=Path(data.path), out=Path(teacher.path))
    for key, value in values.items():
        metrics.log_metric(key, value)
    # A cached result counts only while there is a file for each of its artifacts.
    Path(metrics.path).write_text(json.dumps(values))
