"""Distillation on transformers' Trainer: the teacher's stored top-k in, the student's weights out; no teacher in memory.

One process or several ranks (DDP, FSDP) make the same step: the loss is divided by the count of completion tokens of the
whole batch, and the forward pass and the loss go through whatever accelerate wrapped the model in.

T completion tokens of a batch, H hidden, V vocabulary, K teacher ids a token, B sequences, L padded length.
"""

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer

from star.ckd.loss import KDOutput, fused_linear_kd
from star.ckd.objectives import draw_shares
from star.config.training import Distill
from star.errors import InputError
from star.modeling.training import IGNORE_INDEX, collate_completions, supervised_arguments
from star.topk.sequences import read_sequences
from star.topk.store import TopKStore

CKD_METRICS = ("fkl", "tail", "ce", "entropy", "overlap")  # of KDOutput, logged beside the loss


class DistillationRows(Dataset):
    """A rollout's sequences joined with the teacher's top-k by sequence id.

    With `draw_seed` the teacher's probabilities are replaced by shares drawn from them (RSKD).

    Raises:
        InputError: a row was asked for whose stored tokens are not as many as its completion's.
    """

    def __init__(self, folder: Path, *, draw_seed: int | None = None) -> None:
        self.ids, self.sequences = read_sequences(folder)
        self.store = TopKStore(folder)
        self.folder, self.draw_seed = folder, draw_seed

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sequence, sequence_id = self.sequences[index], self.ids[index]
        teacher_ids_TK, teacher_logprobs_TK = self.store[sequence_id]
        if len(teacher_ids_TK) != len(sequence.completion_ids):
            raise InputError(
                f"{self.folder} holds {len(teacher_ids_TK)} tokens for sequence {sequence_id!r}, whose completion has "
                f"{len(sequence.completion_ids)}: extract the top-k of these rollouts again"
            )
        if self.draw_seed is not None:
            teacher_logprobs_TK = draw_shares(teacher_logprobs_TK, sequence_id=sequence_id, seed=self.draw_seed)
        return {
            "input_ids": sequence.prompt_ids + sequence.completion_ids,
            "labels": [IGNORE_INDEX] * len(sequence.prompt_ids) + sequence.completion_ids,
            "teacher_ids": torch.as_tensor(teacher_ids_TK, dtype=torch.int64),
            "teacher_logprobs": torch.as_tensor(teacher_logprobs_TK, dtype=torch.float32),
        }


class CKDTrainer(Trainer):
    """Minimises `settings.kind` (CKD: FKL_k + lambda * tail) over the completion tokens of the whole batch.

    Raises:
        InputError: the student's head has fewer ids than the store's vocabulary.
    """

    def __init__(self, model, folder: Path, *, settings: Distill, state: Path, pad_id: int, seed: int) -> None:
        rows = DistillationRows(folder, draw_seed=seed if settings.kind == "rskd" else None)
        vocab_size = model.get_output_embeddings().weight.shape[0]
        if rows.store.vocab_size > vocab_size:
            raise InputError(
                f"{folder} was stored for a vocabulary of {rows.store.vocab_size} and the student's head has {vocab_size} "
                "ids: choose a student of the teacher's family"
            )
        super().__init__(
            model=model,
            args=supervised_arguments(settings, folder=state, seed=seed, logging_steps=1),
            train_dataset=rows,
            data_collator=lambda rows: collate_completions(rows, pad_id=pad_id),
        )
        self.settings = settings
        self._start_window()

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        student = self.accelerator.unwrap_model(model)
        output: KDOutput = as_forward_of(model, student, self._loss_of, inputs)
        tokens = inputs["teacher_ids"].shape[0]
        self.tokens += tokens
        self.sums_F += torch.stack([getattr(output, name).detach().double() for name in CKD_METRICS])
        # Trainer sums over accumulation steps, and DDP and FSDP average over ranks.
        everywhere = tokens if num_items_in_batch is None else num_items_in_batch / self.accelerator.num_processes
        loss = output.loss / everywhere
        return (loss, output) if return_outputs else loss

    def _loss_of(self, student, inputs: dict[str, torch.Tensor]) -> KDOutput:
        """The summed loss of a micro batch. Prompts need no logits: only rows that predict a completion token go on."""
        with self.accelerator.autocast():
            hidden_BLH = student.get_decoder()(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
            ).last_hidden_state
        labels_BL = inputs["labels"][:, 1:]
        is_completion_BL = labels_BL != IGNORE_INDEX
        hidden_TH = hidden_BLH[:, :-1][is_completion_BL]
        if self.args.bf16:  # as the head would be multiplied by under autocast, which the loss runs outside of
            hidden_TH = hidden_TH.bfloat16()
        head = student.get_output_embeddings()
        return as_forward_of(head, head, self._loss_of_rows, hidden_TH, labels_BL[is_completion_BL], inputs)

    def _loss_of_rows(self, head, hidden_TH: torch.Tensor, labels_T: torch.Tensor, inputs: dict[str, torch.Tensor]):
        return fused_linear_kd(
            hidden_TH,
            head.weight,
            inputs["teacher_ids"],
            inputs["teacher_logprobs"],
            labels_T,
            kind=self.settings.kind,
            kd_ratio=self.settings.kd_ratio,
            top_m=self.settings.top_m,
            tail_weight=self.settings.tail_weight,
            reduction="sum",
            statistics=True,
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the figures of the tokens since the last log, over all ranks; speed and memory are of this moment."""
        if self.tokens and "loss" in logs:
            # A tensor of its own a call: gathering is a collective that every rank takes part in.
            gathered = self.accelerator.reduce(
                torch.cat([self.sums_F, self.sums_F.new_tensor([self.tokens])]), reduction="sum"
            ).tolist()
            logs |= {name: total / gathered[-1] for name, total in zip(CKD_METRICS, gathered[:-1], strict=True)}
            logs["tokens_per_second"] = gathered[-1] / max(time.monotonic() - self.window_began, 1e-9)
            logs["memory_mib"] = peak_memory()
            if logs["loss"] != logs["loss"] or logs["fkl"] != logs["fkl"]:
                raise FloatingPointError(f"the loss is NaN at step {self.state.global_step}: lower the learning rate")
            self._start_window()
        super().log(logs, *args, **kwargs)

    def _start_window(self) -> None:
        self.sums_F = torch.zeros(len(CKD_METRICS), dtype=torch.float64, device=self.args.device)
        self.tokens, self.window_began = 0, time.monotonic()


def as_forward_of(wrapped, module, function: Callable, *arguments: Any) -> Any:
    """Calls `function(module, *arguments)` as the forward pass of `wrapped`, which is the module or what wraps it.

    So the hooks of DDP and FSDP run around it: inside, sharded weights are whole, and gradients are synchronised.
    """
    own = vars(module).get("forward")  # set where accelerate has wrapped it, else that of the class

    def give_back() -> None:
        if own is not None:
            module.forward = own
        else:
            vars(module).pop("forward", None)

    def redirected(*inner: Any, **_: Any) -> Any:
        give_back()
        return function(module, *inner)

    module.forward = redirected
    try:
        return wrapped(*arguments)
    finally:
        give_back()


def peak_memory() -> float:
    """MiB at most held so far: by torch on the GPU where there is one, else by this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts in KiB
