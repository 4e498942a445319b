"""Which row is drawn when, as a function of a seed and the number of the draw.

Every sample of a training has a number, its `draw`: 0 for the first, one more for each that follows, whatever the
number of processes and of DataLoader workers. The data set, the row and (through the collator, which seeds itself
with it) the mask of a sample follow from its draw, so a training that is cut off goes on exactly where it was.

Several data sets are mixed by weight: the draws of an epoch are shared out among them in these proportions, in random
order, and each data set is walked through in random permutations, one after the other. With weights proportional to
the sizes this is plain shuffling of all rows.

Where modalities belong together only by class, as a picture and a recording of the same digit, they may be paired anew
in every epoch: the ids of each modality but the first then come from any row of the class that has it.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import Dataset, Sampler


class DrawnRows(Dataset):
    """Rows of token data sets, indexed by draw; each row has its `draw` and a list, maybe empty, for every modality.

    Several rows at once, as a DataLoader asks for them, come as one Arrow table, which the collator reads without
    making Python objects of it.

    Args:
        sources: data sets with columns `{modality}_ids`; a data set may lack the column of a modality.
        weights: how often each is drawn from, in any unit; in proportion to the sizes if None.
        seed: of all permutations.
        pair_by: column with the class of a row. Each draw takes its first modality from the row, if that has it, and
            each other one from a row drawn at random among those of the same class in the same data set that have it,
            another in every epoch.

    An epoch has as many draws as the data sets have rows. The length is that of an epoch.

    Raises:
        ValueError: a data set is empty or lacks the column `pair_by`, `weights` are not one positive number per data
            set, or a weight is so small that its data set would not be drawn from once in an epoch.
    """

    def __init__(self, sources: list, weights: list[float] | None = None, seed: int = 0, pair_by: str | None = None):
        self.classes = None if pair_by is None else [_classes(source, pair_by) for source in sources]
        sources, self.columns = select_ids(sources)
        self.sources = [source.with_format("arrow") for source in sources]
        # A data set of each column alone: selecting one anew for each batch takes longer than reading it.
        self.single = [{name: source.select_columns(name) for name in source.column_names} for source in self.sources]
        self.weights = weights
        self.seed = seed
        self.pair_by = pair_by
        self.epoch = 0
        self.sizes = np.array([len(source) for source in self.sources])
        if not self.sizes.all():
            raise ValueError(f"data set {int(np.argmin(self.sizes)) + 1} of {len(sources)} has no rows")
        shares = check_weights(weights, self.sizes) * len(self)
        self.counts = np.floor(shares).astype(np.int64)
        self.counts[np.argsort(self.counts - shares, kind="stable")[: len(self) - self.counts.sum()]] += 1
        if not self.counts.all():
            raise ValueError(
                f"weights={weights}: the {len(self)} draws of an epoch leave none for data set "
                f"{int(np.argmin(self.counts)) + 1}; give it a larger weight or leave it out"
            )
        self._planned: tuple = (None, None, None)
        self._partners: dict[tuple, tuple] = {}
        self._present: dict[tuple, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def __getitem__(self, draw: int) -> dict:
        return self.__getitems__([draw]).to_pylist()[0]

    def __getitems__(self, draws: list[int]) -> pa.Table:
        draws = np.asarray(draws, dtype=np.int64)
        source_of, place_of = self.places(draws)
        order = np.argsort(source_of, kind="stable")
        tables = [self._rows(source, draws, source_of, place_of) for source in np.unique(source_of)]
        table = pa.concat_tables(tables, promote_options="permissive")
        if len(tables) > 1:
            table = table.take(np.argsort(order, kind="stable"))
        return complete_table(table, self.columns, draws)

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch the next pass of a `DrawSampler` over these rows is."""
        self.epoch = epoch

    def places(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The data set and the row in it of each draw, int64 of the shape of `draws`."""
        epochs, numbers = np.divmod(draws, len(self))
        source_of, place_of = np.empty_like(draws), np.empty_like(draws)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            sources, places = self._plan(int(epoch))
            source_of[mine], place_of[mine] = sources[numbers[mine]], places[numbers[mine]]
        return source_of, place_of

    def _rows(self, source: int, draws: np.ndarray, source_of: np.ndarray, place_of: np.ndarray) -> pa.Table:
        """The rows of one data set among some draws."""
        rows, mine = self.sources[source], source_of == source
        if self.classes is None:
            return rows[place_of[mine]]
        epoch_of, columns = draws[mine] // len(self), {}
        for column, name in enumerate(rows.column_names):
            partners = place_of[mine]
            for epoch in np.unique(epoch_of):
                chosen = epoch_of == epoch
                partners[chosen] = self._pairs(source, column, int(epoch))[partners[chosen]]
            columns[name] = self.single[source][name][partners][name]
        return pa.table(columns)

    def _pairs(self, source: int, column: int, epoch: int) -> np.ndarray:
        """For each row of a data set the row of its class whose ids of a modality it gets in this epoch."""
        if self._partners.get((source, column), (None,))[0] != epoch:
            names = self.sources[source].column_names
            class_of, has_it = self.classes[source], self._presence(source, names[column])
            number = np.bincount(class_of[has_it], minlength=class_of.max() + 1)
            members = np.flatnonzero(has_it)[np.argsort(class_of[has_it], kind="stable")]
            # Four numbers, where other seeds have two or three. The first column counts as the last: a trailing zero
            # would not count.
            draw = np.random.default_rng((self.seed, epoch, 1 + source, column or len(names)))
            chance = (draw.random(len(class_of)) * number[class_of]).astype(np.int64)
            partners = np.arange(len(class_of))
            # Without a row of the class that has the modality it stays the row's own, which is empty.
            draws = number[class_of] > 0 if column else ~has_it & (number[class_of] > 0)
            first = number.cumsum() - number
            partners[draws] = members[(first[class_of] + chance)[draws]]
            self._partners[source, column] = (epoch, partners)
        return self._partners[source, column][1]

    def _presence(self, source: int, name: str) -> np.ndarray:
        """Which rows of a data set have ids of a modality, bool `(rows,)`."""
        if (source, name) not in self._present:
            lengths = pc.list_value_length(self.single[source][name][:][name])
            self._present[source, name] = lengths.fill_null(0).to_numpy() > 0
        return self._present[source, name]

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if self._planned[0] != epoch:
            order = np.repeat(np.arange(len(self.sources)), self.counts)
            order = np.random.default_rng((self.seed, epoch)).permutation(order)
            places = np.empty_like(order)
            for source, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
                passes, steps = np.divmod(np.arange(epoch * count, (epoch + 1) * count), size)
                walked = [self._permutation(source, p)[steps[passes == p]] for p in np.unique(passes)]
                places[order == source] = np.concatenate(walked)
            self._planned = (epoch, order, places)
        return self._planned[1:]

    def _permutation(self, source: int, number: int) -> np.ndarray:
        # The 1 + keeps these seeds apart from those of the epochs: a trailing zero would not count.
        return np.random.default_rng((self.seed, int(number), 1 + source)).permutation(self.sizes[source])


class NumberedRows(Dataset):
    """All rows of token data sets, one after the other, for evaluation: the `draw` of a row is its place."""

    def __init__(self, sources: list):
        sources, self.columns = select_ids(sources)
        self.sources = [source.with_format("arrow") for source in sources]
        self.ends = np.cumsum([len(source) for source in self.sources])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, place: int) -> dict:
        return self.__getitems__([place]).to_pylist()[0]

    def __getitems__(self, places: list[int]) -> pa.Table:
        places = np.asarray(places, dtype=np.int64)
        source_of = np.searchsorted(self.ends, places, side="right")
        starts = np.concatenate([[0], self.ends])
        # Places rise within a batch, and with them the data sets.
        present = np.unique(source_of)
        tables = [self.sources[source][places[source_of == source] - starts[source]] for source in present]
        return complete_table(pa.concat_tables(tables, promote_options="permissive"), self.columns, places)


class DrawSampler(Sampler):
    """Yields the draws of an epoch of `DrawnRows`, in order: the shuffling is in the rows themselves."""

    def __init__(self, rows: DrawnRows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        first = self.rows.epoch * len(self.rows)
        yield from range(first, first + len(self.rows))

    # The epoch is kept with the rows, for Trainer and accelerate reach either the sampler or the data set, depending
    # on how many processes there are and whether batches are skipped.
    def set_epoch(self, epoch: int) -> None:
        self.rows.set_epoch(epoch)


def _classes(source, column: str) -> np.ndarray:
    """The class of each row, numbered from 0, int64 `(rows,)`."""
    if column not in source.column_names:
        raise ValueError(
            f"pair_by={column}: the tokens have no such column; they have {', '.join(source.column_names)}"
        )
    return np.unique(np.asarray(source[column][:]), return_inverse=True)[1]


def select_ids(sources: list) -> tuple[list, list[str]]:
    """The data sets with nothing but their columns of ids, and the names of all such columns in any of them."""
    selected = [source.select_columns([n for n in source.column_names if n.endswith("_ids")]) for source in sources]
    return selected, sorted({name for source in selected for name in source.column_names})


def complete_table(table: pa.Table, columns: list[str], draws: np.ndarray) -> pa.Table:
    """The rows with their draws, and with an empty list for each modality that their data set does not know."""
    for name in columns:
        if name not in table.column_names:
            table = table.append_column(name, pa.array([[]] * len(table), pa.list_(pa.int32())))
        elif (column := table[name]).null_count:
            filled = column.fill_null(pa.scalar([], column.type))
            table = table.set_column(table.column_names.index(name), name, filled)
    return table.select(columns).append_column("draw", pa.array(draws))


def complete_row(row: dict, columns: list[str], draw: int) -> dict:
    """The row with `draw`, and with an empty list for each modality that its data set does not know."""
    ids = {name: row.get(name) for name in columns}
    return {**{name: [] if value is None else value for name, value in ids.items()}, "draw": int(draw)}


def check_weights(weights: list[float] | None, sizes: np.ndarray) -> np.ndarray:
    """Shares that sum to one; ValueError unless `weights` are one positive number per data set."""
    if weights is None:
        weights = sizes.tolist()
    if len(weights) != len(sizes) or not all(np.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"dataset_weights={weights}: give one positive number for each of the {len(sizes)} data sets")
    return np.asarray(weights, dtype=np.float64) / np.sum(weights)
