"""Tests which models compute in bf16, and that a training keeps fp32 weights."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, Qwen3Config

from star.config.experiment import Config
from star.errors import InputError
from star.modeling import precision
from star.modeling.models import load_model
from star.modeling.precision import computes_in_bf16, weights_dtype
from tests.small_models import random_model, small_sizes

NARROW, WIDE = (Qwen3Config(hidden_size=width) for width in (128, 256))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the rule of CPUs")
@pytest.mark.parametrize(("has_bf16", "wide"), [(True, True), (False, False)])
def test_a_cpu_with_bf16_uses_it_for_wide_models(has_bf16: bool, wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has_bf16)
    assert computes_in_bf16("auto", WIDE) is wide and not computes_in_bf16("auto", NARROW)
    assert computes_in_bf16("bf16", NARROW) and not computes_in_bf16("fp32", WIDE)
    assert weights_dtype("bf16", NARROW, trained=True) == torch.float32


def test_a_gpu_without_bf16_is_not_asked_to_emulate_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    for has_bf16 in (True, False):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, found=has_bf16: including_emulation or found,
        )
        assert computes_in_bf16("auto", NARROW) is has_bf16 and not computes_in_bf16("fp32", WIDE)
    said = "`precision: bf16` is set, and Tesla V100 has no instructions for bf16: set `precision: auto`"
    with pytest.raises(InputError, match=said):
        computes_in_bf16("bf16", WIDE)
    # As a stage finds it out: when it loads the model, before anything is trained.
    WIDE.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=said):
        load_model(tmp_path, precision="bf16", training=True)


def test_only_weights_that_are_read_are_bf16(tmp_path: Path) -> None:
    random_model(LlamaConfig(vocab_size=64, **small_sizes(16, 16, layers=1))).save_pretrained(tmp_path)
    assert load_model(tmp_path, precision="bf16").dtype == torch.bfloat16
    assert load_model(tmp_path, precision="bf16", training=True).dtype == torch.float32
    if not torch.cuda.is_available():
        assert load_model(tmp_path).dtype == torch.float32


def test_another_precision_runs_the_stages_that_compute_again() -> None:
    from star.stages import STAGES

    exact = Config(precision="fp32")
    again = [stage.name for stage in STAGES if Config().slice(stage.sections) != exact.slice(stage.sections)]
    assert again == ["refine-teacher", "rollout", "extract-topk", "distill", "refine", "evaluate"]
