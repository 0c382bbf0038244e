"""KFP component of the stage synthesize."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def synthesize(
    config: str,
    code: str,
    data: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Makes the training and held-out rows from tools and seed rows.

    Args:
        config: the stage's sections of the configuration, as JSON.
        code: digest of the stage's code, by which its result is cached.
        data: the data set of synthesize.
        metrics: the stage's figures.
    """
    import json
    from pathlib import Path

    from star import stages
    from star.config.experiment import Config

    stages.require_code("synthesize", code)
    values = stages.synthesize(Config.from_json(config), out=Path(data.path))
    for key, value in values.items():
        metrics.log_metric(key, value)
    # A cached result counts only while there is a file for each of its artifacts.
    Path(metrics.path).write_text(json.dumps(values))
