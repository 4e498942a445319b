"""What the encoder of nano4M keeps of all it has read, while tokens are generated."""

import torch

from .layers_nano4m import KeyValueCache


class Memory:
    """What the encoder has read so far: for every branch of guidance and every sample, branches outermost."""

    def __init__(self, model, batch: dict[str, torch.Tensor], num_branches: int):
        self.model = model
        self.num_branches = num_branches
        self.encoder_cache, self.decoder_cache = KeyValueCache(), KeyValueCache()
        self.states, self.valid_mask = model.encode(**batch, cache=self.encoder_cache)

    def ask(self, modality_id: int, positions: torch.LongTensor, asked: torch.BoolTensor) -> torch.FloatTensor:
        """Decoder states of the positions asked about, `(branches * samples, queries, hidden_size)`."""
        positions, asked = self._for_branches(positions), self._for_branches(asked)
        hidden_states = self.model.decode(
            torch.full_like(positions, modality_id),
            positions,
            self.states,
            self.valid_mask,
            asked,
            cache=self.decoder_cache,
        )
        self.states = self.states[:, :0]  # their keys and values are in the cache now
        return hidden_states

    def add(
        self, modality_id: int, ids: torch.LongTensor, positions: torch.LongTensor, fixed: torch.BoolTensor
    ) -> None:
        """Let the encoder read what was fixed, one token after the other."""
        self.valid_mask = torch.cat([self.valid_mask, self._for_branches(fixed)], dim=1)
        ids, positions = self._for_branches(ids * fixed), self._for_branches(positions)
        self.states = self.model.encode_more(
            ids, torch.full_like(ids, modality_id), positions, self.valid_mask, self.encoder_cache
        )

    def keep(self, samples: torch.BoolTensor) -> None:
        """Forget the samples that are finished."""
        rows = self._for_branches(samples[:, None])[:, 0].nonzero()[:, 0]
        self.states, self.valid_mask = self.states[rows], self.valid_mask[rows]
        self.encoder_cache.keep(rows)
        self.decoder_cache.keep(rows)

    def _for_branches(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.repeat(self.num_branches, *[1] * (tensor.ndim - 1))


def stacked(branches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Batches of different lengths as one, padded to the longest and cut to what is valid of it."""
    longest = max(branch["input_ids"].shape[1] for branch in branches)
    pad = torch.nn.functional.pad
    stacked = {
        name: torch.cat([pad(branch[name], (0, longest - branch[name].shape[1])) for branch in branches])
        for name in branches[0]
    }
    mask = stacked["input_valid_mask"]
    order = mask.long().argsort(dim=1, descending=True, stable=True)[:, : int(mask.sum(1).max())]
    return {name: tensor.gather(1, order) for name, tensor in stacked.items()}
