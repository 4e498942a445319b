"""An exponential moving average of the weights, evaluated and finally kept in place of the trained ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainerCallback

FILE = "averaged_weights.safetensors"


class AveragedWeights(TrainerCallback):
    """Averages the weights after every step; the last average is the model that training leaves.

    Of N steps the first decays are at most (1 + N) / (10 + N), so that the random start is soon forgotten.

    Args:
        decay: share of the average that a step keeps, in (0, 1).
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.average: EMAModel | None = None

    def start(self, model: nn.Module) -> None:
        """Begin with the weights that `model` has now, sharded or not."""
        self.average = EMAModel(model.parameters(), decay=self.decay, foreach=True)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.average.step(model.parameters())

    @torch.no_grad()
    def on_train_end(self, args, state, control, model=None, **kwargs):
        # EMAModel.copy_to cannot copy shards.
        for parameter, averaged in zip(model.parameters(), self.average.shadow_params, strict=True):
            parameter.copy_(averaged)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, `model` has the averaged weights; afterwards its own again, to the bit."""
        self._swap(model)
        try:
            yield
        finally:
            # A forward pass may leave whole weights in place of the shards that are trained.
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for parameter, averaged in zip(model.parameters(), self.average.shadow_params, strict=True):
            trained = parameter.clone()
            parameter.copy_(averaged)
            averaged.copy_(trained)

    def save(self, folder: str | Path, model: nn.Module, is_main_process: bool) -> None:
        """Write the average under the names of the model's parameters; every process must call it."""
        names = [name for name, _ in model.named_parameters()]
        weights = {}
        for name, averaged in zip(names, self.average.shadow_params, strict=True):
            gathered = whole(averaged)
            if is_main_process:  # all at once they may not fit on the device, nor on the host once for each process
                weights[name] = gathered.cpu().contiguous()
        if is_main_process:
            save_file(weights, Path(folder) / FILE, {"steps": str(self.average.optimization_step)})

    @torch.no_grad()
    def load(self, folder: str | Path, model: nn.Module) -> None:
        """Go on from what `save` wrote; ValueError if there is nothing."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise ValueError(f"{folder} has no {FILE}: it was trained without ema_decay, resume it without, too")
        with safe_open(path, "pt") as file:
            self.average.optimization_step = int(file.metadata()["steps"])
            for (name, _), averaged in zip(model.named_parameters(), self.average.shadow_params, strict=True):
                saved = file.get_tensor(name)
                if isinstance(averaged, DTensor):
                    saved = saved.to(averaged.device)
                    saved = distribute_tensor(saved, averaged.device_mesh, averaged.placements)
                averaged.copy_(saved)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or all of it where this process has but a shard."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
