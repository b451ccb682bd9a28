"""Programs of a config, compiled for devices that are not there: memory, kernels, estimated time.

What is read from a compiled program is the program that the devices would run. Its speed is the
compiler's estimate.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import SingleDeviceSharding

from segmenter_jax.benchmark import estimate, flops
from segmenter_jax.benchmark.collectives import (
    collectives_of,
    minimum_bytes,
    summarise_collectives,
)
from segmenter_jax.benchmark.hlo import Instruction, instructions
from segmenter_jax.benchmark.measure import Result
from segmenter_jax.benchmark.topologies import Topology
from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.data.datasets import open_dataset
from segmenter_jax.data.specs import BENCHMARKS, SHAPES, DatasetSpec
from segmenter_jax.inference.geometry import InferenceSettings
from segmenter_jax.models.normalization import normalize
from segmenter_jax.runtime.errors import first_line
from segmenter_jax.training import experiment, sharding
from segmenter_jax.training.program import TrainProgram

# Share of the memory left for batches on their way to the device, small programs, and gaps.
RESERVE = 0.05

# Windows that one device evaluates at a time, where the config does not say.
_WINDOWS = 8


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program as its compiler left it.

    Attributes:
      text: HLO.
      memory: bytes on one device: "arguments", "temporaries", "results" that are not written over
        arguments, and "code".
      compile_s, cpu_s: seconds that tracing and compiling took here, by the clock and of all cores.
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
        return -(-(self.settings.batch_size or _WINDOWS * devices) // devices)

    def step(self) -> Compiled:
        """The training step of the config's batch.

        Raises:
          jax.errors.JaxRuntimeError: it cannot be compiled; RESOURCE_EXHAUSTED: it does not fit.
        """
        batch = self.train.abstract_batch(self.config.batch_size)
        return _compile(self.train.step, self.train.abstract_state(), batch)

    def evaluation(self) -> Compiled:
        """The forward pass of one device's windows."""
        d, model = self.description, self.train.model
        place = SingleDeviceSharding(self.topology.devices[0])
        shape = (self.windows, self.settings.window, self.settings.window, model.config.in_channels)

        def forward(params: Any, windows: jax.Array) -> jax.Array:
            return model.apply({"params": params}, normalize(windows, None, d.mean, d.std))

        params = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            self.train.abstract_state().params,
        )
        windows = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=place)
        return _compile(jax.jit(forward), params, windows)


def programs(
    config: ml_collections.ConfigDict, topology: Topology, num_classes: int | None = None
) -> Programs:
    """Programs of a config on a topology; nothing is compiled yet.

    Args:
      config: see configs/common.py; neither its dataset nor its weights need to be there.
      topology: the devices.
      num_classes: of a dataset that is not known here.

    Raises:
      ValueError: the config is wrong, or does not fit the devices' number.
    """
    mesh = sharding.make_mesh(config.mesh.fsdp, config.mesh.num_devices, topology.devices)
    experiment.check(config, mesh)
    parts = experiment.assemble(_accelerated(config), dataset_spec(config, num_classes), mesh)
    return Programs(config, topology, *parts)


def _accelerated(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    # What "auto" means is asked of the default backend, which is a CPU here.
    config = config.copy_and_resolve_references()
    if config.model.dtype == "auto":
        config.model.dtype = "bfloat16"
    if config.model.attention == "auto":
        config.model.attention = "xla"
    return config


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
        from segmenter_jax.data.builders.files import SourceFiles
        from segmenter_jax.data.builders.folder import read_classes

        return read_classes(SourceFiles(d.source), d.name)
    try:
        return open_dataset(d.name, d.data_dir).spec
    except ValueError as error:
        raise ValueError(f"{error}; or give --num_classes") from error


def _compile(function: Any, *arguments: Any) -> Compiled:
    start, cpu = time.perf_counter(), time.process_time()
    compiled = function.lower(*arguments).compile()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    m = compiled.memory_analysis()
    memory = {
        "arguments": m.argument_size_in_bytes,
        "temporaries": m.temp_size_in_bytes,
        "results": m.output_size_in_bytes - m.alias_size_in_bytes,
        "code": m.generated_code_size_in_bytes,
    }
    return Compiled(compiled.as_text(), memory, seconds, cpu)


def plan(parts: Programs) -> Result:
    """Compiles both programs and says what they are.

    Returns:
      A tree of JSON types: `recipe`, `step`, `evaluation`, each of these two with its memory and,
      where the compiler estimates, its times, or the `problem` that it does not fit or compile for.
    """
    config, mesh = parts.config, parts.train.mesh
    model = parts.description.model
    result: Result = {
        "topology": parts.topology.name,
        "device": parts.topology.devices[0].device_kind,
        "recipe": {
            "devices": mesh.size,
            "mesh": dict(mesh.shape),
            "batch_size": config.batch_size,
            "grad_accum_steps": config.grad_accum_steps,
            "crop_size": config.augment.crop_size,
            "tokens": flops.num_tokens(model),
            "dtype": model.compute_dtype,
            "attention": config.model.attention,
            "remat": model.remat,
            "scan_layers": model.scan_layers,
        },
    }
    result["step"] = plan_step(parts)
    held = result["step"].get("memory", {}).get("arguments", 0)
    if mesh.shape["fsdp"] == 1:
        # Evaluation reads the parameters where they are; pieces of them it gathers.
        held -= sum(4 * leaf.size for leaf in jax.tree.leaves(parts.train.abstract_state().params))
    result["evaluation"] = plan_evaluation(parts, max(held, 0))
    return result


def plan_step(parts: Programs) -> Result:
    """The training step alone, see `plan`."""
    spec, mesh, state = parts.topology.spec, parts.train.mesh, parts.train.abstract_state()
    try:
        compiled = parts.step()
    except jax.errors.JaxRuntimeError as error:
        return _problem(error)
    program = compiled.instructions()
    result = _memory(compiled, spec.memory_gib)
    found = collectives_of(program, mesh.size)
    result["collectives"] = summarise_collectives(found, minimum_bytes(state, mesh.size))
    model = parts.description.model
    result["attention"] = _attention(program, parts)
    work = flops.TRAIN_FACTOR * sum(flops.forward_flops(model).values())
    result["gflops_per_image"] = work / 1e9
    return result | _times(program, parts, parts.config.batch_size, mesh.size, work)


def plan_evaluation(parts: Programs, held: int) -> Result:
    """The evaluation of one device's windows beside `held` bytes of the train state."""
    spec, model = parts.topology.spec, parts.description.model
    try:
        compiled = parts.evaluation()
    except jax.errors.JaxRuntimeError as error:
        return _problem(error)
    program = compiled.instructions()
    result = _memory(compiled, spec.memory_gib, held)
    result["attention"] = _attention(program, parts)
    window = dataclasses.replace(model, image_size=(parts.settings.window,) * 2)
    work = sum(flops.forward_flops(window).values())
    result["gflops_per_image"] = work / 1e9
    return result | _times(program, parts, parts.windows, 1, work)


def _problem(error: jax.errors.JaxRuntimeError) -> Result:
    fits = False if "RESOURCE_EXHAUSTED" in str(error) else None
    return {"fits": fits, "problem": first_line(error)}


def _memory(compiled: Compiled, memory_gib: float, held: int = 0) -> Result:
    capacity = memory_gib * 2**30
    reserve = RESERVE * capacity
    memory = compiled.memory | ({"train state": held} if held else {})
    total = compiled.total + held + reserve
    return {
        "compile_s": compiled.compile_s,
        "compile_cpu_s": compiled.cpu_s,
        "memory": memory | {"reserve": reserve},
        "total": total,
        "capacity": capacity,
        "fits": bool(total <= capacity),
    }


def _head_dim(parts: Programs) -> int:
    return parts.description.model.width // parts.description.model.num_heads


def _attention(program: list[Instruction], parts: Programs) -> Result:
    """Kernels in a program, and the largest array of a weight for each pair of tokens."""
    kernels = estimate.kernels_of(program, parts.topology.spec, _head_dim(parts))
    pairs = [
        array
        for line in program
        for array in line.arrays
        if len(array.shape) > 2
        and array.shape[-1] == array.shape[-2]
        and array.shape[-1] >= flops.num_tokens(parts.description.model) - 2
    ]
    largest = max(pairs, key=lambda a: a.size, default=None)
    return {
        "kernels": [dataclasses.asdict(kernel) for kernel in kernels],
        "largest_weights": str(largest) if largest else None,
        "largest_weights_mb": largest.size / 1e6 if largest else 0.0,
    }


def _times(
    program: list[Instruction], parts: Programs, images: int, num_devices: int, work: int
) -> Result:
    spec = parts.topology.spec
    if spec.clock_ghz is None:
        return {"estimate": None}
    operations = estimate.operations_of(program, spec, _head_dim(parts), num_devices)
    seconds = float(np.sum([operation.seconds for operation in operations]))
    rate = images / seconds
    peak = (spec.peak_tflops, "datasheet, bfloat16")
    by_source = estimate.seconds_by(operations, "source")
    return {
        "estimate": {
            "ms": 1e3 * seconds,
            "parts_ms": {k: 1e3 * v for k, v in estimate.seconds_by(operations, "part").items()},
            "heaviest_ms": {k: 1e3 * by_source[k] for k in list(by_source)[:10]},
            "images_per_s_per_device": rate / num_devices,
            "mfu_percent": flops.utilisation(work, rate, num_devices, peak)["mfu_percent"],
        }
    }
