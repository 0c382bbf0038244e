"""`star run` with a pretrained model rehearses before the first stage."""

from pathlib import Path

import pytest

from star.config.experiment import Config
from star.errors import InputError, PipelineError
from star.pipelines.local_runner import run_local
from tests.small_models import write_scratch_model


def test_a_run_with_too_few_rows_for_sim_rl_starts_no_stage(micro: Config, own_home: Path) -> None:
    # Its models are from scratch, for which nothing is rehearsed.
    few = micro.data.model_copy(update={"generated_rows": micro.data.heldout_rows + 1})
    with pytest.raises(InputError, match=r"teacher\.refine samples 2 prompts at a time .* at most 1 of 13 rows"):
        run_local(micro.model_copy(update={"data": few}))
    assert not list((own_home / "pipeline").glob("*"))


def test_a_run_whose_rehearsal_fails_starts_no_stage(tmp_path: Path, own_home: Path) -> None:
    for name in ("teacher", "student"):
        write_scratch_model(tmp_path / name)
    (tmp_path / "student" / "model.safetensors").write_bytes(b"cut")
    bases = {name: {"base": str(tmp_path / name)} for name in ("teacher", "student")}
    with pytest.raises(PipelineError, match=r"no stage was started: student: model .*download it again") as failed:
        run_local(Config.model_validate(bases))
    assert failed.value.input_fault
    assert not list((own_home / "pipeline").glob("*"))
