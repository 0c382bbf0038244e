"""The configuration: validation at load, errors that name the key, and digests by section."""

import re
import shutil
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star.config.experiment import Config
from star.config.files import ModelFolder
from star.config.load import PROFILES, load_config
from star.config.training import SimRL
from star.errors import InputError
from star.hashing import sha256_of
from star.stages import STAGES


@pytest.mark.parametrize("profile", PROFILES)
def test_every_packaged_profile_loads(profile: str) -> None:
    assert load_config(profile).name == profile


def test_what_is_packaged_are_the_profiles_that_have_a_name() -> None:
    root = Path(__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "star.configs"
    ]
    packaged = {file for pattern in patterns for file in (root / "configs").glob(pattern)}
    assert {file.stem for file in packaged if file.suffix == ".yaml"} == set(PROFILES)


def test_the_profiles_of_the_real_model_load_where_make_real_puts_its_files(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    makefile = (root / "Makefile").read_text()
    for variable in ("MODEL", "API"):
        [place] = re.findall(rf"^{variable} := (downloads/\S+)$", makefile, re.MULTILINE)
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_text(variable)
    shutil.copytree(root / "configs", tmp_path / "configs")
    model = tmp_path / "downloads/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    for profile in sorted((tmp_path / "configs").glob("smollm2*.yaml")):
        config = load_config(profile)
        assert (config.name, config.teacher.base.path) == (profile.stem, str(model))
        # Fewer rows would say nothing; a gate that nothing passes, or everything, neither.
        assert config.data.heldout_rows >= 50 and 0 < config.registry.gate.min_exact_match < 1
    gpu = load_config(tmp_path / "configs/study-gpu.yaml")
    assert gpu.study is not None and gpu.teacher.base == gpu.student.base
    assert gpu.student.layers and gpu.student.heal and gpu.precision == "bf16" and len(gpu.study.seeds) >= 3
    assert load_config(tmp_path / "configs/smollm2-api.yaml").data.tools.path.endswith("downloads/airflow/openapi.yaml")


def write(folder: Path, text: str) -> Path:
    file = folder / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("distil: {steps: 3}", "unknown key `distil`"),
        ("distill: {stepz: 3}", "unknown key `distill.stepz`"),
        ("distill: {steps: many}", "`distill.steps`"),
        ("topk: {top_k: 0}", "`topk.top_k`"),
        ("seed: [", "not valid YAML"),
        ("- a", "must hold settings by name"),
        ("student: {base: {hidden_size: 8}}", "`student.base.intermediate_size`"),
        ("data: {seed_data: nothing.jsonl}", "nothing.jsonl"),
        ("data: {sources: [{path: nothing.jsonl, source: xlam}]}", "`data.sources.0.path`: no file at"),
        ("data: {sources: [{path: {dvc: nothing, repo: nowhere, rev: v1}, source: xlam}]}", "`data.sources.0.path`: "),
        ("data: {sources: [{path: config.yaml}]}", "`data.sources.0.source`"),
        ("data: {sources: [{path: config.yaml, source: x, rows: 5, share: 0.1}]}", "give one of them"),
        ("data: {sources: [{path: config.yaml, source: x, strata: {}}]}", "give `rows` or `share`"),
        ("data: {sources: [{path: config.yaml, source: generated}]}", "named 'generated'"),
        ("data: {sources: [{path: config.yaml, source: x}, {path: config.yaml, source: x}]}", "named 'x'"),
        ("rollout: {cut_at: 512, max_new_tokens: 512}", "`cut_at` 512 cuts nothing"),
        ("extends: nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_a_fault_is_one_line_that_names_it(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(InputError) as error:
        load_config(write(tmp_path, text))
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_a_scratch_base_needs_its_section(tmp_path: Path) -> None:
    sizes = "{hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 1, num_key_value_heads: 1, head_dim: 8}"
    with pytest.raises(InputError, match="section `scratch`"):
        load_config(write(tmp_path, f"student: {{base: {sizes}}}"))


def test_a_missing_file_names_the_profiles(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tiny"):
        load_config(tmp_path / "nothing.yaml")


def test_an_unknown_benchmark_category_is_named_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="BFCL has no category poetry: choose from simple_python"):
        load_config(write(tmp_path, "evaluate: {bfcl_categories: [irrelevance, poetry]}"))


def test_extends_overrides_section_by_section(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("seed: 3\ndistill: {steps: 7, top_m: 5}\n")
    config = load_config(write(tmp_path, "extends: base.yaml\ndistill: {steps: 8}\n"))
    assert (config.seed, config.distill.steps, config.distill.top_m) == (3, 8, 5)


@pytest.mark.parametrize(
    ("inherited", "own", "length"),
    [
        ("steps: 7", "epochs: 2", (None, 2)),
        ("epochs: 2", "steps: 7", (7, None)),
        ("epochs: 2", "top_m: 3", (None, 2)),
        ("steps: 7", "epochs: null", (7, None)),
        ("steps: 7", "steps: null, epochs: 2", (None, 2)),
    ],
)
def test_an_own_length_takes_the_place_of_the_inherited_one(
    inherited: str, own: str, length: tuple[int | None, float | None], tmp_path: Path
) -> None:
    (tmp_path / "base.yaml").write_text(f"distill: {{{inherited}, schedule: {{warmup: 0.1}}}}\n")
    distill = load_config(write(tmp_path, f"extends: base.yaml\ndistill: {{{own}}}\n")).distill
    assert ((distill.steps, distill.epochs), distill.schedule.warmup) == (length, 0.1)


def test_null_removes_an_inherited_entry_of_a_map(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "cluster:\n"
        "  secrets: {star-s3: {AWS_ACCESS_KEY_ID: access-key, AWS_SESSION_TOKEN: token}, star-webhook: {STAR_WEBHOOK: url}}\n"
        "  environment: {KEPT: a, GONE: b}\n"
        "  nodes: {gpu: {accelerator: nvidia.com/gpu, node_selector: {pool: a, zone: b}}}\n"
        "  placement: {distill: gpu, refine: gpu}\n"
        "teacher: {refine: {steps: 1, learning_rate: 1.0e-5}}\n"
    )
    removed = "secrets: {star-s3: {AWS_SESSION_TOKEN: null}, star-webhook: null}, environment: {GONE: null}"
    more = "nodes: {gpu: {node_selector: {zone: null}}}, placement: {refine: null}"
    text = f"extends: base.yaml\nteacher: {{refine: null}}\ncluster: {{{removed}, {more}}}\n"
    config = load_config(write(tmp_path, text))
    assert config.cluster.secrets == {"star-s3": {"AWS_ACCESS_KEY_ID": "access-key"}}
    assert config.cluster.environment == {"KEPT": "a"} and config.cluster.placement == {"distill": "gpu"}
    assert config.cluster.nodes["gpu"].node_selector == {"pool": "a"}
    assert config.teacher.refine is None  # a section, whose absence has a meaning of its own


def test_numbers_and_truth_values_are_texts_where_kubernetes_wants_texts(tmp_path: Path) -> None:
    environment = "environment: {OMP_NUM_THREADS: 1, HF_HUB_OFFLINE: true, RATIO: 0.5}"
    node = "nodes: {gpu: {cpu: 8, node_selector: {gpu: true}, tolerations: [{key: spot, value: true}]}}"
    cluster = load_config(write(tmp_path, f"cluster: {{{environment}, {node}}}")).cluster
    assert cluster.environment == {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "true", "RATIO": "0.5"}
    gpu = cluster.nodes["gpu"]
    assert (gpu.cpu, gpu.node_selector, gpu.tolerations[0].value) == ("8", {"gpu": "true"}, "true")


@pytest.mark.parametrize(
    ("student", "revision"),
    [
        ("base: team/other", None),
        ("{base: team/other, revision: abc}", "abc"),
        ("base: Qwen/Qwen3-0.6B", "c1899de289a04d12100db370d81485cdf75e47ca"),
        ("{}", "c1899de289a04d12100db370d81485cdf75e47ca"),
    ],
)
def test_a_revision_stays_with_its_base(student: str, revision: str | None, tmp_path: Path) -> None:
    settings = student if student[0] == "{" else f"{{{student}}}"
    config = load_config(write(tmp_path, f"extends: qwen3-0.6b\nstudent: {settings}\n"))
    assert config.student.revision == revision
    assert config.teacher.revision == load_config("qwen3-0.6b").teacher.revision


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ("student: {base: team/other}", None),
        ("student: {base: team/other}\nregistry: {base_model: a/b}", "a/b"),
        ("student: {layers: 14}\nregistry: {license: mit}", "team/base"),
    ],
)
def test_the_name_of_a_base_on_the_hub_stays_with_it(settings: str, named: str | None, tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text("extends: qwen3-0.6b\nregistry: {base_model: team/base}\n")
    assert load_config(write(tmp_path, f"extends: first.yaml\n{settings}\n")).registry.base_model == named


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("teacher: {base: ./model, revision: abc}", "`teacher`: `revision` is a commit of a model of the hub"),
        ("student: {base: ./model, revision: abc}", "`student`: `revision` is a commit of a model of the hub"),
        ("student: {revision: abc}", "`student`: `revision` is a commit of a model of the hub"),
        ("teacher: {chat_template: own}", "are for a pretrained base, and one from scratch"),
        ("teacher: {add_format_tokens: true}", "are for a pretrained base, and one from scratch"),
    ],
)
def test_settings_of_a_base_that_would_have_no_effect_are_refused(settings: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=said):
        load_config(write(tmp_path, f"extends: tiny\n{settings}\n"))


@pytest.mark.parametrize("profile", [name for name in PROFILES if "tiny" not in name])
def test_the_shipped_bases_have_a_revision(profile: str) -> None:
    config = load_config(profile)
    assert re.fullmatch("[0-9a-f]{40}", config.teacher.revision) and re.fullmatch(
        "[0-9a-f]{40}", config.student.revision
    )


def test_a_file_is_taken_by_content_and_relative_to_the_configuration(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    config = load_config(write(tmp_path, "data: {seed_data: rows.jsonl}"))
    assert config.data.seed_data.read_verified() == rows
    before = config.slice(("data",))
    rows.write_text("{} \n")
    with pytest.raises(InputError, match="has changed"):
        config.data.seed_data.read_verified()
    assert load_config(tmp_path / "config.yaml").slice(("data",)) != before


def test_exponents_without_a_point_are_numbers(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "distill: {steps: 1, learning_rate: 1e-5}")).distill.learning_rate == 1e-5


@given(steps=st.integers(1, 10_000), seed=st.integers(0, 99))
def test_a_slice_brings_back_its_sections(steps: int, seed: int) -> None:
    config = Config.model_validate({"seed": seed, "distill": {"steps": steps}})
    again = Config.from_json(config.slice(("seed", "distill")))
    assert (again.seed, again.distill) == (config.seed, config.distill)


def test_a_changed_setting_touches_only_the_stages_that_read_it() -> None:
    config = load_config("tiny")
    changed = config.model_copy(update={"topk": config.topk.model_copy(update={"top_k": 7})})
    touched = {stage.name for stage in STAGES if config.slice(stage.sections) != changed.slice(stage.sections)}
    assert touched == {"extract-topk"}


def test_every_section_is_read_by_a_stage() -> None:
    others = {"name", "cluster", "keep", "safety", "study"}
    assert {section for stage in STAGES for section in stage.sections} | others == set(Config.model_fields)


def test_sha256_of_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing"):
        sha256_of(tmp_path / "nothing")


def test_the_reference_is_up_to_date() -> None:
    from star.cli.config_reference import reference

    written = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == reference(), "run: python -m star.cli.config_reference > docs/configuration.md"


def test_the_reference_has_every_variable_that_people_set() -> None:
    from star.cli.config_reference import VARIABLES

    set_by_star = {
        "STAR_ACCELERATORS", "STAR_CHECKPOINTS", "STAR_COMMIT", "STAR_CONFIG", "STAR_EVENTS", "STAR_IMAGE", "STAR_PARENT_RUN_ID",
        "STAR_RUNNER", "STAR_FAILURES", "STAR_HALF_MICRO_BATCH", "STAR_RETRY", "STAR_TRAIN_JOB", "KFP_RUN_ID",
    }  # fmt: skip
    root = Path(__file__).parents[2]
    code = "".join(
        file.read_text(encoding="utf-8")
        for folder in ("star", "components", "pipelines")
        for file in (root / folder).rglob("*.py")
        if file.name != "config_reference.py"
    )
    assert set(re.findall(r'"((?:STAR|KFP)_[A-Z_]+)"', code)) == set(VARIABLES) | set_by_star


def test_a_base_file_keeps_its_own_paths(tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "rows.jsonl").write_text("{}\n")
    sources = "[{path: rows.jsonl, source: xlam, share: 0.5, strata: {parallel: 0.9}}]"
    (tmp_path / "team" / "base.yaml").write_text(f"data: {{seed_data: rows.jsonl, sources: {sources}}}\n")
    config = load_config(write(tmp_path, "extends: team/base.yaml\nseed: 3\n"))
    assert config.data.seed_data.read_verified() == tmp_path / "team" / "rows.jsonl"
    [source] = config.data.sources
    assert source.path.read_verified() == tmp_path / "team" / "rows.jsonl"
    # The paper's values, where nothing else is said.
    assert source.strata.model_dump() == {
        "response": 0.2, "multi_step": 0.3, "single_turn": 0.3, "parallel": 0.9, "max_turns": 10, "max_prompt_tokens": 8192,
    }  # fmt: skip


def test_packaged_profiles_can_be_extended(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "extends: tiny\nname: mine\n")).scratch is not None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("extends: config.yaml", "extend"),
        ("extends: 3", "extends"),
        ("distill: {steps: 1, batch_size: 10, micro_batch_size: 4}", "must divide"),
        (
            "cluster: {environment: {STAR_RETRY: 3}}",
            "STAR itself sets STAR_RETRY in its tasks: set cluster.retry instead",
        ),
        ("cluster: {environment: {STAR_RUNNER: 1}}", "STAR_RUNNER in its tasks: leave it out"),
        ("data: hello", "`data`"),
        ("refine: {steps: 1, vllm: {mode: server}}", "needs `server_url`"),
        ("refine: {steps: 1, vllm: {server_url: http://localhost:8000}}", "no effect in mode `colocate`"),
        ("distill: {}", "`distill`: how long is it\\? Give `steps` or `epochs`"),
        ("distill: {steps: 1, epochs: 1}", "`steps` and `epochs` both say how long it is"),
        ("refine: {steps: 16, updates_per_rollout: 8}", "save_steps 20 must be a multiple of .* 8, such as 24"),
        (
            "refine: {steps: 12, save_steps: 8, updates_per_rollout: 8}",
            "steps 12 must be a multiple of .* 8, such as 16",
        ),
        ("scratch: {vocab_size: 300, warmup: {epochs: 1, learning_rate: 1.0e-3}}", "`warmup` has no set of rows"),
    ],
)
def test_more_faults_are_one_line(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=named):
        load_config(write(tmp_path, text), seed_data=tmp_path / "rows.jsonl" if text.startswith("extends: 3") else None)


@pytest.mark.parametrize(
    "file", ["model.safetensors", "chat_template.jinja", "additional_chat_templates/tool_use.jinja"]
)
def test_changed_weights_or_templates_are_another_base(file: str, tmp_path: Path) -> None:
    changed = tmp_path / "model" / file
    changed.parent.mkdir(parents=True)
    changed.write_bytes(b"first")
    first = load_config(write(tmp_path, "student: {base: ./model}"))
    changed.write_bytes(b"second")
    assert load_config(tmp_path / "config.yaml").slice(("student",)) != first.slice(("student",))


@pytest.mark.parametrize("base", ["model", "team/model"])
def test_a_folder_is_a_base_only_where_it_is_written_as_a_path(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Config.model_validate({"student": {"base": base}})
    assert settings.student.base == base
    (tmp_path / base).mkdir(parents=True)
    (tmp_path / base / "config.json").write_text("{}")
    for read in (
        lambda: load_config(write(tmp_path, f"student: {{base: {base}}}")),
        lambda: Config.from_json(settings.for_stage(("student",))),
    ):
        with pytest.raises(InputError, match=rf"{base} is a name of the model hub.*: write \./{base} if you mean"):
            read()
    loaded = load_config(write(tmp_path, f"student: {{base: ./{base}}}")).student.base
    assert isinstance(loaded, ModelFolder) and loaded.path == str(tmp_path / base)


def test_the_teacher_is_refined_by_a_word_or_by_settings(tmp_path: Path) -> None:
    def refinement(text: str) -> SimRL | None:
        (tmp_path / "a.yaml").write_text(f"teacher: {{refine: {text}}}")
        return load_config(tmp_path / "a.yaml").teacher.refine

    assert refinement("none") is None
    assert refinement("sim-rl") == SimRL(steps=500)
    assert refinement("{steps: 3}") == SimRL(steps=3)
    with pytest.raises(InputError, match=r"teacher\.refine"):
        refinement("sft")


def test_limits_reach_the_process_of_a_stage_and_change_no_result() -> None:
    usual, other = Config(), Config.model_validate({"safety": {"model_seconds": 60}})
    assert other.slice(("seed", "teacher")) == usual.slice(("seed", "teacher")) == usual.for_stage(("seed", "teacher"))
    assert Config.from_json(other.for_stage(("seed", "teacher"))).safety.model_seconds == 60
