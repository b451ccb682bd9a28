"""The flag for a config, and what is wrong with a config or with overrides of its fields."""

import difflib
import importlib.machinery
import importlib.util
import pathlib
import pkgutil
import re
import sys
import traceback
import types
from collections.abc import Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from segmenter_jax.runtime.errors import first_line, one_line

_SHIPPED = "segmenter_jax.configs"


class ConfigFlagError(flags.Error):
    """The config cannot be used, or has no field that an override names."""


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
    """Raises on overrides of fields that a config does not have.

    ml_collections names only the last part of such a field, or fails at indexing a string.
    """
    # `config_flags` takes the overrides from there as well.
    for argument in argv:
        match = re.match(rf"--?(?:no)?{re.escape(name)}\.([\w.]+)", argument)
        group, place = config, name
        for field in match[1].split(".") if match else ():
            fields = list(group) if isinstance(group, ml_collections.ConfigDict) else []
            if field not in fields:
                if not fields:
                    raise ConfigFlagError(f"{match[0]}: {place} is a value and has no fields")
                # All of them, the likeliest first.
                likely = difflib.get_close_matches(field, fields, len(fields), cutoff=0)
                raise ConfigFlagError(
                    f"{match[0]}: {place} has no field {field!r}, but {', '.join(likely)}"
                )
            group, place = group[field], f"{place}.{field}"
