"""The flag for a config, and what is wrong with a config or with overrides of its fields."""

import difflib
import importlib.machinery
import importlib.util
import itertools
import pathlib
import pkgutil
import re
import sys
import traceback
import types
from collections.abc import Sequence

import ml_collections
from absl import flags
from ml_collections import config_dict, config_flags

from segmenter_jax.runtime.errors import first_line, one_line

_SHIPPED = "segmenter_jax.configs"
_NONE = "None"


class ConfigFlagError(flags.Error):
    """The config cannot be used, or has no field that an override names."""


class _OptionalParser(flags.ArgumentParser):
    """Takes "None" beside what another parser takes; `_check_fields` knows where it may stand."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser

    def flag_type(self) -> str:
        """What `--help` calls a value."""
        return self._parser.flag_type()

    def parse(self, argument: object) -> object:
        """The value of an override."""
        return None if argument == _NONE else self._parser.parse(argument)


# ml_collections takes None for a placeholder in a file, but not on the command line.
for _type, _parser in (
    (bool, flags.BooleanParser()),
    (float, flags.FloatParser()),
    (int, flags.IntegerParser()),
    (str, flags.ArgumentParser()),
):
    config_flags.register_flag_parser_for_type(_type, _OptionalParser(_parser))


class ConfigFileParser(flags.ArgumentParser):
    """Makes the config that a flag of `config_flags` names.

    That is one of `segmenter_jax.configs` by its name, or a file by its path. An argument for its
    `get_config` may follow, after a colon.
    """

    def __init__(self, name: str, argv: Sequence[str] | None = None):
        """Takes the name of the flag, and the arguments with its overrides; None: sys.argv."""
        self._name, self._argv = name, argv

    def flag_type(self) -> str:
        """What `--help` calls a value."""
        return "config"

    def parse(self, argument: str) -> ml_collections.ConfigDict:
        """The locked config.

        Args:
          argument: name of a config, or path of a file.

        Raises:
          ConfigFlagError: there is no such config, it fails, or the command line overrides a field
            that it does not have.
        """
        name, *rest = argument.split(":", 1)
        names = config_names()
        if name not in names and not pathlib.Path(name).is_file():
            raise ConfigFlagError(
                f"--{self._name}={argument}: there is no file {pathlib.Path(name).absolute()}, "
                f"and the names of configs are {', '.join(names)}"
            )
        try:
            if name in names:
                module = importlib.import_module(f"{_SHIPPED}.{name}")
            else:
                module = _load_file(name, f"{self._name}_file")
            get_config = getattr(module, "get_config", None)
            config = get_config and get_config(*rest)
        except Exception as error:  # A config file may raise anything.
            raise ConfigFlagError(_failure(error, name)) from error
        if get_config is None:
            raise ConfigFlagError(f"{name}: defines no get_config")
        if type(config) is not ml_collections.ConfigDict:
            raise ConfigFlagError(
                f"{name}: get_config returned a {type(config).__name__}, not a ConfigDict"
            )
        _check_fields(config, self._name, sys.argv if self._argv is None else self._argv)
        return config.lock()


def read_config(name: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """The config that the flags `--config=NAME OVERRIDES` make, for commands without absl's flags.

    Args:
      name: of a config, or path of a file.
      overrides: such as "--config.batch_size=16".

    Raises:
      ValueError: there is no such config or field, or a value does not fit.
    """
    values, argv = flags.FlagValues(), ["", f"--config={name}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values["config"].parser = ConfigFileParser("config", argv)
    try:
        values(argv)
    except (flags.Error, AttributeError, LookupError, TypeError) as error:
        raise ValueError(one_line(error)) from error
    return values["config"].value


def config_names() -> list[str]:
    """Names of the configs that come with the package."""
    folder = importlib.util.find_spec(_SHIPPED).submodule_search_locations
    return [module.name for module in pkgutil.iter_modules(folder)]


def _load_file(path: str, name: str) -> types.ModuleType:
    """The module of a file, registered as those are whose classes may be looked up."""
    loader = importlib.machinery.SourceFileLoader(name, path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    sys.modules[name] = module
    loader.exec_module(module)
    return module


def _failure(error: Exception, path: str) -> str:
    """What went wrong in a config file, and where."""
    if isinstance(error, SyntaxError) and pathlib.Path(error.filename or "").is_file():
        return f"{error.filename}, line {error.lineno}: {error.msg}: {(error.text or '').strip()}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    where = f"{path}, line {lines[-1]}" if lines else path
    return f"{where}: {type(error).__name__}: {first_line(error)[:300]}"


def _check_fields(config: ml_collections.ConfigDict, name: str, argv: Sequence[str]) -> None:
    """Raises on overrides of fields that a config does not have, or that need a value.

    ml_collections names only the last part of such a field, or fails at indexing a string.
    """
    # `config_flags` takes the overrides from there as well.
    for argument, following in itertools.zip_longest(argv, argv[1:]):
        match = re.match(rf"(?s)--?(?:no)?{re.escape(name)}\.([\w.]+)(?:=(.*))?$", argument)
        if not match:
            continue
        word = argument.partition("=")[0]
        group, field = _find_field(config, name, match[1].split("."), word)
        value = following if match[2] is None else match[2]
        fields = dict(group.items(preserve_field_references=True))
        if value == _NONE and not isinstance(fields[field], config_dict.FieldReference):
            raise ConfigFlagError(f"{word}={_NONE}: this field needs a value")


def _find_field(
    config: ml_collections.ConfigDict, name: str, path: Sequence[str], word: str
) -> tuple[ml_collections.ConfigDict, str]:
    """The group that holds a field, and its name there."""
    group, place = config, name
    for i, field in enumerate(path):
        fields = list(group) if isinstance(group, ml_collections.ConfigDict) else []
        if field not in fields:
            if not fields:
                raise ConfigFlagError(f"{word}: {place} is a value and has no fields")
            # All of them, the likeliest first.
            likely = difflib.get_close_matches(field, fields, len(fields), cutoff=0)
            raise ConfigFlagError(
                f"{word}: {place} has no field {field!r}, but {', '.join(likely)}"
            )
        if i + 1 < len(path):
            group, place = group[field], f"{place}.{field}"
    return group, path[-1]
