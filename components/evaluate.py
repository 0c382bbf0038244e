"""KFP component of the stage evaluate."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def evaluate(
    config_digest: str,
    code: str,
    data: dsl.Input[dsl.Dataset],
    teacher: dsl.Input[dsl.Model],
    distilled: dsl.Input[dsl.Model],
    refined: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    shard: str = "1/1",
):
    """Compares teacher, distilled and refined student on the held-out rows.

    Args:
        config_digest: Digest of STAR_CONFIG, which has the sections that the stage reads. It is part of the cache key.
        code: Digest of the stage's code. It is part of the cache key.
        data: Data set of the stage synthesize.
        teacher: Model folder of the teacher.
        distilled: Model folder of the distilled student.
        refined: Model folder of the refined student.
        evaluation: Folder with evaluation.json and the reports; for a shard the answers it gathered.
        report: The evaluation as an HTML page; for a shard one line that says where the page is.
        summary: The evaluation as a Markdown table; for a shard the same line.
        metrics: The stage's metrics.
        shard: Shard i/n of the work that this task does.
    """
    import json
    from pathlib import Path

    from star.cluster import launch

    values = launch.run_stage(
        "evaluate",
        config_digest=config_digest,
        code=code,
        data=Path(data.path),
        teacher=Path(teacher.path),
        distilled=Path(distilled.path),
        refined=Path(refined.path),
        shard=shard,
        out=Path(evaluation.path),
    )
    for file, shown in (("report.html", report), ("report.md", summary)):
        made = Path(evaluation.path) / file
        text = made.read_text("utf-8") if made.is_file() else f"Shard {shard}: the report is that of merge-evaluate."
        Path(shown.path).parent.mkdir(parents=True, exist_ok=True)
        Path(shown.path).write_text(text, "utf-8")
    for key, value in values.items():
        metrics.log_metric(key, value)
    # A cached result counts only while there is a file for each of its artifacts.
    Path(metrics.path).write_text(json.dumps(values))
