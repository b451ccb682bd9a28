"""What a config computes on devices that are not there: its programs, compiled and not run."""

import dataclasses
import functools
import time

import jax
import ml_collections

from segmenter_jax.benchmark.hlo import Instruction, instructions
from segmenter_jax.benchmark.topologies import Topology
from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.data.datasets import open_dataset
from segmenter_jax.data.specs import BENCHMARKS, SHAPES, DatasetSpec
from segmenter_jax.inference.device_way import WINDOWS
from segmenter_jax.inference.geometry import InferenceSettings
from segmenter_jax.inference.sliding_window import SlidingWindow
from segmenter_jax.training import experiment, sharding
from segmenter_jax.training.program import TrainProgram


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program as its compiler left it.

    Attributes:
      text: HLO.
      memory: bytes on one device: "arguments", "temporaries", "results" that are not written over
        arguments, and "code".
      compile_s, cpu_s: seconds that compiling took here, by the clock and of all cores.
    """

    text: str
    memory: dict[str, int]
    compile_s: float
    cpu_s: float

    @property
    def total(self) -> int:
        """Bytes of all of its memory."""
        return sum(self.memory.values())

    def instructions(self) -> list[Instruction]:
        """Every line of the program."""
        return list(instructions(self.text))


@dataclasses.dataclass(frozen=True)
class Programs:
    """What a config computes on a topology.

    Attributes:
      config: with every override.
      topology: the devices.
      description: the network.
      train: the training program.
      settings: of evaluation.
    """

    config: ml_collections.ConfigDict
    topology: Topology
    description: ModelDescription
    train: TrainProgram
    settings: InferenceSettings

    @property
    def windows(self) -> int:
        """Windows that one device evaluates at a time."""
        devices = self.train.mesh.size
        return -(-(self.settings.batch_size or WINDOWS * devices) // devices)

    def step(self) -> Compiled:
        """The training step of the config's batch.

        Raises:
          jax.errors.JaxRuntimeError: it cannot be compiled; RESOURCE_EXHAUSTED: it does not fit.
        """
        batch = self.train.abstract_batch(self.config.batch_size)
        return _compiled(self.train.step.lower(self.train.abstract_state(), batch))

    def evaluation(self) -> Compiled:
        """The forward pass of one device's windows, into its pool of logits."""
        return _compiled(self._engine.way.lower_programs()["forward"])

    def merging(self) -> Compiled:
        """What makes class ids of one device's pool of logits."""
        return _compiled(self._engine.way.lower_programs()["tiles"])

    @functools.cached_property
    def _engine(self) -> SlidingWindow:
        d = self.description
        settings = dataclasses.replace(self.settings, batch_size=self.windows)
        device = self.topology.devices[:1]
        return SlidingWindow(
            self.train.eval_model, settings, mean=d.mean, std=d.std, devices=device
        )


def programs(
    config: ml_collections.ConfigDict, topology: Topology, num_classes: int | None = None
) -> Programs:
    """Programs of a config on a topology; nothing is compiled yet.

    Args:
      config: see configs/common.py; its dataset need not be there, nor its weights, but where the
        network is that of its weights.
      topology: the devices.
      num_classes: of a dataset that is not known here.

    Raises:
      ValueError: the config is wrong, or does not fit the devices' number.
    """
    mesh = sharding.make_mesh(config.mesh.fsdp, config.mesh.num_devices, topology.devices)
    experiment.check(config, mesh)
    source = experiment.read_source(config) if experiment.needs_source(config) else None
    parts = experiment.assemble(config, dataset_spec(config, num_classes), mesh, source)
    return Programs(config, topology, *parts)


def dataset_spec(config: ml_collections.ConfigDict, num_classes: int | None) -> DatasetSpec:
    """Classes and channels of a config's dataset, which need not be there.

    Raises:
      ValueError: it is not a known one, has no source folder, and is not built.
    """
    d, known = config.dataset, BENCHMARKS | {SHAPES.name: SHAPES}
    if num_classes is not None:
        names = tuple(f"class {i}" for i in range(num_classes))
        return DatasetSpec(d.name, names, ((0, 0, 0),) * num_classes)
    if d.name in known:
        return known[d.name]
    if d.source:
        # Builders import TFDS, which takes seconds.
        from segmenter_jax.data.builders.classes_file import read_classes
        from segmenter_jax.data.builders.folder import open_folder

        return read_classes(open_folder(d.source), d.name).spec
    try:
        return open_dataset(d.name, d.data_dir).spec
    except ValueError as error:
        raise ValueError(f"{error}; or give --num_classes") from error


def _compiled(lowered: jax.stages.Lowered) -> Compiled:
    start, cpu = time.perf_counter(), time.process_time()
    compiled = lowered.compile()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    m = compiled.memory_analysis()
    memory = {
        "arguments": m.argument_size_in_bytes,
        "temporaries": m.temp_size_in_bytes,
        "results": m.output_size_in_bytes - m.alias_size_in_bytes,
        "code": m.generated_code_size_in_bytes,
    }
    return Compiled(compiled.as_text(), memory, seconds, cpu)
