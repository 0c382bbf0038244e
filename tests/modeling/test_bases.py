"""A pretrained base is opened with settled template, tokens, embeddings and generation settings, whatever its family."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, PreTrainedTokenizerBase

from star.chat import CHAT_TEMPLATE, FORMAT_TOKENS, IM_END, IM_START, render_prompt
from star.config.experiment import Config
from star.config.models import Student, Teacher
from star.config.training import Lora
from star.errors import InputError
from star.modeling.bases import fit_to_tokenizer, open_base, open_tokenizer, settle_tokenizer
from star.modeling.models import load_model, load_tokenizer, save_model
from star.modeling.prompts import template_beginning, template_opening
from star.modeling.special_tokens import PRODUCT_TOKENS, settle_alike
from star.modeling.tokenizer import bootstrap_tokenizer, tokenizer_differences, tokenizer_digest
from tests.small_models import random_model, small_sizes

SFT = {"steps": 1, "learning_rate": 1e-3}
MESSAGES = [{"role": "user", "content": "What time is it?"}]
TOOLS = [{"name": "clock", "description": "", "parameters": {"type": "object", "properties": {"zone": {}}}}]
# Of another family: its own turn tokens, calls in OpenAI's form only, tools where there are any.
HERMES = """{%- for tool in tools or [] %}{{ tool | tojson }}{% endfor %}
{%- for message in messages %}{{ '[' + message.role + ':' + message.content }}
{%- for call in message.tool_calls or [] %}{{ '<tool_call>' + call.function | tojson + '</tool_call>' }}{% endfor %}
{{- '</s>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '[assistant:' }}{% endif %}"""
LLAMA = "{%- for message in messages %}{{ bos_token + message.role + message.content + '</s>' }}{% endfor %}"


def foreign_tokenizer(folder: Path, *, template: str | None, adds_bos: bool = True) -> Path:
    """A tokenizer without any of STAR's tokens, as Llama's: `<s>` before every text, `</s>` at its end, no padding."""
    bootstrap_tokenizer().save_pretrained(folder)
    names = {IM_START: "<s>", IM_END: "</s>", "<|endoftext|>": "<unk>"}
    names |= {tag: f"[w{number}]" for number, tag in enumerate(FORMAT_TOKENS)}
    text = (folder / "tokenizer.json").read_text()
    for old, new in names.items():
        text = text.replace(json.dumps(old), json.dumps(new))
    content = json.loads(text)
    if adds_bos:
        bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
        single = [bos, {"Sequence": {"id": "A", "type_id": 0}}]
        ids = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
        pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": pair,
            "special_tokens": ids,
        }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"unk_token": "<unk>"}))
    (folder / "chat_template.jinja").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def write_model(folder: Path, *, spare_rows: int = 0, tied: bool = False) -> Path:
    rows = len(load_tokenizer(folder)) + spare_rows
    ids = {"eos_token_id": 2, "pad_token_id": 2, "bos_token_id": 1}
    config = LlamaConfig(vocab_size=rows, tie_word_embeddings=tied, **ids, **small_sizes(16, 16, layers=1))
    model = random_model(config, seed=1)
    model.generation_config = GenerationConfig(
        eos_token_id=2, do_sample=True, top_p=0.9, repetition_penalty=1.3, suppress_tokens=[5, 6]
    )
    model.save_pretrained(folder)
    return folder


def settled(folder: Path, **settings: Any) -> PreTrainedTokenizerBase:
    return settle_tokenizer(load_tokenizer(folder), settings=Teacher(**settings), source="it").tokenizer


def test_a_base_that_was_right_keeps_its_files(tmp_path: Path) -> None:
    tokenizer = bootstrap_tokenizer()
    tokenizer.save_pretrained(tmp_path / "before")
    settled(tmp_path / "before", add_format_tokens=True).save_pretrained(tmp_path / "after")
    # What the loading alone adds to a configuration is not the settling's.
    load_tokenizer(tmp_path / "before").save_pretrained(tmp_path / "before")
    for file in (tmp_path / "before").iterdir():
        assert (tmp_path / "after" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("template", "wanted", "starts", "end"),
    [
        (None, "auto", f"<s>{IM_START}system\n# Tools", IM_END),
        (LLAMA, "auto", f"<s>{IM_START}system\n# Tools", IM_END),
        (HERMES, "auto", '<s>{"type"', "</s>"),
        (HERMES, "qwen3", f"<s>{IM_START}system\n# Tools", IM_END),
        ("{{ bos_token }}" + HERMES, "auto", '<s>{"type"', "</s>"),
    ],
    ids=["none", "without tools", "own", "ours by name", "own with BOS"],
)
def test_a_prompt_has_the_same_ids_however_it_is_tokenized(
    template: str | None, wanted: str, starts: str, end: str, tmp_path: Path
) -> None:
    tokenizer = settled(foreign_tokenizer(tmp_path / "base", template=template), chat_template=wanted)
    tokenizer.save_pretrained(tmp_path / "saved")
    prompt = render_prompt(MESSAGES, TOOLS, tokenizer)
    assert prompt.startswith(starts) and not prompt.startswith("<s><s>")
    plain = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    for again in (tokenizer, load_tokenizer(tmp_path / "saved")):
        assert again(prompt)["input_ids"] == again(prompt, add_special_tokens=False)["input_ids"] == plain
        assert (again.eos_token, again.pad_token) == (end, "<unk>")
        assert len(again(end)["input_ids"]) == 1
    assert plain[0] == tokenizer.bos_token_id
    assert template_beginning(tokenizer) == "<s>"


@pytest.mark.parametrize("template", [None, HERMES, HERMES.replace("'[assistant:'", "'[assistant:<think>\n'")])
def test_prompts_can_end_with_an_opened_think_block(template: str | None, tmp_path: Path) -> None:
    base = foreign_tokenizer(tmp_path / "base", template=template)
    plain, opened = settled(base), settled(base, open_think=True)
    prompt = render_prompt(MESSAGES, TOOLS, plain)
    # A template that opens the block itself stays as it is.
    opening = template_opening(plain) or "<think>"
    assert render_prompt(MESSAGES, TOOLS, opened) == prompt.removesuffix(opening) + opening
    assert template_opening(opened) == opening
    conversation = [*MESSAGES, {"role": "assistant", "content": "Yes."}]
    assert opened.apply_chat_template(conversation, tokenize=False) == plain.apply_chat_template(
        conversation, tokenize=False
    )
    if template is None:
        closed = opened.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        assert closed.endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize("first_bos", ["", "{{ bos_token }}"])
@pytest.mark.parametrize("second_bos", ["", "{{ bos_token }}"])
def test_named_templates_become_one_that_writes_the_same(first_bos: str, second_bos: str, tmp_path: Path) -> None:
    """transformers chooses one of them by whether there are tools; the BOS is written in each prompt, once."""
    plain = "{%- for message in messages %}{{ message.role + message.content + '</s>' }}{% endfor %}"
    base = foreign_tokenizer(tmp_path / "base", template=f"{second_bos}{plain}\n")
    (base / "additional_chat_templates").mkdir()
    # jinja writes the first newlines of a template, and not the last one.
    (base / "additional_chat_templates" / "tool_use.jinja").write_text(
        f"{first_bos}\n\n  {{%+ if 1 %}}{HERMES}{{% endif %}} \n"
    )
    (base / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")
    named = AutoTokenizer.from_pretrained(base)
    assert named.chat_template.keys() == {"default", "tool_use", "rag"}
    tokenizer = open_tokenizer(Teacher(base=str(base), chat_template="own")).tokenizer
    for tools, bos in ((TOOLS, first_bos), ([], second_bos)):
        expected = render_prompt(MESSAGES, tools, named)
        assert expected.startswith("<s>") is bool(bos)
        assert render_prompt(MESSAGES, tools, tokenizer) == ("" if bos else "<s>") + expected
    student = settle_alike(load_tokenizer(base), tokenizer)
    assert student.chat_template == tokenizer.chat_template and tokenizer_differences(student, tokenizer) == ""


def test_a_family_without_bos_gets_none(tmp_path: Path) -> None:
    tokenizer = settled(foreign_tokenizer(tmp_path / "base", template=None, adds_bos=False))
    assert render_prompt(MESSAGES, [], tokenizer).startswith(IM_START)
    assert template_beginning(tokenizer) == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("tool | tojson", "tool.function.description"), "shows no tools"),
        (("call.function | tojson", "call.function.arguments | tojson"), "writes calls in another form"),
        (("tools or []", "tools + 1"), "cannot render a conversation with a tool"),
        (("'</s>'", "'.'"), "ends an answer with no token of its own"),
        (("message.role + ':' + message.content", "message.role"), "leaves a message out"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_by_name(
    change: tuple[str, str], reason: str, tmp_path: Path
) -> None:
    base = foreign_tokenizer(tmp_path / "base", template=HERMES.replace(*change))
    opened = open_tokenizer(Teacher(base=str(base)))
    assert reason in opened.about and str(opened.tokenizer.chat_template).endswith(CHAT_TEMPLATE)
    with pytest.raises(InputError, match=f"own.*{reason}.*chat_template: auto"):
        open_tokenizer(Teacher(base=str(base), chat_template="own"))


def test_a_tag_that_decoders_would_skip_becomes_text(tmp_path: Path) -> None:
    bootstrap_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    for token in content["added_tokens"]:
        token["special"] = True
    file.write_text(json.dumps(content))
    tokenizer = settled(tmp_path)
    text = f"<think>\n</think><tool_call></tool_call>{IM_END}"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text.removesuffix(IM_END)


@pytest.mark.parametrize(("tied", "spare_rows"), [(True, 0), (False, 3), (False, 50)])
def test_new_tokens_start_as_the_mean_of_their_pieces_in_teacher_and_student(
    tied: bool, spare_rows: int, tmp_path: Path
) -> None:
    base = write_model(foreign_tokenizer(tmp_path / "base", template=None), spare_rows=spare_rows, tied=tied)
    settings = Teacher(base=str(base), add_format_tokens=True)
    tokenizer, raw, before = open_tokenizer(settings).tokenizer, load_tokenizer(base), load_model(base)
    student = open_base(Student(base=str(base)), tokenizer=tokenizer, training=True)
    teacher = open_base(settings, tokenizer=tokenizer, training=True)
    rows = before.get_input_embeddings().weight.shape[0]
    for model in (teacher, student):
        weights = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
        assert (weights[0] is weights[1]) == tied
        # No head is larger than its tokens need.
        assert all(len(weight) == max(rows, len(tokenizer)) == model.config.vocab_size for weight in weights)
        for weight, old in zip(weights, (before.get_input_embeddings(), before.get_output_embeddings()), strict=True):
            known = len(raw)
            assert torch.equal(weight[:known], old.weight[:known])
            for token in PRODUCT_TOKENS:
                pieces = raw(token, add_special_tokens=False)["input_ids"]
                new = weight[tokenizer.convert_tokens_to_ids(token)]
                assert torch.allclose(new, old.weight[pieces].mean(0))


def test_the_ids_of_a_model_follow_its_tokenizer(tmp_path: Path) -> None:
    base = write_model(foreign_tokenizer(tmp_path / "base", template=None))
    tokenizer = open_tokenizer(Teacher(base=str(base))).tokenizer
    model: Any = open_base(Teacher(base=str(base)), tokenizer=tokenizer)
    end, padding = tokenizer.eos_token_id, tokenizer.pad_token_id
    assert (model.config.eos_token_id, model.config.pad_token_id) == (end, padding)
    # Its row gets no gradient, which must not be the end of a text.
    assert model.get_input_embeddings().padding_idx == padding != 2
    generation = model.generation_config
    assert generation.eos_token_id == [end, 2] and generation.pad_token_id == padding
    assert (generation.do_sample, generation.top_p) == (True, 0.9)
    assert generation.repetition_penalty is None and generation.suppress_tokens is None


def test_a_base_with_settings_of_a_sampling_that_it_does_not_do_can_be_saved(tmp_path: Path) -> None:
    base = write_model(foreign_tokenizer(tmp_path / "base", template=None))
    (base / "generation_config.json").write_text('{"eos_token_id": 2, "temperature": 0.9, "top_p": 0.6, "top_k": 20}')
    tokenizer = open_tokenizer(Teacher(base=str(base))).tokenizer
    save_model(open_base(Teacher(base=str(base)), tokenizer=tokenizer), tokenizer, tmp_path / "saved")
    generation = load_model(tmp_path / "saved").generation_config
    assert (generation.do_sample, generation.temperature, generation.top_p, generation.top_k) == (None,) * 4


def test_a_student_of_another_family_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    teacher = bootstrap_tokenizer()
    base = foreign_tokenizer(tmp_path / "base", template=None)
    (base / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="choose a student of the teacher's family"):
        open_base(Student(base=str(base)), tokenizer=teacher)


def test_adapters_are_refused_where_new_tokens_would_stay_untrained(tmp_path: Path) -> None:
    base = write_model(foreign_tokenizer(tmp_path / "base", template=HERMES))
    own, ours = open_tokenizer(Teacher(base=str(base))), open_tokenizer(Teacher(base=str(base), chat_template="qwen3"))
    open_base(Student(base=str(base)), tokenizer=own.tokenizer, lora=Lora(rank=2), adapters_first=True)
    with pytest.raises(InputError, match=rf"lacks the tokens {re.escape(IM_END)}, .*leave `lora` out"):
        open_base(Student(base=str(base)), tokenizer=ours.tokenizer, adapters_first=True)


@pytest.mark.parametrize(
    ("settings", "teacher_refused", "student_refused"),
    [
        ({}, False, False),
        ({"teacher": {"sft": SFT | {"lora": {}}}}, True, False),
        ({"teacher": {"refine": {"steps": 1, "lora": {}}}}, True, False),
        ({"teacher": {"sft": SFT, "refine": {"steps": 1, "lora": {}}}}, False, False),
        ({"distill": {"steps": 1, "lora": {}}}, False, True),
        ({"distill": {"steps": 1, "lora": {}}, "student": {"layers": 2}}, False, True),
        ({"distill": {"steps": 1, "lora": {}}, "student": {"layers": 2, "heal": SFT}}, False, False),
        ({"refine": {"steps": 1, "lora": {}}}, False, False),
    ],
)
def test_whether_adapters_are_trained_first(settings: dict, teacher_refused: bool, student_refused: bool) -> None:
    config = Config.model_validate(settings)
    assert config.adapters_come_first(config.teacher) is teacher_refused
    assert config.adapters_come_first(config.student) is student_refused


def test_a_settled_tokenizer_is_settled(tmp_path: Path) -> None:
    """A teacher that STAR wrote may be the base of another run."""
    base = write_model(foreign_tokenizer(tmp_path / "base", template=None))
    first = open_tokenizer(Teacher(base=str(base), add_format_tokens=True)).tokenizer
    model = open_base(Teacher(base=str(base)), tokenizer=first)
    first.save_pretrained(tmp_path / "again")
    again = settle_tokenizer(load_tokenizer(tmp_path / "again"), settings=Teacher(), source="it")
    assert again.about.startswith("chat template: its own;")
    assert tokenizer_digest(again.tokenizer) == tokenizer_digest(first)
    before = model.get_input_embeddings().weight.clone()
    fit_to_tokenizer(model, again.tokenizer, raw=load_tokenizer(tmp_path / "again"))
    assert torch.equal(model.get_input_embeddings().weight, before)
