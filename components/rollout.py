"""KFP component of the stage rollout."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def rollout(
    config: str,
    code: str,
    data: dsl.Input[dsl.Dataset],
    teacher: dsl.Input[dsl.Model],
    rollouts: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    shard: str = "1/1",
):
    """Samples the teacher on the training prompts and keeps valid, distinct completions.

    Args:
        config: the stage's sections of the configuration, as JSON.
        code: digest of the stage's code, by which its result is cached.
        data: the data set of synthesize.
        teacher: the teacher's model folder.
        rollouts: the teacher's sequences.
        metrics: the stage's figures.
        shard: i/n, the part of the work to do.
    """
    import json
    from pathlib import Path

    from star import stages
    from star.config.experiment import Config

    stages.require_code("rollout", code)
    values = stages.rollout(
        Config.from_json(config),
        data=Path(data.path),
        teacher=Path(teacher.path),
        out=Path(rollouts.path),
        shard=shard,
    )
    for key, value in values.items():
        metrics.log_metric(key, value)
    # A cached result counts only while there is a file for each of its artifacts.
    Path(metrics.path).write_text(json.dumps(values))
