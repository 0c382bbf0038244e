"""Loads and saves causal language models and tokenizers: folders in Hugging Face's format, or ids of its hub.

The type of a model is `PreTrainedModel` everywhere. With LoRA adapters it is a `PeftModel` at run time, which passes
every attribute on to the model that it wraps, so the code here and in the trainers uses it as one.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import __version__ as transformers_version
from transformers.utils import logging as transformers_logging

from star import distributed
from star.config.files import HUB_ID, GgufFile, ModelFolder, refuse_folder_of_name
from star.config.model_files import refuse_unsafe_weights
from star.config.training import Lora, Precision
from star.errors import InputError
from star.modeling.chat_templates import one_template
from star.modeling.gguf import folder_of_gguf
from star.modeling.precision import weights_dtype
from star.modeling.trial import try_model

TRIED_OF_THE_HUB = [
    "config.json",
    "*.index.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "*.jinja",
    "README.md",  # not tried: it says the licence (star/registry/base_facts.py)
]

transformers_logging.disable_progress_bar()  # one bar per file loaded or saved would hide ours


# What transformers raises for a folder whose files are wrong.
LOADING_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
    ArithmeticError,
    AssertionError,
    SafetensorError,
    StrictDataclassError,
)


def load_tokenizer(model: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a model folder or hub id, with one chat template. It pads on the left, as generation needs it.

    Raises:
        InputError: it cannot be loaded.
    """
    tokenizer: PreTrainedTokenizerBase = _load_pretrained(AutoTokenizer, model, revision=revision)
    if not isinstance(tokenizer.model_max_length, int | float):
        raise InputError(f"tokenizer {model} has no number as model_max_length: correct its tokenizer_config.json")
    tokenizer.padding_side = "left"
    if isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = one_template(tokenizer.chat_template)
    # A batch needs a filler. The attention mask hides it, so the end token serves.
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    model: str | Path,
    *,
    revision: str | None = None,
    precision: Precision = "auto",
    training: bool = False,
    lora: Lora | None = None,
) -> PreTrainedModel:
    """Loads the causal language model of a folder or hub id: safetensors only, no remote code.

    The type of its weights follows the rule in star/modeling/precision.py.

    Args:
        precision: the setting.
        training: whether the weights themselves are trained, unless `lora` is given.
        lora: adapters to train, in fp32, on every linear layer; the weights stay as they are, and may be bf16.

    Raises:
        InputError: the model cannot be loaded.
    """
    described = describe_model(model, revision=revision)
    dtype = weights_dtype(precision, described, trained=training and lora is None)
    loaded, found = _load_pretrained(
        AutoModelForCausalLM, model, revision=revision, dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    # transformers fills missing weights with random ones and only warns.
    if missing := sorted(found["missing_keys"]):
        raise InputError(
            f"model {model} lacks {len(missing)} of its weights, first {missing[0]}: its files are incomplete or of "
            "another architecture than its config.json, download it again"
        )
    loaded = loaded.to("cuda" if torch.cuda.is_available() else "cpu")
    return add_lora_adapters(loaded, lora) if lora else loaded


def describe_model(model: str | Path, *, revision: str | None = None) -> PretrainedConfig:
    """Loads the configuration of a model folder or hub id, which is small.

    Raises:
        InputError: it cannot be loaded, or only with code of the model's own.
    """
    return _load_pretrained(AutoConfig, model, revision=revision)


def empty_model(described: PretrainedConfig, *, source: str | Path) -> PreTrainedModel:
    """The causal language model of a configuration without its weights (on the meta device), which takes no memory.

    Raises:
        InputError: transformers has no causal language model of this architecture.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(described)
    except (ValueError, KeyError) as error:
        raise _not_loadable(source, error) from error


def add_lora_adapters(model: PreTrainedModel, lora: Lora) -> PreTrainedModel:
    """Wraps the model in low-rank adapters on every linear layer but the head.

    Only they are trained; at the start they change nothing.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted: Any = get_peft_model(model, config)  # a PeftModel; see this module's docstring
    return adapted


def base_source(base: ModelFolder | GgufFile | str) -> Path | str:
    """The folder or hub id from which a pretrained base of the configuration is loaded. A folder's files are verified.

    Of a GGUF file it is the folder that is made of it.

    Raises:
        InputError: the folder or file has changed since the configuration was loaded, or the file holds no model.
    """
    if isinstance(base, GgufFile):
        return folder_of_gguf(base.read_verified(), sha256=base.sha256)
    return base.read_verified() if isinstance(base, ModelFolder) else base


def _load_pretrained(auto_class: Any, model: str | Path, *, revision: str | None, **arguments: Any) -> Any:
    """Calls `from_pretrained` of one of transformers' Auto classes; names the model where that fails."""
    # Checked first, because from_pretrained takes the path of a missing folder for a hub id, and another tokenizer for
    # one without its configuration.
    needed = ("tokenizer.json", "tokenizer_config.json") if auto_class is AutoTokenizer else ("config.json",)
    if isinstance(model, Path):
        _refuse_adapter(model, source=model)
        if missing := [name for name in needed if not (model / name).is_file()]:
            raise InputError(f"{model} is not a model folder (no {missing[0]}): give a Hugging Face model folder or id")
    elif not Path(model).is_dir() and not HUB_ID.fullmatch(model):
        raise InputError(f"there is no model folder at {model}: give a Hugging Face model folder or id")
    if isinstance(model, str):
        refuse_folder_of_name(model, Path(model))  # from_pretrained would load the folder
    if Path(model).is_dir():
        refuse_unsafe_weights(Path(model))
        try_model(Path(model))
    else:
        _try_hub_model(str(model), revision)
    try:
        return auto_class.from_pretrained(str(model), revision=revision, trust_remote_code=False, **arguments)
    except LOADING_ERRORS as error:
        raise _not_loadable(model, error, part="tokenizer" if auto_class is AutoTokenizer else "model") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise InputError(
            f"model {model} cannot be loaded: its weights have other shapes than its config.json says; correct that, or "
            "download it again"
        ) from error
    except Exception as error:
        if type(error) is not Exception:
            raise
        # tokenizers raises nothing more exact for an expression, a vocabulary or merges that are wrong.
        raise _not_loadable(model, error, part="tokenizer") from error


@lru_cache
def _try_hub_model(model: str, revision: str | None) -> None:
    """Checks the small files of a model of the hub like those of a folder. The weights are not downloaded for it.

    Raises:
        InputError: it names other weights than safetensors, or is refused by its trial.
    """
    try:
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=TRIED_OF_THE_HUB))
    # No such model, or no network: the loader says so.
    except (OSError, ValueError):
        return
    _refuse_adapter(folder, source=model)
    refuse_unsafe_weights(folder)
    try_model(folder)


def _refuse_adapter(folder: Path, *, source: str | Path) -> None:
    """Raises InputError for an adapter: from_pretrained would load the base that it names, or train nothing but the adapter."""
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{source} holds a LoRA adapter: merge it into its base (peft's merge_and_unload) and give the merged folder"
        )


def _not_loadable(model: str | Path, error: Exception, *, part: str = "model") -> InputError:
    """The error about a model. The cure depends on the cause, which transformers says in its message only."""
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    reason = f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first
    if isinstance(error, StrictDataclassError):
        cure = "correct its config.json, or download it again"
    elif isinstance(error, ImportError):
        cure = "choose a model that needs no further package, such as one that is not quantized"
    elif isinstance(error, SafetensorError):
        cure = "its weight files are damaged, download it again"
    elif "trust_remote_code" in str(error) or "custom code" in str(error):
        reason = "it needs code from its own repository, which STAR does not run"
        cure = "choose a model whose architecture transformers has"
    elif "architecture" in reason or "Unrecognized" in reason:
        reason = reason.split(". ")[0].rstrip(".")  # advice to update, or a list of all architectures, follows
        cure = f"choose a model whose architecture transformers {transformers_version} has"
    elif isinstance(model, Path):
        cure = "its files are damaged or incomplete, download it again, with the weights as safetensors"
    else:
        cure = "give a folder, or an id this machine can download"
    return InputError(f"{part} {model} cannot be loaded: {reason[:400]}; {cure}")


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a plain Hugging Face folder: safetensors (adapters merged in), config, tokenizer, chat template."""
    saved: Any = model  # may be a PeftModel, see this module's docstring
    # Merged, because later stages load a plain model without peft.
    if hasattr(saved, "merge_and_unload"):
        saved = saved.merge_and_unload()
    saved.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def save_model_atomically(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a model folder whole or not at all. Collective: rank 0 writes, and the other ranks wait until it has."""
    if distributed.is_rank0():
        # A rename is atomic: a kill leaves the folder as it was, or whole.
        unfinished = folder.with_name(f"{folder.name}.partial")
        save_model(model, tokenizer, unfinished)
        unfinished.rename(folder)
    # The other ranks may read the folder right after this.
    distributed.barrier()


def count_parameters(model: PreTrainedModel) -> int:
    """Number of parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
