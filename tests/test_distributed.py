"""Ranks: a process without torchrun's variables is alone, and its collectives return at once without torch."""

import os
import subprocess
import sys

import pytest

from star import distributed


def test_process_without_variables_is_rank_0_of_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.world_size() == 1
    assert distributed.is_rank0()


def test_variables_of_torchrun_name_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert distributed.world_size() == 3
    assert not distributed.is_rank0()


def test_collectives_of_one_process_do_not_import_torch() -> None:
    code = (
        "import sys; from star import distributed as d\n"
        "with d.process_group():\n"
        "    d.barrier(); assert d.broadcast_from_rank0('value') == 'value'; assert d.any_rank(True) and not d.any_rank(False)\n"
        "assert 'torch' not in sys.modules and 'accelerate' not in sys.modules"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
