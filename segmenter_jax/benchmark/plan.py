"""Plans: memory, kernels, collectives and estimated time of a config's programs.

What is read from a compiled program is the program that the devices would run. Its speed is the
compiler's estimate.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from segmenter_jax.benchmark import estimate, flops
from segmenter_jax.benchmark.collectives import (
    collectives_of,
    minimum_bytes,
    summarise_collectives,
)
from segmenter_jax.benchmark.hlo import Instruction
from segmenter_jax.benchmark.measure import Result
from segmenter_jax.benchmark.plan_programs import Compiled, Programs
from segmenter_jax.models.params import abstract_params
from segmenter_jax.runtime.errors import first_line
from segmenter_jax.training.state import split_params

# Share of the memory left for batches on their way to the device, small programs, and gaps.
RESERVE = 0.05


def plan(parts: Programs) -> Result:
    """Compiles all programs and says what they are.

    Returns:
      A tree of JSON types: `recipe`, `step`, `evaluation` and `merging`, each of these three with
      its memory and, where the compiler estimates, its times, or the `problem` that it does not fit
      or compile for.
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
            "dtype": model.compute_dtype(mesh),
            "attention": config.model.attention,
            "remat": model.remat,
            "scan_layers": model.scan_layers,
        },
    }
    result["step"] = plan_step(parts)
    # Evaluation has a copy of the parameters, whole and in the compute type.
    held = result["step"].get("memory", {}).get("arguments", 0)
    result["evaluation"] = plan_evaluation(parts, held)
    result["merging"] = plan_merging(parts, held + result["evaluation"].get("params", 0))
    return result


def plan_step(parts: Programs) -> Result:
    """The training step alone, see `plan`."""
    spec, mesh, state = parts.topology.spec, parts.train.mesh, parts.train.abstract_state()
    try:
        compiled = parts.step()
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        return _problem(error)
    program = compiled.instructions()
    result = _memory(compiled, spec.memory_gib)
    found = collectives_of(program, mesh.size)
    options, model = parts.train.options, parts.description.model
    trained, _ = split_params(state.params, options)
    result["collectives"] = summarise_collectives(found, minimum_bytes(trained, mesh.size))
    result["attention"] = _attention(program, parts)
    work = flops.train_flops(model, options.freeze_encoder)
    result["gflops_per_image"] = work / 1e9
    return result | _times(program, parts, parts.config.batch_size, mesh.size, work)


def plan_evaluation(parts: Programs, held: int) -> Result:
    """The evaluation of one device's windows beside `held` bytes of the train state."""
    spec, model = parts.topology.spec, parts.description.model
    try:
        compiled = parts.evaluation()
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        return _problem(error)
    program = compiled.instructions()
    result = _memory(compiled, spec.memory_gib, held)
    result["attention"] = _attention(program, parts)
    window = dataclasses.replace(model, image_size=(parts.settings.window,) * 2)
    work = sum(flops.forward_flops(window).values())
    result["gflops_per_image"] = work / 1e9
    itemsize = jnp.dtype(model.compute_dtype(parts.train.mesh)).itemsize
    result["params"] = itemsize * sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model)))
    return result | _times(program, parts, parts.windows, 1, work)


def plan_merging(parts: Programs, held: int) -> Result:
    """The merging of one device's windows to class ids, beside `held` bytes of states."""
    try:
        compiled = parts.merging()
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        return _problem(error)
    result = _memory(compiled, parts.topology.spec.memory_gib, held)
    return result | _times(compiled.instructions(), parts, parts.windows, 1, 0)


def _problem(error: Exception) -> Result:
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
    model = parts.description.model
    # Of encoder and decoder; kernels pad them to whole blocks.
    tokens = flops.num_tokens(model)
    lengths = tokens, tokens - model.num_extra_tokens + model.num_classes
    pairs = [
        array
        for line in program
        for array in line.arrays
        if len(array.shape) > 2
        and array.shape[-1] == array.shape[-2]
        and any(tokens <= array.shape[-1] < tokens + 512 for tokens in lengths)
        and array.shape[-1] not in (model.width, model.encoder_block().mlp_dim)
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
