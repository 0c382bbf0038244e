"""KFP component of the pre-flight: checks what the pipeline needs before any other task runs."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def preflight(config_digest: str):
    """Checks secrets, MLflow, object store, volume, models and memory, so that a fault costs a minute and not a night.

    Args:
        config_digest: Digest of STAR_CONFIG, which has the whole configuration.
    """
    from star.cluster.failure import ends_in_a_sentence
    from star.cluster.task_config import config_of_task
    from star.doctor.preflight import require_all

    with ends_in_a_sentence():
        require_all(config_of_task(config_digest))
