"""KFP component of the stage refine-teacher."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def refine_teacher(
    config_digest: str,
    code: str,
    data: dsl.Input[dsl.Dataset],
    teacher: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Adapts the teacher to the data: supervised training on the rows and Sim-RL, each where it is configured.

    Args:
        config_digest: Digest of STAR_CONFIG, which has the sections that the stage reads. It is part of the cache key.
        code: Digest of the stage's code. It is part of the cache key.
        data: Data set of the stage synthesize.
        teacher: Model folder of the teacher.
        metrics: The stage's metrics.
    """
    import json
    from pathlib import Path

    from star.cluster import launch

    values = launch.run_stage(
        "refine-teacher",
        config_digest=config_digest,
        code=code,
        data=Path(data.path),
        out=Path(teacher.path),
    )
    for key, value in values.items():
        metrics.log_metric(key, value)
    # A cached result counts only while there is a file for each of its artifacts.
    Path(metrics.path).write_text(json.dumps(values))
