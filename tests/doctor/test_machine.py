"""What `star doctor` says of this machine."""

from pathlib import Path

import pytest

from star.doctor.machine import machine_checks


def test_a_home_that_can_be_made_is_named_and_one_below_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    said = []
    for home in (tmp_path / "new" / "home", tmp_path / "file" / "home"):
        monkeypatch.setenv("STAR_HOME", str(home))
        said += [(check.passed, check.detail) for check in machine_checks() if check.name == "home"]
    refused = f"{tmp_path}/file/home is not writable: set STAR_HOME to a folder of yours"
    assert said == [(True, f"{tmp_path}/new/home"), (False, refused)]
