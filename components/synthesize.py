"""KFP component of the stage synthesize."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def synthesize(
    config_digest: str,
    code: str,
    data: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Generates the training and held-out rows from tools and seed rows.

    Args:
        config_digest: Digest of STAR_CONFIG, which has the sections that the stage reads. It is part of the cache key.
        code: Digest of the stage's code. It is part of the cache key.
        data: Data set with the training and held-out rows.
        metrics: The stage's metrics.
    """
    import json
    from pathlib import Path

    from star.cluster import launch

    values = launch.run_stage(
        "synthesize",
        config_digest=config_digest,
        code=code,
        out=Path(data.path),
    )
    for key, value in values.items():
        metrics.log_metric(key, value)
    # A cached result counts only while there is a file for each of its artifacts.
    Path(metrics.path).write_text(json.dumps(values))
