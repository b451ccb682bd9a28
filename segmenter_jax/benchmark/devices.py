"""What accelerators can do, by datasheet: one table for measured and for planned programs."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class DeviceSpec:
    """One device as JAX counts them: a chip, on TPU v2, v3 and 7x one of its two cores.

    Attributes:
      peak_tflops: dense bfloat16, in TF/s.
      memory_gib: what programs may use, in GiB. TPUs: what their compiler says it has.
        GPUs: 75 % of the card, the share that JAX takes unless told otherwise.
      clock_ghz: of the cycles that the compiler estimates; None where it estimates none.
      matrix_side: of the matrix unit; products with a shorter side leave a part of it idle.
      link_gb_s: what it sends to its neighbours at a time in a ring, in GB/s: two links of a TPU,
        half of an NVLink's both ways.
    """

    peak_tflops: float
    memory_gib: float
    clock_ghz: float | None = None
    matrix_side: int = 128
    link_gb_s: float | None = None


# By the first words of `device_kind`, the most that fit. Peaks and links are from datasheets;
# clocks of TPUs follow from the peak: cycles = peak / (2 x side x side x matrix units of a device).
DEVICES = {
    "TPU v2": DeviceSpec(22.5, 7.48),
    "TPU v3": DeviceSpec(61.5, 15.48),
    "TPU v4": DeviceSpec(275.0, 30.75, 1.05, link_gb_s=90.0),
    "TPU v5 lite": DeviceSpec(197.0, 15.75, 1.5, link_gb_s=90.0),
    "TPU v5e": DeviceSpec(197.0, 15.75, 1.5, link_gb_s=90.0),
    "TPU v5": DeviceSpec(459.0, 95.74, 1.75, link_gb_s=180.0),
    "TPU v6 lite": DeviceSpec(918.0, 31.25, 1.75, matrix_side=256, link_gb_s=180.0),
    "TPU v6e": DeviceSpec(918.0, 31.25, 1.75, matrix_side=256, link_gb_s=180.0),
    "TPU7x": DeviceSpec(1153.5, 94.75, 2.2, matrix_side=256, link_gb_s=200.0),
    "NVIDIA H200": DeviceSpec(990.0, 105.0, link_gb_s=450.0),
    "NVIDIA H100": DeviceSpec(990.0, 59.3, link_gb_s=450.0),
    "NVIDIA A100": DeviceSpec(312.0, 59.3, link_gb_s=300.0),
    "Tesla V100": DeviceSpec(125.0, 11.8, link_gb_s=150.0),
    "NVIDIA L4": DeviceSpec(121.0, 16.8),
    "NVIDIA L40S": DeviceSpec(362.0, 33.6),
}


def device_spec(kind: str) -> DeviceSpec | None:
    """What a device of a `device_kind` can do; None if it is not known.

    Args:
      kind: as JAX names it, for example "TPU v5 lite".
    """
    fitting = [name for name in DEVICES if re.match(rf"{name}\b", kind)]
    return DEVICES[max(fitting, key=len)] if fitting else None
