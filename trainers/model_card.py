"""Publishing what was trained: the model card beside it, and the upload of the folder to the Hub."""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData, create_repo, upload_folder
from huggingface_hub.errors import HTTPError
from torch import nn
from transformers import TrainingArguments

from modeling_nano4m import Nano4MPipeline
from tokenizers_4m import TokenizerContract

TEMPLATE = Path(__file__).with_name("model_card.md.j2")
SPEEDS = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
EXAMPLES = {"image": "picture.png", "audio": "sound.wav", "text": "a red square moves left"}
# Checkpoints and curves of the training, and what a demo remembers of its stages.
NOT_UPLOADED = ("training/*", "stage.json")


def write_model_card(
    trained: Nano4MPipeline | TokenizerContract,
    folder: str | Path,
    data_sets: list[Mapping],
    settings: dict,
    log_history: list[dict],
    repo_id: str | None = None,
) -> Path:
    """Write `folder/README.md`, from which one can tell what the model is, how it was made and how it is used.

    Args:
        trained: what is saved in `folder`.
        folder: of the finished pipeline or tokenizer.
        data_sets: what it was trained and evaluated on, `split -> rows` each.
        settings: what to say of its training, see `trainers.settings.changed_settings`.
        log_history: of the `Trainer.state`; empty if there was none.
        repo_id: of the Hub repository that the folder is pushed to; None if it stays here.
    """
    modality = getattr(trained, "modality", None)
    parts = {f"{modality}_tokenizer": trained} if modality else trained.components
    metrics = final_metrics(log_history)
    modalities = [modality] if modality else list(trained.tokenizers)
    tags = ["nano4m", "4m"] + ([f"{modality}-tokenizer"] if modality else ["transformers", *modalities])
    card = ModelCard.from_template(
        ModelCardData(
            license="apache-2.0",
            library_name="transformers" if modality else "diffusers",
            pipeline_tag=None if modality else "any-to-any",
            tags=tags,
        ),
        template_path=str(TEMPLATE),
        title=f"{modality.capitalize()} tokenizer of nano4M" if modality else "nano4M",
        modality=modality,
        tokenizer=trained,
        modalities=modalities,
        examples=EXAMPLES,
        parameters={name: part.num_parameters() for name, part in parts.items() if isinstance(part, nn.Module)},
        repo_id=repo_id,
        folder=Path(folder).resolve().name,
        data=[row for data in data_sets for row in _describe(data)],
        settings=settings,
        steps=max((entry.get("step", 0) for entry in log_history), default=0),
        metrics={name: tuple(map(_number, values)) for name, values in metrics.items()},
    )
    path = Path(folder) / "README.md"
    card.save(path)
    return path


def final_metrics(log_history: list[dict]) -> dict[str, tuple[float | None, float | None]]:
    """The last value of every logged loss and evaluation metric, `name -> (in training, in evaluation)`."""
    last = {name: value for entry in log_history for name, value in entry.items()}
    training = {name: value for name, value in last.items() if name.startswith("loss")}
    evaluation = {
        name.removeprefix("eval_"): value
        for name, value in last.items()
        if name.startswith("eval_") and name not in SPEEDS
    }
    names = dict.fromkeys([*training, *evaluation])
    return {name: (training.get(name), evaluation.get(name)) for name in names}


def create_repository(training: TrainingArguments) -> str | None:
    """The Hub repository to push to, made if it is not there yet; None without `push_to_hub`.

    Processes other than the first leave it to that one, and get None. Called before
    training, so that a wrong name or a missing token does not cost a training.

    Raises:
        ValueError: if it cannot be made or reached.
    """
    if not training.push_to_hub or training.process_index != 0:
        return None
    name = training.hub_model_id or Path(training.output_dir).resolve().name
    try:
        return create_repo(name, private=training.hub_private_repo, token=training.hub_token, exist_ok=True).repo_id
    except (HTTPError, OSError) as error:
        raise ValueError(f"push_to_hub: cannot create the repository {name!r} ({error})") from error


def upload(repo_id: str, training: TrainingArguments) -> str:
    """Upload the finished `output_dir`: weights, code and card. Returns the address of the commit.

    Raises:
        ValueError: if the Hub cannot be reached or refuses.
    """
    try:
        commit = upload_folder(
            repo_id=repo_id,
            folder_path=training.output_dir,
            token=training.hub_token,
            revision=training.hub_revision,
            commit_message="Upload weights, code and model card",
            ignore_patterns=list(NOT_UPLOADED),
        )
    except (HTTPError, OSError) as error:
        raise ValueError(
            f"push_to_hub: {training.output_dir} is finished but could not be uploaded to {repo_id} ({error}); "
            "once that is solved, give the same command again: the training is not repeated"
        ) from error
    return commit.commit_url


def _describe(data: Mapping) -> list[dict]:
    """What is known of each split: which data set it is of, and how many clips it has (None of a stream)."""
    return [
        {"name": rows.info.dataset_name or "unnamed", "split": split, "clips": getattr(rows, "num_rows", None)}
        for split, rows in data.items()
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
