"""The Triton kernels compute what plain torch computes. Without a GPU they run in Triton's interpreter."""

import importlib.util
import logging

import pytest
import torch
from torch import Tensor

from star.ckd import backend, gradient, loss
from star.ckd.backend import choose_backend, find_triton_fault
from star.ckd.loss import LOSS_KINDS, fused_linear_kd
from star.ckd.terms import ChunkTargets, LossSettings

pytest.importorskip("triton", reason="needs Triton: pip install 'star-distill[gpu]'")
from star.ckd import kernel

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning:triton")  # of lanes that saw no logit yet
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EXACT = {"rtol": 0, "atol": 1e-12}


def make_logits(rows: int, vocab: int, k: int, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ChunkTargets]:
    rng = torch.Generator().manual_seed(vocab)
    logits = 3 * torch.randn(rows, vocab, generator=rng, dtype=dtype)
    ids = torch.stack([torch.randperm(vocab, generator=rng)[:k] for _ in range(rows)])
    ids[:, -1] = ids[:, 0]  # padded, as short rows are: the id twice, the second time with no probability
    logprobs = torch.log_softmax(2 * torch.randn(rows, k, generator=rng, dtype=dtype), dim=1)
    logprobs[:, -1] = -torch.inf
    labels = torch.randint(vocab, (rows, 1), generator=rng)
    labels[0] = ids[0, 0]
    return logits.to(DEVICE), ChunkTargets(ids.to(DEVICE), logprobs.to(DEVICE), labels.to(DEVICE))


def make_settings(**changed: object) -> LossSettings:
    settings = LossSettings(
        kind="ckd",
        kd_ratio=1.0,
        top_m=20,
        tail_weight=3.0,
        statistics=True,
        chunk_size=8,
        scale=1.0,
        grad_enabled=True,
    )
    return settings._replace(**changed)


def run_both_backends(
    logits: Tensor, targets: ChunkTargets, settings: LossSettings, dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    functions = gradient.logits_to_gradient_, kernel.logits_to_gradient_
    return [function(logits.clone(), targets, settings, gradient_dtype=dtype) for function in functions]


@pytest.mark.parametrize("kd_ratio", [0.4, 1.0])
@pytest.mark.parametrize("kind", LOSS_KINDS)
def test_every_kind_gives_what_plain_torch_gives(kind, kd_ratio):
    logits, targets = make_logits(3, 900, 12)
    settings = make_settings(kind=kind, kd_ratio=0.0 if kind == "ce" else kd_ratio)
    if kind != "ckd":
        settings = settings._replace(tail_weight=0.0)
    plain, ours = run_both_backends(logits, targets, settings, torch.float64)
    torch.testing.assert_close(ours, plain, **EXACT)


@pytest.mark.parametrize("top_m", [0, 4, 60])
@pytest.mark.parametrize(
    "vocab", [7, 15, 16, 1023, 1024, 2500, 17 * 1024 + 5]
)  # short of a block, of a group, beyond both
def test_vocabularies_of_any_size(vocab, top_m):
    logits, targets = make_logits(2, vocab, 5)
    settings = make_settings(top_m=min(top_m, vocab), statistics=top_m > 0)
    plain, ours = run_both_backends(logits, targets, settings, torch.float64)
    if not settings.statistics:
        plain[0][4] = ours[0][4]  # the kernel computes the entropy in any case
    torch.testing.assert_close(ours, plain, **EXACT)


def test_a_gradient_of_half_precision_lies_in_the_logits_own_bytes():
    logits, targets = make_logits(3, 2500, 12, dtype=torch.float32)
    targets.logprobs_CK[:, 0] = -0.02  # a gradient near t - q = 0 must not be a difference of two rounded numbers
    logits.scatter_(1, targets.ids_CK[:, :1], 14.0)
    expected_sums, expected = gradient.logits_to_gradient_(
        logits.clone(), targets, make_settings(), gradient_dtype=torch.float32
    )
    sums, dz = kernel.logits_to_gradient_(logits, targets, make_settings(), gradient_dtype=torch.bfloat16)
    assert dz.dtype == torch.bfloat16 and dz.shape == (3, 2500)
    assert dz.untyped_storage().data_ptr() == logits.untyped_storage().data_ptr()
    torch.testing.assert_close(sums, expected_sums, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        dz.float(), expected, rtol=2**-7, atol=1e-6
    )  # the interpreter cuts off where CUDA rounds
    at_ids, expected = dz.float().gather(1, targets.ids_CK), expected.gather(1, targets.ids_CK)
    torch.testing.assert_close(at_ids, expected, rtol=2**-8, atol=1e-6)


def test_extreme_logits():
    logits, targets = make_logits(3, 2500, 12)
    logits[0] *= 1e4
    logits[1] = 5.0
    logits[2, 100:] = -torch.inf
    targets.ids_CK.clamp_(max=99)
    plain, ours = run_both_backends(logits, targets, make_settings(top_m=40), torch.float64)
    torch.testing.assert_close(ours[0][4:5], plain[0][4:5], **EXACT)  # of equal logits any may be among the top m
    torch.testing.assert_close(ours[1][[0, 2]], plain[1][[0, 2]], **EXACT)
    assert ours[1].isfinite().all()


@pytest.mark.parametrize("grad", [True, False])
def test_the_loss_is_the_same_on_both_backends(grad, monkeypatch):
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 8, generator=rng, dtype=torch.float64).to(DEVICE).requires_grad_()
    weight = torch.randn(700, 8, generator=rng, dtype=torch.float64).to(DEVICE).requires_grad_()
    _, targets = make_logits(11, 700, 12)
    results = []
    for function in (gradient.logits_to_gradient_, kernel.logits_to_gradient_):
        monkeypatch.setattr(loss, "choose_backend", lambda device, function=function: function)
        with torch.set_grad_enabled(grad):
            output = fused_linear_kd(
                hidden, weight, targets.ids_CK, targets.logprobs_CK, top_m=20, chunk_size=4, statistics=True
            )
        results.append((*output, *(torch.autograd.grad(output.loss, (hidden, weight)) if grad else ())))
    torch.testing.assert_close(results[1], results[0], **EXACT)


def test_a_gradient_in_the_logits_own_bytes_is_used_before_the_next_logits_are_written(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 8, generator=rng).to(DEVICE).requires_grad_()
    weight = torch.randn(1500, 8, generator=rng).to(DEVICE).requires_grad_()
    _, targets = make_logits(11, 1500, 12, dtype=torch.float32)

    def gradients(chunk_size: int) -> tuple[Tensor, ...]:
        output = fused_linear_kd(hidden, weight, targets.ids_CK, targets.logprobs_CK, top_m=20, chunk_size=chunk_size)
        return torch.autograd.grad(output.loss, (hidden, weight))

    expected = gradients(11)

    def in_half_precision(logits: Tensor, *rest: object, gradient_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return kernel.logits_to_gradient_(logits, *rest, gradient_dtype=torch.bfloat16)

    def matmul_into(out: Tensor, left: Tensor, right: Tensor, *, add: bool) -> None:
        out.addmm_(left.to(out.dtype), right.to(out.dtype), beta=int(add))

    monkeypatch.setattr(loss, "choose_backend", lambda device: in_half_precision)
    monkeypatch.setattr(loss, "_matmul_into", matmul_into)
    monkeypatch.setattr(loss, "BLOCK_BYTES", {DEVICE: 1})
    torch.testing.assert_close(gradients(4), expected, rtol=2**-6, atol=1e-3)


def test_the_kernels_are_tried_before_they_are_chosen():
    assert find_triton_fault(DEVICE) is None
    assert find_triton_fault("meta").startswith("Triton does not run here: ")


@pytest.mark.parametrize(
    ("device", "fault", "function", "message"),
    [
        ("cuda", None, kernel.logits_to_gradient_, "runs its Triton kernels on cuda"),
        ("cuda", "no compiler", gradient.logits_to_gradient_, "as plain torch on cuda: no compiler"),
        ("cpu", None, gradient.logits_to_gradient_, "as plain torch on cpu"),
    ],
)
def test_the_choice_of_a_backend_is_logged_once(device, fault, function, message, monkeypatch, caplog):
    monkeypatch.setattr(backend, "find_triton_fault", lambda device: fault)
    choose_backend.cache_clear()
    with caplog.at_level(logging.INFO, logger="star.ckd.backend"):
        assert choose_backend(device) is function
        assert choose_backend(device) is function
    choose_backend.cache_clear()
    assert len(caplog.messages) == 1 and message in caplog.messages[0]


def test_without_triton_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'star-distill[gpu]'" in find_triton_fault("cuda")
