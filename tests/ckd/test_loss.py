"""The fused CKD loss against a plain one: full log_softmax, masks of V_k and V_m, and autograd, in float64."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from star.ckd import loss as loss_module
from star.ckd.gradient import logits_to_gradient_
from star.ckd.loss import LOSS_KINDS, fused_linear_ckd, fused_linear_kd
from star.ckd.objectives import draw_shares
from star.ckd.topm import top_ids

EXACT = {"rtol": 0, "atol": 1e-10}


def reference(case: tuple[Tensor, ...], *, top_m: int, tail_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """The equations of the paper with every logit at once, left to autograd: mean loss, FKL_k and tail."""
    hidden, weight, ids, logprobs = case
    log_q = torch.log_softmax(hidden @ weight.T, dim=1)
    in_k = torch.zeros(log_q.shape, dtype=torch.bool).scatter(1, ids, True)
    in_m = torch.zeros(log_q.shape, dtype=torch.bool).scatter(1, log_q.topk(min(top_m, len(weight))).indices, True)
    teacher = logprobs.exp()
    fkl = (torch.special.xlogy(teacher, teacher) - teacher * log_q.gather(1, ids)).sum() / max(len(hidden), 1)
    tail = (log_q.exp() * (in_m & ~in_k)).sum() / max(len(hidden), 1)
    return fkl + tail_weight * tail, fkl, tail


def make_case(
    rows: int, hidden: int, vocab: int, k: int, *, seed: int = 0, whole_numbers: bool = False
) -> tuple[Tensor, ...]:
    """Hidden states, head, teacher ids and log-probabilities at random.

    `whole_numbers` makes many logits exactly equal; for k > vocab the last ids are padding.
    """
    rng = torch.Generator().manual_seed(seed)
    states, head = (torch.randn(size, hidden, generator=rng, dtype=torch.float64) for size in (rows, vocab))
    if whole_numbers:
        states, head = states.round(), head.round()
    teacher = torch.log_softmax(3 * torch.randn(rows, vocab, generator=rng, dtype=torch.float64), dim=1)
    logprobs, ids = teacher.topk(min(k, vocab), dim=1)
    if k > vocab:
        ids = torch.cat([ids, ids[:, :1].expand(-1, k - vocab)], dim=1)
        logprobs = torch.cat([logprobs, torch.full((rows, k - vocab), -math.inf, dtype=torch.float64)], dim=1)
    return states.requires_grad_(), head.requires_grad_(), ids, logprobs


def assert_same_as_reference(
    case: tuple[Tensor, ...], *, top_m: int, tail_weight: float, chunk_size: int | None = None
) -> None:
    hidden, weight, *_ = case
    expected = reference(case, top_m=top_m, tail_weight=tail_weight)
    output = fused_linear_ckd(*case, top_m=top_m, tail_weight=tail_weight, chunk_size=chunk_size)
    for got, want in zip(output, expected, strict=True):
        torch.testing.assert_close(got, want, **EXACT)
    wanted = torch.autograd.grad(1.7 * expected[0], (hidden, weight))
    for got, want in zip(torch.autograd.grad(1.7 * output.loss, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(got, want, **EXACT)


def test_one_token_by_hand():
    """The example in the docstring of star/ckd/loss.py. With the identity as head, the hidden states are the logits."""
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64).log().requires_grad_()
    ids, logprobs = torch.tensor([[1, 3]]), torch.tensor([[0.6, 0.2]], dtype=torch.float64).log()
    output = fused_linear_ckd(logits, torch.eye(4, dtype=torch.float64), ids, logprobs, top_m=2, tail_weight=10.0)
    fkl = 0.6 * math.log(0.6 / 0.3) + 0.2 * math.log(0.2 / 0.05)
    assert output.fkl.item() == pytest.approx(fkl, abs=1e-12)
    assert output.tail.item() == pytest.approx(0.5, abs=1e-12)  # V_m is {0, 1}: the top two of all, less id 1
    assert output.loss.item() == pytest.approx(fkl + 5.0, abs=1e-12)
    output.loss.backward()
    assert logits.grad.flatten().tolist() == pytest.approx([2.90, -1.86, -0.63, -0.41], abs=1e-12)


def test_paper_sized_case_is_the_reference():
    assert_same_as_reference(make_case(7, 16, 400, 100), top_m=100, tail_weight=10.0, chunk_size=3)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 5),
    hidden=st.integers(1, 4),
    vocab=st.integers(1, 12),
    k=st.integers(0, 16),
    top_m=st.integers(0, 16),
    tail_weight=st.sampled_from([0.0, 1.0, 10.0]),
    chunk_size=st.one_of(st.none(), st.integers(1, 6)),
    seed=st.integers(0, 99),
    whole_numbers=st.booleans(),
)
def test_same_as_reference(rows, hidden, vocab, k, top_m, tail_weight, chunk_size, seed, whole_numbers):
    case = make_case(rows, hidden, vocab, k, seed=seed, whole_numbers=whole_numbers)
    assert_same_as_reference(case, top_m=top_m, tail_weight=tail_weight, chunk_size=chunk_size)


@pytest.mark.parametrize("wanted", ["both", "hidden", "weight"])
def test_gradcheck(wanted):
    hidden, weight, ids, logprobs = make_case(5, 4, 30, 6)
    hidden.requires_grad_(wanted != "weight")
    weight.requires_grad_(wanted != "hidden")
    for reduction in ("mean", "sum"):
        ckd = partial(fused_linear_ckd, top_m=8, chunk_size=2, reduction=reduction)
        torch.autograd.gradcheck(lambda h, w, ckd=ckd: ckd(h, w, ids, logprobs).loss, (hidden, weight))


@pytest.mark.parametrize("padding", [1, 5])
def test_padding_with_a_repeated_id_changes_nothing(padding):
    hidden, weight, ids, logprobs = make_case(6, 8, 40, 10)
    padded_ids = torch.cat([ids, ids[:, 3:4].expand(-1, padding)], dim=1)
    padded_logprobs = torch.cat([logprobs, torch.full((6, padding), -math.inf, dtype=torch.float64)], dim=1)
    plain = fused_linear_ckd(hidden, weight, ids, logprobs, top_m=12)
    padded = fused_linear_ckd(hidden, weight, padded_ids, padded_logprobs, top_m=12)
    torch.testing.assert_close(tuple(padded), tuple(plain), **EXACT)
    grads = [torch.autograd.grad(output.loss, (hidden, weight)) for output in (padded, plain)]
    torch.testing.assert_close(*grads, **EXACT)


def test_chunk_size_does_not_matter():
    hidden, weight, ids, logprobs = make_case(23, 8, 60, 10)
    results = []
    for chunk_size in (1, 4, 22, 23, 1000, None):
        output = fused_linear_ckd(hidden, weight, ids, logprobs, top_m=12, chunk_size=chunk_size)
        results.append((*output, *torch.autograd.grad(output.loss, (hidden, weight))))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], **EXACT)


def test_blocks_of_the_vocabulary_and_chunks_of_rows_are_the_reference(monkeypatch):
    monkeypatch.setitem(loss_module.BLOCK_BYTES, "cpu", 1)  # the least: 256 rows of the head
    assert_same_as_reference(make_case(8, 6, 1100, 40), top_m=30, tail_weight=10.0, chunk_size=3)


def test_default_chunk_keeps_to_the_budget(monkeypatch):
    monkeypatch.setitem(loss_module.CHUNK_BYTES, "cpu", 40 * 60 * 8)
    seen = []

    def spy(logits: Tensor, *rest: object, **options: object):
        seen.append(len(logits))
        return logits_to_gradient_(logits, *rest, **options)

    monkeypatch.setattr(loss_module, "choose_backend", lambda device: spy)
    fused_linear_ckd(*make_case(50, 4, 60, 5))
    fused_linear_ckd(*make_case(20, 4, 6000, 5))
    fused_linear_ckd(*make_case(3, 4, 60, 5))
    assert seen == [32, 18, 16, 4, 3]
    fused_linear_ckd(*make_case(40, 128, 6000, 5))  # a quarter of the head's gradient is more than the budget
    assert seen[5:] == [32, 8]


def test_never_more_than_one_chunk_of_logits(monkeypatch):
    vocab = 8000
    monkeypatch.setitem(loss_module.CHUNK_BYTES, "cpu", 32 * vocab * 8)
    case = make_case(200, 4, vocab, 20)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            nonlocal largest
            result = function(*arguments, **(options or {}))
            storages = {r.untyped_storage().nbytes() for r in tree_leaves(result) if isinstance(r, Tensor)}
            largest = max([largest, *storages])
            return result

    with Watch():
        fused_linear_ckd(*case).loss.backward()
    assert largest == 32 * vocab * 8


def test_sum_is_rows_times_mean():
    case = make_case(9, 8, 40, 10)
    mean, total = (fused_linear_ckd(*case, reduction=reduction) for reduction in ("mean", "sum"))
    torch.testing.assert_close(tuple(total), tuple(9 * value for value in mean), **EXACT)
    mean_grads, sum_grads = (torch.autograd.grad(output.loss, case[:2]) for output in (mean, total))
    torch.testing.assert_close(sum_grads, tuple(9 * grad for grad in mean_grads), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_zero_rows_are_zero_and_still_differentiable(dtype):
    hidden = torch.zeros(0, 8, dtype=dtype, requires_grad=True)
    weight = torch.randn(40, 8).to(dtype).requires_grad_()
    output = fused_linear_ckd(hidden, weight, torch.zeros(0, 10, dtype=torch.int64), torch.zeros(0, 10))
    output.loss.backward()
    assert [value.item() for value in output] == [0.0, 0.0, 0.0]
    assert hidden.grad.shape == (0, 8)
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_frozen_head_gets_no_gradient():
    hidden, weight, ids, logprobs = make_case(6, 8, 40, 10)
    expected = torch.autograd.grad(fused_linear_ckd(hidden, weight, ids, logprobs).loss, hidden)[0]
    frozen = weight.detach()
    output = fused_linear_ckd(hidden, frozen, ids, logprobs)
    saved_for_hidden, saved_for_weight = output.loss.grad_fn.saved_tensors
    output.loss.backward()
    assert saved_for_hidden is not None and saved_for_weight is None and frozen.grad is None
    torch.testing.assert_close(hidden.grad, expected, **EXACT)


def test_tied_head_gets_both_gradients():
    _, weight, ids, logprobs = make_case(6, 8, 40, 10)
    tokens = torch.arange(6)
    fused_linear_ckd(weight[tokens], weight, ids, logprobs, top_m=12).loss.backward()
    hidden = weight.detach()[tokens].requires_grad_()
    head = weight.detach().requires_grad_()
    reference((hidden, head, ids, logprobs), top_m=12, tail_weight=10.0)[0].backward()
    expected = head.grad.index_add(0, tokens, hidden.grad)
    torch.testing.assert_close(weight.grad, expected, **EXACT)


def test_only_the_loss_carries_a_gradient():
    output = fused_linear_ckd(*make_case(6, 8, 40, 10))
    assert (output.loss.requires_grad, output.fkl.requires_grad, output.tail.requires_grad) == (True, False, False)


def test_without_grad_mode_only_the_logits_are_multiplied_out(monkeypatch):
    case, products = make_case(6, 8, 40, 10), []
    matmul_into = loss_module._matmul_into

    def spy(out: Tensor, *factors: Tensor, **options: bool) -> None:
        products.append(tuple(out.shape))
        matmul_into(out, *factors, **options)

    monkeypatch.setattr(loss_module, "_matmul_into", spy)
    with torch.no_grad():
        assert not fused_linear_ckd(*case).loss.requires_grad
    assert products == [(6, 40)]


def test_backward_twice_gives_twice_the_gradient():
    hidden, *rest = make_case(6, 8, 40, 10)
    output = fused_linear_ckd(hidden, *rest)
    output.loss.backward(retain_graph=True)
    once = hidden.grad.clone()
    output.loss.backward()
    torch.testing.assert_close(hidden.grad, 2 * once, **EXACT)


def relative_error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_lower_precision_stays_near_float64(device, dtype, tolerance):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    hidden, weight, ids, logprobs = make_case(40, 64, 1000, 100)
    low = [tensor.detach().to(device, dtype).requires_grad_() for tensor in (hidden, weight)]
    output = fused_linear_ckd(*low, ids.to(device, torch.int32), logprobs.to(device).float(), chunk_size=16)
    output.loss.backward()
    exact = [tensor.detach().double().cpu().requires_grad_() for tensor in low]
    expected = reference((*exact, ids, logprobs), top_m=100, tail_weight=10.0)
    expected[0].backward()
    assert output.loss.dtype == torch.float32
    for got, want in zip(output, expected, strict=True):
        assert got.item() == pytest.approx(want.item(), rel=1e-3)
    for got, want in zip(low, exact, strict=True):
        assert got.grad.dtype == dtype
        assert relative_error(got.grad.cpu(), want.grad) < tolerance


def test_autocast_does_not_lower_the_precision():
    hidden, weight, ids, logprobs = (tensor.detach() for tensor in make_case(20, 32, 200, 20))
    hidden, weight = hidden.float().requires_grad_(), weight.float().requires_grad_()
    plain = torch.autograd.grad(fused_linear_ckd(hidden, weight, ids, logprobs, top_m=20).loss, (hidden, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = fused_linear_ckd(hidden, weight, ids, logprobs, top_m=20).loss
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, weight)), plain, rtol=0, atol=0)


def test_a_head_of_another_type_is_cast_and_keeps_its_own_gradient_type():
    hidden, weight, ids, logprobs = make_case(6, 8, 40, 10)
    head = weight.detach().float().requires_grad_()
    fused_linear_ckd(hidden.detach().bfloat16(), head, ids, logprobs).loss.backward()
    assert head.grad.dtype == torch.float32 and head.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_VH": torch.zeros(40, 7)}, r"hidden \(6, 8\) and weight \(40, 7\)"),
        ({"teacher_ids_TK": torch.zeros(5, 10, dtype=torch.int64)}, r"teacher ids \(5, 10\)"),
        ({"teacher_logprobs_TK": torch.zeros(6, 9)}, r"log-probabilities \(6, 9\)"),
        ({"reduction": "none"}, "'none'"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"top_m": -1}, "top_m"),
        ({"teacher_ids_TK": torch.full((6, 10), 40)}, "teacher ids from 40 to 40 are outside the vocabulary of 40"),
        ({"teacher_ids_TK": torch.full((6, 10), -1)}, "teacher ids from -1 to -1 are outside"),
        ({"teacher_ids_TK": torch.zeros(6, 10)}, "teacher ids must be integers, not torch.float32"),
        ({"hidden_TH": torch.full((6, 8), torch.nan).double()}, "the hidden states hold NaN .* first in row 0 of 6"),
        ({"weight_VH": torch.full((40, 8), torch.inf).double()}, "the weights of the head hold NaN or infinite"),
        ({"teacher_logprobs_TK": torch.full((6, 10), torch.nan)}, "log-probabilities hold NaN"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    names = ("hidden_TH", "weight_VH", "teacher_ids_TK", "teacher_logprobs_TK")
    with pytest.raises(ValueError, match=message):
        fused_linear_ckd(**(dict(zip(names, make_case(6, 8, 40, 10), strict=True)) | change))


# ---- the baselines


def reference_kd(
    case: tuple[Tensor, ...], labels: Tensor, *, kind: str, kd_ratio: float, top_m: int, tail_weight: float
) -> Tensor:
    """The mean loss of a kind token by token in Python, left to autograd; the shares of akl are taken as constants."""
    hidden, weight, ids, logprobs = case
    total = hidden.sum() * 0
    for state, row_ids, row_logprobs, label in zip(
        hidden, ids.tolist(), logprobs.tolist(), labels.tolist(), strict=True
    ):
        log_q = torch.log_softmax(weight @ state, dim=0)
        pairs = [(i, math.exp(lp)) for i, lp in zip(row_ids, row_logprobs, strict=True) if lp > -math.inf]
        forward = sum((t * (math.log(t) - log_q[i]) for i, t in pairs), start=log_q.sum() * 0)
        reverse = sum((log_q[i].exp() * (log_q[i] - math.log(t)) for i, t in pairs), start=log_q.sum() * 0)
        if kind in ("fkl", "rskd"):
            distilled = forward
        elif kind == "rkl":
            distilled = reverse
        elif kind == "akl":
            gaps, reached = {True: 0.0, False: 0.0}, 0.0
            for i, t in sorted(pairs, key=lambda pair: -pair[1]):
                gaps[reached < 0.5] += abs(t - log_q[i].exp().item())
                reached += t
            distilled = (gaps[True] * forward + gaps[False] * reverse) / (gaps[True] + gaps[False])
        elif kind == "ckd":
            wrong = set(log_q.topk(min(top_m, len(log_q))).indices.tolist()) - set(row_ids)
            distilled = forward + tail_weight * sum((log_q[i].exp() for i in wrong), start=log_q.sum() * 0)
        else:
            distilled, kd_ratio = log_q.sum() * 0, 0.0
        total = total + kd_ratio * distilled - (1 - kd_ratio) * log_q[label]
    return total / len(hidden)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(LOSS_KINDS),
    kd_ratio=st.sampled_from([0.0, 0.3, 1.0]),
    rows=st.integers(1, 5),
    vocab=st.integers(2, 12),
    k=st.integers(1, 14),
    chunk_size=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_every_kind_is_its_reference(kind, kd_ratio, rows, vocab, k, chunk_size, seed):
    case = make_case(rows, 3, vocab, k, seed=seed)
    labels = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(seed))
    expected = reference_kd(case, labels, kind=kind, kd_ratio=kd_ratio, top_m=4, tail_weight=3.0)
    output = fused_linear_kd(
        *case, labels, kind=kind, kd_ratio=kd_ratio, top_m=4, tail_weight=3.0, chunk_size=chunk_size
    )
    torch.testing.assert_close(output.loss, expected, **EXACT)
    wanted = torch.autograd.grad(expected, case[:2])
    torch.testing.assert_close(torch.autograd.grad(output.loss, case[:2]), wanted, **EXACT)


@pytest.mark.parametrize("kd_ratio", [0.4, 1.0])
@pytest.mark.parametrize(
    "kind", [kind for kind in LOSS_KINDS if kind != "akl"]
)  # akl's shares are constants for the gradient
def test_gradcheck_of_every_kind(kind, kd_ratio):
    hidden, weight, ids, logprobs = make_case(4, 3, 20, 6)
    labels = torch.arange(4)

    def loss(h: Tensor, w: Tensor) -> Tensor:
        return fused_linear_kd(h, w, ids, logprobs, labels, kind=kind, kd_ratio=kd_ratio, top_m=8, chunk_size=3).loss

    assert torch.autograd.gradcheck(loss, (hidden, weight))


def test_akl_of_equal_distributions_is_zero():
    logits = torch.randn(3, 10, dtype=torch.float64)
    logprobs = torch.log_softmax(logits, dim=1)
    hidden = logits.clone().requires_grad_()
    ids = torch.arange(10).expand(3, -1)
    output = fused_linear_kd(hidden, torch.eye(10, dtype=torch.float64), ids, logprobs, kind="akl")
    output.loss.backward()
    assert output.loss.item() == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(hidden.grad, torch.zeros_like(hidden), rtol=0, atol=1e-12)


def test_statistics_are_those_of_the_whole_distribution():
    hidden, weight, ids, logprobs = make_case(9, 8, 300, 20)
    labels = torch.arange(9)
    output = fused_linear_kd(hidden, weight, ids, logprobs, labels, kind="fkl", top_m=25, chunk_size=4, statistics=True)
    log_q = torch.log_softmax(hidden.detach() @ weight.detach().T, dim=1)
    tops = log_q.topk(25).indices
    shared = [len(set(top) & set(row)) / 25 for top, row in zip(tops.tolist(), ids.tolist(), strict=True)]
    assert output.entropy.item() == pytest.approx(-(log_q.exp() * log_q).sum(1).mean().item(), abs=1e-12)
    assert output.overlap.item() == pytest.approx(sum(shared) / 9, abs=1e-12)
    assert output.ce.item() == pytest.approx(-log_q[range(9), range(9)].mean().item(), abs=1e-12)
    _, fkl, tail = reference((hidden, weight, ids, logprobs), top_m=25, tail_weight=10.0)
    assert (output.fkl.item(), output.tail.item()) == pytest.approx((fkl.item(), tail.item()), abs=1e-10)
    assert output.loss.item() == output.fkl.item()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "jsd"}, "kind must be one of ce, fkl, rkl, akl, rskd, ckd"),
        ({"kd_ratio": 1.5}, r"kd_ratio in \[0, 1\]"),
        ({"kind": "ce"}, "needs labels_T"),
        ({"kd_ratio": 0.5}, "needs labels_T"),
        ({"labels_T": torch.arange(5)}, r"labels \(5,\) must be \[T\] with T = 6"),
        ({"labels_T": torch.full((6,), -100)}, "labels from -100 to -100 are outside the vocabulary of 40"),
    ],
)
def test_wrong_arguments_of_a_kind_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fused_linear_kd(*make_case(6, 8, 40, 10), **options)


def test_drawn_shares_are_those_of_the_teacher():
    logprobs = np.log(np.array([[0.5, 0.25, 0.05, 0.0001], [0.1, 0.2, 0.3, 0.4]], dtype=np.float32))
    shares = np.exp([draw_shares(logprobs, sequence_id=f"s{i}", seed=3) for i in range(4000)])
    assert np.allclose(shares.sum(2), 1)
    assert np.isin(shares * 4, [0, 1, 2, 3, 4]).all()
    assert np.abs(shares.mean(0) - np.exp(logprobs) / np.exp(logprobs).sum(1, keepdims=True)).max() < 0.02
    again = draw_shares(logprobs, sequence_id="s7", seed=3)
    assert np.array_equal(np.exp(again), shares[7])
    assert any(
        not np.array_equal(np.exp(draw_shares(logprobs, sequence_id=f"s{i}", seed=4)), shares[i]) for i in range(9)
    )


# ---- the m largest of a long row


@settings(max_examples=30, deadline=None)
@given(
    vocab=st.integers(1600, 9000),
    m=st.integers(1, 120),
    seed=st.integers(0, 99),
    distinct=st.sampled_from([3, 50, 1_000_000]),
)
def test_top_ids_are_a_valid_top_m_also_under_ties(vocab, m, seed, distinct):
    rng = torch.Generator().manual_seed(seed)
    values = torch.randint(distinct, (3, vocab), generator=rng).double()
    ids = top_ids(values, m)
    assert all(len(set(row)) == m for row in ids.tolist())
    got, want = values.gather(1, ids).sort(dim=1).values, values.topk(m, dim=1).values.flip(1)
    assert torch.equal(got, want)


def test_a_long_vocabulary_is_the_reference():
    assert_same_as_reference(make_case(5, 8, 9001, 40), top_m=30, tail_weight=10.0, chunk_size=3)
