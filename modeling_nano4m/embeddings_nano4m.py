"""The embeddings of nano4M's tokens and queries, and which of them there are."""

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_nano4m import Nano4MConfig


class _ReadTied(torch.autograd.Function):
    """Rows of a table, and the table for further use; the gradient of both is one, added up in place."""

    @staticmethod
    def forward(ctx, table: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(ids)
        return F.embedding(ids, table), table.view_as(table)

    @staticmethod
    def backward(ctx, row_gradient: torch.Tensor, table_gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (ids,) = ctx.saved_tensors
        return table_gradient.index_add_(0, ids.flatten(), row_gradient.flatten(0, -2)), None


class Nano4MEmbeddings(nn.Module):
    """Embeds tokens (id, modality, position) and queries (modality, position).

    All vocabularies stand in one table, and so do all positions: the id of a modality is shifted by the sizes of
    the modalities before it, and a whole mixed batch is one lookup.
    """

    def __init__(self, config: Nano4MConfig):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.num_vocabulary_rows, config.hidden_size)
        self.modalities = nn.Embedding(len(config.modalities), config.hidden_size)
        self.positions = nn.ModuleDict(
            {
                name: nn.ModuleDict({axis: nn.Embedding(n, config.hidden_size) for axis, n in modality["token_axes"]})
                for name, modality in config.modalities.items()
            }
        )
        self.register_buffer("token_offsets", self._token_offsets(), persistent=False)
        self.register_buffer("position_offsets", self._position_offsets(), persistent=False)

    def forward(
        self,
        modality_ids: torch.Tensor,
        position_ids: torch.Tensor,
        token_ids: torch.Tensor | None = None,
        token_embeddings: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Ids of shape `(batch, length)` to `(batch, length, hidden_size)`; queries have no `token_ids`.

        `token_embeddings` are those of the `token_ids` alone, where they were read before.
        """
        embeddings = F.embedding(position_ids + self.position_offsets[modality_ids], self._position_table())
        embeddings = embeddings + self.modalities(modality_ids)
        if token_ids is not None:
            if token_embeddings is None:
                token_embeddings = self.tokens(token_ids + self.token_offsets[modality_ids])
            embeddings = embeddings + token_embeddings
        return embeddings

    def read_tied(self, token_ids: torch.Tensor, modality_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of the ids alone, and the table, to be the weight of the head that is tied to it.

        The gradient of tied weights has all rows, for the head's has. To write another one of all rows for the few
        tokens read, and to add the two up in a third, takes a CPU long.
        """
        return _ReadTied.apply(self.tokens.weight, token_ids + self.token_offsets[modality_ids])

    def _position_table(self) -> torch.Tensor:
        """Embeddings of every position of every modality, each the sum over its axes."""
        tables = []
        for axes in self.positions.values():
            table = 0
            for axis in axes.values():
                # By a call: a weight that is offloaded or sharded is there only while its module is called.
                places = axis(torch.arange(axis.num_embeddings, device=self.position_offsets.device))
                # The grid grows by one axis: (positions so far, 1, dim) + (1, axis, dim).
                table = places if isinstance(table, int) else (table[:, None] + places).flatten(0, 1)
            tables.append(table)
        return torch.cat(tables)

    def _token_offsets(self) -> torch.LongTensor:
        return torch.tensor([self.config.vocabulary_rows(name).start for name in self.config.modalities])

    def _position_offsets(self) -> torch.LongTensor:
        sizes = torch.tensor([self.config.num_tokens_of(name) for name in self.config.modalities])
        return sizes.cumsum(0) - sizes


def check_tokens(
    config: Nano4MConfig,
    side: str,
    modality_ids: torch.Tensor,
    position_ids: torch.Tensor,
    token_ids: torch.Tensor | None,
    valid_mask: torch.Tensor | None,
) -> None:
    """ValueError if a real token, `(batch, length)`, is none of the model's: it would be read as another modality's.

    `side` is how the error names them, "input" or "target".
    """
    real = torch.ones_like(modality_ids, dtype=torch.bool) if valid_mask is None else valid_mask.bool()
    names = config.modality_names
    if (((modality_ids < 0) | (modality_ids >= len(names))) & real).any():
        raise ValueError(f"{side}_modality_ids must lie in [0, {len(names)}): {', '.join(names)}")
    modality_ids = modality_ids * real
    for field, values, limit_of in (
        ("position_ids", position_ids, config.num_tokens_of),
        ("ids", token_ids, config.vocab_size_of),
    ):
        if values is None:
            continue
        limits = torch.tensor([limit_of(name) for name in names])[modality_ids]
        wrong = ((values < 0) | (values >= limits)) & real
        if wrong.any():
            name, limit = names[modality_ids[wrong][0]], limits[wrong][0]
            raise ValueError(f"{side}_{field} has {values[wrong][0]} for {name!r}, which takes those in [0, {limit})")
