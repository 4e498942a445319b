"""Python objects that users name on the command line, `FILE.py:Name`."""

import importlib.util
from pathlib import Path


def names_own_code(name: str) -> bool:
    """Whether a name has the form `FILE.py:Name`."""
    path, colon, _ = name.rpartition(":")
    return bool(colon) and path.endswith(".py")


def load_own_code(kind: str, name: str, *methods: str):
    """The object of that name in a file, or an instance if it is a class without arguments; `kind` is for messages.

    Raises:
        ValueError: there is no such file or object, or it lacks one of the methods.
    """
    path, _, attribute = name.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"{kind} {path}: no such file")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, attribute):
        raise ValueError(f"{kind} {name}: {path} defines no {attribute!r}")
    found = getattr(module, attribute)
    found = found() if isinstance(found, type) else found
    if not all(callable(getattr(found, method, None)) for method in methods):
        raise ValueError(f"{kind} {name}: must be a class or an object with the methods {' and '.join(methods)}")
    return found
