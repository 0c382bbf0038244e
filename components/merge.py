"""KFP component that merges the shards of a rollout or an extraction."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def merge(
    code: str,
    parts: dsl.Input[list[dsl.Dataset]],
    merged: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Merges the shards of a rollout or an extraction by their manifests. Nothing is computed again.

    Args:
        code: Digest of the merging code. It is part of the cache key.
        parts: Folders of all shards, in any order.
        merged: The folder that one task without shards would have written.
        metrics: Metrics over all shards.
    """
    import json
    from pathlib import Path

    from star.cluster import launch

    values = launch.run_merge("merge", [Path(part.path) for part in parts], code=code, out=Path(merged.path))
    for key, value in values.items():
        metrics.log_metric(key, value)
    # A cached result counts only while there is a file for each of its artifacts.
    Path(metrics.path).write_text(json.dumps(values))
