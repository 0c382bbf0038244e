"""CKDTrainer: the loss of the method over a real store, the same under gradient accumulation."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from star import stages
from star.ckd.rows import TEACHER_ROWS
from star.ckd.trainer import CKD_METRICS, CKDTrainer
from star.config.experiment import Config
from star.config.models import Student
from star.config.training import Lora
from star.errors import InputError
from star.evaluation.report import write_report
from star.modeling.models import load_model, load_tokenizer
from star.modeling.training import IGNORE_INDEX, collate_completions, supervised_arguments, train


def trainer_for(folder: Path, student: Path, state: Path, config: Config, **settings: object) -> CKDTrainer:
    return CKDTrainer(
        load_model(student, lora=settings.get("lora")),
        folder,
        settings=config.distill.model_copy(update=settings),
        state=state,
        pad_id=load_tokenizer(student).pad_token_id,
        seed=1,
    )


def test_the_student_is_saved_with_the_template_of_its_training_prompts(
    micro: Config, finished: dict[str, Path], thinking_teacher: Path, tmp_path: Path
) -> None:
    """Its base has another one, which opens `<think>`; the prompts that it learned from do not."""
    stages.distill(micro, topk=finished["extract-topk"], student=thinking_teacher, out=tmp_path / "student")
    template = load_tokenizer(tmp_path / "student").chat_template
    assert template == load_tokenizer(finished["refine-teacher"]).chat_template
    assert template != load_tokenizer(thinking_teacher).chat_template


def test_the_loss_follows_the_equations(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    trainer = trainer_for(finished["extract-topk"], finished["distill"], tmp_path, micro, top_m=9, tail_weight=3.0)
    rows = [trainer.train_dataset[index] for index in range(3)]
    batch = trainer.data_collator(rows)
    loss = trainer.compute_loss(trainer.model, batch)

    total, tokens = 0.0, 0
    for row in rows:
        logits = trainer.model(torch.tensor(row["input_ids"][None])).logits[0].double()
        places = [place for place, label in enumerate(row["labels"]) if label != IGNORE_INDEX]
        teacher = trainer.train_dataset.read_teacher([row["index"]], [len(places)])
        for place, ids, logprobs in zip(
            places, teacher["teacher_ids"], teacher["teacher_logprobs"].double(), strict=True
        ):
            q = torch.softmax(logits[place - 1], -1)
            fkl = (logprobs.exp() * (logprobs - q[ids].log())).sum()
            outside = set(q.topk(9).indices.tolist()) - set(ids.tolist())
            total += float((fkl + 3.0 * sum(q[i] for i in outside)).detach())
            tokens += 1
    assert float(loss.detach()) == pytest.approx(total / tokens, rel=1e-4)


def test_accumulated_micro_batches_train_like_the_whole_batch(
    micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    weights = []
    for micro_batch in (4, 1):
        trainer = trainer_for(
            finished["extract-topk"],
            finished["distill"],
            tmp_path / str(micro_batch),
            micro,
            steps=2,
            batch_size=4,
            micro_batch_size=micro_batch,
        )
        trainer.train()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()]))
    started = torch.cat([parameter.detach().flatten() for parameter in load_model(finished["distill"]).parameters()])
    moved = (weights[0] - started).abs().max()
    assert moved > 1e-4
    assert (weights[0] - weights[1]).abs().max() < 0.02 * moved


def test_an_epoch_reads_each_sequence_once(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    settings = {"steps": None, "epochs": 1, "batch_size": 4, "micro_batch_size": 2, "save_steps": 2}
    trainer = trainer_for(finished["extract-topk"], finished["distill"], tmp_path, micro, **settings)
    read: list[int] = []
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: read.extend(row["index"] for row in rows) or collate(rows)
    train(trainer, phase="ckd", label="test", state=tmp_path, log_metrics=lambda values, step: None)
    assert sorted(read) == list(range(len(trainer.train_dataset)))
    curve = json.loads((tmp_path / "ckd_curve.json").read_text(encoding="utf-8"))
    assert curve[-1]["step"] == trainer.args.max_steps == math.ceil(len(read) / 4)


def test_what_is_logged_adds_up_to_the_loss(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    trainer = trainer_for(finished["extract-topk"], finished["distill"], tmp_path, micro, steps=3, tail_weight=2.0)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "fkl" in entry]
    assert len(logged) == 3
    for entry in logged:
        assert entry["loss"] == pytest.approx(entry["fkl"] + 2.0 * entry["tail"], rel=1e-3)


def test_the_log_describes_the_student(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    trainer = trainer_for(finished["extract-topk"], finished["distill"], tmp_path, micro, steps=2)
    train(trainer, phase="ckd", label="test", state=tmp_path, log_metrics=lambda values, step: None)
    entry = next(entry for entry in trainer.state.log_history if "fkl" in entry)
    assert 0 < entry["entropy"] < math.log(trainer.model.config.vocab_size)
    assert 0 < entry["overlap"] <= 1
    assert entry["tokens_per_second"] > 0 and entry["memory_mib"] > 0
    kept = json.loads((tmp_path / "ckd_curve.json").read_text(encoding="utf-8"))[0]
    assert {"loss", *CKD_METRICS} <= kept.keys() and not {"tokens_per_second", "memory_mib"} & kept.keys()


@pytest.mark.parametrize(("kind", "of"), [("ce", "ce"), ("fkl", "fkl"), ("rkl", None), ("akl", None), ("rskd", None)])
def test_every_kind_trains(kind: str, of: str | None, micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    trainer = trainer_for(finished["extract-topk"], finished["distill"], tmp_path, micro, steps=2, kind=kind)
    before = torch.cat([parameter.detach().flatten().clone() for parameter in trainer.model.parameters()])
    trainer.train()
    after = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
    assert (after - before).abs().max() > 1e-5
    entry = next(entry for entry in trainer.state.log_history if "fkl" in entry)
    assert math.isfinite(entry["loss"])
    if of:
        assert entry["loss"] == pytest.approx(entry[of], rel=1e-3)


def test_a_share_of_cross_entropy_is_mixed_in(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    trainer = trainer_for(finished["extract-topk"], finished["distill"], tmp_path, micro, kind="fkl", kd_ratio=0.3)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(3)])
    loss, output = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    expected = (0.3 * output.fkl + 0.7 * output.ce) / len(batch[TEACHER_ROWS].result()["teacher_ids"])
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_every_step_is_logged_and_charted(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    trainer = trainer_for(finished["extract-topk"], finished["distill"], tmp_path, micro, steps=1000, save_steps=100)
    assert trainer.args.logging_steps == 1
    curve = json.loads((finished["distill"] / "ckd_curve.json").read_text(encoding="utf-8"))
    assert [entry["step"] for entry in curve] == list(range(1, micro.distill.steps + 1))
    write_report(tmp_path / "report.html", {"curves": {"distill: ckd": curve}})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(f"<b>{figure}</b>" in page for figure in ("loss", *CKD_METRICS))


@pytest.mark.parametrize("lora", [None, Lora(rank=4, alpha=8)])
def test_recomputed_activations_change_nothing(
    lora: Lora | None, micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    weights = []
    for recompute in (False, True):
        state = tmp_path / str(recompute)
        trainer = trainer_for(finished["extract-topk"], finished["distill"], state, micro, steps=2, lora=lora)
        trainer.args.activation_checkpointing = recompute
        recomputed = []
        layer = trainer.model.get_decoder().layers[0]
        layer.input_layernorm.register_forward_hook(lambda *_, seen=recomputed: seen.append(1))
        trainer.train()
        assert len(recomputed) == (4 if recompute else 2)
        trained = (parameter for parameter in trainer.model.parameters() if parameter.requires_grad)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in trained]))
    assert torch.allclose(weights[0], weights[1], atol=1e-7)


def test_half_precision_multiplies_the_head_in_half_precision_on_a_gpu_only(
    micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    trainer = trainer_for(finished["extract-topk"], finished["distill"], tmp_path, micro)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(3)])
    exact = trainer.compute_loss(trainer.model, batch)
    trainer.args.bf16 = True
    loss = trainer.compute_loss(trainer.model, batch)
    assert loss.dtype == torch.float32 and bool(loss != exact) == torch.cuda.is_available()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)
    loss.backward()
    assert trainer.model.get_output_embeddings().weight.grad.dtype == torch.float32


def test_a_distillation_with_adapters_gives_a_plain_model(
    micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    settings = micro.distill.model_copy(update={"lora": Lora(rank=4, alpha=8), "learning_rate": 1e-2})
    student = Student(base=str(finished["distill"]))
    config = micro.model_copy(update={"student": student, "distill": settings})
    stages.distill(config, topk=finished["extract-topk"], out=tmp_path / "out")
    before, after = (dict(load_model(folder).named_parameters()) for folder in (finished["distill"], tmp_path / "out"))
    assert before.keys() == after.keys() and not list((tmp_path / "out").glob("adapter*"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.endswith("_proj.weight") for name in changed)


def test_a_student_from_scratch_takes_adapters_too(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    config = micro.model_copy(update={"distill": micro.distill.model_copy(update={"lora": Lora(rank=2, alpha=4)})})
    stages.distill(config, topk=finished["extract-topk"], out=tmp_path / "out")
    assert not list((tmp_path / "out").glob("adapter*"))
    assert load_model(tmp_path / "out").config.hidden_size == micro.student.base.hidden_size


def test_one_process_trains_on_one_gpu(
    micro: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda arguments: getattr(arguments, "_n_gpu", 4)))
    monkeypatch.setattr(TrainingArguments, "_setup_devices", torch.device("cpu"))
    arguments = supervised_arguments(micro.distill, folder=tmp_path, seed=1, bf16=False, sequences=32)
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, micro.distill.batch_size)
    assert "4 GPUs are visible and this process trains on one" in caplog.text


def test_a_student_of_a_smaller_vocabulary_is_refused(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    model = load_model(finished["distill"])
    model.resize_token_embeddings(100)
    with pytest.raises(InputError, match=r"was stored for a vocabulary of .* the student's head has 100"):
        CKDTrainer(model, finished["extract-topk"], settings=micro.distill, state=tmp_path, pad_id=0, seed=1)


def test_broken_weights_are_reported(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    trainer = trainer_for(finished["extract-topk"], finished["distill"], tmp_path, micro)
    with torch.no_grad():
        trainer.model.get_decoder().norm.weight.fill_(torch.nan)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    with pytest.raises(ValueError, match="the hidden states hold NaN"):
        trainer.compute_loss(trainer.model, batch)


def test_padding_is_on_the_right_and_has_no_label() -> None:
    batch = collate_completions(
        [{"input_ids": [5, 6, 7], "labels": [IGNORE_INDEX, 6, 7]}, {"input_ids": [5], "labels": [5]}], pad_id=0
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORE_INDEX, 6, 7], [5, IGNORE_INDEX, IGNORE_INDEX]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
