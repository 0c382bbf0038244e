"""KFP component of the stage refine."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def refine(
    config_digest: str,
    code: str,
    student: dsl.Input[dsl.Model],
    data: dsl.Input[dsl.Dataset],
    refined: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Refines the distilled student with Sim-RL on the similarity reward.

    Args:
        config_digest: Digest of STAR_CONFIG, which has the sections that the stage reads. It is part of the cache key.
        code: Digest of the stage's code. It is part of the cache key.
        student: Model folder of the distilled student.
        data: Data set of the stage synthesize.
        refined: Model folder of the refined student.
        metrics: The stage's metrics.
    """
    import json
    from pathlib import Path

    from star.cluster import launch

    values = launch.run_stage(
        "refine",
        config_digest=config_digest,
        code=code,
        student=Path(student.path),
        data=Path(data.path),
        out=Path(refined.path),
    )
    for key, value in values.items():
        metrics.log_metric(key, value)
    # A cached result counts only while there is a file for each of its artifacts.
    Path(metrics.path).write_text(json.dumps(values))
