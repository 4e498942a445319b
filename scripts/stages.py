"""Stages of a longer run: each is done once, and done again only if what it was made from has changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch


def stage(folder: Path, identity: list, run: Callable[[list[str]], object], words: list[str]) -> None:
    """Run a stage unless `folder` was finished with the same identity; start over if it was another one.

    What was made with another identity is kept beside it, as `NAME.old`, until the next time.

    Args:
        folder: where the stage leaves its results, and `stage.json`, which remembers.
        identity: all that the results follow from, of what JSON can hold.
        run: the `main` of a script; an interrupted one is called again and may go on where it was.
        words: its command line.

    Raises:
        SystemExit: `folder` holds something that no stage has made.
    """
    stamp = folder / "stage.json"
    state = json.loads(stamp.read_text()) if stamp.exists() else {}
    identity = json.loads(json.dumps(identity))
    if state.get("identity") != identity:
        if folder.exists() and any(folder.iterdir()):
            if not stamp.exists():
                raise SystemExit(f"error: {folder} was not made by this script; choose another --output_dir")
            old = folder.with_name(f"{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        folder.mkdir(parents=True, exist_ok=True)
        state = {"identity": identity, "finished": False}
        stamp.write_text(json.dumps(state))
    if state["finished"]:
        print(f"{folder}: already there")
        return
    run(words)
    stamp.write_text(json.dumps({**state, "finished": True}))


def precision() -> list[str]:
    """bfloat16 where the machine computes in it, which halves the time of training."""
    if torch.cuda.is_available():
        return ["--bf16", "true"]
    return ["--use_cpu", "true", "--bf16", "true"] if torch.cpu._is_avx512_bf16_supported() else []


def attention() -> list[str]:
    """The backward pass of sdpa in bfloat16 is slow on CPUs: a step takes 0.97 s with it, 0.61 s without."""
    return ["--attn_implementation", "eager"] if "--use_cpu" in precision() else []


def title(text: str) -> None:
    print(f"\n== {text}", flush=True)
