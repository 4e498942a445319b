"""What each process of `test_distributed.py` runs: `train_in_processes.py FOLDER [--sharded]`."""

import sys

from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from datasets import Dataset
from test_masking import make_rows
from test_modeling_nano4m import make_model
from test_trainer import arguments

from trainers import MaskingCollator, Nano4MTrainer, fit


class ShardedTrainer(Nano4MTrainer):
    """FSDP2 on CPUs, which accelerate can do but declines to choose there."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        for state in (self.accelerator.state, PartialState()):
            state.distributed_type = DistributedType.FSDP
        self.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["Nano4MEncoderLayer", "Nano4MDecoderLayer"],
            state_dict_type="FULL_STATE_DICT",
            reshard_after_forward=True,
        )
        self.is_fsdp_enabled = True


def train(folder, trainer_class=Nano4MTrainer, **changes):
    """Six steps over more than one epoch; an epoch is a whole number of steps, so that no process pads its part."""
    fields = {"max_steps": 6, "save_steps": 2, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 3}
    # Muon reckons in bfloat16, and what it rounds differently grows with its rate.
    fields |= {"muon_learning_rate": 3e-4, "ema_decay": 0.8, "per_device_train_batch_size": 2}
    fields |= {"per_device_eval_batch_size": 2, "gradient_accumulation_steps": 2}
    training = arguments(folder, **{**fields, **changes})
    # Of the rows to evaluate on, two processes repeat some, for they are no whole number of batches of both.
    data = {"train": Dataset.from_list(make_rows(32)), "validation": Dataset.from_list(make_rows(5, seed=1))}
    model = make_model()
    model.set_modality_defaults({"image": {"top_p": 0.9}})
    return fit(trainer_class, model, training, data, MaskingCollator(model.config.modalities, 12, 9))


if __name__ == "__main__":
    trainer = train(sys.argv[1], ShardedTrainer if "--sharded" in sys.argv else Nano4MTrainer)
    model = trainer.trained_model()
    if trainer.is_world_process_zero():
        model.save_pretrained(sys.argv[1])
