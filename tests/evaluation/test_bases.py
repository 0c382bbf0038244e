"""Pretrained bases beside the models trained from them: which are shown, how they are asked, and what the report says."""

import json
import shutil
from pathlib import Path

import pytest

from star.config.base import canonical
from star.config.experiment import Config
from star.errors import InputError
from star.evaluation.bases import PretrainedBase, as_it_can_be_asked, bases_beside, keep_true_bases, settled_base
from star.evaluation.gather import gather
from star.evaluation.gathered import Gathered, GatheredModel, Timing
from star.hashing import digest_of
from star.modeling.models import load_tokenizer
from star.stages import evaluate, stage_named


def run_of(micro: Config, teacher: dict | None = None, student: dict | None = None, **evaluate: object) -> Config:
    """The micro profile with other models."""
    content = micro.model_dump(mode="json")
    content["teacher"] |= teacher or {}
    content["student"] |= student or {}
    content["evaluate"] |= evaluate
    return Config.model_validate(content)


@pytest.fixture(scope="module")
def pretrained(micro: Config, finished: dict[str, Path]) -> Config:
    """The micro profile as if its teacher had been downloaded, and were the base of both models."""
    base = {"base": str(finished["refine-teacher"])}
    return run_of(micro, base, base, samples=1, max_new_tokens=4)


@pytest.fixture(scope="module")
def inputs(pretrained: Config, finished: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of the micro run, of which teacher and distilled student say that they were trained from that base."""
    folders = {key: finished[source] for key, source in stage_named("evaluate").inputs.items()}
    copies = tmp_path_factory.mktemp("trained")
    for name in ("teacher", "distilled"):
        folders[name] = shutil.copytree(folders[name], copies / name)
        manifest = json.loads((copies / name / "manifest.json").read_text())
        manifest["origin"]["base"] = {"kind": "folder", "sha256": pretrained.teacher.base.sha256}
        (copies / name / "manifest.json").write_text(json.dumps(manifest))
    return folders


@pytest.fixture(scope="module")
def evaluation(pretrained: Config, inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluation of that run."""
    root = tmp_path_factory.mktemp("bases")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAR_HOME", str(root / "home"))
        evaluate(pretrained, **inputs, out=root / "evaluation")
    return root / "evaluation"


def read_evaluation(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def test_the_bases_of_a_run(micro: Config) -> None:
    a, b = {"base": "team/a"}, {"base": "team/b"}
    untrained = {"sft": None, "refine": None}

    def shown(*models: dict, **settings: object) -> dict[str, tuple[str, ...]]:
        found = bases_beside(run_of(micro, *models, **settings), teacher=Path("teacher"))
        return {name: base.trained for name, base in found.items()}

    assert shown(a, b) == {"teacher-base": ("teacher",), "student-base": ("distilled", "refined")}
    assert shown(a, a) == {"base": ("teacher", "distilled", "refined")}
    assert shown(a, {**a, "revision": "1" * 40}).keys() == {"teacher-base", "student-base"}
    assert shown(a | untrained, b) == {"student-base": ("distilled", "refined")}
    assert shown(a | untrained, a) == {}, "the teacher is the base"
    assert shown(a) == {"teacher-base": ("teacher",)}, "a student from scratch"
    assert shown() == {}, "nothing is pretrained"
    assert shown(a, b, bases=False) == {}


def test_a_base_is_shown_first_and_compared_with_what_was_trained_from_it(
    evaluation: Path, pretrained: Config, finished: dict[str, Path]
) -> None:
    found = read_evaluation(evaluation)
    models = {model["name"]: model for model in found["models"]}
    assert list(models) == ["base", "teacher", "distilled", "refined"]
    assert [model.get("base") for model in models.values()] == [None, "base", "base", "base"]
    pairs = list(dict.fromkeys((entry["a"], entry["b"]) for entry in found["comparisons"]))
    trained = [("refined", "distilled"), ("refined", "teacher"), ("distilled", "teacher")]
    assert pairs == [*trained, ("refined", "base"), ("distilled", "base"), ("teacher", "base")]
    # Here the base has the weights of the teacher, so both answer alike: it was asked in the same way.
    assert models["base"]["scores"] == models["teacher"]["scores"]
    [same] = [e for e in found["comparisons"] if (e["a"], e["b"], e["metric"]) == ("teacher", "base", "mean_reward")]
    assert same["difference"] == 0
    assert found["lineage"]["base"] == pretrained.teacher.base.sha256
    metrics = json.loads((evaluation / "metrics.json").read_text())
    assert metrics["base_mean_reward"] == metrics["teacher_mean_reward"]


def test_a_base_has_weights_while_it_is_asked_and_nothing_else_is_removed(
    pretrained: Config, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(name: str, model: Path, *_: object, **__: object) -> GatheredModel:
        assert (model / "model.safetensors").is_file()
        return GatheredModel(name, 1, 4, Timing(0, 0.0), {})

    monkeypatch.setattr("star.evaluation.gather._gather_model", ask)
    state = tmp_path / "work" / "state"
    state.mkdir(parents=True)
    models = bases_beside(pretrained, teacher=inputs["teacher"]) | dict.fromkeys((".", ".."), inputs["refined"])
    found = gather(models, None, config=pretrained, state=state, title="a model in the current folder")
    assert [model.name for model in found.models] == ["base", ".", ".."]
    assert sorted(file.name for file in state.iterdir()) == ["...json", "..json", "base.json"]


def test_the_report_says_what_the_base_reaches(evaluation: Path) -> None:
    page = (evaluation / "report.html").read_text()
    assert "Its base, before any training, answers" in page
    assert "refined − base" in page
    assert (evaluation / "report.md").read_text().startswith("| | base | teacher | distilled | refined |")


def test_the_gate_compares_models_of_runs_with_other_bases(pretrained: Config) -> None:
    def decoding(config: Config) -> str:
        return Gathered("", json.loads(config.slice(("seed", "evaluate"))), [], {}, {}, []).decoding

    # As an older STAR wrote it, whose settings had no bases.
    settings = json.loads(pretrained.slice(("seed", "evaluate")))
    del settings["evaluate"]["bases"]
    assert decoding(pretrained) == decoding(run_of(pretrained, bases=False)) == digest_of(canonical(settings))
    assert decoding(run_of(pretrained, max_new_tokens=5)) != decoding(pretrained)


def test_a_base_from_which_a_model_was_not_trained_is_left_out(
    pretrained: Config, inputs: dict[str, Path], finished: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bases = bases_beside(pretrained, teacher=inputs["teacher"])
    assert keep_true_bases(bases, inputs) == bases
    other = {**inputs, "distilled": finished["distill"]}
    assert keep_true_bases(bases, other) == {}
    assert f"base is not evaluated: it is not the base that {finished['distill']}" in capsys.readouterr().err


def test_a_model_whose_template_shows_no_tools_is_asked_with_one_that_does(
    inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert as_it_can_be_asked(inputs["refined"], title="refined") == inputs["refined"]
    mute = shutil.copytree(inputs["refined"], tmp_path / "mute")
    (mute / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    base = as_it_can_be_asked(mute, title="mute.gguf")
    assert isinstance(base, PretrainedBase)
    assert "mute.gguf is asked with STAR's chat template (qwen3), because the base's own" in capsys.readouterr().err
    settled = load_tokenizer(settled_base(base, tmp_path / "settled", precision="auto"))
    assert settled.chat_template == load_tokenizer(inputs["refined"]).chat_template


def test_a_base_that_cannot_be_loaded_says_how_to_go_on_without_it(
    pretrained: Config, inputs: dict[str, Path], tmp_path: Path
) -> None:
    gone = {"base": {"path": str(tmp_path / "gone"), "sha256": "0" * 64}}
    [base] = bases_beside(run_of(pretrained, gone, gone), teacher=inputs["teacher"]).values()
    with pytest.raises(InputError, match=r"no model folder at .*gone.*`evaluate\.bases: false`"):
        settled_base(base, tmp_path / "settled", precision="auto")
