"""`star pipeline upload` and `star pipeline schedule` against the part of a KFP server that keeps pipelines and recurring runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from star.cli.schedule import pipeline_app
from star.errors import InputError
from star.pipelines import kfp_client, star_pipeline
from star.pipelines.kfp_pipelines import six_cron_fields, version_name
from tests.kfp_replay.pipelines import refusal
from tests.kfp_replay.server import KfpReplay


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KfpReplay]:
    monkeypatch.setenv("HOME", str(tmp_path))  # kfp writes its context there
    monkeypatch.setattr(kfp_client, "PAUSE", 0.001)
    # What is compiled is the business of other tests, and takes seconds.
    monkeypatch.setattr(
        star_pipeline,
        "upload_and_compile",
        lambda config, output, *, image: output.write_text(
            f"name: {config.name}\nimage: {image}\n---\nplatforms: {{}}\n"
        ),
    )
    with KfpReplay() as server:
        yield server


def star(server: KfpReplay, *arguments: str) -> Result:
    if arguments[0] == "upload" or arguments[:2] == ("schedule", "create"):
        arguments = (*arguments, *(() if "--image" in arguments else ("--image", "star:1")))
    return CliRunner().invoke(pipeline_app, [*arguments, "--host", server.host])


def test_the_same_upload_finds_the_version_that_is_there(server: KfpReplay) -> None:
    first, again = star(server, "upload", "--image", "star:1"), star(server, "upload", "--image", "star:1")
    assert first.exit_code == 0, first.output
    [pipeline], [version] = server.store.pipelines, server.store.versions
    assert (pipeline["name"], version["pipeline_id"]) == ("star", pipeline["pipeline_id"])
    assert first.stdout == again.stdout == f"{version['pipeline_version_id']}\n"
    assert first.stderr == f"version {version['name']} of pipeline star: uploaded\n"
    assert again.stderr == f"version {version['name']} of pipeline star: is there already\n"
    assert version["pipeline_spec"]["pipeline_spec"] == {"name": "tiny", "image": "star:1"}


def test_another_image_is_another_version_of_the_same_pipeline(server: KfpReplay) -> None:
    ids = {star(server, "upload", "--image", image).stdout for image in ("star:1", "star:2")}
    assert len(ids) == 2 and len(server.store.pipelines) == 1 and len(server.store.versions) == 2
    assert star(server, "upload", "--image", "star:1", "--pipeline", "team-b").exit_code == 0
    assert len(server.store.pipelines) == 2


def test_an_upload_whose_answers_are_lost_is_one_upload(server: KfpReplay) -> None:
    server.faults = {"POST /apis/v2beta1/pipelines": [503], "POST /apis/v2beta1/pipelines/upload_version": [503, 502]}
    done = star(server, "upload")
    assert done.exit_code == 0 and "uploaded" in done.stderr
    assert len(server.store.pipelines) == len(server.store.versions) == 1


def test_a_pipeline_that_somebody_else_makes_meanwhile_is_used(server: KfpReplay) -> None:
    def made_before(*request: object) -> tuple[int, object]:
        server.store.pipelines.append({"pipeline_id": "p-theirs", "name": "star", "display_name": "star"})
        return refusal(409, "Already exist error: The name star already exist", code=6)

    server.more = [("POST", "/apis/v2beta1/pipelines", made_before)]
    assert star(server, "upload").exit_code == 0
    assert [version["pipeline_id"] for version in server.store.versions] == ["p-theirs"]


def test_a_version_is_named_after_commit_and_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "star.yaml"
    package.write_text("a")
    state = {"commit": "0123456789abcdef", "dirty": "no"}
    monkeypatch.setattr("star.pipelines.kfp_pipelines.git_state", lambda: state)
    assert version_name(package) == "0123456789ab-ca978112ca1b"
    state["dirty"] = "yes"
    assert version_name(package) == "0123456789ab-changed-ca978112ca1b"
    state.clear()
    assert version_name(package) == "no-commit-ca978112ca1b"


def test_a_schedule_starts_the_version_it_was_made_with(server: KfpReplay, tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("extends: tiny\nname: nightly\ncluster: {service_account: star}\n")
    arguments = ("schedule", "create", "--config", str(profile), "--cron", "0 3 * * *")
    done = star(server, *arguments)
    assert done.exit_code == 0, done.output
    [run], [version] = server.store.recurring_runs, server.store.versions
    assert run["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    assert run["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * *"}}
    assert (run["no_catchup"], run["max_concurrency"], run["service_account"]) == (True, "1", "star")
    said = "cron 0 0 3 * * *, missed runs are not made up for, at most 1 run at a time"
    assert said in done.stderr
    listed = star(server, "schedule", "list").stdout
    assert listed == f"enabled  nightly  star {version['name']}  {said}  {run['recurring_run_id']}\n"
    # The same again is the same schedule, and other times are refused, because KFP cannot change one.
    assert star(server, *arguments).stdout == done.stdout
    refused = star(server, *arguments[:-1], "0 4 * * *")
    assert isinstance(refused.exception, InputError)
    assert "cron 0 0 3 * * *" in str(refused.exception) and "schedule delete nightly" in str(refused.exception)
    assert len(server.store.recurring_runs) == 1


def test_interval_bounds_catch_up_and_concurrency_arrive(server: KfpReplay) -> None:
    bounds = ("--start", "2026-01-01T00:00:00", "--end", "2026-02-01")
    arguments = ("schedule", "create", "--every", "6h", "--catch-up", "--max-concurrency", "3", *bounds)
    assert star(server, *arguments).exit_code == 0
    [run] = server.store.recurring_runs
    periodic = run["trigger"]["periodic_schedule"]
    assert periodic["interval_second"] == "21600" and periodic["start_time"].startswith("2026-01-01T00:00:00")
    assert "no_catchup" not in run and run["max_concurrency"] == "3"
    listed = star(server, "schedule", "list").stdout
    assert (
        "every 21600 s, from 2026-01-01T00:00:00+00:00, until 2026-02-01T00:00:00+00:00, "
        "missed runs are made up for, at most 3 runs at a time" in listed
    )
    assert star(server, *arguments).exit_code == 0 and len(server.store.recurring_runs) == 1


def test_a_schedule_is_disabled_enabled_and_deleted_by_its_name(server: KfpReplay) -> None:
    server.faults = {"POST /apis/v2beta1/recurringruns": [503]}
    star(server, "schedule", "create", "--every", "1d", "--name", "daily")
    [run] = server.store.recurring_runs
    assert star(server, "schedule", "disable", "daily").exit_code == 0 and run["status"] == "DISABLED"
    assert star(server, "schedule", "list").stdout.startswith("disabled daily ")
    same = star(server, "schedule", "create", "--every", "1d", "--name", "daily")
    assert "it is disabled: `star pipeline schedule enable daily`" in same.stderr
    assert star(server, "schedule", "enable", run["recurring_run_id"]).exit_code == 0 and run["status"] == "ENABLED"
    unknown = star(server, "schedule", "delete", "nightly")
    assert str(unknown.exception) == "the experiment star has no schedule nightly: it has daily"
    assert star(server, "schedule", "delete", "daily").exit_code == 0 and not server.store.recurring_runs
    assert len(server.store.versions) == 1


def test_no_experiment_has_no_schedules_and_is_not_made(server: KfpReplay) -> None:
    done = star(server, "schedule", "list")
    assert (done.stdout, done.stderr) == ("", "the experiment star has no schedule\n") and not server.experiments


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "needs --cron or --every, and not both"),
        (("--cron", "0 3 * * *", "--every", "1d"), "needs --cron or --every, and not both"),
        (("--every", "soon"), "--every 'soon' cannot be read"),
        (("--every", "0h"), "--every '0h' cannot be read"),
        (("--cron", "3 o'clock"), "cannot be read: give the five fields of crontab"),
        (("--every", "1d", "--start", "2026-02-01", "--end", "2026-01-01"), "--end must be after --start"),
    ],
)
def test_times_that_cannot_be_read_are_refused_before_anything_is_uploaded(
    server: KfpReplay, options: tuple[str, ...], said: str
) -> None:
    refused = star(server, "schedule", "create", *options)
    assert isinstance(refused.exception, InputError) and said in str(refused.exception)
    assert not server.store.pipelines


def test_five_cron_fields_get_a_second() -> None:
    assert six_cron_fields("30 3 * * 1-5") == "0 30 3 * * 1-5"
    assert six_cron_fields("15 30 3 ? * MON,FRI") == "15 30 3 ? * MON,FRI"
