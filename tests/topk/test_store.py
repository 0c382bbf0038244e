"""The top-k store returns what was added, a kill costs one shard file at most, and every error names its file."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from star.errors import InputError
from star.topk.codec import COMPRESSED, FALLING, PADDED, SIGNED
from star.topk.store import TopKStore, TopKWriter, merge_stores

VOCAB = 500
K = 8


def make_sequence(tokens: int, *, seed: int = 0, vocab: int = VOCAB, k: int = K) -> tuple[np.ndarray, np.ndarray]:
    """The top-k of random logits, like a teacher's: ids int64, log-probabilities float32, in falling order."""
    logits = 4 * np.random.default_rng(seed).standard_normal((tokens, vocab)).astype(np.float32)
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    ids = np.argsort(-logprobs, axis=1)[:, :k]
    return ids, np.take_along_axis(logprobs, ids, axis=1)


def make_sequences(lengths: list[int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {f"row-{number}": make_sequence(length, seed=number) for number, length in enumerate(lengths)}


def write(folder: Path, sequences: dict, **options) -> None:
    with TopKWriter(folder, K, vocab_size=VOCAB, **options) as writer:
        for sequence_id, arrays in sequences.items():
            if sequence_id not in writer:
                writer.add(sequence_id, *arrays)


def read_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def assert_holds(store: TopKStore, sequences: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    assert list(store) == list(sequences)
    assert len(store) == len(sequences)
    for sequence_id, (ids, logprobs) in sequences.items():
        got_ids, got_logprobs = store[sequence_id]
        assert (got_ids.dtype, got_logprobs.dtype) == (np.int32, np.float32)
        np.testing.assert_array_equal(got_ids, ids)
        np.testing.assert_allclose(got_logprobs, logprobs, rtol=0, atol=0.01)
    assert_reads_several_at_once(store, list(sequences))


def assert_reads_several_at_once(store: TopKStore, names: list[str]) -> None:
    """Sequences read at once are those that are read one by one, one after the other."""
    singles = [store[name] for name in names]
    ids, logprobs, tokens = store.read(names)
    assert tokens == [len(single_ids) for single_ids, _ in singles]
    assert (ids.dtype, logprobs.dtype) == (np.int32, np.float32) and ids.shape == logprobs.shape
    if names:
        assert np.array_equal(ids, np.concatenate([single_ids for single_ids, _ in singles]))
        assert np.array_equal(logprobs, np.concatenate([single_logprobs for _, single_logprobs in singles]))


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), max_size=8),
    tokens_per_file=st.integers(1, 30),
    vocab=st.sampled_from([3, 500, 65535, 65536, 151936]),
    data=st.data(),
)
def test_round_trip(lengths, tokens_per_file, vocab, data):
    k = min(K, vocab)
    logprob = st.floats(-20, 0, width=32)
    sequences = {}
    for length in lengths:
        ids = data.draw(st.lists(st.integers(0, vocab - 1), min_size=k, max_size=k))
        logprobs = data.draw(st.lists(logprob, min_size=k, max_size=k))
        name = data.draw(st.text().filter(lambda name: name not in sequences))
        sequences[name] = (np.tile(ids, (length, 1)), np.tile(np.float32(logprobs), (length, 1)))
    with tempfile.TemporaryDirectory() as folder:
        with TopKWriter(folder, K, vocab_size=vocab, tokens_per_file=tokens_per_file) as writer:
            for name, arrays in sequences.items():
                writer.add(name, *arrays)
        store = TopKStore(folder)
        assert (store.top_k, store.vocab_size, store.tokens) == (k, vocab, sum(lengths))
        assert_holds(store, sequences)


def test_sequences_are_found_in_any_order_and_others_are_not(tmp_path):
    sequences = make_sequences([5, 1, 7, 1, 3])
    write(tmp_path, sequences, tokens_per_file=6)
    store = TopKStore(tmp_path)
    for name in ("row-4", "row-0", "row-3"):
        np.testing.assert_array_equal(store[name][0], sequences[name][0])
    assert "row-2" in store and "row-5" not in store
    with pytest.raises(InputError, match=r"'row-5' is not in .*extract"):
        store["row-5"]


def test_files_are_bounded_and_a_longer_sequence_has_its_own(tmp_path):
    write(tmp_path, make_sequences([4, 2, 3, 9, 1]), tokens_per_file=6)
    index = json.loads((tmp_path / "index.json").read_bytes())
    assert [(entry["sequences"], entry["tokens"]) for entry in index["shards"]] == [(2, 6), (1, 3), (1, 9), (1, 1)]
    assert (index["sequences"], index["tokens"], index["top_k"], index["vocab_size"]) == (5, 19, K, VOCAB)


@pytest.mark.parametrize("scale", [1.0, 2.5, 6.0, 12.0])
def test_a_token_of_a_large_vocabulary_takes_281_bytes_at_most(tmp_path, scale):
    sequences = {}
    for number in range(4):
        logits = scale * np.random.default_rng(number).standard_normal((32, 151936)).astype(np.float32)
        logprobs, ids = torch.log_softmax(torch.from_numpy(logits), dim=-1).topk(100)
        sequences[f"row-{number}#0"] = (ids.numpy(), logprobs.numpy())
    with TopKWriter(tmp_path, 100, vocab_size=151936) as writer:
        for name, arrays in sequences.items():
            writer.add(name, *arrays)
    store = TopKStore(tmp_path)
    assert_holds(store, sequences)
    assert store.size == sum(path.stat().st_size for path in tmp_path.iterdir())
    # A store of 128 tokens; its files' headers (about 1.5 kB) are negligible in a real one.
    assert (store.size - 1500) / store.tokens <= 281


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_torch_tensors_are_taken(tmp_path, dtype):
    ids, logprobs = (torch.from_numpy(array) for array in make_sequence(4))
    logprobs = logprobs.to(dtype).requires_grad_()
    with TopKWriter(tmp_path, K, vocab_size=VOCAB) as writer:
        writer.add("tensor", ids.to(torch.int32), logprobs)
    assert_holds(TopKStore(tmp_path), {"tensor": (ids.numpy(), logprobs.detach().double().numpy())})


def test_arrays_are_copied_when_added(tmp_path):
    ids, logprobs = make_sequence(4)
    given_ids, given_logprobs = ids.astype(np.uint16), logprobs.astype(np.float16)
    with TopKWriter(tmp_path, K, vocab_size=VOCAB) as writer:
        writer.add("row", given_ids, given_logprobs)
        given_ids[:], given_logprobs[:] = 0, 0
    assert_holds(TopKStore(tmp_path), {"row": (ids, logprobs.astype(np.float16).astype(np.float32))})


def test_order_in_memory_does_not_matter(tmp_path):
    ids, logprobs = make_sequence(4)
    with TopKWriter(tmp_path, K, vocab_size=VOCAB) as writer:
        writer.add("row", np.asfortranarray(ids), np.asfortranarray(logprobs))
    assert_holds(TopKStore(tmp_path), {"row": (ids, logprobs)})


def test_very_small_and_slightly_positive_log_probabilities_stay_in_range(tmp_path):
    with TopKWriter(tmp_path, 2, vocab_size=VOCAB) as writer:
        writer.add("edge", np.array([[1, 2]]), np.array([[1e-4, -1e9]]))
    logprobs = TopKStore(tmp_path)["edge"][1]
    assert logprobs[0, 0] == 0.0 and np.isfinite(logprobs[0, 1]) and np.exp(logprobs[0, 1]) == 0.0


def test_same_input_gives_same_bytes(tmp_path):
    sequences = make_sequences([4, 2, 3, 9, 1])
    for name in ("one", "two"):
        write(tmp_path / name, sequences, tokens_per_file=6)
    assert read_bytes(tmp_path / "one") == read_bytes(tmp_path / "two")


@pytest.mark.parametrize("done", range(6))
def test_abandoned_writer_is_continued_to_the_same_bytes(tmp_path, done):
    sequences = make_sequences([4, 2, 3, 9, 1])
    write(tmp_path / "whole", sequences, tokens_per_file=6)
    abandoned = TopKWriter(tmp_path / "killed", K, vocab_size=VOCAB, tokens_per_file=6)
    for name in list(sequences)[:done]:
        abandoned.add(name, *sequences[name])
    with pytest.raises(InputError, match=r"index\.json is missing.*unfinished"):
        TopKStore(tmp_path / "killed")
    write(tmp_path / "killed", sequences, tokens_per_file=6)
    assert read_bytes(tmp_path / "killed") == read_bytes(tmp_path / "whole")


def test_next_writer_knows_what_is_already_there(tmp_path):
    sequences = make_sequences([4, 2, 3])
    abandoned = TopKWriter(tmp_path, K, vocab_size=VOCAB, tokens_per_file=6)
    for name, arrays in sequences.items():
        abandoned.add(name, *arrays)
    assert len(abandoned) == 3 and "row-2" in abandoned
    reopened = TopKWriter(tmp_path, K, vocab_size=VOCAB, tokens_per_file=6)
    assert [name for name in sequences if name in reopened] == ["row-0", "row-1"]
    assert len(reopened) == 2


def test_kill_while_a_file_is_written_leaves_complete_files_only(tmp_path):
    script = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from test_store import K, VOCAB, make_sequences
from star.topk.store import TopKWriter
writer = TopKWriter(sys.argv[1], K, vocab_size=VOCAB, tokens_per_file=6)
for number, (name, arrays) in enumerate(make_sequences([4, 2, 3, 9, 1]).items()):
    if number == 3:
        os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
    writer.add(name, *arrays)
"""
    folder = tmp_path / "killed"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", script, str(folder), str(Path(__file__).parent)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert sorted(read_bytes(folder)) == ["topk-00000.safetensors", "topk-00001.safetensors.tmp"]
    sequences = make_sequences([4, 2, 3, 9, 1])
    write(folder, sequences, tokens_per_file=6)
    write(tmp_path / "whole", sequences, tokens_per_file=6)
    assert read_bytes(folder) == read_bytes(tmp_path / "whole")


def test_half_written_file_of_a_killed_writer_is_removed(tmp_path):
    (tmp_path / "topk-00007.safetensors.tmp").write_bytes(b"half")
    write(tmp_path, make_sequences([2]))
    assert sorted(read_bytes(tmp_path)) == ["index.json", "lookup.npy", "topk-00000.safetensors"]


def test_block_that_fails_leaves_the_store_unfinished(tmp_path):
    def run_out_of_memory() -> None:
        with TopKWriter(tmp_path, K, vocab_size=VOCAB) as writer:
            writer.add("row", *make_sequence(2))
            raise RuntimeError("the teacher ran out of memory")

    with pytest.raises(RuntimeError, match="the teacher ran out of memory"):
        run_out_of_memory()
    assert list(tmp_path.iterdir()) == []


def test_finished_store_can_be_added_to_and_is_unfinished_meanwhile(tmp_path):
    sequences = make_sequences([4, 2, 3])
    write(tmp_path, {name: sequences[name] for name in ("row-0", "row-1")}, tokens_per_file=3)
    writer = TopKWriter(tmp_path, K, vocab_size=VOCAB, tokens_per_file=2)
    writer.add("row-2", *sequences["row-2"])
    assert len(TopKStore(tmp_path)) == 2  # nothing of it is on disk yet
    writer.add("row-3", *sequences["row-0"])
    with pytest.raises(InputError, match="unfinished"):
        TopKStore(tmp_path)
    writer.close()
    assert_holds(TopKStore(tmp_path), sequences | {"row-3": sequences["row-0"]})


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    write(tmp_path, make_sequences([2]))
    assert (tmp_path / "manifest.json").read_text() == "{}"
    assert list(TopKStore(tmp_path)) == ["row-0"]


def test_empty_store_is_a_store(tmp_path):
    write(tmp_path, {})
    assert len(TopKStore(tmp_path)) == 0


IDS, LOGPROBS = make_sequence(3)
ONE = np.arange(IDS.size).reshape(IDS.shape) == 11  # where one wrong value is put


@pytest.mark.parametrize(
    ("ids", "logprobs", "message"),
    [
        (IDS[:, :5], LOGPROBS[:, :5], r"ids \(3, 5\) .* must both be \[tokens, 8\]"),
        (IDS, LOGPROBS[:2], r"log-probs \(2, 8\)"),
        (IDS[0], LOGPROBS[0], r"ids \(8,\)"),
        (IDS[:0], LOGPROBS[:0], "no tokens: leave it out"),
        (IDS.astype(np.float32), LOGPROBS, "ids must be integers, not float32"),
        (np.where(ONE, VOCAB, IDS), LOGPROBS, "to 500 leave the vocabulary of 500"),
        (np.where(ONE, -1, IDS), LOGPROBS, "ids from -1"),
        (IDS, np.where(ONE, np.nan, LOGPROBS), "must be finite"),
        (IDS, np.where(ONE, np.inf, LOGPROBS), "must be finite"),
        (IDS, np.where(ONE, -np.inf, LOGPROBS), "-inf must be at the end of a row"),
        (IDS, np.full(LOGPROBS.shape, -np.inf), "after a finite one"),
        (IDS, np.where(ONE, 2.5, LOGPROBS), "log-prob 2.5 is above 0"),
    ],
)
def test_wrong_sequences_are_refused_by_name_and_leave_no_trace(tmp_path, ids, logprobs, message):
    with TopKWriter(tmp_path, K, vocab_size=VOCAB) as writer:
        with pytest.raises(InputError, match=f"sequence 'bad' .*{message}"):
            writer.add("bad", ids, logprobs)
        assert "bad" not in writer
        writer.add("good", IDS, LOGPROBS)
        with pytest.raises(InputError, match="'good' is already in"):
            writer.add("good", IDS, LOGPROBS)
    assert list(TopKStore(tmp_path)) == ["good"]


def test_top_k_is_clamped_to_the_vocabulary(tmp_path):
    for _ in range(2):
        with TopKWriter(tmp_path, 100, vocab_size=5) as writer:
            if "all" not in writer:
                writer.add("all", *make_sequence(3, vocab=5, k=5))
    assert TopKStore(tmp_path)["all"][0].shape == (3, 5)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"top_k": 4}, "top_k 8 where 4 is wanted"), ({"vocab_size": 600}, "vocab_size 500 where 600 is wanted")],
)
def test_folder_of_other_settings_is_refused(tmp_path, sizes, message):
    write(tmp_path, make_sequences([2]))
    with pytest.raises(InputError, match=f"topk-00000.safetensors has {message}"):
        TopKWriter(tmp_path, **({"top_k": K, "vocab_size": VOCAB} | sizes))


@pytest.mark.parametrize("sizes", [{"top_k": 0}, {"vocab_size": 0}, {"tokens_per_file": 0}])
def test_sizes_below_one_are_refused(tmp_path, sizes):
    with pytest.raises(InputError, match="at least 1"):
        TopKWriter(tmp_path, **({"vocab_size": VOCAB} | sizes))


def test_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "store").write_text("")
    with pytest.raises(InputError, match="store is a file"):
        TopKWriter(tmp_path / "store", vocab_size=VOCAB)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no top-k store at .*nowhere.*extract-topk"):
        TopKStore(tmp_path / "nowhere")


def damage_by_truncation(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def damage_by_emptying(path: Path) -> None:
    path.write_bytes(b"")


def damage_by_overwriting(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


def damage_by_another_content(path: Path) -> None:
    path.write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")  # a sound safetensors file without tensors or metadata


DAMAGES = [damage_by_truncation, damage_by_emptying, damage_by_overwriting, damage_by_another_content]


@pytest.mark.parametrize("damage", [*DAMAGES, Path.unlink])
def test_damaged_or_missing_file_is_named_to_reader_and_writer(tmp_path, damage):
    write(tmp_path, make_sequences([4, 2, 3, 9, 1]), tokens_per_file=6)
    damage(tmp_path / "topk-00001.safetensors")
    with pytest.raises(InputError, match=r"topk-00001\.safetensors is (damaged|missing).*: .*extract the top-k again"):
        TopKStore(tmp_path)
    with pytest.raises(InputError, match=r"topk-00001\.safetensors is (damaged|missing).*: .*extract the top-k again"):
        TopKWriter(tmp_path, K, vocab_size=VOCAB)


@pytest.mark.parametrize("position", [-1, 600, 9, 0])
def test_flipped_bit_is_named_before_anything_is_read(tmp_path, position):
    write(tmp_path, make_sequences([100, 100, 50]), tokens_per_file=200)
    flip(tmp_path / "topk-00000.safetensors", position)
    with pytest.raises(InputError, match=r"topk-00000\.safetensors is damaged.*extract the top-k again"):
        TopKStore(tmp_path)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_bit_that_flips_after_the_check_is_noticed_where_it_is_read(tmp_path):
    write(tmp_path, make_sequences([100, 100]))
    store = TopKStore(tmp_path)
    content = (tmp_path / "topk-00000.safetensors").read_bytes()
    flip(tmp_path / "topk-00000.safetensors", content.index(b"row-0row-1") // 2)
    damaged = []
    for name in store:
        try:
            store[name]
        except InputError as error:
            damaged.append(str(error))
    assert len(damaged) == 1 and "topk-00000.safetensors is damaged: restore it" in damaged[0]


def test_writer_does_not_continue_after_a_damaged_file(tmp_path):
    write(tmp_path, make_sequences([100, 100]))
    flip(tmp_path / "topk-00000.safetensors", 900)
    with pytest.raises(InputError, match=r"topk-00000\.safetensors is damaged"):
        TopKWriter(tmp_path, K, vocab_size=VOCAB)


@pytest.mark.parametrize("damage", [*DAMAGES, Path.unlink])
def test_damaged_or_missing_lookup_is_named(tmp_path, damage):
    write(tmp_path, make_sequences([4]))
    damage(tmp_path / "lookup.npy")
    with pytest.raises(InputError, match=r"lookup\.npy is (damaged|missing)"):
        TopKStore(tmp_path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_index_is_named(tmp_path, damage):
    write(tmp_path, make_sequences([4]))
    damage(tmp_path / "index.json")
    with pytest.raises(InputError, match=r"index\.json is damaged or of another format version"):
        TopKStore(tmp_path)


def test_index_of_a_later_format_is_refused(tmp_path):
    write(tmp_path, make_sequences([4]))
    index = json.loads((tmp_path / "index.json").read_bytes())
    (tmp_path / "index.json").write_text(json.dumps(index | {"version": 3}))
    with pytest.raises(InputError, match="another format version"):
        TopKStore(tmp_path)


@pytest.mark.parametrize(
    ("teacher", "k", "message"),
    [
        ("b", K, "is a shard file of another run, whose provenance is .*'b'.* and not .*'a'"),
        ("a", 3, f"is a shard file of another run, whose top_k is 3 and not {K}: "),
        ("a", K, "is damaged or of another run"),
    ],
)
def test_file_of_another_run_is_named(tmp_path, teacher, k, message):
    write(tmp_path / "one", make_sequences([4, 3]), tokens_per_file=4, provenance={"teacher": "a"})
    with TopKWriter(tmp_path / "two", k, vocab_size=VOCAB, provenance={"teacher": teacher}) as writer:
        ids, logprobs = make_sequence(9)
        writer.add("row", ids[:, :k], logprobs[:, :k])
    (tmp_path / "two" / "topk-00000.safetensors").replace(tmp_path / "one" / "topk-00001.safetensors")
    with pytest.raises(InputError, match=f"topk-00001.safetensors {message}"):
        TopKStore(tmp_path / "one")


def test_repeated_ids_take_fewer_bytes(tmp_path):
    ids = np.tile(np.random.default_rng(0).permutation(151936)[:100], (64, 1))
    logprobs = -np.sort(np.random.default_rng(1).uniform(0, 15, (64, 100)))
    with TopKWriter(tmp_path, 100, vocab_size=151936) as writer:
        writer.add("row", ids, logprobs)
    store = TopKStore(tmp_path)
    assert store.size / store.tokens < 120
    assert_holds(store, {"row": (ids, logprobs)})


def test_rows_come_back_in_the_order_they_came_in(tmp_path):
    draw = np.random.default_rng(5)
    ids, logprobs = draw.integers(0, VOCAB, (50, K)), -draw.uniform(0, 60, (50, K))
    with TopKWriter(tmp_path, K, vocab_size=VOCAB) as writer:
        writer.add("row", ids, logprobs)
    assert_holds(TopKStore(tmp_path), {"row": (ids, logprobs)})


def test_rows_padded_with_minus_infinity_come_back_padded(tmp_path):
    ids, logprobs = make_sequence(6)
    for row in range(6):
        logprobs[row, row + 1 :] = -np.inf
    with TopKWriter(tmp_path, K, vocab_size=VOCAB) as writer:
        writer.add("row", ids, logprobs)
    got_ids, got_logprobs = TopKStore(tmp_path)["row"]
    np.testing.assert_array_equal(got_ids, ids)
    np.testing.assert_array_equal(np.isneginf(got_logprobs), np.isneginf(logprobs))
    np.testing.assert_allclose(got_logprobs[np.isfinite(logprobs)], logprobs[np.isfinite(logprobs)], rtol=0, atol=0.01)


def test_sequences_of_all_kinds_are_read_at_once(tmp_path):
    """Sorted and unsorted rows, padded ones, and ids that zstd shortens lie side by side in one block of the decoder."""
    draw = np.random.default_rng(7)
    sequences = make_sequences([3, 1, 7])
    sequences["unsorted"] = draw.integers(0, VOCAB, (5, K)), -draw.uniform(0, 60, (5, K))
    sequences["repeated"] = np.tile(draw.permutation(VOCAB)[:K], (64, 1)), make_sequence(64)[1]
    ids, logprobs = make_sequence(9, seed=8)
    sequences["padded"] = ids, np.where(np.arange(K) > np.arange(9)[:, None] % K, -np.inf, logprobs)
    sequences["padded and unsorted"] = ids, np.where(np.arange(K) > 4, -np.inf, logprobs[:, ::-1])
    write(tmp_path, sequences, tokens_per_file=70)
    store = TopKStore(tmp_path)
    kinds = {store._find(name)[0].read(store._find(name)[1])[0] for name in sequences}
    assert kinds == {FALLING, SIGNED, PADDED, COMPRESSED, PADDED | SIGNED}
    assert_holds(store, sequences)
    assert_reads_several_at_once(store, [*reversed(sequences), "row-1", "padded", "row-1"])


def test_the_stores_of_shards_are_merged(tmp_path):
    sequences = make_sequences([4, 2, 3, 9, 1, 5])
    names = list(sequences)
    parts = [tmp_path / f"part-{number}" for number in range(3)]
    for number, part in enumerate(parts):
        write(part, {name: sequences[name] for name in names[number::3]}, tokens_per_file=6)
    merge_stores(parts, tmp_path / "whole")
    store = TopKStore(tmp_path / "whole")
    assert sorted(store) == sorted(names) and store.tokens == 24
    for name, (ids, _) in sequences.items():
        np.testing.assert_array_equal(store[name][0], ids)


def test_stores_of_different_extractions_are_not_merged(tmp_path):
    for name, teacher in (("one", "a"), ("two", "b"), ("three", "a")):
        write(tmp_path / name, make_sequences([4]), provenance={"teacher": teacher})
    with pytest.raises(InputError, match=r"two and .*one are not parts of one extraction"):
        merge_stores([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    with pytest.raises(InputError, match=r"'row-0' is in .* twice"):
        merge_stores([tmp_path / "one", tmp_path / "three"], tmp_path / "out")


def test_the_number_of_open_files_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("star.topk.store.MAX_OPEN_FILES", 8)
    sequences = make_sequences([1] * 40)
    write(tmp_path, sequences, tokens_per_file=1)
    store = TopKStore(tmp_path)
    assert_holds(store, sequences)
    assert len(store._open_files) == 8
