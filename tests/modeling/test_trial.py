"""A model folder that costs too much time or memory is refused by a child process, before this one reads it."""

import json
import resource
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from star.config.models import Architecture
from star.config.safety import Safety, current_safety, use_safety
from star.errors import InputError
from star.folders.manifest import Manifest, open_input
from star.folders.publish import publish
from star.modeling import trial, trial_child
from star.modeling.generation import Sample, generate
from star.modeling.inference import answer_request
from star.modeling.models import _try_hub_model, describe_model, load_model, load_tokenizer
from star.modeling.trial import try_model
from tests.small_models import small_sizes, write_scratch_model

SIZES = Architecture(**small_sizes(16, 16, layers=1, heads=1, head_dim=16))
LOOP = "{%- for a in range(99999) -%}{%- for b in range(99999) -%}{%- endfor -%}{%- endfor -%}"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scratch_model(tmp_path_factory.mktemp("models") / "model", SIZES)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy, which a test may change; nothing may take more than 5 s or 1 GiB."""
    before = current_safety()
    use_safety(Safety(model_seconds=5, model_memory=1))
    yield shutil.copytree(original, tmp_path / "model")
    use_safety(before)


def edit(file: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def template(text: str, name: str = "chat_template.jinja") -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return write


def named_template(folder: Path) -> None:
    named = [{"name": "tool_use", "template": LOOP}]
    edit(folder / "tokenizer_config.json", lambda content: content.update(chat_template=named))


def expression(pattern: str) -> Callable[[Path], object]:
    def change(content: dict) -> None:
        content["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": pattern}

    return lambda folder: edit(folder / "tokenizer.json", change)


def decoder(added: dict) -> Callable[[Path], object]:
    def change(content: dict) -> None:
        content["decoder"] = {"type": "Sequence", "decoders": [content["decoder"], added]}

    return lambda folder: edit(folder / "tokenizer.json", change)


def sizes(**values: int) -> Callable[[Path], object]:
    return lambda folder: edit(folder / "config.json", lambda content: content.update(values))


def long_header(folder: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 2**33) + b"{")
        file.truncate(2**34)  # without a block on the disk


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "template that loops": (template(LOOP), r"chat_template\.jinja takes more than .*model_seconds"),
    "other template": (template(LOOP, "additional_chat_templates/x.jinja"), r"templates/x\.jinja takes more than"),
    "named template": (named_template, "in tokenizer_config.json takes more than"),
    "template without end": (
        template("{% for a in range(99999) %}{% for b in range(99999) %}aaaaaaaa{% endfor %}{% endfor %}"),
        "renders a short conversation as more than",
    ),
    "template of gigabytes": (template("{{ ('a' * 4000000000)|length }}"), "takes more than 1 GiB of memory"),
    "nested template": (template("{{" + "(" * 50000), "nests too deeply"),
    "expression": (
        expression(r"(a|a)*(a|a)*(a|a)*b$"),
        "tokenizer.json (takes more than|makes the tokenizers library)",
    ),
    "expression of the decoder": (
        decoder({"type": "Replace", "pattern": {"Regex": r"(a|a)*(a|a)*(a|a)*(a|a)*b$"}, "content": ""}),
        "tokenizer.json (takes more than|makes the tokenizers library)",
    ),
    "text that becomes long": (
        lambda folder: edit(
            folder / "tokenizer.json",
            lambda content: content.update(
                normalizer={"type": "Replace", "pattern": {"String": "q"}, "content": "x" * 10**6}
            ),
        ),
        "tokenizer.json takes more than",
    ),
    "labels": (sizes(num_labels=10**9), r"num_labels 1,000,000,000, more than"),
    "inner width": (sizes(n_inner=10**12), r"n_inner 1,000,000,000,000, more than"),
    "header": (long_header, r"the header of model\.safetensors has 8,589,934,592 bytes"),
    "layers": (sizes(num_hidden_layers=10**9), r"num_hidden_layers 1,000,000,000, more than"),
    "width": (sizes(hidden_size=10**12), "hidden_size 1,000,000,000,000, more than"),
    "sizes that no weights have": (sizes(hidden_size=2**20, vocab_size=2**20), "and the weights are 13 tensors"),
    "nested configuration": (
        lambda folder: (folder / "config.json").write_text("[" * 10**6),
        "nests too deeply|damaged",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_is_refused_before_it_is_loaded(folder: Path, name: str) -> None:
    change, message = HOSTILE[name]
    change(folder)
    if "takes more than" in message:
        use_safety(Safety(model_seconds=1, model_memory=1))
    for load in (load_tokenizer, load_model, describe_model)[: 1 if "takes" in message else 3]:
        with pytest.raises(InputError, match=message):
            load(folder)


@pytest.mark.parametrize(("platform", "limits_memory"), [("linux", True), ("darwin", False)])
def test_memory_is_limited_where_the_platform_can(
    platform: str, limits_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(resource, "setrlimit", limits.__setitem__)
    monkeypatch.setattr(sys, "platform", platform)
    trial_child._limit(5, 2**30)
    assert (resource.RLIMIT_AS in limits) is limits_memory
    assert limits[resource.RLIMIT_CPU] == (5, 6)


def test_a_sound_folder_is_tried_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try_model(folder)
    monkeypatch.setattr(trial, "CHILD", folder / "no-such-child.py")
    assert load_model(folder)
    assert load_tokenizer(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(RuntimeError, match="no-such-child"):
        try_model(folder)


def test_what_the_model_is_asked_is_tried_too(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{% if 'bomb' in messages[0].content %}" + LOOP + "{% endif %}{{ messages[0].content }}"
    )
    try_model(folder)
    use_safety(Safety(model_seconds=1))
    with pytest.raises(InputError, match=r"chat_template\.jinja takes more than"):
        answer_request("a bomb", tools=[], model_folder=folder)


def test_the_result_of_a_stage_that_was_verified_is_not_tried(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, folder.with_name("made"))
    publish(folder.with_name("made"), out=folder.with_name("out"), manifest=Manifest("distill", "f", "c", "c", "0", {}))
    open_input(folder.with_name("out"), stage="distill")
    monkeypatch.setattr(trial, "CHILD", folder / "no-such-child.py")
    try_model(folder.with_name("out"))


def test_a_faulty_folder_is_left_to_the_loader(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    try_model(folder)
    with pytest.raises(Exception, match=r"(?i)token"):
        load_tokenizer(folder)


def test_a_model_of_the_hub_is_tried_before_its_weights_are_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hub" / "models--team--model" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (snapshot / "model.safetensors").unlink()
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert load_tokenizer("team/model")
    (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x.bin"}}')
    _try_hub_model.cache_clear()
    with pytest.raises(InputError, match=r"names the weight file 'x\.bin'"):
        load_model("team/model")
    with pytest.raises(InputError, match="no-such-team/model cannot be loaded"):
        load_model("no-such-team/model")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (expression("((("), "tokenizer .* cannot be loaded: Oniguruma error: end pattern with unmatched parenthesis"),
        (
            lambda folder: edit(
                folder / "config.json",
                lambda content: content.update(
                    quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
                ),
            ),
            "model .* cannot be loaded: .*bitsandbytes.* that needs no further package",
        ),
    ],
)
def test_what_only_the_loader_finds_wrong_is_a_sentence(
    folder: Path, change: Callable[[Path], object], said: str
) -> None:
    change(folder)
    with pytest.raises(InputError, match=said):
        (load_tokenizer(folder), load_model(folder))


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token_id": "x"},
        {"bad_words_ids": [[10**8]]},
        {"stop_strings": ["a"]},
    ],
)
def test_settings_of_generation_that_cannot_be_used_are_a_sentence(folder: Path, settings: dict) -> None:
    edit(folder / "generation_config.json", lambda content: content.update(settings))
    with pytest.raises(InputError, match=r"its own generation_config\.json: .*; correct or delete that file"):
        say_hello(folder)


def test_a_model_cannot_ask_for_beams(folder: Path) -> None:
    plain = say_hello(folder)
    edit(
        folder / "generation_config.json", lambda content: content.update(num_beams=10**9, return_dict_in_generate=True)
    )
    assert say_hello(folder) == plain


def say_hello(folder: Path) -> list[list[Sample]]:
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    return generate(model, tokenizer, ["hello"], samples=1, temperature=0.0, max_new_tokens=3, seed=0)


def test_a_word_as_longest_input_is_named(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", lambda content: content.update(model_max_length="x"))
    with pytest.raises(InputError, match="no number as model_max_length"):
        load_tokenizer(folder)


def test_a_folder_here_is_not_taken_for_a_model_of_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    with pytest.raises(InputError, match=r"write \./model if you mean the folder"):
        load_tokenizer("model")
