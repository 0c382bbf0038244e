"""On-policy distillation: what is minimised, on which samples, and that a stopped training goes on to the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from star.ckd.on_policy import OnPolicyTrainer, PromptsInOrder, build_on_policy_trainer, distill_student_on_policy
from star.config.experiment import Config
from star.config.training import Distill
from star.data.rows import read_rows
from star.errors import InputError
from star.folders.workspace import Workspace
from star.modeling.models import load_model, load_tokenizer, save_model
from star.modeling.prompts import Prompt, render_rows
from star.modeling.training import train
from tests.ckd import on_policy_ranks
from tests.ckd.on_policy_ranks import train_one_rank

SETTINGS = Distill(kind="rkl", steps=4, batch_size=4, learning_rate=3e-3, save_steps=1)


def prompts_of(finished: dict[str, Path]) -> list[Prompt]:
    rows = list(read_rows(finished["synthesize"] / "train.jsonl"))
    return render_rows(rows, load_tokenizer(finished["refine-teacher"]))


def trainer_of(
    finished: dict[str, Path], folder: Path, settings: Distill = SETTINGS, *, prompts: int = 12
) -> OnPolicyTrainer:
    return build_on_policy_trainer(
        load_model(finished["distill"]),
        load_model(finished["refine-teacher"]),
        load_tokenizer(finished["distill"]),
        prompts_of(finished)[:prompts],
        settings=settings,
        max_new_tokens=24,
        folder=folder,
        seed=7,
    )


def run(trainer: OnPolicyTrainer, state: Path) -> list[dict]:
    """Trains to the end and returns the logged metrics by step."""
    state.mkdir(exist_ok=True)
    train(trainer, phase="on_policy", label="test", state=state, log_metrics=lambda values, step: None)
    return json.loads((state / "on_policy_curve.json").read_text(encoding="utf-8"))


def weights(trainer: OnPolicyTrainer) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in trainer.model.parameters()])


@pytest.mark.parametrize("kind", ["fkl", "rkl"])
def test_the_divergence_is_averaged_over_the_students_own_tokens(
    kind: str, finished: dict[str, Path], tmp_path: Path
) -> None:
    trainer = trainer_of(finished, tmp_path, SETTINGS.model_copy(update={"kind": kind}))
    batch = trainer._generate_and_score_completions([trainer.train_dataset[index] for index in range(3)])
    loss = trainer.compute_loss(trainer.model, batch)

    sums, tokens = 0.0, 0
    for row in range(3):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
        whole = torch.cat([prompt, completion])[None]
        places = slice(len(prompt) - 1, len(prompt) + len(completion) - 1)
        with torch.no_grad():
            q, t = (
                torch.log_softmax(model(whole).logits[0, places].double(), -1)
                for model in (trainer.model, trainer.teacher_model)
            )
        kl_TV = t.exp() * (t - q) if kind == "fkl" else q.exp() * (q - t)
        sums, tokens = sums + float(kl_TV.sum()), tokens + len(completion)
    assert float(loss.detach()) == pytest.approx(sums / tokens, rel=1e-4)


def test_a_stopped_training_ends_with_the_same_weights(finished: dict[str, Path], tmp_path: Path) -> None:
    """Six prompts for four steps of four: the stop is in the second epoch, whose order differs from the first one's."""
    whole = trainer_of(finished, tmp_path / "whole", prompts=6)
    curve = run(whole, tmp_path / "state")

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            if state.global_step == 3:  # one step after the checkpoint of step 2
                raise KeyboardInterrupt

    stopped = trainer_of(finished, tmp_path / "stopped", prompts=6)
    stopped.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        run(stopped, tmp_path / "stopped_state")
    resumed = trainer_of(finished, tmp_path / "stopped", prompts=6)
    assert run(resumed, tmp_path / "stopped_state") == curve
    assert torch.equal(weights(whole), weights(resumed))


def test_each_epoch_has_every_prompt_once_in_another_order(finished: dict[str, Path]) -> None:
    rows = PromptsInOrder(prompts_of(finished)[:5], count=12, seed=7)
    texts = [rows[index]["prompt"] for index in range(len(rows))]
    assert len(rows) == 12 and len(set(texts[:5])) == len(set(texts[5:10])) == 5
    assert texts[:5] != texts[5:10]


@pytest.mark.slow
def test_accumulated_micro_batches_train_like_the_whole_batch(finished: dict[str, Path], tmp_path: Path) -> None:
    started, ended = weights(trainer_of(finished, tmp_path / "started")), []
    for size in (4, 1):
        settings = SETTINGS.model_copy(update={"steps": 1, "micro_batch_size": size})
        trainer = trainer_of(finished, tmp_path / str(size), settings)
        run(trainer, tmp_path / f"state{size}")
        ended.append(weights(trainer))
    moved = (ended[0] - started).abs().max()
    assert moved > 1e-4 and (ended[0] - ended[1]).abs().max() < 0.02 * moved


def test_the_student_comes_closer_to_the_teacher(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    """The student is the teacher with noise on its weights: what the other micro student samples is noise itself."""
    workspace, student = Workspace(out=tmp_path / "out", state=tmp_path / "state"), tmp_path / "student"
    workspace.out.mkdir()
    workspace.state.mkdir()
    noisy, noise = load_model(finished["refine-teacher"]), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=noise)
    save_model(noisy, load_tokenizer(finished["refine-teacher"]), student)
    metrics = distill_student_on_policy(
        student,
        finished["refine-teacher"],
        list(read_rows(finished["synthesize"] / "train.jsonl")),
        config=micro.model_copy(
            update={"distill": SETTINGS.model_copy(update={"steps": 14, "learning_rate": 2e-3, "save_steps": 14})}
        ),
        workspace=workspace,
        log_metrics=lambda values, step: None,
    )
    curve = json.loads((workspace.out / "on_policy_curve.json").read_text(encoding="utf-8"))
    losses = [entry["loss"] for entry in curve]
    assert len(losses) == 14 and sum(losses[-3:]) < 0.6 * sum(losses[:3])
    assert losses[-1] == metrics["on_policy_loss"] and metrics["on_policy_entropy"] > 0
    assert metrics["prompts"] > 0 and metrics["too_long"] == 0
    before, after = (load_model(folder).get_input_embeddings().weight for folder in (student, workspace.out))
    assert not torch.equal(before, after)


def test_models_that_cannot_be_compared_are_refused(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    student, teacher = load_model(finished["distill"]), load_model(finished["refine-teacher"])
    tokenizer, prompts = load_tokenizer(finished["distill"]), prompts_of(finished)

    def build(settings: Distill) -> None:
        build_on_policy_trainer(
            student, teacher, tokenizer, prompts, settings=settings, max_new_tokens=24, folder=tmp_path, seed=1
        )

    with pytest.raises(InputError, match=r"distill.kind ckd needs a stored signal"):
        build(SETTINGS.model_copy(update={"kind": "ckd"}))
    student.resize_token_embeddings(student.config.vocab_size + 8)
    with pytest.raises(InputError, match=r"head has 500 rows and the student's 508"):
        build(SETTINGS)
    tokenizer.add_tokens(["another"])
    load_model(finished["distill"]).save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    with pytest.raises(InputError, match="has another tokenizer than the teacher"):
        distill_student_on_policy(
            tmp_path / "student",
            finished["refine-teacher"],
            [],
            config=micro,
            workspace=Workspace(out=tmp_path, state=tmp_path),
            log_metrics=lambda values, step: None,
        )


@pytest.mark.slow
def test_two_processes_train_like_one(finished: dict[str, Path], tmp_path: Path) -> None:
    """Over gloo: the same completions in each step, and the same weights up to rounding."""
    folders = {name: finished[name] for name in ("distill", "refine-teacher", "synthesize")}
    train_one_rank(*folders.values(), out=tmp_path / "alone")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    script = Path(on_policy_ranks.__file__)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, script, *folders.values(), tmp_path / "shared"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    alone, left, right = (torch.load(tmp_path / name) for name in ("alone/0.pt", "shared/0.pt", "shared/1.pt"))
    # The first step samples from equal weights; later ones differ by rounding.
    assert sorted(alone["completions"]) == sorted(left["completions"] + right["completions"])
    assert torch.equal(left["weights"], right["weights"])
    start = torch.cat([value.detach().flatten() for value in load_model(finished["distill"]).parameters()])
    assert (left["weights"] - alone["weights"]).abs().mean() <= 1e-2 * (alone["weights"] - start).abs().mean()
