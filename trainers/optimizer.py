"""Muon for the matrices of the transformer's layers, AdamW for everything else, as one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982) makes the
update of every matrix orthogonal, so that rare directions move as fast as common ones. Embeddings, heads, norms and
biases stay with AdamW. torch has both, but takes only matrices in its Muon; this class is what a Trainer needs to
see them as one.
"""

import torch
from torch import nn


class MuonWithAdamW(torch.optim.Optimizer):
    """Steps, saves and resumes two optimizers together.

    Args:
        model: whose parameters are trained; those with two dimensions inside `nn.ModuleList`s of layers go to Muon.
        muon_learning_rate: for these matrices, on the scale of AdamW's ("match_rms_adamw").
        learning_rate, betas, eps: AdamW's.
        weight_decay: of all matrices, of nothing else.
    """

    def __init__(
        self,
        model: nn.Module,
        muon_learning_rate: float,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        layers = {
            id(p) for m in model.modules() if isinstance(m, nn.ModuleList) for p in m.parameters() if p.ndim == 2
        }
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in trained if id(p) in layers]
        others = [p for p in trained if id(p) not in layers]
        groups = [
            {"params": [p for p in others if p.ndim == 2], "weight_decay": weight_decay},
            {"params": [p for p in others if p.ndim != 2], "weight_decay": 0.0},
        ]
        muon = torch.optim.Muon(
            matrices, lr=muon_learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=learning_rate, betas=betas, eps=eps, fused=True
        )
        super().__init__(muon.param_groups + adamw.param_groups, {})
        self.parts = (muon, adamw)
        self._share()

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        # One state and the very dictionaries of the groups, so that what a scheduler, a checkpoint or a sharding
        # writes here is what the parts step with.
        muon, adamw = self.parts
        muon.state = adamw.state = self.state
        muon.param_groups, adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
