"""The rehearsal names what would otherwise stop a run after the teacher's work, each in one line with its cure."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from star.chat import CHAT_TEMPLATE
from star.config.experiment import Config
from star.config.load import load_config
from star.config.training import Lora
from star.doctor import actors, estimates, machine
from star.doctor.check import Check
from star.doctor.rehearsal import rehearse
from star.doctor.rehearsal_record import passed_before, rehearse_once
from star.errors import InputError
from star.modeling.models import add_lora_adapters, load_model, load_tokenizer
from star.modeling.scratch import scratch_model
from star.modeling.tokenizer import bootstrap_tokenizer, train_tokenizer
from tests.small_models import TINY, write_scratch_model

STEPS = ["rows", "teacher", "student", "tokenizers", "template", "rehearsal"]
TOOLS_OPENING = "{%- if tools %}"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models with one tokenizer: the teacher's head has 20 rows that are no token, the student's 8."""
    folder = tmp_path_factory.mktemp("models")
    for name, padding in (("teacher", 20), ("student", 8)):
        tokenizer = bootstrap_tokenizer()
        model = scratch_model(TINY, tokenizer, seed=1)
        model.resize_token_embeddings(len(tokenizer) + padding, mean_resizing=False)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def models(originals: Path, tmp_path: Path) -> Path:
    """A copy, which a test may break."""
    return shutil.copytree(originals, tmp_path / "models")


def checks_of(models: Path, **settings: object) -> list[Check]:
    bases = {"teacher": {"base": str(models / "teacher")}, "student": {"base": str(models / "student")}}
    return list(rehearse(Config.model_validate(bases | settings)))


def edit_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def set_template(folder: Path, change: Callable[[str], str]) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = change(CHAT_TEMPLATE)
    tokenizer.save_pretrained(folder)


def test_the_tiny_profile_is_rehearsed_before_its_models_exist() -> None:
    checks = list(rehearse(load_config("tiny")))
    assert [check.name for check in checks] == STEPS and all(check.passed for check in checks)
    details = {check.name: check.detail for check in checks}
    assert "built from scratch" in details["teacher"]
    assert details["tokenizers"].endswith(" tokens")
    assert "CKD loss" in details["rehearsal"]


def test_heads_with_different_padding_can_be_used(models: Path) -> None:
    checks = checks_of(models)
    assert [check.name for check in checks] == STEPS and all(check.passed for check in checks)
    tokens = len(load_tokenizer(models / "teacher"))
    assert f"{tokens} tokens; the heads have {tokens + 20} and {tokens + 8} rows" in checks[3].detail


@pytest.mark.parametrize("kind", ["ce", "akl"])
def test_the_profiles_own_loss_is_rehearsed(kind: str, models: Path) -> None:
    checks = checks_of(models, distill={"kind": kind, "steps": 5, "batch_size": 64, "micro_batch_size": 16})
    assert f"{kind.upper()} loss" in checks[-1].detail


@pytest.mark.parametrize("opening", ["<think>\n", "<think>\n\n</think>\n\n"])
def test_a_template_that_begins_the_answer_can_be_used_and_is_said(opening: str, models: Path) -> None:
    header = "{{- '<|im_start|>assistant\\n' }}\n    {%- if enable_thinking is defined"
    assert header in CHAT_TEMPLATE
    begun = header.replace("assistant\\n'", f"assistant\\n' + {json.dumps(opening)}")
    set_template(models / "teacher", lambda template: template.replace(header, begun))
    checks = checks_of(models)
    assert [check.name for check in checks] == STEPS and all(check.passed for check in checks)
    assert f"the template begins the answer with {opening!r}" in checks[4].detail
    assert "the student's own template differs and is not used" in checks[4].detail


def other_tokenizer(models: Path) -> None:
    shutil.rmtree(models / "student")
    tokenizer = train_tokenizer(["quite other words, again and again"] * 9, vocab_size=320)
    write_scratch_model(models / "student", tokenizer=tokenizer)


def one_other_token(models: Path) -> None:
    file = models / "student" / "tokenizer.json"
    file.write_text(file.read_text().replace('"<tool_call>"', '"<tool>"').replace('"</tool_call>"', '"</tool>"'))


def template_without_tools(models: Path) -> None:
    set_template(models / "teacher", lambda template: template.replace(TOOLS_OPENING, "{%- if false %}"))


def no_template(models: Path) -> None:
    (models / "teacher" / "chat_template.jinja").unlink()


def template_that_refuses_tools(models: Path) -> None:
    refusal = "{%- if tools %}{{ raise_exception('no tools here') }}{%- endif %}"
    set_template(models / "teacher", lambda template: refusal + template)


def template_that_shows_names_only(models: Path) -> None:
    names = "{%- for tool in tools or [] %}{{ tool.function.name }}{%- endfor %}"
    set_template(models / "teacher", lambda text: names + text.replace(TOOLS_OPENING, "{%- if false %}"))


def template_with_another_dialect(models: Path) -> None:
    set_template(models / "teacher", lambda text: text.replace('"arguments": \' }}', '"parameters": \' }}'))


def template_without_header(models: Path) -> None:
    set_template(models / "teacher", lambda text: text.replace("{%- if add_generation_prompt %}", "{%- if false %}"))


def template_that_opens_a_call(models: Path) -> None:
    header = "{{- '<|im_start|>assistant\\n' }}\n    {%- if enable_thinking is defined"
    begun = header.replace("assistant\\n'", "assistant\\n<tool_call>\\n'")
    set_template(models / "teacher", lambda text: text.replace(header, begun))


def no_tokenizer_config(models: Path) -> None:
    (models / "teacher" / "tokenizer_config.json").unlink()


def no_tokenizer(models: Path) -> None:
    (models / "teacher" / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")


def lora_adapter(models: Path) -> None:
    lora_adapter_beside_its_base(models)
    for name in ("config.json", "model.safetensors"):
        (models / "student" / name).unlink()


def lora_adapter_beside_its_base(models: Path) -> None:
    add_lora_adapters(load_model(models / "student"), Lora(rank=2, alpha=4)).save_pretrained(models / "student")


def other_sizes(models: Path) -> None:
    edit_json(models / "student" / "config.json", hidden_size=2 * TINY.hidden_size)


def absurd_sizes(models: Path) -> None:
    edit_json(models / "student" / "config.json", vocab_size=2_000_000_000)


def broken_header(models: Path) -> None:
    (models / "teacher" / "model.safetensors").write_bytes(b"\xff" * 4000)


def cut_weights(models: Path) -> None:
    file = models / "student" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def weights_of_another_model(models: Path) -> None:
    edit_json(models / "student" / "config.json", attention_bias=True)


def contradictory_config(models: Path) -> None:
    edit_json(models / "student" / "config.json", num_hidden_layers=TINY.num_hidden_layers + 1)


def missing_weights(models: Path) -> None:
    (models / "teacher" / "model.safetensors").unlink()


def unknown_architecture(models: Path) -> None:
    edit_json(models / "teacher" / "config.json", model_type="made-up", architectures=["MadeUpForCausalLM"])


def architecture_without_text(models: Path) -> None:
    edit_json(models / "student" / "config.json", model_type="vit", architectures=["ViTModel"])


def code_of_its_own(models: Path) -> None:
    edit_json(
        models / "teacher" / "config.json", model_type="custom", auto_map={"AutoConfig": "configuration_custom.Custom"}
    )
    (models / "teacher" / "configuration_custom.py").write_text("raise SystemExit('this code must not run')")


def head_too_small(models: Path) -> None:
    model = load_model(models / "student")
    model.resize_token_embeddings(250)
    model.save_pretrained(models / "student")


def no_end_token(models: Path) -> None:
    edit_json(models / "teacher" / "tokenizer_config.json", eos_token=None)


def damaged_weights(models: Path) -> None:
    model = load_model(models / "student")
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(torch.nan)
    model.save_pretrained(models / "student")


def no_such_folder(models: Path) -> None:
    shutil.rmtree(models / "student")


SETUPS: list[tuple[Callable[[Path], None], str, str, str]] = [
    (other_tokenizer, "tokenizers", "more ids differ", "choose a student of the teacher's family"),
    (one_other_token, "tokenizers", 'is "<tool_call>" and "<tool>"', "choose a student of the teacher's family"),
    (template_without_header, "template", "'<|im_end|>\\n<|im_start|>assistant'", "`add_generation_prompt`"),
    (template_that_opens_a_call, "template", "<tool_call>", "`add_generation_prompt`"),
    (no_tokenizer_config, "teacher", "no tokenizer_config.json", "give a Hugging Face model folder"),
    (no_tokenizer, "teacher", "tokenizer", "download it again"),
    (lora_adapter, "student", "LoRA adapter", "merge it into its base"),
    (lora_adapter_beside_its_base, "student", "LoRA adapter", "merge it into its base"),
    (other_sizes, "student", "other shapes", "download it again"),
    (absurd_sizes, "student", "vocab_size 2,000,000,000", "download it again"),
    (broken_header, "teacher", "cannot be loaded", "download it again"),
    (cut_weights, "student", "cannot be loaded", "download it again"),
    (weights_of_another_model, "student", "lacks", "download it again"),
    (contradictory_config, "student", "num_hidden_layers", "correct its config.json"),
    (missing_weights, "teacher", "model.safetensors", "download it again"),
    (unknown_architecture, "teacher", "`made-up`", "choose a model"),
    (architecture_without_text, "student", "vit", "choose a model"),
    (code_of_its_own, "teacher", "code", "choose a model"),
    (head_too_small, "tokenizers", "has 250 rows", "resize its embeddings"),
    (damaged_weights, "rehearsal", "NaN", "its weights are damaged"),
    (no_such_folder, "student", "there is no model folder at", "give a Hugging Face model folder"),
]  # fmt: skip


@pytest.mark.parametrize(("break_it", "step", "fault", "cure"), SETUPS, ids=[entry[0].__name__ for entry in SETUPS])
def test_what_would_stop_a_run_is_named_in_one_line(
    break_it: Callable[[Path], None], step: str, fault: str, cure: str, models: Path
) -> None:
    break_it(models)
    *passed, failed = checks_of(models)
    assert all(check.passed for check in passed) and not failed.passed
    assert failed.name == step, failed
    assert fault in failed.detail and cure in failed.detail and "\n" not in failed.detail


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (template_without_tools, "shows no tools"),
        (no_template, "has no chat template"),
        (template_that_refuses_tools, "no tools here"),
        (template_that_shows_names_only, "shows no tools"),
        (template_with_another_dialect, "writes calls in another form"),
    ],
)
def test_a_base_whose_template_cannot_be_used_gets_ours_or_is_refused_as_one_chooses(
    break_it: Callable[[Path], None], reason: str, models: Path
) -> None:
    break_it(models)
    checks = checks_of(models)
    assert [check.name for check in checks] == STEPS and all(check.passed for check in checks)
    assert "chat template: STAR's (qwen3), because" in checks[1].detail and reason in checks[1].detail
    own = {"teacher": {"base": str(models / "teacher"), "chat_template": "own"}}
    *_, refused = list(rehearse(Config.model_validate(own)))
    assert refused.name == "teacher" and reason in refused.detail and "chat_template: auto" in refused.detail


@pytest.mark.parametrize("phase", ["sft", "refine"])
def test_adapters_for_a_base_that_gets_new_tokens_are_refused(phase: str, models: Path) -> None:
    file = models / "teacher" / "tokenizer.json"
    file.write_text(file.read_text().replace('"<tool_call>"', '"<tool>"'))
    first = {"steps": 1, "learning_rate": 1e-3, "lora": {}}
    teacher = {"base": str(models / "teacher"), "add_format_tokens": True, phase: first}
    *_, refused = checks_of(models, teacher=teacher)
    assert refused.name == "teacher" and "lacks the tokens <tool_call>, and adapters" in refused.detail


def test_a_teacher_that_caps_its_logits_needs_another_back_end_for_its_top_k(models: Path) -> None:
    tokenizer = load_tokenizer(models / "teacher")
    sizes = TINY.model_dump() | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    Gemma2ForCausalLM(Gemma2Config(**sizes, final_logit_softcapping=30.0)).save_pretrained(models / "teacher")
    *_, refused = checks_of(models)
    assert refused.name == "rehearsal" and "Gemma2ForCausalLM" in refused.detail and "`topk.server`" in refused.detail
    served = checks_of(models, topk={"server": "http://localhost:1/v1"})
    assert [check.name for check in served] == STEPS and all(check.passed for check in served)


def test_an_end_token_that_nobody_named_is_taken_from_the_template(models: Path) -> None:
    no_end_token(models)
    checks = checks_of(models)
    assert all(check.passed for check in checks) and "end of turn <|im_end|>" in checks[1].detail


def test_a_teacher_that_is_fine_tuned_may_have_any_header(models: Path) -> None:
    template_that_opens_a_call(models)
    sft = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3}
    assert all(check.passed for check in checks_of(models, teacher={"base": str(models / "teacher"), "sft": sft}))


def test_a_large_model_is_rehearsed_as_a_miniature(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "SMALL_PARAMETERS", 1000)
    checks = checks_of(models)
    assert [check.name for check in checks] == STEPS and all(check.passed for check in checks)
    assert "rehearsed as a miniature; the headers of its 1 weight files are valid" in checks[1].detail
    assert f"{len(load_tokenizer(models / 'teacher')) + 20} and" in checks[3].detail  # the heads keep their rows


def test_a_student_that_loses_layers_is_tried_without_weights(models: Path) -> None:
    layers = TINY.num_hidden_layers
    student = {"base": str(models / "student"), "layers": 2}
    checks = checks_of(models, student=student)
    assert checks[2].passed and checks[2].detail.endswith("; 2 of its layers are kept")
    smaller, whole = (
        Config.model_validate({"student": given, "teacher": {"base": str(models / "teacher")}})
        for given in (student, {**student, "layers": layers})
    )
    assert estimates.host_memory_needed(
        smaller, "distill", accelerator=False, processes=1
    ) < estimates.host_memory_needed(whole, "distill", accelerator=False, processes=1)
    [*_, failed] = checks_of(models, student={**student, "layers": layers + 1})
    assert (failed.name, failed.passed) == ("student", False)
    assert f"`student.layers` is {layers + 1} and" in failed.detail


@pytest.mark.parametrize("damage", ["cut", "missing", "another file"])
def test_damaged_weights_of_a_large_model_show_in_their_headers(
    damage: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "SMALL_PARAMETERS", 1000)
    teacher = models / "teacher"
    model = AutoModelForCausalLM.from_pretrained(teacher)
    (teacher / "model.safetensors").unlink()
    model.save_pretrained(teacher, max_shard_size="200KB")
    first, second, *_ = sorted(teacher.glob("model-*.safetensors"))
    assert checks_of(models)[1].passed
    if damage == "cut":
        second.write_bytes(second.read_bytes()[:-1])
    elif damage == "missing":
        second.unlink()
    else:
        shutil.copy(first, second)
    failed = checks_of(models)[-1]
    assert failed.name == "teacher" and second.name in failed.detail and "again" in failed.detail


def test_rows_that_cannot_be_used_are_named(models: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"messages": [], "tools": []}\n')
    [failed] = checks_of(models, data={"seed_data": str(tmp_path / "rows.jsonl"), "generated_rows": 0})
    assert not failed.passed and "correct `data.seed_data`" in failed.detail


def test_rows_without_an_answer_are_left_out_of_the_rehearsal(models: Path, tmp_path: Path) -> None:
    tools = [{"name": "weather", "description": "Weather", "parameters": {"city": {"type": "str"}}}]
    asked = [{"query": f"Sing {word}!", "answers": [], "tools": tools} for word in ("loudly", "about rain", "in tune")]
    (tmp_path / "xlam.json").write_text(json.dumps(asked))
    data = {"sources": [{"path": str(tmp_path / "xlam.json"), "source": "xlam"}]}
    assert checks_of(models, data=data)[-1].passed
    failed = checks_of(models, data=data | {"generated_rows": 0})[-1]
    assert failed.name == "template" and "none of the first 3 rows has an answer" in failed.detail


def test_a_rehearsal_that_passed_is_not_repeated(models: Path, tmp_path: Path) -> None:
    settings = {"teacher": {"base": str(models / "teacher")}, "student": {"base": str(models / "student")}}
    config = Config.model_validate(settings)
    assert not passed_before(config, tmp_path)
    assert [check.name for check in rehearse_once(config, tmp_path)] == STEPS
    assert passed_before(config, tmp_path)
    assert not passed_before(config.model_copy(update={"seed": 5}), tmp_path)
    [again] = rehearse_once(config, tmp_path)
    assert again.passed and "passed before" in again.detail
    # Other settings of the rehearsed stages, and other weights under the same path, are another rehearsal.
    assert len(list(rehearse_once(config.model_copy(update={"seed": 5}), tmp_path))) == len(STEPS)
    broken_header(models)
    for _ in range(2):
        assert not list(rehearse_once(Config.model_validate(settings), tmp_path))[-1].passed


def test_a_pretrained_model_needs_no_gpu_and_the_disk_of_its_size(models: Path) -> None:
    bases = {"teacher": {"base": str(models / "teacher")}, "student": {"base": str(models / "student")}}
    checks = {check.name: check for check in machine.room_checks(Config.model_validate(bases))}
    assert ", 2 needed" in checks["disk"].detail
    assert checks["GPU"].passed


def test_a_token_that_is_markup_is_printed_as_it_is(capsys: pytest.CaptureFixture) -> None:
    found = [Check("tokenizers", False, 'id 3 is "[/INST]" and "[red]"')]
    assert not machine.print_checks(found, load_config("tiny"))
    assert '"[/INST]" and "[red]"' in capsys.readouterr().out


def test_a_tensor_of_another_shape_than_the_configuration_says(tmp_path: Path) -> None:
    save_file({"head": torch.zeros(4, 2)}, tmp_path / "model.safetensors")
    assert list(actors.check_weight_files(tmp_path, shapes={"head": [4, 2], "other": [9]})) == [
        tmp_path / "model.safetensors"
    ]
    with pytest.raises(InputError, match=r"has head in the shape \[4, 2\] and config.json says \[5, 2\]"):
        list(actors.check_weight_files(tmp_path, shapes={"head": [5, 2]}))
