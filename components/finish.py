"""KFP component of the exit handler: runs last, whether the pipeline succeeded, failed or was cancelled."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def finish(run_id: str, status: dsl.PipelineTaskFinalStatus):
    """Closes the pipeline's MLflow runs and, if STAR_WEBHOOK is set, notifies that webhook how the pipeline ended.

    Args:
        run_id: ID of the pipeline run in KFP.
        status: How the tasks ended. KFP fills it in.
    """
    from star.cluster.exit_handler import close_pipeline

    close_pipeline(run_id, state=status.state, error=status.error_message)
