"""Command lines of the scripts: an optional YAML file first, then `--field value` overrides."""

import dataclasses
import json
import sys
import types
import typing
from pathlib import Path

import yaml
from transformers import HfArgumentParser


def parse_args(*dataclass_types, description: str = "", argv: list[str] | None = None) -> tuple:
    """Fill one object of each dataclass from the command line; later values win over the YAML file's.

    Exits with status 2 and a message naming the field if one is unknown, missing or of the wrong type.
    """
    parser = HfArgumentParser(
        dataclass_types,
        description=description,
        usage="%(prog)s [CONFIG.yaml] [--field value ...]",
        allow_abbrev=False,
    )
    try:
        arguments = expand_yaml(sys.argv[1:] if argv is None else argv)
    except ValueError as error:
        parser.error(str(error))
    *values, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if unknown:
        parser.error(f"unknown field {unknown[0]}; run with --help for the fields there are")
    return tuple(values)


def expand_yaml(argv: list[str]) -> list[str]:
    """Replace a leading YAML file by the `--field value` words that it stands for."""
    if not argv or argv[0].startswith("-"):
        return list(argv)
    return words_of(read_yaml(argv[0])) + list(argv[1:])


def read_yaml(path: str | Path) -> dict:
    """The fields of a configuration file; ValueError if it is none."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such configuration file")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: must hold `field: value` lines")
    return fields


def words_of(fields: dict) -> list[str]:
    """`{"name": value}` as `--name value`, leaving out what is None."""
    words = []
    for name, value in fields.items():
        if value is not None:
            items = value if isinstance(value, list) else [value]
            words += [f"--{name}", *(json.dumps(item) if isinstance(item, dict) else str(item) for item in items)]
    return words


def field_value(name: str, argv: list[str]) -> str | None:
    """The last value given for a field, before the real parsing; for fields that decide which others exist."""
    words = expand_yaml(argv)
    found = [after for word, after in zip(words, words[1:], strict=False) if word == f"--{name}"]
    found += [word.partition("=")[2] for word in words if word.startswith(f"--{name}=")]
    return found[-1] if found else None


def fields_of(cls: type, without: tuple[str, ...] = ()) -> type:
    """A dataclass with the fields that `cls` itself declares, so that a config or collator can be set by flags."""
    fields = []
    for field in dataclasses.fields(cls):
        if field.name not in cls.__annotations__ or field.name in without:
            continue
        hint, default = _simple(field.type), field.default
        if typing.get_origin(hint) is list and default is not dataclasses.MISSING:
            items = list(default) if isinstance(default, (tuple, list)) else [default]
            default = dataclasses.field(default_factory=lambda items=items: list(items))
        fields.append((field.name, hint, default))
    return dataclasses.make_dataclass(f"{cls.__name__}Fields", fields)


def _simple(hint):
    """What a command line can spell: of `list[int] | tuple[int, ...]` it is `list[int]`, of a dictionary JSON.

    Where there may be a list beside a dictionary, it is one or more words of JSON.
    """
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    if any(typing.get_origin(member) is dict for member in members):
        return list[json.loads] if any(typing.get_origin(member) is list for member in members) else json.loads
    best = float if float in members else next((m for m in members if typing.get_origin(m) is list), members[0])
    return best if type(None) not in typing.get_args(hint) else best | None
