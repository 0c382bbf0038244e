"""KFP component of the stage evaluate."""

from kfp import dsl


@dsl.component(base_image="star-python", install_kfp_package=False)
def evaluate(
    config: str,
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
        config: the stage's sections of the configuration, as JSON.
        code: digest of the stage's code, by which its result is cached.
        data: the data set of synthesize.
        teacher: the teacher's model folder.
        distilled: the distilled student's model folder.
        refined: the refined student's model folder.
        evaluation: evaluation.json and the reports; of a shard what it gathered.
        report: the evaluation as a page; of a shard a line that says where it is.
        summary: the evaluation as a table; likewise.
        metrics: the stage's figures.
        shard: i/n, the part of the work to do.
    """
    import json
    from pathlib import Path

    from star import stages
    from star.config.experiment import Config

    stages.require_code("evaluate", code)
    values = stages.evaluate(
        Config.from_json(config),
        data=Path(data.path),
        teacher=Path(teacher.path),
        distilled=Path(distilled.path),
        refined=Path(refined.path),
        out=Path(evaluation.path),
        shard=shard,
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
