"""CKD training on transformers' Trainer: the teacher's stored top-k in, the student's weights out; no teacher in memory.

T completion tokens of a batch, H hidden, V vocabulary, K teacher ids a token, B sequences, L padded length.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer

from star.ckd.loss import fused_linear_ckd
from star.config import Distill
from star.teacher.store import TopKStore
from star.teacher.topk import read_sequences
from star.training import IGNORE, collate_completions, supervised_arguments


class DistillationRows(Dataset):
    """A rollout's sequences joined with the teacher's top-k by sequence id."""

    def __init__(self, folder: Path) -> None:
        self.ids, self.sequences = read_sequences(folder)
        self.store = TopKStore(folder)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sequence = self.sequences[index]
        teacher_ids_TK, teacher_logprobs_TK = self.store[self.ids[index]]
        return {
            "input_ids": sequence.prompt_ids + sequence.completion_ids,
            "labels": [IGNORE] * len(sequence.prompt_ids) + sequence.completion_ids,
            "teacher_ids": torch.as_tensor(teacher_ids_TK, dtype=torch.int64),
            "teacher_logprobs": torch.as_tensor(teacher_logprobs_TK, dtype=torch.float32),
        }


class CKDTrainer(Trainer):
    """Minimises FKL_k + lambda * tail over the completion tokens of the whole batch (method: CKD loss).

    The loss is divided by the count of completion tokens of the whole batch, also under gradient accumulation.
    """

    def __init__(self, model, folder: Path, *, settings: Distill, state: Path, pad_id: int, seed: int) -> None:
        super().__init__(
            model=model,
            args=supervised_arguments(settings, folder=state, seed=seed),
            train_dataset=DistillationRows(folder),
            data_collator=lambda rows: collate_completions(rows, pad_id=pad_id),
        )
        self.settings = settings
        self.sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
        self.loss_tokens = 0

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        # The decoder is called past the forward that accelerate wraps in autocast.
        with self.accelerator.autocast():
            hidden_BLH = model.get_decoder()(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
            ).last_hidden_state
        # Prompts need no logits: only the rows that predict a completion token go on.
        hidden_TH = hidden_BLH[:, :-1][inputs["labels"][:, 1:] != IGNORE]
        output = fused_linear_ckd(
            hidden_TH,
            model.get_output_embeddings().weight,
            inputs["teacher_ids"],
            inputs["teacher_logprobs"],
            top_m=self.settings.top_m,
            tail_weight=self.settings.tail_weight,
            reduction="sum",
        )
        tokens = hidden_TH.shape[0]
        self.loss_tokens += tokens
        self.sums["fkl"] += output.fkl.double().cpu()
        self.sums["tail"] += output.tail.double().cpu()
        # Trainer sums over accumulation steps.
        loss = output.loss / (tokens if num_items_in_batch is None else num_items_in_batch)
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.loss_tokens and "loss" in logs:
            logs |= {name: float(total) / self.loss_tokens for name, total in self.sums.items()}
            self.sums.clear()
            self.loss_tokens = 0
        super().log(logs, *args, **kwargs)
