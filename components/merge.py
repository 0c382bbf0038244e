"""KFP component that puts the parts of a sharded stage together."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def merge(
    code: str,
    parts: dsl.Input[list[dsl.Dataset]],
    merged: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Puts the parts of a sharded rollout or extraction together, by their manifests; nothing is computed again.

    Args:
        code: digest of the code that merges, by which the result is cached.
        parts: the folders of all shards, in any order.
        merged: what one task would have written.
        metrics: the figures of all parts.
    """
    import json
    from pathlib import Path

    from star import stages

    stages.require_code("merge", code)
    values = stages.merge([Path(part.path) for part in parts], out=Path(merged.path))
    for key, value in values.items():
        metrics.log_metric(key, value)
    # A cached result counts only while there is a file for each of its artifacts.
    Path(metrics.path).write_text(json.dumps(values))
