"""The rows of a builder in shards that are kept: after a kill, only the unfinished one is made again.

A shard is a folder with the rows of some source files (Arrow) and the files of the builder that say what was skipped.
It is written under another name and renamed when it is complete.  Which files are in which shard depends on their
number and on the builder only, so that neither processes nor interruptions change the rows or their order.
"""

import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_end
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset
from datasets.arrow_writer import ArrowWriter
from tqdm import tqdm

from dataset_scripts.media import free_decoders

FILES_PER_SHARD = 32  # at most; lost by a kill
SHARDS_PER_SPLIT = 64  # about so many if there are few files, so that as many processes have work
BYTES_PER_BATCH = 16 * 2**20  # rows held in memory before they are written
ROWS_FILE = "rows.arrow"
IDENTITY_FILE = "identity"


@dataclass(frozen=True)
class Shard:
    """A part of a split.

    name: of its folder.  split: which one it belongs to.  arguments: of the builder's `_generate_examples`, those that
    are lists with an entry per source file.
    """

    name: str
    split: str
    arguments: dict

    def __len__(self) -> int:
        """The number of source files."""
        return next(len(value) for value in self.arguments.values() if isinstance(value, list))


def make_shards(
    builder: datasets.GeneratorBasedBuilder, folder: Path, identity: str, num_proc: int | None = None
) -> dict[str, list[Dataset]]:
    """Makes the rows of a builder that has been scanned, except those of shards that `folder` holds already.

    Args:
        builder: its split generators have lists of equal length, an entry per source file; `files_at_once`, if it has
            that, is how many it had better be given together.
        folder: of the shards; what is in it is removed if it has another identity.
        identity: changes with everything that the rows depend on.
        num_proc: processes; each works on a shard at a time.

    Returns:
        The rows of each shard that has any, by split and in order, memory-mapped.
    """
    identity = f"{identity}-{FILES_PER_SHARD}-{SHARDS_PER_SPLIT}"
    written = folder / IDENTITY_FILE
    if not written.is_file() or written.read_text(encoding="utf-8") != identity:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        written.write_text(identity, encoding="utf-8")
    # What is known to be of no use before a file is opened is noted beside the shards, anew every time.
    with _output_folder(builder, folder):
        generators = builder._split_generators(None)
    together = getattr(builder, "files_at_once", 1)
    shards = [shard for generator in generators for shard in _cut(generator.name, generator.gen_kwargs, together)]
    missing = [shard for shard in shards if not (folder / shard.name).is_dir()]
    total = sum(map(len, shards))
    with tqdm(total=total, initial=total - sum(map(len, missing)), unit="file") as progress:
        progress.set_description("Preparing")
        if not num_proc or num_proc == 1 or len(missing) < 2:
            for shard in missing:
                write_shard(builder, folder, shard, progress.update)
        else:
            _write_in_processes(builder, folder, missing, num_proc, progress)
    rows = {str(generator.name): [] for generator in generators}
    for shard in shards:
        part = Dataset.from_file(str(folder / shard.name / ROWS_FILE))
        if len(part):
            rows[shard.split].append(part)
    return rows


def write_shard(
    builder: datasets.GeneratorBasedBuilder, folder: Path, shard: Shard, on_file: Callable[[int], object]
) -> None:
    """Writes one shard; `on_file` is called with 1 after each source file, or when it was heard."""
    unfinished = folder / f".{shard.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    features = builder.info.features
    with _output_folder(builder, unfinished):
        with ArrowWriter(features=features, path=str(unfinished / ROWS_FILE), writer_batch_size=10**9) as writer:
            held = 0
            for _, row in builder._generate_examples(**_counted(shard.arguments, on_file)):
                writer.write(_encode(row, features))
                held += _num_bytes(row)
                if held > BYTES_PER_BATCH:
                    writer.write_examples_on_file()
                    held = 0
            writer.finalize()
    os.rename(unfinished, folder / shard.name)


def _cut(split: str, gen_kwargs: dict, together: int) -> Iterator[Shard]:
    # Lists are what can be divided, as for `num_proc` of datasets.
    lists = {name: value for name, value in gen_kwargs.items() if isinstance(value, list)}
    (count,) = {len(value) for value in lists.values()}
    size = min(max(-(-count // SHARDS_PER_SPLIT), together), FILES_PER_SHARD)
    for number, start in enumerate(range(0, count, size)):
        part = {name: value[start : start + size] for name, value in lists.items()}
        yield Shard(f"{split}-{number:05d}", str(split), {**gen_kwargs, **part})


class _Counted(list):
    """A list that calls `on_next` with 1 when the entry after one is asked for, or there is none."""

    def __init__(self, entries: list, on_next: Callable[[int], object]):
        super().__init__(entries)
        self.on_next = on_next

    def __iter__(self):
        for entry in super().__iter__():
            yield entry
            self.on_next(1)


def _counted(arguments: dict, on_file: Callable[[int], object]) -> dict:
    name = next(name for name, value in arguments.items() if isinstance(value, list))
    return {**arguments, name: _Counted(arguments[name], on_file)}


@contextmanager
def _output_folder(builder: datasets.GeneratorBasedBuilder, folder: Path) -> Iterator[None]:
    """Has the builder note down skipped files in `folder`."""
    former, builder._output_dir = builder._output_dir, str(folder)
    try:
        yield
    finally:
        builder._output_dir = former


def _encode(row: dict, features: datasets.Features) -> dict:
    # As `Features.encode_example`, which makes eight times as many bytes of sound as it has: a list of numbers.
    arrays = {name: value for name, value in row.items() if isinstance(value, np.ndarray)}
    others = datasets.Features({name: feature for name, feature in features.items() if name not in arrays})
    return {**others.encode_example({name: row[name] for name in others}), **arrays}


def _num_bytes(value) -> int:
    if isinstance(value, dict):
        return sum(map(_num_bytes, value.values()))
    if isinstance(value, list):
        return sum(map(_num_bytes, value))
    return getattr(value, "nbytes", None) or (len(value) if isinstance(value, bytes | str) else 8)


# ----------------------------------------------------------------------------------------------------------
# Processes

_worker: tuple = ()  # what a worker process needs for all its shards


def _write_in_processes(builder, folder: Path, shards: list[Shard], num_proc: int, progress: tqdm) -> None:
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    counter = context.Value("q", 0)
    free_decoders()
    # A pool of this kind notices when a worker dies, say for lack of memory, instead of waiting for ever.
    shared = (builder, folder, counter, shards)
    with ProcessPoolExecutor(min(num_proc, len(shards)), context, _start_worker, shared) as pool:
        try:
            pending = {pool.submit(_write_in_worker, index) for index in range(len(shards))}
            while pending:
                finished, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                progress.update(counter.value - (progress.n - progress.initial))
                for future in finished:
                    future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start_worker(*shared) -> None:
    global _worker
    _worker = shared
    # A worker whose parent was killed would wait for work for ever, and keep the lock on the output folder.
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (wait_for_end([parent.sentinel]), os._exit(1)), daemon=True).start()


def _write_in_worker(index: int) -> None:
    builder, folder, counter, shards = _worker

    def count(number: int) -> None:
        with counter.get_lock():
            counter.value += number

    write_shard(builder, folder, shards[index], count)
