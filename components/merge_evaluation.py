"""KFP component that merges the shards of an evaluation."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def merge_evaluation(
    code: str,
    parts: dsl.Input[list[dsl.Artifact]],
    merged: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
):
    """Scores the answers that the shards of the evaluation gathered. No model runs again.

    Args:
        code: Digest of the merging code. It is part of the cache key.
        parts: Folders of all shards, in any order.
        merged: Folder with evaluation.json and the reports, as one task without shards would have written it.
        report: The evaluation as an HTML page.
        summary: The evaluation as a Markdown table.
        metrics: Metrics of the evaluation.
    """
    import json
    import shutil
    from pathlib import Path

    from star.cluster import launch

    values = launch.run_merge("merge-evaluation", [Path(part.path) for part in parts], code=code, out=Path(merged.path))
    for file, shown in (("report.html", report), ("report.md", summary)):
        Path(shown.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(merged.path) / file, shown.path)
    for key, value in values.items():
        metrics.log_metric(key, value)
    # A cached result counts only while there is a file for each of its artifacts.
    Path(metrics.path).write_text(json.dumps(values))
