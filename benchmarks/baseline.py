"""A plain 4M (Mizrahi et al. 2023, arXiv:2312.06647), as a course would write it; what the benchmarks compare with.

One vocabulary, one input embedding and one output head serve all modalities; every sample is padded to the same number
of input and of target slots; the data set masks sample by sample; generation (ROAR, "random order autoregression")
takes one sample at a time. Nothing is done slowly on purpose, and nothing is done cleverly. Layers have the shapes and
names of nano4M's, so that a real token costs both the same and weights can be copied from one to the other.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

IGNORED = -100  # what `F.cross_entropy` skips; marks target slots without a token


class Attention(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: torch.Tensor, context: torch.Tensor, mask: torch.BoolTensor) -> torch.Tensor:
        q, k, v = self._heads(self.q_proj(x)), self._heads(self.k_proj(context)), self._heads(self.v_proj(context))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        return x.view(batch, length, self.num_heads, -1).transpose(1, 2)


class MLP(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.gelu(self.up_proj(x)))


class EncoderLayer(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int, num_heads: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size, eps=1e-6, bias=False)
        self.attention = Attention(hidden_size, num_heads)
        self.mlp_norm = nn.LayerNorm(hidden_size, eps=1e-6, bias=False)
        self.mlp = MLP(hidden_size, intermediate_size)

    def forward(self, x: torch.Tensor, mask: torch.BoolTensor) -> torch.Tensor:
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed, mask)
        return x + self.mlp(self.mlp_norm(x))


class DecoderLayer(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int, num_heads: int):
        super().__init__()
        self.self_attention_norm = nn.LayerNorm(hidden_size, eps=1e-6, bias=False)
        self.self_attention = Attention(hidden_size, num_heads)
        self.cross_attention_norm = nn.LayerNorm(hidden_size, eps=1e-6, bias=False)
        self.cross_attention = Attention(hidden_size, num_heads)
        self.mlp_norm = nn.LayerNorm(hidden_size, eps=1e-6, bias=False)
        self.mlp = MLP(hidden_size, intermediate_size)

    def forward(
        self, x: torch.Tensor, mask: torch.BoolTensor, context: torch.Tensor, context_mask: torch.BoolTensor
    ) -> torch.Tensor:
        normed = self.self_attention_norm(x)
        x = x + self.self_attention(normed, normed, mask)
        x = x + self.cross_attention(self.cross_attention_norm(x), context, context_mask)
        return x + self.mlp(self.mlp_norm(x))


class Baseline4M(nn.Module):
    """Encoder-decoder over padded token sequences.

    Args:
        vocab_size: of the largest modality; all share it.
        num_modalities, num_tokens: modality ids lie in `[0, num_modalities)`, positions in `[0, num_tokens)`.
        hidden_size, intermediate_size, num_heads, num_encoder_layers, num_decoder_layers: as in `Nano4MConfig`.
    """

    def __init__(
        self,
        vocab_size: int,
        num_modalities: int,
        num_tokens: int,
        hidden_size: int = 512,
        intermediate_size: int = 2048,
        num_heads: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
    ):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, hidden_size)
        self.modalities = nn.Embedding(num_modalities, hidden_size)
        self.positions = nn.Embedding(num_tokens, hidden_size)
        # The encoder reads it before anything else, so that a sample without a visible token is legal.
        self.start_state = nn.Parameter(torch.empty(1, 1, hidden_size))
        shape = hidden_size, intermediate_size, num_heads
        self.encoder_layers = nn.ModuleList(EncoderLayer(*shape) for _ in range(num_encoder_layers))
        self.encoder_norm = nn.LayerNorm(hidden_size, eps=1e-6, bias=False)
        self.decoder_layers = nn.ModuleList(DecoderLayer(*shape) for _ in range(num_decoder_layers))
        self.decoder_norm = nn.LayerNorm(hidden_size, eps=1e-6, bias=False)
        self.head = nn.Linear(hidden_size, vocab_size, bias=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def encode(
        self,
        input_ids: torch.LongTensor,
        input_modality_ids: torch.LongTensor,
        input_position_ids: torch.LongTensor,
        input_valid_mask: torch.BoolTensor,
    ) -> tuple[torch.Tensor, torch.BoolTensor]:
        """`(batch, num_inputs)` each to states `(batch, 1 + num_inputs, hidden_size)` and their attention mask."""
        x = self.tokens(input_ids) + self.modalities(input_modality_ids) + self.positions(input_position_ids)
        x = torch.cat([self.start_state.expand(len(x), -1, -1), x], dim=1)
        mask = F.pad(input_valid_mask, (1, 0), value=True)[:, None, None, :]
        for layer in self.encoder_layers:
            x = layer(x, mask)
        return self.encoder_norm(x), mask

    def decode(
        self,
        target_modality_ids: torch.LongTensor,
        target_position_ids: torch.LongTensor,
        target_valid_mask: torch.BoolTensor,
        context: torch.Tensor,
        context_mask: torch.BoolTensor,
    ) -> torch.Tensor:
        """States `(batch, num_targets, hidden_size)` of the queries; they see those of their own modality."""
        x = self.modalities(target_modality_ids) + self.positions(target_position_ids)
        same_modality = target_modality_ids[:, :, None] == target_modality_ids[:, None, :]
        # A padded query sees itself, or its softmax would be over nothing.
        itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        mask = (same_modality & target_valid_mask[:, None, :] | itself)[:, None]
        for layer in self.decoder_layers:
            x = layer(x, mask, context, context_mask)
        return self.decoder_norm(x)

    def forward(
        self,
        input_ids: torch.LongTensor,
        input_modality_ids: torch.LongTensor,
        input_position_ids: torch.LongTensor,
        input_valid_mask: torch.BoolTensor,
        target_ids: torch.LongTensor,
        target_modality_ids: torch.LongTensor,
        target_position_ids: torch.LongTensor,
        target_valid_mask: torch.BoolTensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean cross-entropy, and logits `(batch, num_targets, vocab_size)`; padded `target_ids` are `IGNORED`."""
        context, context_mask = self.encode(input_ids, input_modality_ids, input_position_ids, input_valid_mask)
        x = self.decode(target_modality_ids, target_position_ids, target_valid_mask, context, context_mask)
        logits = self.head(x)
        return F.cross_entropy(logits.flatten(0, 1), target_ids.flatten(), ignore_index=IGNORED), logits


class MaskedDataset(Dataset):
    """Rows with `{modality}_ids` lists, each masked by itself when it is asked for; torch's own collate stacks them.

    Args:
        rows: a `datasets.Dataset` or a list of dicts.
        modalities: names, in the order of their modality ids.
        max_inputs, max_targets: slots of input and of target tokens; each sample fills a random number of them.
        alpha: concentration of the Dirichlet draws that share the budgets out over the modalities.
    """

    def __init__(self, rows, modalities: list[str], max_inputs: int = 128, max_targets: int = 128, alpha: float = 1.0):
        self.rows = rows
        self.modalities = modalities
        self.max_inputs = max_inputs
        self.max_targets = max_targets
        self.dirichlet = torch.distributions.Dirichlet(torch.full((len(modalities),), alpha))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[index]
        tokens = [torch.tensor(row[f"{name}_ids"]) for name in self.modalities]
        lengths = torch.tensor([len(ids) for ids in tokens])
        num_inputs = self._budgets(int(torch.randint(1, self.max_inputs + 1, ())), lengths)
        num_targets = self._budgets(int(torch.randint(1, self.max_targets + 1, ())), lengths - num_inputs)
        inputs, targets = [], []
        for modality, ids in enumerate(tokens):
            positions = torch.randperm(len(ids))
            first, last = int(num_inputs[modality]), int(num_inputs[modality] + num_targets[modality])
            for chosen, side in ((positions[:first], inputs), (positions[first:last], targets)):
                side.append((ids[chosen], torch.full_like(chosen, modality), chosen))
        return {
            **self._padded("input", inputs, self.max_inputs, 0),
            **self._padded("target", targets, self.max_targets, IGNORED),
        }

    def _budgets(self, budget: int, available: torch.LongTensor) -> torch.LongTensor:
        """Share a budget out; what rounding leaves goes to the largest share, what a modality lacks is lost."""
        share = self.dirichlet.sample()
        budgets = (share * budget).long()
        budgets[share.argmax()] += budget - budgets.sum()
        return torch.minimum(budgets, available)

    def _padded(self, side: str, parts: list[tuple], slots: int, fill: int) -> dict[str, torch.Tensor]:
        ids, modality_ids, position_ids = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        padding = (0, slots - len(ids))
        return {
            f"{side}_ids": F.pad(ids, padding, value=fill),
            f"{side}_modality_ids": F.pad(modality_ids, padding),
            f"{side}_position_ids": F.pad(position_ids, padding),
            f"{side}_valid_mask": F.pad(torch.ones_like(ids, dtype=torch.bool), padding),
        }


@torch.inference_mode()
def generate(
    model: Baseline4M,
    token_ids: torch.LongTensor,
    modality_ids: torch.LongTensor,
    position_ids: torch.LongTensor,
    target_modality_id: int,
    num_tokens: int,
    vocab_size: int,
    num_steps: int,
) -> torch.LongTensor:
    """Generate a modality for one sample, some positions in each step, given all tokens that are known so far.

    Args:
        token_ids, modality_ids, position_ids: the condition, `(length,)` int64 each.
        target_modality_id, num_tokens, vocab_size: of the modality to generate.
        num_steps: among which the positions, in random order, are divided evenly.

    Returns:
        `(num_tokens,)` int64.
    """
    generated = torch.zeros(num_tokens, dtype=torch.int64, device=token_ids.device)
    for positions in torch.randperm(num_tokens, device=token_ids.device).tensor_split(num_steps):
        seen = torch.ones(1, len(token_ids), dtype=torch.bool, device=token_ids.device)
        asked = torch.ones(1, len(positions), dtype=torch.bool, device=token_ids.device)
        context, context_mask = model.encode(token_ids[None], modality_ids[None], position_ids[None], seen)
        target_modality_ids = torch.full_like(positions, target_modality_id)
        x = model.decode(target_modality_ids[None], positions[None], asked, context, context_mask)
        probabilities = model.head(x)[0, :, :vocab_size].softmax(-1)
        sampled = torch.multinomial(probabilities, 1)[:, 0]
        generated[positions] = sampled
        token_ids = torch.cat([token_ids, sampled])
        modality_ids = torch.cat([modality_ids, target_modality_ids])
        position_ids = torch.cat([position_ids, positions])
    return generated
