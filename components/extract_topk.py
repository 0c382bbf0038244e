"""KFP component of the stage extract-topk."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def extract_topk(
    config_digest: str,
    code: str,
    rollouts: dsl.Input[dsl.Dataset],
    teacher: dsl.Input[dsl.Model],
    topk: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    shard: str = "1/1",
):
    """Stores the teacher's top-k log-probabilities for every token of the rollouts.

    Args:
        config_digest: Digest of STAR_CONFIG, which has the sections that the stage reads. It is part of the cache key.
        code: Digest of the stage's code. It is part of the cache key.
        rollouts: Sequences that the teacher generated.
        teacher: Model folder of the teacher.
        topk: Top-k store with its sequences.
        metrics: The stage's metrics.
        shard: Shard i/n of the work that this task does.
    """
    import json
    from pathlib import Path

    from star.cluster import launch

    values = launch.run_stage(
        "extract-topk",
        config_digest=config_digest,
        code=code,
        rollouts=Path(rollouts.path),
        teacher=Path(teacher.path),
        shard=shard,
        out=Path(topk.path),
    )
    for key, value in values.items():
        metrics.log_metric(key, value)
    # A cached result counts only while there is a file for each of its artifacts.
    Path(metrics.path).write_text(json.dumps(values))
