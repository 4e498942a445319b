"""In what order the codes of several codebooks become one sequence of token ids, and back.

A residual quantizer gives every frame one code per codebook, the first one the coarsest. Three orders are known, for
codes of codebooks A and B at frames 1, 2, 3:

    flattened       A1 B1 A2 B2 A3 B3          all codebooks of a frame side by side
    coarse_to_fine  A1 A2 A3 B1 B2 B3          a codebook for the whole clip, then the next (AudioLM, arXiv:2209.03143)
    delayed         A1 __ A2 B1 A3 B2 __ B3    codebook k comes k frames late (MusicGen, arXiv:2306.05284)

All codebooks share the ids [0, codebook_size): which one an id is of follows from its position. The delayed order
leaves cells empty at both ends. They hold one more id, `codebook_size`, which is an ordinary one to whoever models
the sequence.
"""

from typing import Literal

import torch

CodebookOrder = Literal["flattened", "coarse_to_fine", "delayed"]


def order_axes(order: CodebookOrder, num_frames: int, num_codebooks: int) -> dict[str, int]:
    """Name and length of the axes of the token grid, slowest first."""
    if order == "coarse_to_fine":
        return {"codebook": num_codebooks, "time": num_frames}
    delay = num_codebooks - 1 if order == "delayed" else 0
    return {"time": num_frames + delay, "codebook": num_codebooks}


def order_vocab_size(order: CodebookOrder, codebook_size: int) -> int:
    """How many ids there are: those of a codebook, and one for the empty cells of the delayed order."""
    return codebook_size + (order == "delayed")


def codes_to_token_ids(codes: torch.LongTensor, order: CodebookOrder, codebook_size: int) -> torch.LongTensor:
    """Codes `(batch, num_codebooks, num_frames)` to token ids `(batch, num_tokens)`."""
    if order == "coarse_to_fine":
        return codes.flatten(1)
    if order == "delayed":
        batch, num_codebooks, num_frames = codes.shape
        cells = codes.new_full((batch, num_codebooks, num_frames + num_codebooks - 1), codebook_size)
        codes = cells.scatter(2, _delayed_frames(codes.shape, codes.device), codes)
    return codes.transpose(1, 2).flatten(1)


def token_ids_to_codes(
    token_ids: torch.LongTensor, order: CodebookOrder, num_codebooks: int, codebook_size: int
) -> torch.LongTensor:
    """Token ids `(batch, num_tokens)` to codes `(batch, num_codebooks, num_frames)`; inverts `codes_to_token_ids`.

    Of the delayed order, what stands in the empty cells is not read; the id of empty cells where a code belongs,
    as only a model that guesses can put it, becomes code 0.
    """
    if order == "coarse_to_fine":
        return token_ids.unflatten(1, (num_codebooks, -1))
    cells = token_ids.unflatten(1, (-1, num_codebooks)).transpose(1, 2)
    if order == "flattened":
        return cells
    num_frames = cells.shape[2] - num_codebooks + 1
    codes = cells.gather(2, _delayed_frames((len(cells), num_codebooks, num_frames), cells.device))
    return codes.masked_fill(codes == codebook_size, 0)


def _delayed_frames(shape: tuple[int, int, int], device: torch.device) -> torch.LongTensor:
    """Where in time each code stands, `(batch, num_codebooks, num_frames)`."""
    _, num_codebooks, num_frames = shape
    delays = torch.arange(num_codebooks, device=device).unsqueeze(1)
    return (delays + torch.arange(num_frames, device=device)).expand(shape)
