"""KFP component of the stage rollout."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def rollout(
    config_digest: str,
    code: str,
    data: dsl.Input[dsl.Dataset],
    teacher: dsl.Input[dsl.Model],
    rollouts: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    shard: str = "1/1",
):
    """Samples completions of the training prompts from the teacher and keeps those that are valid and distinct.

    Args:
        config_digest: Digest of STAR_CONFIG, which has the sections that the stage reads. It is part of the cache key.
        code: Digest of the stage's code. It is part of the cache key.
        data: Data set of the stage synthesize.
        teacher: Model folder of the teacher.
        rollouts: Sequences that the teacher generated.
        metrics: The stage's metrics.
        shard: Shard i/n of the work that this task does.
    """
    import json
    from pathlib import Path

    from star.cluster import launch

    values = launch.run_stage(
        "rollout",
        config_digest=config_digest,
        code=code,
        data=Path(data.path),
        teacher=Path(teacher.path),
        shard=shard,
        out=Path(rollouts.path),
    )
    for key, value in values.items():
        metrics.log_metric(key, value)
    # A cached result counts only while there is a file for each of its artifacts.
    Path(metrics.path).write_text(json.dumps(values))
