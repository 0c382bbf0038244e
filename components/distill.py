"""KFP component of the stage distill."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def distill(
    config: str,
    code: str,
    topk: dsl.Input[dsl.Dataset],
    distilled: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Distils the stored signal into the student with CKD.

    Args:
        config: the stage's sections of the configuration, as JSON.
        code: digest of the stage's code, by which its result is cached.
        topk: the top-k store with its sequences.
        distilled: the distilled student's model folder.
        metrics: the stage's figures.
    """
    import json
    from pathlib import Path

    from star import stages
    from star.cluster import launch
    from star.config.experiment import Config

    stages.require_code("distill", code)
    values = launch.train("distill", Config.from_json(config), topk=Path(topk.path), out=Path(distilled.path))
    for key, value in values.items():
        metrics.log_metric(key, value)
    # A cached result counts only while there is a file for each of its artifacts.
    Path(metrics.path).write_text(json.dumps(values))
