"""Entry point of training: flags to `train_and_evaluate`.

python -m segmenter_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

import sys

import jax
from absl import app, flags
from ml_collections import config_flags

from segmenter_jax import logging
from segmenter_jax.command import use_compilation_cache
from segmenter_jax.train import NonFiniteLossError, train_and_evaluate

FLAGS = flags.FLAGS

config_flags.DEFINE_config_file("config", None, "Config file, see configs/.", lock_config=True)
flags.DEFINE_string("workdir", None, "Folder of the run; a run that is there is gone on with.")
flags.DEFINE_bool("debug", False, "Show tracebacks of errors.")
flags.DEFINE_string("coordinator", None, "host:port of process 0, for several processes.")
flags.DEFINE_integer("num_processes", None, "Number of processes.")
flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> int:
    """Runs training; returns the exit code."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; settings look like --config.seed=1")
    use_compilation_cache()
    if FLAGS.coordinator is not None:
        jax.distributed.initialize(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    logging.setup_console(jax.process_index() == 0)
    try:
        train_and_evaluate(FLAGS.config, FLAGS.workdir)
    except (ValueError, OSError, NonFiniteLossError) as error:
        if FLAGS.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    app.run(main)
