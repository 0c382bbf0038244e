"""A base that is a GGUF file becomes a model folder with the same weights and tokens; what is no sound file is refused first."""

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from star.config.models import Architecture, Student
from star.config.safety import Safety, current_safety, use_safety
from star.errors import InputError
from star.modeling import gguf
from star.modeling.gguf_child import convert_gguf
from star.modeling.gguf_header import read_gguf_header
from star.modeling.models import base_source, load_model, load_tokenizer
from star.modeling.scratch import scratch_model
from star.modeling.tokenizer import tokenizer_differences
from tests.gguf_files import byte_level_tokenizer, write_gguf
from tests.small_models import small_sizes

# Of Qwen3, transformers reads no other width of a head from a GGUF file.
SIZES = Architecture(**small_sizes(head_dim=128))
TEXT = "<|im_start|>user\nthe weather in the town<|im_end|>\n<think>\n</think>\n<tool_call>{}</tool_call>"


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return scratch_model(SIZES, byte_level_tokenizer(), seed=1)


@pytest.fixture(scope="module")
def file(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(place, model, byte_level_tokenizer(), weights=GGMLQuantizationType.Q8_0)
    return place


def test_a_base_is_converted_once(
    file: Path, model: PreTrainedModel, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Student(base=str(file)).base
    folder = base_source(base)
    assert folder.is_relative_to(own_home / "inputs" / base.sha256)
    loaded = load_model(folder)
    assert loaded.dtype == torch.float32
    assert not hasattr(loaded.config, "quantization_config")
    for name, tensor in model.state_dict().items():
        kind = GGMLQuantizationType.Q8_0 if tensor.ndim > 1 else GGMLQuantizationType.F32
        expected = torch.from_numpy(dequantize(quantize(tensor.numpy(), kind), kind))
        assert torch.equal(loaded.state_dict()[name], expected), name
    tokenizer, original = load_tokenizer(folder), byte_level_tokenizer()
    assert tokenizer.get_vocab() == original.get_vocab()
    assert tokenizer(TEXT)["input_ids"] == original(TEXT)["input_ids"]
    assert (tokenizer.chat_template, tokenizer.eos_token) == (original.chat_template, original.eos_token)
    assert tokenizer_differences(tokenizer, load_tokenizer(base_source(base))) == ""

    monkeypatch.setattr(gguf, "_convert", lambda *args, **kwargs: pytest.fail("converted twice"))
    assert base_source(base) == folder
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(pytest.fail.Exception, match="converted twice"):
        base_source(base)


def converted(file: Path, *, out: Path) -> str | None:
    """`convert_gguf` in this process."""
    header = read_gguf_header(file)
    return convert_gguf(file, header.tensors, architecture=header.metadata["general.architecture"], out=out)


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.1.ffn_gate_inp.weight", "done\ndone"])
def test_a_tensor_that_would_be_left_out_is_refused(model: PreTrainedModel, name: str, tmp_path: Path) -> None:
    """transformers skips what its architecture has no place for, and the model would be another one."""
    file = tmp_path / "more.gguf"
    write_gguf(file, model, byte_level_tokenizer(), further={name: np.ones(256, np.float32)})
    reason = converted(file, out=tmp_path / "out")
    assert reason is not None and reason.startswith(f"transformers leaves 1 of its tensors out, first {name!r}, ")
    assert "\n" not in reason  # the last line that the child says decides


def test_every_format_of_floats_is_read(model: PreTrainedModel, tmp_path: Path) -> None:
    for kind in ("F32", "F16", "BF16"):
        file = tmp_path / f"{kind}.gguf"
        write_gguf(file, model, byte_level_tokenizer(), weights=GGMLQuantizationType[kind])
        assert converted(file, out=tmp_path / kind) is None
        weight = load_model(tmp_path / kind).get_input_embeddings().weight
        error = (weight - model.get_input_embeddings().weight).abs().max().item()
        assert error <= {"F32": 0, "F16": 1e-4, "BF16": 1e-3}[kind]


def test_a_conversion_beyond_its_limits_is_ended(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = current_safety()
    use_safety(Safety(model_memory=0.5))
    monkeypatch.setattr(gguf, "START_BYTES", -(2**28))
    with pytest.raises(InputError, match=r"takes more than .* or 0.3 GiB of memory \(`safety.model_seconds`"):
        base_source(Student(base=str(file)).base)
    use_safety(before)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_header_is_refused_or_harmless(file: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Any byte of the header may be another, and the file may end anywhere."""
    content = bytearray(file.read_bytes())
    start = min(tensor.start for tensor in read_gguf_header(file).tensors.values())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, start - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(content)))
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(content[:end])
    with contextlib.suppress(InputError):
        assert max(tensor.end for tensor in read_gguf_header(damaged).tensors.values()) <= end


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (0, b"GGML", "does not begin with GGUF"),
        (4, struct.pack("<I", 1), "it has version 1"),
        (8, struct.pack("<Q", 2**60), "states 1,152,921,504,606,846,976 tensors"),
        (16, struct.pack("<Q", 2**60), "entries of metadata"),
        (24, struct.pack("<Q", 2**62), "bytes of a text"),
    ],
)
def test_absurd_counts_are_refused(file: Path, tmp_path: Path, place: int, value: bytes, said: str) -> None:
    content = bytearray(file.read_bytes())
    content[place : place + len(value)] = value
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_gguf_header(damaged)


def test_a_cut_file_is_refused(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size, said in ((10, "10 bytes"), (100, "ends within its header"), (len(content) - 7, "lacks its last 7 bytes")):
        cut.write_bytes(content[:size])
        with pytest.raises(InputError, match=f"{said}.*download it again"):
            base_source(Student(base=str(cut)).base)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (
            {"tokenizer.ggml.tokens": ["a"], "other.block_count": 1, "other.rope.scaling.type": "yarn"},
            "scales its positions",
        ),
        (
            {
                "tokenizer.ggml.tokens": ["a"],
                "other.block_count": 1,
                "rope_factors_long.weight": np.ones(4, np.float32),
            },
            "scales its positions",
        ),
        ({"split.count": 3}, r"is one of 3 parts: merge them"),
        ({"general.type": "adapter"}, "holds the type 'adapter' and no model"),
        ({"other.block_count": 1}, "has no tokenizer or no number of layers"),
        ({"tokenizer.ggml.tokens": ["a"], "other.block_count": 2**31}, "describes 2,147,483,648 layers"),
        ({"tokenizer.ggml.tokens": ["a" * 5000]}, "states 5,000 bytes of a text"),
    ],
)
def test_what_is_no_whole_model_is_refused(tmp_path: Path, entries: dict, said: str) -> None:
    file = tmp_path / "other.gguf"
    writer = GGUFWriter(file, "other")
    for key, value in entries.items():
        kinds = {str: writer.add_string, list: writer.add_array, int: writer.add_uint32, np.ndarray: writer.add_tensor}
        add = kinds[type(value)]
        add(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match=said):
        base_source(Student(base=str(file)).base)


def test_an_architecture_that_transformers_lacks_is_named(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(file.read_bytes().replace(b"qwen3", b"qwen9"))
    with pytest.raises(ValueError, match="qwen9 is not supported"):
        converted(other, out=tmp_path / "out")
