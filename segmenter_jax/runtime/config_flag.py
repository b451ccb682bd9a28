"""The flag for a config file, and what is wrong with the file or with overrides of its fields."""

import difflib
import importlib.machinery
import importlib.util
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Sequence

import ml_collections
from absl import flags

from segmenter_jax.runtime.errors import first_line


class ConfigFlagError(flags.Error):
    """The config file cannot be used, or has no field that an override names."""


class ConfigFileParser(flags.ArgumentParser):
    """Reads the config file that a flag of `config_flags` names.

    An argument for its `get_config` may follow the path, after a colon.
    """

    def __init__(self, name: str):
        """Takes the name of the flag, for messages."""
        self._name = name

    def flag_type(self) -> str:
        """What `--help` calls a value."""
        return "config file"

    def parse(self, argument: str) -> ml_collections.ConfigDict:
        """The locked config of a file.

        Args:
          argument: path of the file.

        Raises:
          ConfigFlagError: there is no such file, it fails, or the command line overrides a field
            that it has not.
        """
        path, *rest = argument.split(":", 1)
        if not pathlib.Path(path).is_file():
            place = pathlib.Path(path).absolute()
            raise ConfigFlagError(f"--{self._name}={argument}: there is no file {place}")
        try:
            get_config = getattr(_module(path, f"{self._name}_file"), "get_config", None)
            config = get_config and get_config(*rest)
        except Exception as error:  # A config file may raise anything.
            raise ConfigFlagError(_failure(error, path)) from error
        if get_config is None:
            raise ConfigFlagError(f"{path}: defines no get_config")
        if type(config) is not ml_collections.ConfigDict:
            raise ConfigFlagError(
                f"{path}: get_config returned a {type(config).__name__}, not a ConfigDict"
            )
        # Where `config_flags` takes the overrides from.
        _check_fields(config, self._name, sys.argv)
        return config.lock()


def _module(path: str, name: str) -> types.ModuleType:
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
    for argument in argv:
        match = re.match(rf"--?(?:no)?{re.escape(name)}\.([\w.]+)", argument)
        if match is None:
            continue
        group, place = config, name
        for field in match[1].split("."):
            if not isinstance(group, ml_collections.ConfigDict):
                raise ConfigFlagError(f"{match[0]}: {place} is {group!r} and has no fields")
            if field not in group:
                # All of them, the likeliest first.
                fields = difflib.get_close_matches(field, group.keys(), len(group), cutoff=0)
                raise ConfigFlagError(
                    f"{match[0]}: there is no field {field!r}; {place} has {', '.join(fields)}"
                )
            group, place = group[field], f"{place}.{field}"
