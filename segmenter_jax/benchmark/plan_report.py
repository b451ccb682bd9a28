"""A plan as text for people."""

import collections
import re
from collections.abc import Sequence

from segmenter_jax.benchmark.collectives import KINDS
from segmenter_jax.benchmark.estimate import KERNEL_RATE
from segmenter_jax.benchmark.measure import Result
from segmenter_jax.runtime.tables import align

_PROGRAMS = {"step": "training step", "evaluation": "evaluation", "merging": "its merging"}


def describe_plan(plan: Result) -> str:
    """All of a plan, facts of the compiled programs first.

    Args:
      plan: see `plan.plan`.
    """
    r = plan["recipe"]
    shown = ("crop_size", "tokens", "grad_accum_steps", "dtype", "remat", "scan_layers")
    settings = ", ".join(f"{name} {r[name]}" for name in shown)
    lines = [
        f"{plan['config']} on {plan['topology']}: {r['devices']} x {plan['device']}",
        f"mesh {r['mesh']}, batch {r['batch_size']} "
        f"({r['batch_size'] / r['devices']:g} images a device), {settings}",
        "",
        "FACT: the compiled programs, on each device",
        *_memory(plan),
    ]
    step = plan["step"]
    if "collectives" in step:
        lines += ["", *_collectives(step["collectives"]), *_attention(plan)]
        lines.append(f"matrix work of the network: {step['gflops_per_image']:.1f} GF an image")
    for name, title in _PROGRAMS.items():
        lines += ["", *_estimate(title, plan[name])]
    return "\n".join(lines)


def _memory(plan: Result) -> list[str]:
    rows, problems = [("GB", *_PROGRAMS.values())], []
    sides = [plan[name] for name in _PROGRAMS]
    names = ("arguments", "train state", "temporaries", "results", "code", "reserve")
    for name in names:
        cells = [f"{side.get('memory', {}).get(name, 0) / 1e9:.2f}" for side in sides]
        rows.append((name, *cells))
    for name in ("total", "capacity"):
        rows.append((name, *(f"{side[name] / 1e9:.2f}" if name in side else "-" for side in sides)))
    answers = {True: "yes", False: "NO", None: "not compiled"}
    rows.append(("fits", *(answers[side["fits"]] for side in sides)))
    for label, name in (("compiled in s", "compile_s"), ("CPU seconds of it", "compile_cpu_s")):
        rows.append((label, *(f"{s[name]:.0f}" if name in s else "-" for s in sides)))
    for name, title in _PROGRAMS.items():
        if "problem" in plan[name]:
            problems.append(f"{title}: {plan[name]['problem']}")
    return align(rows) + problems


def _collectives(c: Result) -> list[str]:
    rows = [("collective", "count", "MB sent")]
    for kind in KINDS:
        if c[f"{kind}_count"]:
            rows.append((kind, str(c[f"{kind}_count"]), f"{c[f'{kind}_mb']:.2f}"))
    times = c["sent_over_minimum"]
    least = f"least, in float32: {c['minimum_mb']:.2f} MB"
    return [*align(rows), f"sent {c['sent_mb']:.2f} MB; {least}; ratio {times or 0:.3f}", ""]


def _attention(plan: Result) -> list[str]:
    lines = []
    for name, title in _PROGRAMS.items():
        if (a := plan[name].get("attention")) is None:
            continue
        runs: dict[str, int] = collections.defaultdict(int)
        for kernel in a["kernels"]:
            runs[kernel["name"].split()[-2]] += kernel["times"]
        kernels = ", ".join(f"{kernel} x{times}" for kernel, times in runs.items())
        text = f"attention of {title}: asked {plan['recipe']['attention']}; "
        text += f"kernels: {kernels or 'none'}; "
        weights = f"{a['largest_weights']}, {a['largest_weights_mb']:.0f} MB"
        lines.append(text + f"(T, T) arrays: {weights if a['largest_weights'] else 'none'}")
    return lines


def _estimate(title: str, side: Result) -> list[str]:
    if "problem" in side:
        return []
    if (e := side["estimate"]) is None:
        return [f"ESTIMATE of {title}: none, the compiler gives none for such devices"]
    ms = e["ms"]
    lines = [
        f"ESTIMATE of {title}, by the compiler, not measured: {ms:.1f} ms, "
        f"{e['images_per_s_per_device']:.1f} images/s a device, MFU {e['mfu_percent']:.1f} %",
        f"(kernels by their work at {100 * KERNEL_RATE:.0f} % of the peak that their head size "
        "allows, collectives by their bytes, as if nothing else ran)",
    ]
    for head, group in (("part", "parts_ms"), ("ten heaviest operations", "heaviest_ms")):
        rows = [(head, "ms", "%")]
        rows += [(_short(k), f"{v:.2f}", f"{100 * v / ms:.1f}") for k, v in e[group].items()]
        lines += align(rows)
    return lines


# What names of operations are shortened by, in order.
_SHORT = (
    (r"^jit\(\w+\)/", ""),
    (r"transpose\(jvp\((\w*)\)\)/", r"backward \1/"),
    (r"jvp\((\w*)\)/", r"forward \1/"),
    (r"Segmenter/|Segmenter\.encode/|closed_call/|while/body/", ""),
    (r"encoder/encoder\.", "encoder."),
)


def _short(name: str, width: int = 90) -> str:
    for pattern, text in _SHORT:
        name = re.sub(pattern, text, name)
    return name if len(name) <= width else f"{name[: width // 2 - 3]}...{name[-width // 2 :]}"


def overview(plans: Sequence[Result]) -> str:
    """One row for each plan."""
    head = (
        "topology",
        "fits",
        "GB",
        "of",
        "temporaries GB",
        "ms (est.)",
        "images/s a device (est.)",
    )
    rows = [(*head, "MFU % (est.)", "compiled in s")]
    for plan in plans:
        s = plan["step"]
        e = s.get("estimate") or {}
        memory = s.get("memory", {})
        rows.append(
            (
                plan["topology"],
                {True: "yes", False: "NO", None: "not compiled"}[s["fits"]],
                *(f"{s[name] / 1e9:.2f}" if name in s else "-" for name in ("total", "capacity")),
                f"{memory['temporaries'] / 1e9:.2f}" if memory else "-",
                *(
                    f"{e[name]:.1f}" if e else "-"
                    for name in ("ms", "images_per_s_per_device", "mfu_percent")
                ),
                f"{s['compile_s']:.0f}" if memory else "-",
            )
        )
    return "\n".join(align(rows))
