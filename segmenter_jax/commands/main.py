"""A run of training: its processes, its console, its exit code."""

import sys
import traceback

import jax
from absl import flags

from segmenter_jax.runtime import console, processes
from segmenter_jax.runtime.command import FAILED, INTERRUPTED, USAGE
from segmenter_jax.runtime.compilation import prepare_compilation
from segmenter_jax.runtime.errors import one_line
from segmenter_jax.runtime.host import keep_freed_memory
from segmenter_jax.training.loop import train_and_evaluate
from segmenter_jax.training.step_metrics import NonFiniteLossError


def run(values: flags.FlagValues) -> int:
    """Trains as the flags say; returns the exit code."""
    keep_freed_memory()
    prepare_compilation()
    console.setup_console(is_main_process=True)
    try:
        processes.start(values.coordinator, values.num_processes, values.process_id)
        console.setup_console(jax.process_index() == 0)
        results = train_and_evaluate(values.config, values.workdir)
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
        if values.debug:
            traceback.print_exc()
        print(f"error: {_message(error)}", file=sys.stderr)
        return _exit_code(USAGE if isinstance(error, processes.UsageError) else FAILED)
    except Exception:
        traceback.print_exc()
        return _exit_code(FAILED)
    return values.interrupted_code if results is None else 0


def _exit_code(code: int) -> int:
    """The code; one of several processes leaves with it at once, so that the others notice."""
    if processes.distributed():
        processes.leave(code)
    return code


def _message(error: Exception) -> str:
    if isinstance(error, jax.errors.JaxRuntimeError) and processes.distributed():
        return f"another process of this run is gone, or cannot be reached: {one_line(error)}"
    return one_line(error)
