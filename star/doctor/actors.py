"""Loads a teacher or a student for the rehearsal: the model itself where it is small, else a small copy of it.

A base of at most SMALL_PARAMETERS parameters is loaded with its weights, as its stage loads it. Of a larger one the
rehearsal needs the tokenizer, the chat template and the shape of the head, so it takes a miniature: the same
architecture and vocabulary with SIZES and random weights. The weights of a larger model in a folder are not read, but
their files are opened: a file that is missing, cut or not safetensors shows in its header. Those of a larger model on
the hub are not downloaded.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star.config.experiment import Config
from star.config.files import GgufFile
from star.config.model_files import read_json_object
from star.config.models import Architecture, Student, Teacher
from star.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SMALL_PARAMETERS = 50_000_000  # 200 MB in fp32
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@dataclass(frozen=True)
class Actor:
    """A model of the profile, or its miniature, as the rehearsal uses it.

    Attributes:
        source: folder, GGUF file or hub id, or "scratch".
        loaded: what was loaded, as one phrase.
        own_template: the chat template that the base itself has.
    """

    source: str
    tokenizer: "PreTrainedTokenizerBase"
    model: "PreTrainedModel"
    loaded: str
    own_template: Any = None

    @property
    def rows(self) -> int:
        """Number of rows of the head."""
        return self.model.get_output_embeddings().weight.shape[0]


def load_actor(
    settings: Teacher | Student, config: Config, *, rows: list[dict[str, Any]], teacher: Actor | None = None
) -> Actor:
    """Loads a base of the profile.

    Args:
        rows: data rows, on which the tokenizer of a teacher from scratch is trained.
        teacher: the loaded teacher, where `settings` are the student's: a student from scratch gets its tokenizer.

    Raises:
        InputError: the model or its tokenizer cannot be loaded, the student's layers cannot be dropped, or adapters would be
            trained on a base that gets new tokens.
    """
    from star.modeling.bases import fit_to_tokenizer, refuse_new_tokens, settle_tokenizer
    from star.modeling.models import base_source, load_tokenizer
    from star.modeling.special_tokens import settle_alike

    if isinstance(settings.base, Architecture):
        return _build_from_scratch(settings.base, config, rows=rows, teacher=teacher)
    source = base_source(settings.base)
    name = settings.base.path if isinstance(settings.base, GgufFile) else str(source)
    raw = load_tokenizer(source, revision=settings.revision)
    own_template, about = raw.chat_template, ""
    if isinstance(settings, Teacher):
        opened = settle_tokenizer(raw, settings=settings, source=name)
        tokenizer, about = opened.tokenizer, f"; {opened.about}"
    else:
        assert teacher is not None  # noqa: S101 - the teacher is loaded first
        tokenizer = settle_alike(raw, teacher.tokenizer)
    if config.adapters_come_first(settings):
        refuse_new_tokens(raw, tokenizer, source=name)
    model, loaded = _load_model_or_miniature(source, settings.revision)
    fit_to_tokenizer(model, tokenizer, raw=raw)
    if isinstance(settings, Student) and settings.layers:
        _try_to_shorten(source, settings)
        about = f"; {settings.layers} of its layers are kept"
    return Actor(name, tokenizer, model, f"{loaded}{about}", own_template)


def _build_from_scratch(
    architecture: Architecture, config: Config, *, rows: list[dict[str, Any]], teacher: Actor | None
) -> Actor:
    from star.modeling.scratch import scratch_model
    from star.teacher.refine import scratch_tokenizer

    assert config.scratch is not None  # noqa: S101 - the configuration requires it for an Architecture
    tokenizer = teacher.tokenizer if teacher else scratch_tokenizer(rows, config)
    model = scratch_model(architecture, tokenizer, seed=config.seed)
    return Actor("scratch", tokenizer, model, "built from scratch with random weights")


def _try_to_shorten(source: Path | str, student: Student) -> None:
    """Drops the student's layers from its base without weights (meta device).

    Raises:
        InputError: the base has fewer layers, or layers that need each other.
    """
    import torch

    from star.modeling.layers import keep_layers
    from star.modeling.models import describe_model, empty_model

    assert student.layers is not None  # noqa: S101 - the caller looks
    empty = empty_model(describe_model(source, revision=student.revision), source=source)
    with torch.device("meta"):
        keep_layers(empty, student.layers, source=str(source))


def _load_model_or_miniature(source: Path | str, revision: str | None) -> tuple["PreTrainedModel", str]:
    from star.modeling.models import count_parameters, describe_model, empty_model, load_model

    described = describe_model(source, revision=revision)
    empty = empty_model(described, source=source)
    parameters = count_parameters(empty)
    size = f"{parameters / 1e6:,.3g} million parameters"
    if parameters <= SMALL_PARAMETERS:
        return load_model(source, revision=revision, training=True), f"loaded with its weights, {size}"
    if isinstance(source, Path):
        # The weights of a quantised model are packed, in other shapes.
        quantised = getattr(described, "quantization_config", None) is not None
        shapes = {} if quantised else {name: list(tensor.shape) for name, tensor in empty.state_dict().items()}
        files = len(list(check_weight_files(source, shapes=shapes)))
        checked = f"the headers of its {files} weight files are valid"
    else:
        checked = "its weights are not downloaded yet"
    return _miniature(described, source), f"{size}, rehearsed as a miniature; {checked}"


def check_weight_files(folder: Path, *, shapes: dict[str, list[int]]) -> Iterator[Path]:
    """Opens the safetensors files of a model folder and yields them.

    Args:
        shapes: by config.json, of the tensors. One with another name in the file is not compared: some architectures
            rename theirs on loading.

    Raises:
        InputError: a file is missing, damaged, lacks a tensor that the index promises, or has one of another shape.
    """
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    # The model was tried before, so the index is an object that names safetensors files in the folder.
    tensor_files: dict[str, str] = read_json_object(index)["weight_map"] if index.is_file() else {}
    for name in sorted(set(tensor_files.values())) or ["model.safetensors"]:
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file} is missing: download the model again, as safetensors")
        try:
            with safe_open(file, framework="np") as tensors:
                found = {tensor: tensors.get_slice(tensor).get_shape() for tensor in tensors.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise InputError(f"{file} is damaged ({error}): download the model again") from error
        if missing := {tensor for tensor, place in tensor_files.items() if place == name} - found.keys():
            raise InputError(f"{file} lacks the tensor {min(missing)}, which {index.name} promises: download it again")
        for tensor, shape in found.items():
            if shapes.get(tensor, shape) != shape:
                raise InputError(
                    f"{file} has {tensor} in the shape {shape} and config.json says {shapes[tensor]}: download both again"
                )
        yield file


def _miniature(described: "PretrainedConfig", source: Path | str) -> "PreTrainedModel":
    """A model of the same architecture and vocabulary with SIZES and random weights."""
    import torch
    from transformers import AutoModelForCausalLM

    small = copy.deepcopy(described)
    for name, value in SIZES.items():
        if hasattr(small, name):
            setattr(small, name, value)
    # One entry per layer, such as full or sliding attention.
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[: SIZES["num_hidden_layers"]]
    torch.manual_seed(0)
    try:
        return AutoModelForCausalLM.from_config(small, dtype=torch.float32)
    except Exception as error:  # an architecture may refuse these sizes with any error
        raise InputError(
            f"no miniature of {source} can be made to rehearse with ({type(error).__name__}: {error}): "
            "its architecture has not been tried with STAR"
        ) from error
