"""KFP component that checks what the pipeline needs before anything else runs."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def preflight(config: str):
    """Checks secrets, tracking, registry, stores, models and memory, so that a fault costs a minute and not a night.

    Args:
        config: the whole configuration, as JSON.
    """
    from star.config.experiment import Config
    from star.doctor.preflight import require_all

    require_all(Config.from_json(config))
