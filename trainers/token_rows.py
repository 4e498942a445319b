"""Reads a batch of rows, in whatever form a data set gives them, into flat arrays of token ids.

A data set in Arrow format hands out the lists of a batch as one array of values and one of offsets. Kept in that
form, no Python runs per row or token; lists of dictionaries are brought into it first.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass
class TokenRows:
    """The token ids of a batch, end to end, and where those of each row and modality lie.

    Args:
        values: all ids, `(tokens,)` of any integer type.
        starts: index in `values` of the first id of each row and modality, `(rows, modalities)` int64.
        lengths: how many ids each row has of each modality, `(rows, modalities)` int64.
        draw: the number of the batch's first row among all that training draws, if the rows have one.
    """

    values: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    draw: int | None

    @classmethod
    def read(
        cls, rows: list[dict] | Mapping | pa.Table, num_tokens: dict[str, int], vocab_sizes: dict[str, int]
    ) -> "TokenRows":
        """Collect the columns `{modality}_ids`, and `draw` if there is one.

        Args:
            rows: a list of dictionaries, a dictionary of columns, or an Arrow table, which is read fastest. A row
                holds a list of ids per modality, without padding; an empty one or None where it lacks the modality.
            num_tokens, vocab_sizes: `modality -> number`; which ids are legal.

        Raises:
            ValueError: for a column that is missing or holds something else than ids that the modality can have,
                and for a row without any token, or no row at all.
        """
        if isinstance(rows, list) and not rows:
            raise ValueError("a batch needs at least one row")
        if isinstance(rows, pa.Table):
            columns = dict(zip(rows.column_names, rows.columns, strict=True))
        elif isinstance(rows, Mapping):
            columns = rows
        else:
            columns = {name: [row.get(name) for row in rows] for name in rows[0]}
        values, starts, lengths = [], [], []
        read = 0
        for name, longest in num_tokens.items():
            part, first, length = _read_column(columns, name)
            if length.max(initial=0) > longest:
                raise ValueError(f"a row has {length.max()} {name} ids, the model takes {longest}")
            if len(part) and (part.min() < 0 or part.max() >= vocab_sizes[name]):
                wrong = part.min() if part.min() < 0 else part.max()
                raise ValueError(f"a row has the {name} id {wrong}, the model takes those in [0, {vocab_sizes[name]})")
            values.append(part)
            starts.append(first + read)
            lengths.append(length)
            read += len(part)
        if len(set(map(len, lengths))) > 1:
            raise ValueError(f"columns differ in length: {dict(zip(num_tokens, map(len, lengths), strict=True))} rows")
        lengths = np.stack(lengths, axis=1)
        if not len(lengths):
            raise ValueError("a batch needs at least one row")
        if not lengths.any(axis=1).all():
            raise ValueError(f"row {int(np.argmin(lengths.any(axis=1)))} of a batch has no token of any modality")
        draw = int(np.asarray(columns["draw"])[0]) if "draw" in columns else None
        return cls(np.concatenate(values), np.stack(starts, axis=1), lengths, draw)


def _read_column(columns: Mapping, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids end to end, and the index of the first one and the number of ids of each row."""
    field = f"{name}_ids"
    if field not in columns:
        raise ValueError(f"the rows lack the column {field!r}: they have {', '.join(map(str, columns))}")
    column = columns[field]
    try:
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        elif not isinstance(column, pa.Array):
            column = pa.array(list(column))
        if pa.types.is_null(column.type):  # no row has any
            column = pa.nulls(len(column), pa.list_(pa.int64()))
        elif not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            column = column.cast(pa.list_(column.type.value_type))
        offsets = column.offsets.to_numpy()
        # Only what belongs to these rows: behind a slice of a table lies the whole table.
        values = column.values[offsets[0] : offsets[-1]]
        if values.null_count or not (pa.types.is_integer(values.type) or not len(values)):
            raise pa.ArrowInvalid(f"values of type {values.type}, {values.null_count} of them missing")
    except (pa.ArrowException, AttributeError, TypeError) as error:
        raise ValueError(f"column {field!r} must hold one list of integer ids per row ({error})") from error
    lengths = np.diff(offsets).astype(np.int64)
    if column.null_count:
        lengths *= column.is_valid().to_numpy(zero_copy_only=False)
    ids = values.to_numpy() if len(values) else np.zeros(0, dtype=np.int64)
    return ids, offsets[:-1].astype(np.int64) - int(offsets[0]), lengths
