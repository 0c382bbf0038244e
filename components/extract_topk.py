"""KFP component of the stage extract-topk."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def extract_topk(
    config: str,
    code: str,
    rollouts: dsl.Input[dsl.Dataset],
    teacher: dsl.Input[dsl.Model],
    topk: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    shard: str = "1/1",
):
    """Stores the teacher's top-k log-probs over the rollouts.

    Args:
        config: the stage's sections of the configuration, as JSON.
        code: digest of the stage's code, by which its result is cached.
        rollouts: the teacher's sequences.
        teacher: the teacher's model folder.
        topk: the top-k store with its sequences.
        metrics: the stage's figures.
        shard: i/n, the part of the work to do.
    """
    import json
    from pathlib import Path

    from star import stages
    from star.config.experiment import Config

    stages.require_code("extract-topk", code)
    values = stages.extract_topk(
        Config.from_json(config),
        rollouts=Path(rollouts.path),
        teacher=Path(teacher.path),
        out=Path(topk.path),
        shard=shard,
    )
    for key, value in values.items():
        metrics.log_metric(key, value)
    # A cached result counts only while there is a file for each of its artifacts.
    Path(metrics.path).write_text(json.dumps(values))
