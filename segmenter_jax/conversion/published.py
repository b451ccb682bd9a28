"""Weights by name: addresses, licences, and those that only their user may fetch."""

import re

_GOOGLE = "https://storage.googleapis.com/"
_META = "https://dl.fbaipublicfiles.com/"

# ViTs of "How to train your ViT?", pretrained on ImageNet-21k and fine-tuned on ImageNet.
_AUGREG = {
    "Ti_16": "aug_none-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_384",
    "S_16": "aug_light1-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_384",
    "B_16": "aug_medium1-wd_0.1-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.01-res_384",
    "B_8": "aug_medium1-wd_0.1-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.01-res_224",
    "L_16": "aug_medium1-wd_0.1-do_0.1-sd_0.1--imagenet2012-steps_20k-lr_0.01-res_384",
}
# Variant, and after "@" the side of its images in pixels.
_SIGLIP = {
    "siglip_B/16@224": "siglip/webli_en_b16_224_63724782",
    "siglip_B/16@256": "siglip/webli_en_b16_256_60500360",
    "siglip_B/16@384": "siglip/webli_en_b16_384_68578854",
    "siglip_B/16@512": "siglip/webli_en_b16_512_68580893",
    "siglip_L/16@256": "siglip/webli_en_l16_256_60552751",
    "siglip_L/16@384": "siglip/webli_en_l16_384_63634585",
    "siglip_So400m/14@224": "siglip/webli_en_so400m_224_57633886",
    "siglip_So400m/14@384": "siglip/webli_en_so400m_384_58765454",
    "naflex_B/16": "siglip2/siglip2_b16_naflex",
    "naflex_So400m/16": "siglip2/siglip2_so400m16_naflex",
}
_SIGLIP2 = {
    "B/16": (224, 256, 384, 512),
    "L/16": (256, 384, 512),
    "So400m/14": (224, 384),
    "So400m/16": (256, 384, 512),
    "g-opt/16": (256, 384),
}
_MAE = {"B/16": "base", "L/16": "large", "H/14": "huge"}
_LOCA = {
    "S/16": "small_imnet1k",
    "B/16": "base_imnet1k",
    "B/16@i21k": "base_imnet21k",
    "L/16": "large_imnet21k",
    "H/16": "huge_imnet21k",
}

PUBLISHED: dict[str, str] = {
    **{
        f"augreg/{name}": f"{_GOOGLE}vit_models/augreg/{name}-i21k-300ep-lr_0.001-{rest}.npz"
        for name, rest in _AUGREG.items()
    },
    **{
        f"{family}_{size}/14": f"{_META}dinov2/{folder}/{folder}{registers}_pretrain.pth"
        for size, folder in ((size, f"dinov2_vit{size.lower()}14") for size in "SBLg")
        for family, registers in (("dinov2", ""), ("dinov2reg", "_reg4"))
    },
    **{name: f"{_GOOGLE}big_vision/{path}.npz" for name, path in _SIGLIP.items()},
    **{
        f"siglip2_{size}@{side}": f"{_GOOGLE}big_vision/siglip2/siglip2_"
        f"{size.lower().replace('/', '')}_{side}.npz"
        for size, sides in _SIGLIP2.items()
        for side in sides
    },
    **{f"mae_{n}": f"{_META}mae/pretrain/mae_pretrain_vit_{s}.pth" for n, s in _MAE.items()},
    **{f"loca_{n}": f"{_GOOGLE}scenic-bucket/loca/loca_v{s}" for n, s in _LOCA.items()},
}

_LICENCES = {
    ("augreg", "dinov2", "loca"): "Apache-2.0",
    ("siglip", "naflex"): "CC-BY 4.0",
    ("mae",): "CC-BY-NC 4.0, not for commercial use",
}

_DINOV3 = (
    "ask Meta for them at https://github.com/facebookresearch/dinov3 or "
    "https://huggingface.co/facebook, under the DINOv3 License"
)
# Pattern -> why weights of such a name are not fetched, and how a user gets them.
_GATED = {
    r".*(eomt.*dinov3|dinov3.*eomt)": "EoMT's weights with DINOv3 (code MIT, see "
    f"https://github.com/tue-mps/eomt) are differences to DINOv3's, which are gated: {_DINOV3}",
    r"(facebook/|timm/.*)?dinov3": f"DINOv3's weights are gated, and never fetched here: {_DINOV3};"
    " then give the file or folder",
}


def licence(name: str) -> str:
    """Licence of weights with a published name."""
    return next(text for starts, text in _LICENCES.items() if name.startswith(starts))


def gated(name: str) -> str | None:
    """Why weights of a name are never fetched, and where a user gets them; None for others."""
    return next((why for form, why in _GATED.items() if re.match(form, name, re.I)), None)
