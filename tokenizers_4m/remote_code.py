"""Puts the code of a model beside its weights, so that `trust_remote_code=True` loads it where we are not installed.

transformers' `register_for_auto_class` does this for a class whose code lies in one folder. Ours shares modules with
its siblings in the folder above, and transformers takes a name with "Tokenizer" in it for a text tokenizer.
"""

import importlib.util
import re
import sys
from pathlib import Path

_RELATIVE_IMPORT = re.compile(r"^from (\.+)(\w+) import", re.MULTILINE)


def save_code(model_class: type, folder: str | Path) -> dict[str, str]:
    """Copy the module of `model_class`, and all that it imports relatively, side by side into `folder`.

    Modules from folders above come to lie beside the others, so their imports are rewritten to start with one dot.

    Returns:
        the `auto_map` for the config, from the name of an Auto class to `module.Class` in the folder.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    waiting, done = [model_class.__module__], set()
    while waiting:
        module = sys.modules[waiting.pop()]
        done.add(module.__name__)
        source = Path(module.__file__).read_text(encoding="utf-8")
        flat = _RELATIVE_IMPORT.sub(r"from .\2 import", source)
        (Path(folder) / Path(module.__file__).name).write_text(flat, encoding="utf-8")
        imported = ("".join(dots_and_name) for dots_and_name in _RELATIVE_IMPORT.findall(source))
        waiting += {importlib.util.resolve_name(name, module.__package__) for name in imported} - done
    auto_classes = {"AutoConfig": model_class.config_class, "AutoModel": model_class}
    return {name: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" for name, cls in auto_classes.items()}
