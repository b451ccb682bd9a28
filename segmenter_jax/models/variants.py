"""Networks by name: the sizes of the paper, and of pretrained encoders of others.

The number after the slash of a variant is the patch size.
"""

from typing import Any

# Encoder sizes of the paper, table 1: name -> width, layers, heads.
PLAIN: dict[str, dict[str, Any]] = {
    "Ti": {"width": 192, "depth": 12, "num_heads": 3},
    "S": {"width": 384, "depth": 12, "num_heads": 6},
    "B": {"width": 768, "depth": 12, "num_heads": 12},
    "L": {"width": 1024, "depth": 24, "num_heads": 16},
}

_H = {"width": 1280, "depth": 32}
_GATED = {"mlp": "swiglu"}
_DINOV2 = {"layer_scale": True, "layer_norm_eps": 1e-6, "position_size": (518, 518)}
_DINOV3 = {"layer_scale": True, "position": "rope", "num_registers": 4}
_SIGLIP = {"class_token": False, "gelu": "tanh", "layer_norm_eps": 1e-6}
# Of 16 x 16 patches, resized for each image.
_NAFLEX = _SIGLIP | {"position_size": (256, 256), "position_resize": "bilinear_antialias"}
# Of 14 x 14 patches.
_LOCA = _SIGLIP | {"position_size": (224, 224), "position_resize": "bilinear_antialias"}
_MAE = {"layer_norm_eps": 1e-6, "position_size": (224, 224)}

_DINOV2_SIZES = {name: PLAIN[name] for name in ("S", "B", "L")} | {
    "g": {"width": 1536, "depth": 40, "num_heads": 24, "mlp_dim": 4096} | _GATED
}
_DINOV3_SIZES = {name: PLAIN[name] for name in ("S", "B", "L")} | {
    "S+": PLAIN["S"] | {"mlp_dim": 1536} | _GATED,
    "H+": _H | {"num_heads": 20, "mlp_dim": 5120} | _GATED,
    "7B": {"width": 4096, "depth": 40, "num_heads": 32, "mlp_dim": 8192} | _GATED,
}
_SIGLIP_SIZES = {name: PLAIN[name] for name in ("B", "L")} | {
    "So400m": {"width": 1152, "depth": 27, "num_heads": 16, "mlp_dim": 4304},
    "g-opt": {"width": 1536, "depth": 40, "num_heads": 16, "mlp_dim": 6144},
}
_MAE_SIZES = {name: PLAIN[name] for name in ("B", "L")} | {"H": _H | {"num_heads": 16}}
_LOCA_SIZES = {"S": PLAIN["S"]} | _MAE_SIZES

_FAMILIES: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "dinov2": (_DINOV2 | {"position_resize": "bicubic"}, _DINOV2_SIZES),
    "dinov2reg": (
        _DINOV2 | {"num_registers": 4, "position_resize": "bicubic_antialias"},
        _DINOV2_SIZES,
    ),
    "dinov3": (_DINOV3, _DINOV3_SIZES),
    "siglip": (_SIGLIP | {"position_resize": "bicubic"}, _SIGLIP_SIZES),
    "naflex": (_NAFLEX, {name: _SIGLIP_SIZES[name] for name in ("B", "So400m")}),
    "loca": (_LOCA, _LOCA_SIZES),
    "mae": (_MAE | {"position_resize": "bicubic"}, _MAE_SIZES),
}

VARIANTS = PLAIN | {
    f"{family}_{size}": numbers | fields
    for family, (fields, sizes) in _FAMILIES.items()
    for size, numbers in sizes.items()
}
