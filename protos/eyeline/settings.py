"""Configuration: one frozen, validated value, built once; flag over environment over file over default.

Needs pydantic and PyYAML, which the extras bring.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from eyeline.errors import ConfigError

MAX_FILE_BYTES = 1_000_000


class Settings(BaseModel):
    """Base of every section: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


S = TypeVar("S", bound=Settings)


def load(
    cls: type[S],
    path: Path | None,
    *,
    env_prefix: str,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    over: Mapping[str, Any] | None = None,
) -> S:
    """Build `cls` from a YAML file, the environment and flags; raises `ConfigError` with one line.

    over: values that go over the file's, see `merged`.

    env_prefix: `EYELINE_EDGE__` makes `EYELINE_EDGE__HUB__URL` the key `hub.url`; values are YAML scalars.
    overrides: dotted keys from the command line; None values are left out.
    """
    data = read_yaml(path) if path is not None else {}
    where = str(path) if path is not None else "settings (no configuration file was given)"
    if over:
        data = merged(data, over)
    for name, text in (os.environ if environ is None else environ).items():
        if name.upper().startswith(env_prefix):
            keys = name[len(env_prefix) :].lower().split("__")
            _put(data, keys, _value(cls, keys, name, text))
    for dotted, value in (overrides or {}).items():
        if value is not None:
            _put(data, dotted.split("."), value)
    try:
        return cls.model_validate(data)
    except ValidationError as problem:
        raise ConfigError(f"{where}: " + "; ".join(_explain(cls, problem))) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file; raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as problem:
        raise ConfigError(f"{path} cannot be read: {problem.strerror}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    try:
        data = yaml.safe_load(raw)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as problem:
        mark = getattr(problem, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path} is not YAML{place}") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(f"{path} must hold a mapping of settings")
    return data


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Sections key by key, lists of things with a `name` by name; whatever else is over takes the place."""
    found = dict(base)
    for key, value in over.items():
        under = found.get(key)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            found[key] = merged(under, value)
        elif _named(under) and _named(value):
            changes = {one["name"]: one for one in value}
            kept = [merged(one, changes.pop(one["name"], {})) for one in under or ()]
            found[key] = [*kept, *changes.values()]
        else:
            found[key] = value
    return found


def _named(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, Mapping) and isinstance(one.get("name"), str) for one in value)
    )


def secret(value: SecretStr | None, file: Path | None, what: str) -> str | None:
    """A password given directly (by the environment, say) or in a file; raises `ConfigError`."""
    if file is None:
        return value.get_secret_value() if value is not None else None
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as problem:
        raise ConfigError(f"{what}: {file} cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{what}: {file} is not text in UTF-8") from None


def _value(cls: type[BaseModel], keys: list[str], name: str, text: str) -> Any:
    """An environment variable's value; texts, passwords above all, need no quotes."""
    plain = _takes_text(cls, keys)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        if plain:
            return text
        raise ConfigError(f"environment variable {name} is not a YAML value") from None
    return text if plain and not isinstance(value, str | None) else value


def _takes_text(cls: type[BaseModel], keys: list[str]) -> bool:
    """Whether a setting is a text or a password, and nothing else."""
    section: Any = cls
    for key in keys[:-1]:
        field = section.model_fields.get(key) if _is_section(section) else None
        section = _section_in(field.annotation) if field is not None else None
    field = section.model_fields.get(keys[-1]) if _is_section(section) else None
    return field is not None and field.annotation in (str, str | None, SecretStr, SecretStr | None)


def _put(data: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = data.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{'.'.join(keys)} cannot be set: {key} is not a section")
        data = inner
    data[keys[-1]] = value


_WANTED: Final = {
    "string_type": "text: put it in quotes",
    "tuple_type": "a list: each entry begins with a dash",
    "list_type": "a list: each entry begins with a dash",
    "model_type": "a section: its keys are indented below it",
    "dict_type": "a section: its keys are indented below it",
}


def _explain(cls: type[BaseModel], problem: ValidationError) -> Iterator[str]:
    entries = problem.errors(include_url=False, include_input=False)
    for entry in entries:
        place = ".".join(str(part) for part in entry["loc"])
        depth = len(entry["loc"])
        if entry["type"] == "too_short" and any(
            len(other["loc"]) > depth and other["loc"][:depth] == entry["loc"] for other in entries
        ):
            continue  # pydantic counts only the good ones; what is wrong with the others is told anyway
        if entry["type"] == "missing":
            yield f"{place} is missing"
        elif entry["type"] == "too_short":
            yield f"{place} must have {entry['ctx']['min_length']} or more"
        elif entry["type"] in _WANTED:
            yield f"{place or 'settings'} must be {_WANTED[entry['type']]}"
        elif entry["type"] == "extra_forbidden":
            known = sorted(_keys_at(cls, entry["loc"][:-1]))
            close = difflib.get_close_matches(str(entry["loc"][-1]), known, 1, 0.5)
            hint = f"did you mean {close[0]!r}?" if close else "known here: " + ", ".join(known)
            yield f"unknown key {place!r}; {hint}"
        else:
            yield f"{place or 'settings'}: {entry['msg']}"


def _keys_at(cls: type[BaseModel], location: tuple[int | str, ...]) -> set[str]:
    section: Any = cls
    for part in location:
        if isinstance(part, int) or not _is_section(section):
            continue
        field = section.model_fields.get(part)
        section = _section_in(field.annotation) if field is not None else None
    return set(section.model_fields) if _is_section(section) else set()


def _is_section(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)


def _section_in(annotation: Any) -> Any:
    """The section class inside `X`, `X | None`, `tuple[X, ...]` or `dict[str, X]`."""
    if _is_section(annotation):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _section_in(inner)
        if found is not None:
            return found
    return None
