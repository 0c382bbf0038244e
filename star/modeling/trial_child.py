"""Reads the small files of a model folder under limits of time and memory: the child process of trial.py.

It is started as a file, imports nothing of STAR and no torch, and so starts in a fraction of a second. It prints the
name of each step before the step, and last `done`, or `refused: REASON`. Killed by a limit it prints neither; without
memory it ends with status 3. A step that fails otherwise is passed over: the loader names the fault better.
"""

import contextlib
import json
import math
import re
import resource
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OUT_OF_MEMORY = 3
JSON_BYTES = 256 * 2**20  # of one file; the largest tokenizer.json has 35 MB
HEADER_BYTES = 16 * 2**20  # of a safetensors file; 10,000 tensors have 1 MB
RENDERED_CHARACTERS = 2 * 2**20  # more than the text of the conversations
LAYERS, LABELS, SIZE = 1000, 2**17, 2**24
ADDED_TOKENS = 2**18  # beside the vocabulary; 300,000 take transformers eight seconds
# Packed weights have up to 8 numbers per element, and layers may share their weights.
NUMBERS_PER_ELEMENT = 16
PROBE_CHARACTERS = 4000
COMMON = (" ", "\n", "\t", "a", "A", "0", ".", "-", "'", "\u00e9", "\u4e2d", "\u0301")

TOOL = {
    "name": "get_time",
    "description": "The time in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
QUESTION = {"role": "user", "content": "What time is it in Oslo?"}
# Also that with which star/modeling/chat_templates.py looks for tools in a template.
TOOL_CONVERSATION: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        QUESTION,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "get_time", "arguments": {"city": "Oslo"}}}],
        },
        {"role": "tool", "name": "get_time", "content": "Noon."},
        {"role": "user", "content": "And in Bergen?"},
    ],
    "tools": [TOOL],
}
CONVERSATIONS = [
    {"messages": [{"role": "system", "content": "Be brief."}, QUESTION], "tools": [TOOL]},
    {"messages": [QUESTION, {"role": "assistant", "content": "Noon."}, QUESTION], "tools": []},
    TOOL_CONVERSATION,
]


class Refused(Exception):
    """The model must not be loaded; the message is one phrase."""


def main() -> None:
    """Tries the folder that the request on standard input names."""
    request = json.load(sys.stdin)
    _limit(request["seconds"], request["bytes"])
    folder = Path(request["folder"])
    try:
        elements = tensors = 0
        with _step("the header of its weights"):
            elements, tensors = _sizes_of_weights(folder, request["shards"])
        with _step("config.json"):
            _check_sizes(_read_json(folder / "config.json"), elements=elements, tensors=tensors)
        settings: dict[str, Any] = {}
        with _step("tokenizer_config.json"):
            settings = _read_json(folder / "tokenizer_config.json")
            if len(added := settings.get("added_tokens_decoder") or ()) > ADDED_TOKENS:
                raise Refused(f"tokenizer_config.json has {len(added):,} added tokens, more than {ADDED_TOKENS:,}")
        conversations = [*CONVERSATIONS, *request["conversations"]]
        texts = [
            text for name, template in _templates(folder, settings) for text in _render(name, template, conversations)
        ]
        texts += [str(message.get("content")) for asked in request["conversations"] for message in asked["messages"]]
        with _step("tokenizer.json"):
            _split(folder / "tokenizer.json", texts)
    except Refused as refusal:
        print(f"refused: {refusal}", flush=True)
        return
    except MemoryError:
        sys.exit(OUT_OF_MEMORY)
    print("done", flush=True)


def _limit(seconds: int, size: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform == "linux":  # elsewhere memory cannot be limited; macOS answers with an error
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))


@contextlib.contextmanager
def _step(name: str) -> Iterator[None]:
    print(name, flush=True)
    # What tokenizers and jinja raise is any Exception; MemoryError and a refusal say something that the loader would not.
    try:
        yield
    except (MemoryError, Refused):
        raise
    except RecursionError:
        raise Refused(f"{name} nests too deeply") from None
    except BaseException as error:  # a panic of tokenizers is no Exception
        if isinstance(error, SystemExit | KeyboardInterrupt):
            raise
        # The loader would end in it, too, and cannot catch it as an error. An expression that backtracks for long does it.
        if type(error).__name__ == "PanicException":
            raise Refused(f"{name} makes the tokenizers library fail ({str(error)[:100]})") from None


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    if file.stat().st_size > JSON_BYTES:
        raise Refused(f"{file.name} has more than {JSON_BYTES // 2**20} MiB")
    content = json.loads(file.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _sizes_of_weights(folder: Path, shards: list[str]) -> tuple[int, int]:
    """The number of elements and of tensors in the safetensors files, by their headers; 0 where not all are there."""
    elements, tensors = 0, 0
    whole = folder / "model.safetensors"
    weights = {whole} if whole.is_file() else {folder / shard for shard in shards}
    if not all(file.is_file() for file in weights):
        return 0, 0  # not downloaded yet, or incomplete
    for file in weights:
        with file.open("rb") as opened:
            [length] = struct.unpack("<Q", opened.read(8))
            if length > file.stat().st_size:
                raise ValueError("a damaged file, which the loader names")
            if length > HEADER_BYTES:
                raise Refused(f"the header of {file.name} has {length:,} bytes, more than {HEADER_BYTES:,}")
            header = json.loads(opened.read(length))
        shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        elements += sum(math.prod(shape) for shape in shapes)
        tensors += len(shapes)
    return elements, tensors


def _check_sizes(config: dict[str, Any], *, elements: int, tensors: int) -> None:
    """Refuses a configuration from which a model would be built that its weights cannot fill."""
    inner = config.get("text_config")
    sizes = {**config, **(inner if isinstance(inner, dict) else {})}
    sizes = {key: value for key, value in sizes.items() if isinstance(value, int) and not isinstance(value, bool)}
    for key, value in sizes.items():
        if re.search(r"layers?$|^n_layer", key) and value > LAYERS:
            raise Refused(f"config.json has {key} {value:,}, more than {LAYERS:,}")
        if key == "num_labels" and value > LABELS:  # a name is made for each
            raise Refused(f"config.json has {key} {value:,}, more than {LABELS:,}")
        if (
            re.search(r"size$|heads$|_dim$|experts$|^n_embd$|^n_head$|^d_model$|_inner$|^d_ff$|positions$", key)
            and value > SIZE
        ):
            raise Refused(f"config.json has {key} {value:,}, more than {SIZE:,}")
    if not tensors:
        return  # the weights are not here, or are not safetensors
    layers, width = sizes.get("num_hidden_layers", 0), sizes.get("hidden_size", 0)
    attention = sizes.get("num_attention_heads", 0) * sizes.get("head_dim", 0) or width
    numbers = (
        layers * width * (2 * attention + 3 * sizes.get("intermediate_size", 0)) + sizes.get("vocab_size", 0) * width
    )
    if numbers > NUMBERS_PER_ELEMENT * elements or layers > tensors:
        raise Refused(
            f"config.json describes {layers:,} layers and {numbers:,} parameters, and the weights are {tensors:,} tensors "
            f"with {elements:,} elements"
        )


def _templates(folder: Path, settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The folder's chat templates: what to call each, and its text."""
    for file in [folder / "chat_template.jinja", *sorted(folder.glob("additional_chat_templates/*.jinja"))]:
        if file.is_file():
            yield file.relative_to(folder).as_posix(), file.read_text(encoding="utf-8", errors="replace")
    found = settings.get("chat_template")
    for template in found if isinstance(found, list) else [{"template": found}]:
        if isinstance(template, dict) and isinstance(template.get("template"), str):
            yield "chat_template in tokenizer_config.json", template["template"]


def _render(name: str, template: str, conversations: list[dict[str, Any]]) -> list[str]:
    """The conversations in a template, in an environment like that of transformers."""
    texts: list[str] = []
    with _step(name):
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals.update(raise_exception=_raise, strftime_now=lambda form: "2026-01-01")
        # The tags of a block that only a training's mask needs.
        compiled = environment.from_string(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template))
        for conversation in conversations:
            with _step(name):
                texts.append(_rendered(name, compiled, conversation))
    return texts


def _rendered(name: str, compiled: Any, conversation: dict[str, Any]) -> str:
    allowed = RENDERED_CHARACTERS + 10 * len(json.dumps(conversation))
    tools = [tool if "function" in tool else {"type": "function", "function": tool} for tool in conversation["tools"]]
    characters, parts = 0, []
    for part in compiled.generate(
        messages=conversation["messages"], tools=tools or None, add_generation_prompt=True, bos_token="", eos_token=""
    ):
        parts.append(part)
        characters += len(part)
        if characters > allowed:
            raise Refused(f"{name} renders a short conversation as more than {allowed:,} characters")
    return "".join(parts)


def _raise(message: str) -> None:
    raise ValueError(message)


def _split(file: Path, texts: list[str]) -> None:
    """Splits texts into tokens, also long runs of what the tokenizer's own expressions look for."""
    if not file.is_file():
        return
    content = _read_json(file)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    own = dict.fromkeys(run for pattern in _patterns(content) for run in _runs(pattern))
    # Some expressions only search where a text has what a match must end with.
    endings = dict.fromkeys(("", "!", "!" + " ".join(own)))
    for text in [*texts, *(run * (PROBE_CHARACTERS // len(run)) + end for run in (*COMMON, *own) for end in endings)]:
        with _step("tokenizer.json"):
            # And back, because what makes text of tokens has expressions, too.
            tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)


def _patterns(value: Any) -> Iterator[str]:
    """The regular expressions and texts that a tokenizer looks for, outside its vocabulary."""
    if isinstance(value, dict):
        if isinstance(value.get("Regex"), str):
            yield value["Regex"]
        if isinstance(value.get("String"), str) and 0 < len(value["String"]) <= PROBE_CHARACTERS:
            yield value["String"]
        for key, inner in value.items():
            if key not in ("vocab", "merges", "added_tokens"):
                yield from _patterns(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _patterns(inner)


def _runs(pattern: str) -> list[str]:
    """Short texts that an expression may repeat: its literal characters, and its words."""
    literal = re.sub(r"\\[pP]\{[^}]*\}|\\.|\(\?[a-zA-Z!=<:>]*", " ", pattern)
    return list(dict.fromkeys([*re.findall(r"\w", literal), *re.findall(r"\w{2,8}", literal)]))[:40]


if __name__ == "__main__":
    main()
