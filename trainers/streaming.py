"""Rows of token data sets that are read while training and never held as a whole.

As in `trainers.sampling` every row has its `draw`, from which its mask follows, and several data sets are mixed by
weight. The order comes from shuffling the files and a buffer of rows. The stream has no end: a data set that is read
through is read again in another order.
"""

from collections.abc import Iterator

import datasets
import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from trainers.sampling import check_weights, complete_row, select_ids


class StreamedRows(IterableDataset):
    """An endless, shuffled mixture of streams; each row has its `draw` and a list for every modality.

    A resumed training skips what it has read already, which takes a while and is exact. `state_dict` and
    `load_state_dict` skip it at once instead, without the rows that were in the buffers; they work in the process
    that iterates, so not with DataLoader workers.

    Args:
        sources: streams with columns `{modality}_ids`, of which a stream may lack some.
        weights: how often each is drawn from, in any unit.
        seed: of all draws.
        buffer_size: rows, of each stream, that are held and shuffled.

    Raises:
        ValueError: `weights` are not one positive number per stream; or, while iterating, a stream has no row for
            this process or DataLoader worker.
    """

    def __init__(
        self, sources: list[datasets.IterableDataset], weights: list[float], seed: int = 0, buffer_size: int = 10_000
    ):
        self.sources, self.columns = select_ids(sources)
        self.ends = np.cumsum(check_weights(weights, np.ones(len(sources))))
        self.weights = weights
        self.seed = seed
        self.buffer_size = buffer_size
        self._drawn = 0
        self._passes: list = [(0, None)] * len(sources)
        self._resumed: dict | None = None

    def __iter__(self) -> Iterator[dict]:
        start, self._resumed = self._resumed or {"drawn": 0, "passes": [(0, None)] * len(self.sources)}, None
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        streams = [self._read(source, *passed) for source, passed in enumerate(start["passes"])]
        self._drawn = start["drawn"]
        while True:
            draw = self._drawn * step + first
            place = np.random.default_rng((self.seed, draw)).random()
            source = min(int(np.searchsorted(self.ends, place, side="right")), len(streams) - 1)
            row = next(streams[source])
            self._drawn += 1
            yield complete_row(row, self.columns, draw)

    def _read(self, source: int, number: int, state: dict | None) -> Iterator[dict]:
        """Pass after pass over one stream, starting in pass `number`, where `state` says."""
        while True:
            seed = int(np.random.SeedSequence((self.seed, number, 1 + source)).generate_state(1)[0])
            stream = self.sources[source].shuffle(seed=seed, buffer_size=self.buffer_size)
            if state is not None:
                stream.load_state_dict(state)
            self._passes[source] = (number, stream)
            row = None
            for row in stream:
                yield row
            if row is None and state is None:
                raise ValueError(
                    f"data set {source + 1} of {len(self.sources)} has no rows, or fewer files than there are "
                    f"DataLoader workers: write more files or lower dataloader_num_workers"
                )
            number, state = number + 1, None

    def state_dict(self) -> dict:
        """Where the stream is; made of numbers, strings and lists only."""
        passes = [(number, stream and stream.state_dict()) for number, stream in self._passes]
        return {"drawn": self._drawn, "passes": passes}

    def load_state_dict(self, state: dict) -> None:
        """Let the next iteration go on from there."""
        self._resumed = state
