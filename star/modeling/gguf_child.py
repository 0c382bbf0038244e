"""Makes a model folder of a GGUF file under limits of time and memory: the child process of gguf.py.

It is started as a file and imports nothing of STAR. It prints `done`, or `refused: REASON`; killed by a limit, or without
memory, it prints neither.
"""

import json
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

NAME = "model.gguf"  # of a link in a folder of its own: beside the file may lie a tokenizer or a configuration


def main() -> None:
    """Converts the file that the request on standard input names, and writes the model folder `out`."""
    request = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere memory cannot be limited; macOS answers with an error
        resource.setrlimit(resource.RLIMIT_AS, (request["bytes"], request["bytes"]))
    resource.setrlimit(resource.RLIMIT_CPU, (request["seconds"], request["seconds"] + 1))
    try:
        reason = convert_gguf(
            Path(request["file"]), request["tensors"], architecture=request["architecture"], out=Path(request["out"])
        )
    except MemoryError:
        raise
    except Exception as error:  # transformers raises what its parts do
        first = (str(error).strip().splitlines() or ["no message"])[0]
        reason = f"{type(error).__name__}: {first[:300]}"
        if "ignore_mismatched_sizes" in first:
            reason = "its tensors have other shapes than transformers makes of its metadata"
    print(f"refused: {reason}" if reason else "done", flush=True)


def convert_gguf(file: Path, tensors: Iterable[str], *, architecture: str, out: Path) -> str | None:
    """Writes configuration, weights in fp32 (safetensors), tokenizer and chat template into the new folder `out`.

    Args:
        tensors: the names of all tensors of the file, by its header.
        architecture: as the header names it.

    Returns:
        Why no model can be made of the file; None if one was.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    auto_class: Any = AutoModelForCausalLM  # which returns a pair with `output_loading_info`
    out.mkdir()
    link = out / NAME
    link.symlink_to(file)
    tokenizer = AutoTokenizer.from_pretrained(str(out), gguf_file=NAME)
    # fp32 holds the value of every quantised weight; bf16 does not.
    model, found = auto_class.from_pretrained(str(out), gguf_file=NAME, dtype=torch.float32, output_loading_info=True)
    link.unlink()
    if missing := sorted(found["missing_keys"]):
        return f"it lacks {len(missing)} of the weights of its architecture, first {missing[0]}"
    if unread := _unread_tensors(model, tensors, architecture):
        return f"transformers leaves {len(unread)} of its tensors out, first {unread[0]!r}, so that the model would be another one"
    # The loaded model keeps its quantizer, with which transformers refuses to save it. A new one around the same weights has none.
    configuration = type(model.config).from_dict(model.config.to_dict())
    if hasattr(configuration, "quantization_config"):
        del configuration.quantization_config
    with torch.device("meta"):
        plain = type(model)(configuration)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    plain.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return None


def _unread_tensors(model: Any, tensors: Iterable[str], architecture: str) -> list[str]:
    """The tensors for which transformers has no place in the model. It skips them in silence, such as biases."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    places = get_gguf_hf_weights_map(model, processor)
    # The weights of a layer's experts are one parameter, whose name has no ending.
    return sorted(name for name in tensors if not {name, name.removesuffix(".weight")} & places.keys())


if __name__ == "__main__":
    main()
