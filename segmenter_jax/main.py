"""Entry point of training: flags to `train_and_evaluate`.

python -m segmenter_jax.main --config=quickstart --workdir=runs/quickstart
"""

import sys
import traceback

import jax
from absl import app, flags
from ml_collections import config_flags

from segmenter_jax.runtime import console, processes
from segmenter_jax.runtime.command import FAILED, INTERRUPTED, USAGE
from segmenter_jax.runtime.compilation import prepare_compilation
from segmenter_jax.runtime.config_flag import ConfigFileParser, config_names
from segmenter_jax.runtime.errors import one_line
from segmenter_jax.runtime.host import keep_freed_memory
from segmenter_jax.training.loop import train_and_evaluate
from segmenter_jax.training.step_metrics import NonFiniteLossError

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
    keep_freed_memory()
    prepare_compilation()
    console.setup_console(is_main_process=True)
    try:
        processes.start(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
        console.setup_console(jax.process_index() == 0)
        results = train_and_evaluate(FLAGS.config, FLAGS.workdir)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _exit_code(INTERRUPTED)
    except (
        ValueError,
        OSError,
        NonFiniteLossError,
        processes.ProcessError,
        jax.errors.JaxRuntimeError,
    ) as error:
        if FLAGS.debug:
            traceback.print_exc()
        print(f"error: {_message(error)}", file=sys.stderr)
        return _exit_code(USAGE if isinstance(error, processes.UsageError) else FAILED)
    except Exception:
        traceback.print_exc()
        return _exit_code(FAILED)
    return FLAGS.interrupted_code if results is None else 0


def _exit_code(code: int) -> int:
    """The code; one of several processes leaves with it at once, so that the others notice."""
    if processes.distributed():
        processes.leave(code)
    return code


def _message(error: Exception) -> str:
    if isinstance(error, jax.errors.JaxRuntimeError) and processes.distributed():
        return f"another process of this run is gone, or cannot be reached: {one_line(error)}"
    return one_line(error)


def parse_flags(argv: list[str]) -> list[str]:
    """Flags to `FLAGS`; returns the other arguments. Wrong usage leaves with code 2."""
    try:
        return FLAGS(argv)
    except (flags.Error, AttributeError, LookupError, TypeError, ValueError, OSError) as error:
        if "--debug" in argv:
            traceback.print_exc()
        print(f"error: {one_line(error)}\nSee --help", file=sys.stderr)
        sys.exit(USAGE)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
