"""One rank of a distillation of two, started by test_ranks.py through torchrun: trains a few steps and saves the weights.

python -m torch.distributed.run --nproc-per-node 2 tests/ckd/ranks.py TOPK STUDENT OUT [ddp|fsdp]
"""

import sys
from pathlib import Path

from star.ckd.trainer import CKDTrainer
from star.config import Distill
from star.models import load_model, load_tokenizer

if __name__ == "__main__":
    topk, student, out, wrapper = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    settings = Distill(
        steps=3, batch_size=4, micro_batch_size=1, learning_rate=1e-3, top_m=9, tail_weight=2.0, save_steps=3
    )
    pad_id = load_tokenizer(student).pad_token_id
    trainer = CKDTrainer(load_model(student), topk, settings=settings, state=out / "state", pad_id=pad_id, seed=1)
    assert ("FSDP" in str(trainer.accelerator.distributed_type)) == (wrapper == "fsdp"), (
        trainer.accelerator.distributed_type
    )
    trainer.train()
    trainer.save_model(str(out / "model"))
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(out / "state.json"))
