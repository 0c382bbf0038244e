"""Tells whether a model's logits are its last hidden states times its head's weights, which the fused losses compute."""

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def is_plain_head(model: PreTrainedModel) -> bool:
    """Whether `logits == hidden @ head.weight.T`, found by computing both for a few tokens.

    Some architectures add a bias, scale the logits or cap them. The names of these settings differ, hence the trial.
    """
    was_training = model.training
    model.eval()  # without dropout, so that both passes compute the same
    try:
        input_ids = torch.arange(3, 7, device=model.device)[None]
        hidden_1TH = model.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
        weight_VH = model.get_output_embeddings().weight
        logits_1TV = model(input_ids=input_ids, use_cache=False).logits.float()
        product_1TV = (hidden_1TH.to(weight_VH.dtype) @ weight_VH.T).float()
    finally:
        model.train(was_training)
    # In relation to the largest logit, because the products may be summed in another order.
    tolerance = 1e-4 if weight_VH.dtype == torch.float32 else 2e-2
    return float((logits_1TV - product_1TV).abs().max()) <= tolerance * float(product_1TV.abs().max())
