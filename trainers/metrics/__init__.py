"""Metrics as `evaluate` modules, so that they compute alike on one process and on many.

Each lies in a folder of its own, where `evaluate.load("trainers/metrics/psnr")` finds it without a network.
`load_metric("psnr")` does the same from anywhere. Most share code with the rest of the project, so it must be
importable: installed (`pip install -e .`) or on PYTHONPATH. Where it is not, `evaluate` asks to
`pip install trainers`; do not, no package of that name on PyPI is ours.
"""

from pathlib import Path

import evaluate

from trainers.metrics.attribute_accuracy.attribute_accuracy import AttributeAccuracy

FOLDER = Path(__file__).parent
METRICS = tuple(sorted(path.stem for path in FOLDER.glob("*/*.py") if path.stem == path.parent.name))


def load_metric(name: str) -> evaluate.Metric:
    """The module of that name, one of `METRICS`.

    Raises:
        ValueError: there is no such metric.
    """
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}: there are {', '.join(METRICS)}")
    return evaluate.load(str(FOLDER / name))


__all__ = ["METRICS", "AttributeAccuracy", "load_metric"]
