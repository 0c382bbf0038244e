"""Heads with more rows than the tokenizer has tokens, as Qwen's have: the further rows are in no signal and no sample."""

from pathlib import Path

import numpy as np
import pytest
import torch

from star import stages
from star.ckd.trainer import CKDTrainer
from star.config.experiment import Config
from star.errors import InputError
from star.folders.shard import Shard
from star.modeling.generation import Sample, Sequence, generate
from star.modeling.models import load_model, load_tokenizer, save_model
from star.modeling.prompts import Prompt
from star.modeling.sampling import SeededSampling, use_sampling
from star.modeling.tokenizer import ids_without_token, vocabulary_size
from star.teacher.extract import extract_top_k
from star.teacher.openai_server import completion_top_k
from star.teacher.rollout import assign_verdicts
from star.topk.store import TopKStore

MORE, FEWER = 24, 8


def pad_head(model: Path, rows: int, out: Path) -> Path:
    """Copies a model with `rows` more rows in its head. They take a large share of the probability everywhere."""
    padded, tokenizer = load_model(model), load_tokenizer(model)
    padded.resize_token_embeddings(len(tokenizer) + rows, mean_resizing=False)
    with torch.no_grad():
        weight_VH = padded.get_input_embeddings().weight
        # The rows of frequent tokens once more: wherever one of these is likely, so is its copy.
        weight_VH[len(tokenizer) :] = weight_VH[
            tokenizer.convert_tokens_to_ids(["<think>", "<|im_end|>"] * rows)[:rows]
        ]
    save_model(padded, tokenizer, out)
    return out


@pytest.fixture(scope="module")
def teacher(finished: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = pad_head(finished["refine-teacher"], MORE, tmp_path_factory.mktemp("padded") / "teacher")
    # The stages take finished folders only; the manifest of the teacher says nothing of its head.
    (folder / "manifest.json").write_bytes((finished["refine-teacher"] / "manifest.json").read_bytes())
    return folder


def extract(teacher: Path, finished: dict[str, Path], config: Config, out: Path) -> TopKStore:
    out.mkdir()
    extract_top_k(teacher, finished["rollout"], settings=config.topk, shard=Shard.parse("1/1"), out=out)
    return TopKStore(out)


def test_ids_without_a_token_are_left_out_of_the_store(
    teacher: Path, finished: dict[str, Path], micro: Config, tmp_path: Path
) -> None:
    assert load_model(teacher).config.vocab_size == vocabulary_size(load_tokenizer(teacher)) + MORE
    extract(teacher, finished, micro, tmp_path / "topk")
    # The same bytes as from the same teacher without padding: the same ids, the same normalisation, the same vocabulary.
    for file in ("topk-00000.safetensors", "index.json"):
        assert (tmp_path / "topk" / file).read_bytes() == (finished["extract-topk"] / file).read_bytes()


def test_a_servers_answer_is_corrected_for_ids_without_a_token() -> None:
    logits_V = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5, 0.5])  # the ids 4 and 5 are no token
    answered = dict(enumerate(torch.log_softmax(logits_V, 0).tolist()))
    best_4 = {token: answered[token] for token in (0, 4, 1, 5)}
    [ids_K], [logprobs_K] = completion_top_k(
        [{}, best_4], Sequence([0], [1]), k=4, source="server", excluded_ids=[4, 5]
    )
    assert ids_K.tolist() == [0, 1, 0, 0]
    expected = torch.log_softmax(logits_V[:4], 0)
    assert logprobs_K.tolist() == pytest.approx([*expected[:2].tolist(), -torch.inf, -torch.inf])
    with pytest.raises(InputError, match="all of its 1 log-probs to ids that are no token"):
        completion_top_k([{}, {4: -0.1}], Sequence([0], [1]), k=1, source="server", excluded_ids=[4])


def test_more_ids_than_tokens_are_never_stored(
    teacher: Path, finished: dict[str, Path], micro: Config, tmp_path: Path
) -> None:
    settings = micro.topk.model_copy(update={"top_k": 10**6})
    store = extract(teacher, finished, micro.model_copy(update={"topk": settings}), tmp_path / "topk")
    assert store.top_k == store.vocab_size == vocabulary_size(load_tokenizer(teacher))
    ids_TK, logprobs_TK = store[next(iter(store))]
    assert ids_TK.max() < store.vocab_size and np.isfinite(logprobs_TK).all()
    np.testing.assert_allclose(np.exp(logprobs_TK).sum(1), 1, atol=0.03)


def test_an_id_without_a_token_is_never_sampled(teacher: Path, finished: dict[str, Path]) -> None:
    model, plain, tokenizer = load_model(teacher), load_model(finished["refine-teacher"]), load_tokenizer(teacher)
    prompts = ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"] * 4
    settings = {"max_new_tokens": 24, "seed": 3}
    groups = generate(model, tokenizer, prompts, samples=4, temperature=1.5, **settings)
    assert max(token for group in groups for sample in group for token in sample.token_ids) < len(tokenizer)
    # Without the padding it would have been its only difference: greedy answers are those of the plain model.
    greedy = [generate(one, tokenizer, prompts, samples=1, temperature=0.0, **settings) for one in (model, plain)]
    assert greedy[0] == greedy[1]

    batch = tokenizer(prompts, return_tensors="pt", add_special_tokens=False)
    excluded = ids_without_token(tokenizer, rows=model.config.vocab_size)
    assert len(excluded) == MORE
    keys = [(1, row) for row in range(4)]
    with use_sampling(model, SeededSampling(keys, temperature=1.5, max_new_tokens=24, excluded_ids=excluded)):
        assert model.generate(**batch, do_sample=True, max_new_tokens=24, min_new_tokens=24).max() < len(tokenizer)
    with use_sampling(model, SeededSampling(keys, temperature=1.5, max_new_tokens=24)):
        assert model.generate(**batch, do_sample=True, max_new_tokens=24, min_new_tokens=24).max() >= len(tokenizer)


def test_a_sample_with_an_id_without_a_token_is_no_valid_completion(teacher: Path) -> None:
    tokenizer = load_tokenizer(teacher)
    text = "<think>\n\n</think>\n\nHello"
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    prompt = Prompt("row", "Hi", text, [])
    samples = [Sample(text, [*ids[:3], len(tokenizer) + 2, *ids[3:]], True), Sample(text, ids, True)]
    assert [row["verdict"] for row in assign_verdicts(prompt, samples, tokenizer)] == ["format_errors", "kept"]


@pytest.mark.parametrize("rows", [FEWER, MORE, 2 * MORE], ids=["fewer than the teacher", "as many", "more"])
def test_a_student_with_any_padding_learns_from_the_store(
    rows: int, finished: dict[str, Path], micro: Config, tmp_path: Path
) -> None:
    student = pad_head(finished["distill"], rows, tmp_path / "student")
    metrics = stages.distill(micro, topk=finished["extract-topk"], student=student, out=tmp_path / "out")
    assert np.isfinite(metrics["ckd_loss"])
    assert load_model(tmp_path / "out").config.vocab_size == len(load_tokenizer(student)) + rows


def test_training_takes_the_mass_of_a_students_padding(
    finished: dict[str, Path], micro: Config, tmp_path: Path
) -> None:
    student = pad_head(finished["distill"], MORE, tmp_path / "student")
    tokenizer, settings = load_tokenizer(student), micro.distill.model_copy(update={"steps": 24})

    @torch.inference_mode()
    def padding_mass(trainer: CKDTrainer) -> float:
        batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return float(logits.softmax(-1)[..., len(tokenizer) :].sum(-1)[batch["labels"] >= 0].mean())

    trainer = CKDTrainer(
        load_model(student),
        finished["extract-topk"],
        settings=settings,
        state=tmp_path / "state",
        pad_id=tokenizer.pad_token_id,
        seed=1,
    )
    before = padding_mass(trainer)
    trainer.train()
    assert before > 0.01 and padding_mass(trainer) < 0.8 * before


def test_a_head_without_a_row_for_every_token_is_refused(
    finished: dict[str, Path], micro: Config, tmp_path: Path
) -> None:
    model, tokenizer = load_model(finished["distill"]), load_tokenizer(finished["distill"])
    model.resize_token_embeddings(len(tokenizer) - 1)
    save_model(model, tokenizer, tmp_path / "student")
    with pytest.raises(InputError, match=r"the student's head has \d+ rows: choose a student whose head has a row for"):
        stages.distill(micro, topk=finished["extract-topk"], student=tmp_path / "student", out=tmp_path / "out")
