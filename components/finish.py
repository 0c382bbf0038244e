"""KFP component that runs last, whether the pipeline succeeded or not."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def finish(run_id: str, status: dsl.PipelineTaskFinalStatus):
    """Closes the pipeline's runs in MLflow and tells the webhook of STAR_WEBHOOK, where one is set, how it ended.

    Args:
        run_id: of the pipeline's run in KFP.
        status: how the tasks ended; KFP fills it in.
    """
    from star.cluster.exit_handler import close_pipeline

    close_pipeline(run_id, state=status.state, failed_task=status.pipeline_task_name, error=status.error_message)
