"""Typed, strict configuration: YAML in, a frozen pydantic model out, errors that name the closest key."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from forcefield_ml.errors import ConfigError, closest


class StrictConfig(BaseModel):
    """Base of every configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


Config = TypeVar("Config", bound=StrictConfig)


def load_config(kind: type[Config], path: Path | str, **overrides: Any) -> Config:
    """Read a YAML file into a configuration.

    Parameters
    ----------
    kind
        The configuration class.
    path
        The YAML file, a mapping of keys to values.
    overrides
        Values that replace the file's, None meaning "as in the file" (command line options).

    Returns
    -------
    Config
        The validated configuration.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not a mapping, has unknown keys or values that are not allowed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}. Give the path of a YAML file.") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys and values ('dataset: ...'), not {type(values).__name__}.")
    values |= {key: value for key, value in overrides.items() if value is not None}
    return parse_config(kind, values, source=str(path))


def parse_config(kind: type[Config], values: Mapping[str, Any], source: str = "configuration") -> Config:
    """Validate plain values against a configuration class.

    Parameters
    ----------
    kind
        The configuration class.
    values
        Keys and values, as YAML or JSON holds them.
    source
        Where they came from, for the message.

    Returns
    -------
    Config
        The validated configuration.

    Raises
    ------
    ConfigError
        With one line for each thing that is wrong; an unknown key gets the closest name that exists.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(kind, detail) for detail in error.errors()]
    raise ConfigError(f"{source}:\n  " + "\n  ".join(lines))


def dump_config(config: StrictConfig, path: Path) -> None:
    """Write the resolved configuration as YAML, every default spelt out."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def _explain(kind: type[BaseModel], detail: Any) -> str:
    location = [str(part) for part in detail["loc"]]
    name = ".".join(location) or "the whole"
    if detail["type"] == "extra_forbidden":
        owner = _owner(kind, location[:-1])
        return f"unknown key {name!r}.{closest(location[-1], owner.model_fields if owner else ())}"
    if detail["type"] == "missing":
        return f"{name} is missing and has no default; add it."
    if detail["type"] == "value_error":
        told = str(detail["ctx"]["error"])  # of settings that do not go together it names them itself
        return f"{name}: {told}" if location else told
    return f"{name} is {detail['input']!r}: {detail['msg'].lower()}."


def _owner(kind: type[BaseModel], location: Iterable[str]) -> type[BaseModel] | None:
    current: type[BaseModel] | None = kind
    for part in location:
        field = current.model_fields.get(part) if current else None
        current = _nested(field.annotation) if field else None
    return current


def _nested(annotation: Any) -> type[BaseModel] | None:
    if get_origin(annotation) in (Union, types.UnionType):
        return next((found for choice in get_args(annotation) if (found := _nested(choice))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
