"""KFP component that makes one evaluation of its shards."""

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
    """Scores what the shards of the evaluation gathered; no model is asked again.

    Args:
        code: digest of the code that merges, by which the result is cached.
        parts: the folders of all shards, in any order.
        merged: evaluation.json and the reports, as one task would have written them.
        report: the evaluation as a page.
        summary: the evaluation as a table.
        metrics: the evaluation's figures.
    """
    import json
    import shutil
    from pathlib import Path

    from star import stages

    stages.require_code("merge-evaluation", code)
    values = stages.merge_evaluation([Path(part.path) for part in parts], out=Path(merged.path))
    for file, shown in (("report.html", report), ("report.md", summary)):
        Path(shown.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(merged.path) / file, shown.path)
    for key, value in values.items():
        metrics.log_metric(key, value)
    # A cached result counts only while there is a file for each of its artifacts.
    Path(metrics.path).write_text(json.dumps(values))
