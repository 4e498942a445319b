"""Cross-entropy of a linear head, without ever holding the logits of all targets.

The logits of 1,000 targets over 64,000 ids take 256 MB in float32, their gradient as much again. Here the targets are
taken a few hundred at a time, each over the vocabulary of its own modality only, and the gradients are computed on
the spot, while the logits are still in the cache (as in Liger Kernel, Hsu et al. 2024, arXiv:2410.10989). To autograd
and to `torch.compile` it is one operation, so the loop inside, whose lengths depend on the data, breaks no graph.
"""

import torch

# Logits held at a time: 64 MB in float32.
LOGITS_AT_ONCE = 2**24
# Numbers of the weights' gradient that are held in the type of the products: they stay in the cache.
PRODUCT_AT_ONCE = 2**21


def linear_cross_entropy(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    target_ids: torch.LongTensor,
    modality_ids: torch.LongTensor,
    token_weights: torch.FloatTensor,
    first_rows: list[int],
    vocab_sizes: list[int],
) -> tuple[torch.FloatTensor, torch.FloatTensor]:
    """Weighted sum of the cross-entropies of targets from several vocabularies.

    Args:
        hidden_states: `(targets, hidden_size)`; products are computed in its type, or that of autocast.
        weight: rows of all vocabularies, `(rows, hidden_size)`; its gradient is added up in its own type.
        target_ids: true ids, each within its modality's vocabulary, `(targets,)` int64.
        modality_ids: modality of each target, `(targets,)` int64; -1 leaves a target out.
        token_weights: what the cross-entropy of each target counts in the sum, `(targets,)` float32.
        first_rows, vocab_sizes: where the vocabulary of each modality begins in `weight`, and how long it is.

    Returns:
        The weighted sum, float32, through which gradients flow; and the cross-entropy of each target in nats,
        `(targets,)` float32, through which they do not; 0 for those left out.
    """
    device_type = hidden_states.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        hidden_states = hidden_states.to(dtype)
    needs_gradients = torch.is_grad_enabled() and (hidden_states.requires_grad or weight.requires_grad)
    total, losses, *_ = _linear_cross_entropy(
        hidden_states, weight, target_ids, modality_ids, token_weights, first_rows, vocab_sizes, needs_gradients
    )
    return total, losses


@torch.library.custom_op("nano4m::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    target_ids: torch.Tensor,
    modality_ids: torch.Tensor,
    token_weights: torch.Tensor,
    first_rows: list[int],
    vocab_sizes: list[int],
    needs_gradients: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    losses = torch.zeros_like(token_weights)
    # Half precision cannot hold the weight of one target among very many; its gradients are in units of the largest.
    unit = token_weights.new_ones(())
    if hidden_states.dtype == torch.float16 and len(losses):
        unit = token_weights.amax().clamp_min(torch.finfo(token_weights.dtype).tiny)
    relative_weights = (token_weights / unit).to(hidden_states.dtype)
    table = weight.to(hidden_states.dtype)
    hidden_gradient, weight_gradient = _empty_gradients(hidden_states, weight, needs_gradients)
    hidden_gradient.zero_()
    begun = 0  # rows of the weights' gradient before this one have a value
    largest = max(vocab_sizes)
    # Held for all parts, as fresh memory of this size would take a CPU as long as the logits themselves.
    buffer = hidden_states.new_empty(min(max(LOGITS_AT_ONCE, largest), len(hidden_states) * largest))
    float_buffer = buffer if buffer.dtype == torch.float32 else torch.empty_like(buffer, dtype=torch.float32)
    # Modalities with the same rows are taken together: each product reads the rows and adds to their gradient.
    ranges = list(zip(first_rows, vocab_sizes, strict=True))
    for first_row, vocab_size in dict.fromkeys(ranges):
        rows = slice(first_row, first_row + vocab_size)
        modalities = [index for index, own in enumerate(ranges) if own == (first_row, vocab_size)]
        mine = torch.isin(modality_ids, modality_ids.new_tensor(modalities)).nonzero()[:, 0]
        for some in mine.split(max(1, LOGITS_AT_ONCE // vocab_size)) if len(mine) else ():
            states, ids = hidden_states[some], target_ids[some, None]
            part = slice(0, len(some) * vocab_size)
            product, logits = (flat[part].view(len(some), vocab_size) for flat in (buffer, float_buffer))
            torch.mm(states, table[rows].T, out=product)
            # Float32 from the logits on, for bfloat16 loses the difference between likely and certain.
            if logits.dtype != product.dtype:
                logits.copy_(product)
            log_probabilities = torch.log_softmax(logits, -1, out=logits)
            losses[some] = -log_probabilities.gather(1, ids)[:, 0]
            if needs_gradients:
                gradient = log_probabilities.exp_()
                gradient.scatter_add_(1, ids, gradient.new_full(ids.shape, -1.0))
                if logits.dtype != product.dtype:
                    gradient = product.copy_(gradient)
                scale = relative_weights[some, None]
                hidden_gradient[some] = (gradient @ table[rows]) * scale
                # The first product is written, the others are added: nothing is set to zero only to add to it.
                weight_gradient[begun : rows.start].zero_()
                if rows.start < begun:
                    weight_gradient[begun : rows.stop].zero_()
                _put_product(weight_gradient[rows], gradient.T, states * scale, add=rows.start < begun)
                begun = max(begun, rows.stop)
    weight_gradient[begun:].zero_()
    return (losses * token_weights).sum(), losses, unit, hidden_gradient, weight_gradient


@_linear_cross_entropy.register_fake
def _(hidden_states, weight, target_ids, modality_ids, token_weights, first_rows, vocab_sizes, needs_gradients):
    gradients = _empty_gradients(hidden_states, weight, needs_gradients)
    return token_weights.new_empty(()), torch.empty_like(token_weights), token_weights.new_empty(()), *gradients


def _empty_gradients(
    hidden_states: torch.Tensor, weight: torch.Tensor, needs_gradients: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    if not needs_gradients:
        return hidden_states.new_empty(0), weight.new_empty(0)
    return torch.empty_like(hidden_states), torch.empty_like(weight)


def _put_product(out: torch.Tensor, left: torch.Tensor, right: torch.Tensor, add: bool) -> None:
    """Write `left @ right` into `out`, which may be of another type, or add it."""
    if out.dtype == left.dtype:
        torch.addmm(out, left, right, beta=float(add), out=out)
        return
    size = max(1, PRODUCT_AT_ONCE // out.shape[1])
    for some_out, some_left in zip(out.split(size), left.split(size), strict=True):
        product = some_left @ right
        if add:
            some_out.add_(product)
        else:
            some_out.copy_(product)


def _keep_gradients(ctx, inputs, output):
    ctx.save_for_backward(*output[2:])
    ctx.set_materialize_grads(False)


@torch.library.custom_op("nano4m::scale_", mutates_args=("gradient",))
def _scale_(gradient: torch.Tensor, scale: torch.Tensor) -> None:
    # A CPU takes long over as many numbers as the vocabularies have, and mostly there is nothing to do.
    if scale.device.type != "cpu" or scale != 1:
        gradient.mul_(scale)


def _scale_gradients(ctx, total_gradient, *_):
    unit, hidden_gradient, weight_gradient = ctx.saved_tensors
    scale = total_gradient * unit
    # In place, for it is as large as the vocabularies; autograd then refuses a second backward pass.
    _scale_(weight_gradient, scale)
    return hidden_gradient * scale, weight_gradient, None, None, None, None, None, None


_linear_cross_entropy.register_autograd(_scale_gradients, setup_context=_keep_gradients)
