"""Runs code where the installed libraries can be imported and this project can not: as on somebody else's machine."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

# `-S` skips the .pth files, by which an editable install makes itself known; the libraries are then added by hand.
PREAMBLE = """
import importlib.util, sys
sys.path += {site_packages!r}
for name in ("modeling_nano4m", "tokenizers_4m", "dataset_scripts", "trainers"):
    assert importlib.util.find_spec(name) is None, name
"""


def run_isolated(code: str, scratch: Path, **environment: str) -> str:
    """Run `code` in a process of its own, offline unless `environment` says otherwise; returns what it printed."""
    site_packages = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    base = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    hub = {"HF_HOME": str(scratch), "HF_MODULES_CACHE": str(scratch / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PREAMBLE.format(site_packages=site_packages) + code],
        cwd=scratch,
        env={**base, **hub, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
