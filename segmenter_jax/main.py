"""Trains a model, from a config to a workdir.

python -m segmenter_jax.main --config=quickstart --workdir=runs/quickstart
"""

import sys
import traceback
from collections.abc import Iterator

import ml_collections
from absl import app, flags
from ml_collections import config_flags

from segmenter_jax.runtime.command import USAGE
from segmenter_jax.runtime.config_flag import ConfigFileParser, config_names, read_config
from segmenter_jax.runtime.console import reader_may_leave
from segmenter_jax.runtime.errors import one_line
from segmenter_jax.runtime.tables import align

FLAGS = flags.FLAGS

config_flags.DEFINE_config_file(
    "config", None, f"Path of a config file, or one of {', '.join(config_names())}."
)
FLAGS["config"].parser = ConfigFileParser("config")
flags.DEFINE_string("workdir", None, "Run folder; an existing run resumes.")
flags.DEFINE_bool("debug", False, "Show tracebacks of errors.")
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for several processes.")
flags.DEFINE_integer("num_processes", None, "Number of processes; 1 detects no others.")
flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
flags.DEFINE_integer(
    "interrupted_code",
    0,
    "Exit code after SIGTERM or Ctrl-C, when the run was saved and is not finished; for schedulers "
    "that start again only what ends with another code than 0.",
)
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> int:
    """Runs training; returns the exit code."""
    if len(argv) > 1:
        raise app.UsageError(
            f"unexpected arguments {argv[1:]}; settings look like --config.seed=1", exitcode=USAGE
        )
    from segmenter_jax.commands.main import run

    return run(FLAGS)


def parse_flags(argv: list[str]) -> list[str]:
    """Flags to `FLAGS`; returns the others. Help leaves with code 0, wrong usage with 2."""
    try:
        if {"--help", "-h"} & set(argv):
            with reader_may_leave():
                named = [argument for argument in argv if argument.startswith("--config=")]
                print(_help(named), flush=True)
            sys.exit()
        return FLAGS(argv)
    except (flags.Error, AttributeError, LookupError, TypeError, ValueError, OSError) as error:
        if "--debug" in argv:
            traceback.print_exc()
        print(f"error: {one_line(error)}\nSee --help", file=sys.stderr)
        sys.exit(USAGE)


def _help(named: list[str]) -> str:
    """Flags, and the settings with their values in the config that is named, if one is."""
    name = named[-1].partition("=")[2] if named else "common"
    # Without the name of the module.
    flags_of_run = FLAGS.module_help(sys.modules[__name__]).partition(":")[2]
    settings = "\n".join(align([*_settings(read_config(name), "  --config.")]))
    return f"{__doc__}\nflags:{flags_of_run}\n\nsettings, with their values in {name}:\n{settings}"


def _settings(group: ml_collections.ConfigDict, prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in group.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", repr(value)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
