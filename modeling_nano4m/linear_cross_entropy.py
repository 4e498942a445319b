"""Cross-entropy of a linear head, without ever holding the logits of all targets.

The logits of 1,000 targets over 64,000 ids take 256 MB in float32, their gradient as much again. Here the targets are
taken a few hundred at a time, each over the vocabulary of its own modality only, and the gradients are computed on
the spot (as in Liger Kernel, Hsu et al. 2024, arXiv:2410.10989). A CPU takes the vocabulary in blocks, too, so that
all that is done to a logit is done in its cache. To autograd and to `torch.compile` it is one operation, so the loops
inside, whose lengths depend on the data, break no graph.
"""

import math
import threading
import weakref

import torch

from .layers_nano4m import as_multiplied

# Bytes of logits held at a time besides those that stand where gradients will.
LOGITS_AT_ONCE = 2**26
# Numbers of the weights taken at a time: few stay in a CPU's cache, many keep a GPU busy.
BLOCK_SIZE, GPU_BLOCK_SIZE = 2**22, 2**25
# Logarithms of sums of exponentials that float32 holds with room to spare are between this and its negative.
MOST_UNSHIFTED = 69.0


class _LentMemory(threading.local):
    """Memory of one large tensor on the CPU, lent again once that tensor is gone.

    The system hands out fresh memory of this size page by page, as it is first written to, which takes a CPU longer
    than to compute what it writes. (On GPUs, torch keeps what it once got.)
    """

    def __init__(self):
        self.memory = torch.empty(0, dtype=torch.uint8)
        self.borrower = lambda: None

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """An uninitialised tensor; an empty one, or one on another device than the CPU, is an ordinary one."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if device.type != "cpu" or not num_bytes:
            return torch.empty(shape, dtype=dtype, device=device)
        if self.borrower() is not None or self.memory.numel() < num_bytes:
            self.memory = torch.empty(num_bytes, dtype=torch.uint8)
        array = self.memory.numpy()[:num_bytes]
        self.borrower = weakref.ref(array)  # lives as long as a tensor in this memory
        return torch.from_numpy(array).view(dtype).view(shape)


_TABLE, _LOGITS, _FLOATS, _WEIGHT_GRADIENT = (_LentMemory() for _ in range(4))


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
        target_ids: true ids, each within its modality's vocabulary (which is not checked), `(targets,)` int64.
        modality_ids: modality of each target, `(targets,)` int64; -1 leaves a target out.
        token_weights: what the cross-entropy of each target counts in the sum, `(targets,)` float32.
        first_rows, vocab_sizes: where the vocabulary of each modality begins in `weight`, and how long it is.

    Returns:
        The weighted sum, float32, through which gradients flow; and the cross-entropy of each target in nats,
        `(targets,)` float32, through which they do not; 0 for those left out.
    """
    hidden_states = as_multiplied(hidden_states)
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
    table = weight
    if weight.dtype != hidden_states.dtype:
        table = _TABLE.empty(weight.shape, hidden_states.dtype, weight.device).copy_(weight)
    hidden_gradient, weight_gradient = hidden_states.new_empty(0), weight.new_empty(0)
    if needs_gradients:
        hidden_gradient = torch.zeros_like(hidden_states)
        weight_gradient = _WEIGHT_GRADIENT.empty(weight.shape, weight.dtype, weight.device)
    begun = 0  # rows of the weights' gradient before this one have a value
    sizes = modality_ids.new_tensor(vocab_sizes)[modality_ids]  # of each target's vocabulary
    for first_row in dict.fromkeys(first_rows):
        # Modalities that share their first rows are taken together, the longest vocabularies first.
        modalities = [index for index, own in enumerate(first_rows) if own == first_row]
        mine = torch.isin(modality_ids, modality_ids.new_tensor(modalities)).nonzero()[:, 0]
        mine = mine[sizes[mine].argsort(descending=True, stable=True)]
        while len(mine):
            part = None  # so that its memory can be lent again
            rows = slice(first_row, first_row + int(sizes[mine[0]]))
            # The first product is written, the others are added: nothing is set to zero only to add to it.
            is_first = needs_gradients and begun <= rows.start
            if needs_gradients:
                weight_gradient[begun : rows.start if is_first else rows.stop].zero_()
                begun = max(begun, rows.stop)
            # Until the gradient of the rows is written, exponentials of their logits stand in its place.
            room = weight_gradient[rows if is_first else slice(0)].flatten().view(hidden_states.dtype)
            num_rows = rows.stop - rows.start
            at_once = (len(room) + LOGITS_AT_ONCE // hidden_states.itemsize) // num_rows
            some, mine = mine.tensor_split([max(1, at_once)])
            part = _Part(hidden_states[some], target_ids[some], sizes[some], table[rows], room)
            losses[some] = part.losses
            if needs_gradients:
                scale = relative_weights[some, None]
                hidden_gradient[some] = part.add_gradients(weight_gradient[rows], scale, is_first) * scale
    weight_gradient[begun:].zero_()
    return (losses * token_weights).sum(), losses, unit, hidden_gradient, weight_gradient


@_linear_cross_entropy.register_fake
def _(hidden_states, weight, target_ids, modality_ids, token_weights, first_rows, vocab_sizes, needs_gradients):
    gradients = hidden_states.new_empty(0), weight.new_empty(0)
    if needs_gradients:
        gradients = torch.empty_like(hidden_states), torch.empty_like(weight)
    return token_weights.new_empty(()), torch.empty_like(token_weights), token_weights.new_empty(()), *gradients


class _Part:
    """Some targets over the vocabularies that begin at one row, a block of whose rows is worked on at a time.

    Sums and losses are float32. Exponentials are kept in the type of the states, which may be bfloat16: enough for all
    but the true ids, whose gradient is a small difference to 1 and is taken from their losses.

    Args:
        hidden_states: `(targets, hidden_size)`.
        target_ids: `(targets,)` int64.
        vocab_sizes: of each target, `(targets,)` int64, the largest first.
        table: weights of the longest vocabulary, `(rows, hidden_size)`, in the type of the states.
        room: memory where exponentials of logits stand, as far as there is room, until gradients are asked for, which
            may be written there: flat, as many numbers for each row; or empty.
    """

    def __init__(self, hidden_states, target_ids, vocab_sizes, table, room):
        self.hidden_states, self.table = hidden_states, table
        size = max(1, (BLOCK_SIZE if table.device.type == "cpu" else GPU_BLOCK_SIZE) // table.shape[1])
        # Vocabularies end where blocks end, so that each block concerns the first so many targets.
        edges = sorted({*range(0, len(table), size), *vocab_sizes.tolist()})
        blocks = [slice(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]
        edges = vocab_sizes.new_tensor(edges)
        counts = (vocab_sizes > edges[:-1, None]).sum(1).tolist()
        shapes = [(block.stop - block.start, count) for block, count in zip(blocks, counts, strict=True)]
        logits = _lay_out(shapes, [block.start * len(room) // len(table) for block in blocks], room)
        self.blocks = list(zip(blocks, logits, _find_true(target_ids, edges), strict=True))
        num_targets = len(hidden_states)
        self.floats = _FLOATS.empty((min(size, len(table)) * num_targets,), torch.float32, table.device)
        self.losses = torch.zeros(num_targets, dtype=torch.float32, device=table.device)
        self.normalizers = torch.full_like(self.losses, -torch.inf)
        self.shifts = []
        # Finding the largest logits and subtracting them takes a CPU as long as all else that is done to logits, and
        # is hardly ever needed; where it is, a block is computed once more.  On a GPU, to know that would take longer.
        shifted = table.device.type != "cpu" or table.dtype == torch.float16
        for block, logits, true_places in self.blocks:
            true_logits, normalizers, shift = self._exponentiate(block, logits, true_places, shifted)
            if not shifted and not bool(normalizers.abs().max() < MOST_UNSHIFTED):
                shifted = True
                true_logits, normalizers, shift = self._exponentiate(block, logits, true_places, shifted)
            self.losses[true_places[1]] -= true_logits
            own = self.normalizers[: len(normalizers)]
            torch.logaddexp(own, normalizers, out=own)
            self.shifts.append(shift)
        self.losses += self.normalizers

    def _exponentiate(self, block: slice, logits: torch.Tensor, true_places: tuple, shifted: bool) -> tuple:
        """Puts exponentials of a block's logits into `logits`, of each less its target's largest if `shifted`.

        Returns: the logits of the true ids; the logarithms of the sums of the exponentials of all, `(targets,)`; and
        what was subtracted, `(targets,)`.
        """
        torch.mm(self.table[block], self.hidden_states[: logits.shape[1]].T, out=logits)
        floats = logits if logits.dtype == torch.float32 else self._floats_like(logits).copy_(logits)
        true_logits = floats[true_places]
        shift = floats.new_zeros(())
        if shifted:
            shift = floats.amax(0)
            floats.sub_(shift)
        normalizers = floats.exp_().sum(0).log_().add_(shift)
        if floats is not logits:
            logits.copy_(floats)
        return true_logits, normalizers, shift

    def add_gradients(self, table_gradient: torch.Tensor, scale: torch.Tensor, is_first: bool) -> torch.Tensor:
        """Adds to the gradient of the table, or writes it if this is the first; returns that of the hidden states.

        `scale`, `(targets, 1)`, is what each target counts in the former; the latter is without it.
        """
        scaled_states = self.hidden_states * scale
        hidden_gradient = torch.zeros_like(self.hidden_states, dtype=torch.float32)
        for (block, exponentials, (rows, columns)), shift in zip(self.blocks, self.shifts, strict=True):
            count = exponentials.shape[1]
            factors = (shift - self.normalizers[:count]).exp_()
            gradient = self._floats_like(exponentials)
            if exponentials.dtype == gradient.dtype:
                torch.mul(exponentials, factors, out=gradient)
            else:  # one operation of two types would take longer
                gradient.copy_(exponentials).mul_(factors)
            gradient[rows, columns] = torch.expm1(-self.losses[columns])
            gradient = gradient.to(scale.dtype)
            _put_product(hidden_gradient[:count], gradient.T, self.table[block], add=True)
            _put_product(table_gradient[block], gradient, scaled_states[:count], add=not is_first)
        return hidden_gradient.to(scale.dtype)

    def _floats_like(self, logits: torch.Tensor) -> torch.Tensor:
        return self.floats[: logits.numel()].view_as(logits)


def _lay_out(shapes: list[tuple[int, int]], starts: list[int], room: torch.Tensor) -> list[torch.Tensor]:
    """Memory for tensors of these shapes, one after the other, none before its start: in `room`, the last ones outside
    where it is full."""
    spans, end = [], 0
    for shape, start in zip(shapes, starts, strict=True):
        begin, end = max(start, end), max(start, end) + math.prod(shape)
        if end > len(room) > begin:  # none stands half in, half outside
            begin, end = len(room), len(room) + math.prod(shape)
        spans.append(slice(begin, end))
    outside = _LOGITS.empty((max(0, end - len(room)),), room.dtype, room.device)
    memory = [
        room[span] if span.stop <= len(room) else outside[span.start - len(room) : span.stop - len(room)]
        for span in spans
    ]
    return [part.view(shape) for part, shape in zip(memory, shapes, strict=True)]


def _find_true(target_ids: torch.LongTensor, edges: torch.LongTensor) -> list[tuple[torch.LongTensor, ...]]:
    """For each block between two edges the places of the true ids in it, `(rows, columns)`."""
    blocks = torch.bucketize(target_ids, edges, right=True) - 1
    columns = blocks.argsort(stable=True)
    numbers = torch.bincount(blocks, minlength=len(edges) - 1).tolist()
    rows = (target_ids - edges[blocks])[columns]
    return list(zip(rows.split(numbers), columns.split(numbers), strict=True))


def _put_product(out: torch.Tensor, left: torch.Tensor, right: torch.Tensor, add: bool) -> None:
    """Write `left @ right` into `out`, which may be of another type, or add it."""
    if out.dtype == left.dtype:
        torch.addmm(out, left, right, beta=float(add), out=out)
    elif add:
        out.add_(left @ right)
    else:
        out.copy_(left @ right)


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
