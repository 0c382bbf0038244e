"""The rows of a distillation: the teacher's part of a batch is read by a thread, and is that of the batch's sequences."""

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from star.ckd.rows import TEACHER_ROWS, BatchCollator, DistillationRows
from star.ckd.trainer import CKDTrainer
from star.config.experiment import Config
from star.errors import InputError
from star.modeling.models import load_model
from star.modeling.training import IGNORE_INDEX


@pytest.fixture(scope="module")
def rows(finished: dict[str, Path]) -> DistillationRows:
    return DistillationRows(finished["extract-topk"])


def completion_length(row: dict) -> int:
    return int((row["labels"] != IGNORE_INDEX).sum())


def test_a_batch_has_the_teachers_rows_of_its_sequences_in_order(rows: DistillationRows) -> None:
    indices = [5, 0, 11, 3, 7]
    batch = BatchCollator(rows, pad_id=0)([rows[index] for index in indices])
    teacher = batch[TEACHER_ROWS].result()
    ids, logprobs = zip(*(rows.store[rows.ids[index]] for index in indices), strict=True)
    assert np.array_equal(teacher["teacher_ids"], np.concatenate(ids))
    assert np.array_equal(teacher["teacher_logprobs"], np.concatenate(logprobs))
    # One row of the teacher per labelled token.
    assert [completion_length(rows[index]) for index in indices] == [len(array) for array in ids]
    assert len(teacher["teacher_ids"]) == int((batch["labels"] != IGNORE_INDEX).sum())


def test_drawn_rows_are_the_same_when_read_again_and_in_other_company(finished: dict[str, Path]) -> None:
    def draw(rows: DistillationRows, indices: list[int]) -> list[torch.Tensor]:
        lengths = [completion_length(rows[index]) for index in indices]
        return list(rows.read_teacher(indices, lengths)["teacher_logprobs"].split(lengths))

    rows, again, other = (DistillationRows(finished["extract-topk"], draw_seed=seed) for seed in (1, 1, 2))
    (shares,) = draw(rows, [0])
    assert torch.equal(shares, draw(again, [4, 0])[1])
    assert not torch.equal(shares, draw(other, [0])[0])
    assert torch.allclose(shares.exp().sum(1), torch.ones(len(shares)))


def test_a_sequence_of_another_number_of_tokens_is_named(rows: DistillationRows) -> None:
    collate = BatchCollator(rows, pad_id=0)
    longer = {key: np.append(rows[1][key], 7) for key in ("input_ids", "labels")}
    batch = collate([rows[0], rows[1] | longer])
    with pytest.raises(
        InputError, match=r"tokens for sequence .* whose completion has \d+: extract the top-k of these"
    ):
        batch[TEACHER_ROWS].result()


def test_the_next_batch_is_read_by_a_thread_while_a_step_runs(
    micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    trainer = trainer_of(finished["extract-topk"], finished["distill"], tmp_path, micro, steps=3, batch_size=4)
    asked: list[tuple[int, str]] = []  # the step during which a batch was read, and the reader
    read = trainer.train_dataset.read_teacher

    def read_and_note(*arguments):
        asked.append((trainer.state.global_step, threading.current_thread().name))
        return read(*arguments)

    trainer.train_dataset.read_teacher = read_and_note
    loss_of = trainer._summed_loss
    read_before_step: list[int] = []

    def wait_for_the_next_batch(*arguments):
        # Both batches can be read while this step is held up here: the thread waits for nothing of it.
        trainer.data_collator._reader.submit(int).result(timeout=60)
        read_before_step.append(len(asked))
        return loss_of(*arguments)

    trainer._summed_loss = wait_for_the_next_batch
    trainer.train()
    assert read_before_step == [2, 3, 4]
    assert all(name.startswith("top-k reader") for _, name in asked)


def test_a_store_damaged_during_the_training_is_named(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(finished["extract-topk"], tmp_path / "topk")
    trainer = trainer_of(tmp_path / "topk", finished["distill"], tmp_path / "state", micro, steps=2)
    (file,) = (tmp_path / "topk").glob("topk-*")
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle - 2000 : middle] = bytes(byte ^ 1 for byte in content[middle - 2000 : middle])
    file.chmod(0o644)
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"topk-00000\.safetensors is damaged: restore it"):
        trainer.train()


def trainer_of(topk: Path, student: Path, state: Path, config: Config, **settings: int) -> CKDTrainer:
    distill = config.distill.model_copy(update=settings)
    return CKDTrainer(load_model(student), topk, settings=distill, state=state, pad_id=0, seed=1)
