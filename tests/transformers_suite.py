"""The tests that transformers runs on its own models, of exactly the installed version.

They are not in the wheel. Its source archive on the package index has them; what is needed of it is fetched once and
kept in the cache folder. Three of their imports are not in the archive either; empty stand-ins take their place.
"""

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
import transformers

STAND_INS = {
    "exporters/test_export.py": "class ExportTesterMixin: pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin: pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


def suite_module(name: str) -> ModuleType:
    """Import `tests/NAME.py` of transformers, such as "test_modeling_common".

    Skips the caller if they are out of reach; fails in CI (where the variable CI is set), which must run them.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nano4m" / "transformers_tests"
    folder = cache / transformers.__version__
    if not folder.exists():
        try:
            _fetch(folder)
        except subprocess.CalledProcessError as error:
            reason = error.stderr.strip().splitlines()[-1:] or ["unknown"]
            message = f"transformers' own tests could not be fetched: {reason[0]}"
            if os.environ.get("CI"):
                pytest.fail(message, pytrace=False)
            pytest.skip(message, allow_module_level=True)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.import_module(f"transformers_tests.{name}")


def _fetch(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        version = f"transformers=={transformers.__version__}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
        subprocess.run([*command, "--dest", scratch, version], check=True, capture_output=True, text=True)
        package = Path(scratch) / "unpacked" / "transformers_tests"
        with tarfile.open(next(Path(scratch).glob("transformers-*.tar.gz"))) as archive:
            for member in archive.getmembers():
                parts = Path(member.name).parts
                if len(parts) == 3 and parts[1] == "tests" and member.isfile() and parts[2].endswith(".py"):
                    _write(package / parts[2], archive.extractfile(member).read().decode("utf-8"))
        for name, text in STAND_INS.items():
            _write(package / name, text)
            _write((package / name).with_name("__init__.py"), "")
        _write(package / "__init__.py", "")
        os.replace(package.parent, folder)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
