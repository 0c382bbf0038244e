"""`star run` with a pretrained model rehearses before the first stage."""

from pathlib import Path

import pytest

from star.config.experiment import Config
from star.errors import PipelineError
from star.pipelines.local_runner import run_local
from tests.small_models import write_scratch_model


def test_a_run_whose_rehearsal_fails_starts_no_stage(tmp_path: Path, own_home: Path) -> None:
    for name in ("teacher", "student"):
        write_scratch_model(tmp_path / name)
    (tmp_path / "student" / "model.safetensors").write_bytes(b"cut")
    bases = {name: {"base": str(tmp_path / name)} for name in ("teacher", "student")}
    with pytest.raises(PipelineError, match=r"no stage was started: student: model .*download it again") as failed:
        run_local(Config.model_validate(bases))
    assert failed.value.input_fault
    assert not list((own_home / "pipeline").glob("*"))
