"""The fused CKD loss against a plain one: full log_softmax, masks of V_k and V_m, and autograd, in float64."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from star.ckd import loss as loss_module
from star.ckd.loss import fused_linear_ckd

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
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64).log()
    ids, logprobs = torch.tensor([[1, 3]]), torch.tensor([[0.6, 0.2]], dtype=torch.float64).log()
    output = fused_linear_ckd(logits, torch.eye(4, dtype=torch.float64), ids, logprobs, top_m=2, tail_weight=10.0)
    fkl = 0.6 * math.log(0.6 / 0.3) + 0.2 * math.log(0.2 / 0.05)
    assert output.fkl.item() == pytest.approx(fkl, abs=1e-12)
    assert output.tail.item() == pytest.approx(0.5, abs=1e-12)  # V_m is {0, 1}: the top two of all, less id 1
    assert output.loss.item() == pytest.approx(fkl + 5.0, abs=1e-12)


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


def test_default_chunk_keeps_to_the_budget(monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 20 * 60 * 8)
    seen = []
    make_gradient = loss_module._logits_to_gradient_

    def spy(logits: Tensor, *rest: object) -> Tensor:
        seen.append(len(logits))
        return make_gradient(logits, *rest)

    monkeypatch.setattr(loss_module, "_logits_to_gradient_", spy)
    fused_linear_ckd(*make_case(50, 4, 60, 5))
    fused_linear_ckd(*make_case(20, 4, 6000, 5))
    fused_linear_ckd(*make_case(3, 4, 60, 5))
    assert seen == [20, 20, 10, 16, 4, 3]


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

    def spy(out: Tensor, *factors: Tensor, **options: bool) -> Tensor:
        products.append(tuple(out.shape))
        return matmul_into(out, *factors, **options)

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


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)])
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
    "change, message",
    [
        ({"weight_VH": torch.zeros(40, 7)}, r"hidden \(6, 8\) and weight \(40, 7\)"),
        ({"teacher_ids_TK": torch.zeros(5, 10, dtype=torch.int64)}, r"teacher ids \(5, 10\)"),
        ({"teacher_logprobs_TK": torch.zeros(6, 9)}, r"log-probabilities \(6, 9\)"),
        ({"reduction": "none"}, "'none'"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"top_m": -1}, "top_m"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    names = ("hidden_TH", "weight_VH", "teacher_ids_TK", "teacher_logprobs_TK")
    with pytest.raises(ValueError, match=message):
        fused_linear_ckd(**(dict(zip(names, make_case(6, 8, 40, 10), strict=True)) | change))
