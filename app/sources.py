"""Where settings come from: flags, then `NURSERIES_*` variables, then a TOML file.

A setting is called `pool.size` here; that is `NURSERIES_POOL_SIZE` as a variable, and `size` in the table
`[nurseries.pool]` of the file. What there may be several of, such as models, is a list of tables (`[[nurseries.models]]`)
and stands in the file alone. A setting that is wrong is named, with its value and its source.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import reprlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args, get_type_hints

import attrs

from app.settings import Settings
from nurseries.errors import StartupFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX: Final = "NURSERIES_"
CONFIG_VARIABLE: Final = "NURSERIES_CONFIG"
OTHER_VARIABLES: Final = frozenset(
    {CONFIG_VARIABLE, "NURSERIES_URL", "NURSERIES_EMAIL", "NURSERIES_PASSWORD", "NURSERIES_ADMIN_TOKEN"}
)
"""Variables that are no settings: they name the file, or are the terminal client's."""

FILE_TABLE: Final = "nurseries"
_BOOLEANS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@attrs.frozen
class Option:
    """One setting.

    Attributes:
        name: with dots (`pool.size`).
        attribute: of the class that holds it.
        type: of its value.
    """

    name: str
    attribute: attrs.Attribute[Any]
    type: Any

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return PREFIX + self.name.replace(".", "_").upper()


@attrs.frozen
class Given:
    """What somebody set, and where."""

    value: Any
    source: str


class WrongEntry(ValueError):
    """Something in a list of tables is wrong: where in it, what stands there, and why."""

    def __init__(self, place: str, shown: str, reason: str) -> None:
        super().__init__(reason)
        self.place = place
        self.shown = shown


def options(cls: type = Settings, prefix: str = "") -> Iterator[Option]:
    """Yield all settings in the order of their definition."""
    hints = get_type_hints(cls)
    for attribute in attrs.fields(cls):
        kind, name = hints[attribute.name], prefix + attribute.name
        if attrs.has(kind):
            yield from options(kind, f"{name}.")
        else:
            yield Option(name, attribute, kind)


def load_settings(
    flags: Mapping[str, Any], config: Path | None = None, variables: Mapping[str, str] = os.environ
) -> Settings:
    """Return the settings of a server.

    Args:
        flags: those given on the command line, by the name of the setting; None stands for not given.
        config: the file, if not the one that `NURSERIES_CONFIG` names.
        variables: the environment.

    Raises:
        StartupFailed: a setting is unknown or wrong.
    """
    known = {option.name: option for option in options()}
    path = config or (Path(variables[CONFIG_VARIABLE]) if variables.get(CONFIG_VARIABLE) else None)
    given = _from_file(path, known) if path else {}
    for option in known.values():
        if option.variable in variables:
            given[option.name] = Given(variables[option.variable], f"the variable {option.variable}")
    for name, value in flags.items():
        if value is not None:
            given[name] = Given(value, f"the flag --{name.replace('_', '-')}")
    values, mistakes = {}, []
    for name, one in given.items():
        try:
            values[name] = _value(known[name], one.value)
        except WrongEntry as error:
            mistakes.append(f"{name}{error.place} = {error.shown}, from {one.source}: {error}")
        except ValueError as error:
            shown = reprlib.repr(one.value) if known[name].attribute.repr else "(hidden)"
            mistakes.append(f"{name} = {shown}, from {one.source}: {error}")
    if mistakes:
        raise StartupFailed("wrong settings: " + "; ".join(mistakes))
    settings: Settings = _build(Settings, values)
    return settings


def unknown_variables(variables: Mapping[str, str] = os.environ) -> list[str]:
    """Return the names of variables that look like settings and are none, such as misspelled ones."""
    known = {option.variable for option in options()} | OTHER_VARIABLES
    return sorted(name for name in variables if name.startswith(PREFIX) and name not in known)


def _from_file(path: Path, known: Mapping[str, Option]) -> dict[str, Given]:
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise StartupFailed(f"the settings file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StartupFailed(f"the settings file {path} is not TOML: {error}") from None
    for name in document:
        if name != FILE_TABLE or not isinstance(document[name], dict):
            raise StartupFailed(
                f"the settings file {path}: {name} stands outside of the table [{FILE_TABLE}]"
            )
    given = {}
    for name, value in _flat(document.get(FILE_TABLE, {}), known):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise StartupFailed(f"the settings file {path}: there is no setting {name}{hint}")
        given[name] = Given(value, f"the file {path}")
    return given


def _flat(
    table: Mapping[str, Any], known: Mapping[str, Option], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        name = prefix + key
        if isinstance(value, dict) and name not in known:
            yield from _flat(value, known, f"{name}.")
        else:
            yield name, value


def _value(option: Option, value: Any) -> Any:
    """Return the value as the setting's type.

    Raises:
        ValueError: it is not of that type, or out of bounds; the message says what it must be.
    """
    entry = entry_class(option.type)
    converted = _CONVERT[option.type](value) if entry is None else _entries(entry, value)
    validator = option.attribute.validator
    if validator is not None:
        try:
            validator(None, option.attribute, converted)
        except ValueError as error:
            # attrs puts the attribute's name in front, and for some validators the whole attribute behind.
            reason = str(error.args[0]).removeprefix(f"'{option.attribute.name}' ")
            raise ValueError(reason.removeprefix(f"{option.attribute.name} ")) from None
    return converted


def _boolean(value: Any) -> bool:
    if isinstance(value, str):
        value = _BOOLEANS.get(value.lower())
    if not isinstance(value, bool):
        raise ValueError("must be true or false")  # noqa: TRY004  # to whoever set it, it is a wrong value
    return value


def _integer(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("must be a whole number")


def _number(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (ValueError, TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("must be a number")
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")  # noqa: TRY004  # as above
    return value


def _path(value: Any) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError("must be a path")
    return Path(value).expanduser()


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(value.replace(",", " ").split())
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise ValueError("must be a list of strings")
    return tuple(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("must be a table")  # noqa: TRY004  # as above
    return value


_CONVERT: Final = {
    bool: _boolean,
    int: _integer,
    float: _number,
    str: _text,
    Path: _path,
    tuple[str, ...]: _texts,
    Mapping[str, Any]: _mapping,
}


def entry_class(kind: Any) -> type[Any] | None:
    """Return the class of the entries, if a setting of this type is a list of tables."""
    first = next(iter(get_args(kind)), None)
    return first if isinstance(first, type) and attrs.has(first) else None


def _entries(cls: type[Any], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ValueError("must be a list of tables, in the settings file")
    return tuple(_entry(cls, f"[{position}]", table) for position, table in enumerate(value))


def _entry(cls: type[Any], place: str, table: Mapping[str, Any]) -> Any:
    known = {option.name: option for option in options(cls)}
    values = {}
    for name, value in table.items():
        option = known.get(name)
        shown = reprlib.repr(value) if option is None or option.attribute.repr else "(hidden)"
        if option is None:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise WrongEntry(f"{place}.{name}", "(hidden)", f"there is no such setting{hint}")
        try:
            values[name] = _value(option, value)
        except ValueError as error:
            raise WrongEntry(f"{place}.{name}", shown, str(error)) from None
    missing = [name for name, option in known.items() if _is_required(option) and name not in values]
    try:
        if missing:
            raise ValueError(f"{missing[0]} is missing")  # noqa: TRY301  # as the class's own checks
        return cls(**values)
    except ValueError as error:
        raise WrongEntry(place, "{...}", str(error)) from None


def _is_required(option: Option) -> bool:
    return option.attribute.default is attrs.NOTHING


def _build(cls: type[Any], values: Mapping[str, Any], prefix: str = "") -> Any:
    """Make an instance of `cls` and of all classes in it from the values that were given."""
    hints = get_type_hints(cls)
    fields: dict[str, Any] = {}
    for attribute in attrs.fields(cls):
        name = prefix + attribute.name
        if attrs.has(hints[attribute.name]):
            fields[attribute.name] = _build(hints[attribute.name], values, f"{name}.")
        elif name in values:
            fields[attribute.name] = values[name]
    return cls(**fields)
