"""KFP component of the stage distill."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def distill(
    config_digest: str,
    code: str,
    topk: dsl.Input[dsl.Dataset],
    distilled: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Distils the teacher's stored log-probabilities into the student with CKD.

    Args:
        config_digest: Digest of STAR_CONFIG, which has the sections that the stage reads. It is part of the cache key.
        code: Digest of the stage's code. It is part of the cache key.
        topk: Top-k store with its sequences.
        distilled: Model folder of the distilled student.
        metrics: The stage's metrics.
    """
    import json
    from pathlib import Path

    from star.cluster import launch

    values = launch.run_stage(
        "distill",
        config_digest=config_digest,
        code=code,
        topk=Path(topk.path),
        out=Path(distilled.path),
    )
    for key, value in values.items():
        metrics.log_metric(key, value)
    # A cached result counts only while there is a file for each of its artifacts.
    Path(metrics.path).write_text(json.dumps(values))
