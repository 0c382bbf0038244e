"""Tells whether a model's logits are its last hidden states times its head, which the fused losses and the top-k compute.

Some architectures change the logits behind the head: they scale or cap them. The names of these settings differ, so a
few tokens are tried.

Shapes: T tokens, H hidden, V vocabulary.
"""

import torch
from transformers import PreTrainedModel

from star.errors import InputError


def is_plain_head(model: PreTrainedModel) -> bool:
    """Whether the logits are `hidden @ head.weight.T`, without a bias."""
    return getattr(model.get_output_embeddings(), "bias", None) is None and logits_are_head_output(model)


def require_plain_head(model: PreTrainedModel, *, what: str) -> None:
    """Checks that the logits are those of `is_plain_head`, because a loss computes with the head alone.

    Args:
        what: names the model in the error.

    Raises:
        InputError: they are not.
    """
    if not is_plain_head(model):
        raise InputError(
            f"{what} is of the architecture {type(model).__name__}, whose logits are not its head's product alone (a cap, a "
            "scale or a bias), and the distillation computes with the head: choose a model of another family"
        )


def require_head_output(teacher: PreTrainedModel) -> None:
    """Checks that the teacher's logits are its head's output, with its bias, because the extraction computes no others.

    Raises:
        InputError: they are not, so the stored probabilities would be others than the model's.
    """
    if not logits_are_head_output(teacher):
        raise InputError(
            f"the teacher is of the architecture {type(teacher).__name__}, whose logits are not its head's output alone (a cap "
            "or a scale), and the extraction computes with the head: get its top-k from vLLM or a server (`topk.vllm`, "
            "`topk.server`), or choose a model of another family"
        )


@torch.no_grad()
def logits_are_head_output(model: PreTrainedModel) -> bool:
    """Whether the logits are what the head makes of the last hidden states, with its bias where it has one."""
    # The logits of few tokens, or of random weights, may be too small for a cap to show.
    if getattr(model.config.get_text_config(), "final_logit_softcapping", None):
        return False
    was_training = model.training
    model.eval()  # without dropout, so that both passes compute the same
    try:
        head = model.get_output_embeddings()
        input_ids = torch.arange(min(4, len(head.weight)), device=model.device)[None]
        hidden_1TH = model.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
        expected_1TV = head(hidden_1TH.to(head.weight.dtype)).float()
        logits_1TV = model(input_ids=input_ids, use_cache=False).logits.float()
    finally:
        model.train(was_training)
    # In relation to the largest logit, because the products may be summed in another order.
    tolerance = 1e-4 if head.weight.dtype == torch.float32 else 2e-2
    # Written with `not`, because damaged weights (NaN) are no matter of the head and have errors of their own.
    return not float((logits_1TV - expected_1TV).abs().max()) > tolerance * float(expected_1TV.abs().max())
