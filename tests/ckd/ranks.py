"""One process of a distillation, alone or one rank of several, started by test_ranks.py: a few steps, then the weights.

python tests/ckd/ranks.py TOPK OUT alone|ddp|fsdp [shared]

With `shared`, the samples of a prompt share it.
"""

import sys
from pathlib import Path

import torch
from accelerate import DistributedType, PartialState
from transformers import Qwen3Config, Qwen3ForCausalLM

from star.ckd.trainer import CKDTrainer
from star.config.training import Distill
from star.modeling import prompt_groups

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}


class ShardedTrainer(CKDTrainer):
    """Accelerate offers FSDP on accelerators only; where it takes the CPU for one, it shards over gloo all the same."""

    def create_accelerator_and_postprocess(self) -> None:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()


if __name__ == "__main__":
    topk, out, wrapper = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    torch.manual_seed(0)
    student = Qwen3ForCausalLM(Qwen3Config(vocab_size=300, **SIZES, **HEADS))
    settings = Distill(
        steps=3, batch_size=4, micro_batch_size=1, learning_rate=1e-3, top_m=9, tail_weight=2.0, save_steps=3
    )
    if sys.argv[4:] == ["shared"]:
        prompt_groups.MIN_WIDTH = 1
        settings = settings.model_copy(update={"share_prompts": True, "micro_batch_size": 2})
    trainer_class = ShardedTrainer if wrapper == "fsdp" else CKDTrainer
    trainer = trainer_class(student, topk, settings=settings, state=out / "state", pad_id=0, seed=1)
    kind = trainer.accelerator.distributed_type.name
    assert kind == {"alone": "NO", "ddp": "MULTI_CPU", "fsdp": "FSDP"}[wrapper], kind
    if wrapper == "alone":
        trainer.save_model(str(out / "started"))
    trainer.train()
    trainer.save_model(str(out / "model"))
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(out / "state.json"))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
