"""KFP component of the pre-flight: checks what the pipeline needs before any other task runs."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def preflight(config: str):
    """Checks secrets, MLflow, object store, volume, models and memory, so that a fault costs a minute and not a night.

    Args:
        config: The whole configuration, as JSON.
    """
    from star.config.experiment import Config
    from star.doctor.preflight import require_all

    require_all(Config.from_json(config))
