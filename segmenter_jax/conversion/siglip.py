"""The vision towers of SigLIP and SigLIP 2, from the Hugging Face hub.

Those of big_vision have Google's names, see `google`.
"""

from collections.abc import Collection

from segmenter_jax.conversion import naflex
from segmenter_jax.conversion.arrays import ArrayFile
from segmenter_jax.conversion.encoders import Naming, open_encoder
from segmenter_jax.conversion.mapping import CONV, POSITIONS, Row, linear, norm, split_qkv
from segmenter_jax.conversion.opening import Hints, Opened, normalized_as

NAME = "siglip"

HUB = Naming(
    hub=True,
    stem=(
        Row("pos_embedding", "embeddings.position_embedding.weight", POSITIONS),
        *linear("embedding", "embeddings.patch_embedding", CONV),
        *norm("encoder_norm", "post_layernorm"),
    ),
    block="encoder.layers.{}.",
    rows=(
        *norm("LayerNorm_0", "layer_norm1"),
        *norm("LayerNorm_1", "layer_norm2"),
        *split_qkv("attention", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        *linear("attention/out", "self_attn.out_proj"),
    ),
    mlps={"gelu": (*linear("mlp/Dense_0", "mlp.fc1"), *linear("mlp/Dense_1", "mlp.fc2"))},
)

_DROPPED = ((r"head\.", "attention pooling"),)
_HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 16}


def detect(names: Collection[str]) -> bool:
    """See `opening.Format`."""
    # The text tower beside it has the same blocks, and so has CLIP, with a class token.
    if "embeddings.class_embedding" in names:
        return False
    return HUB.marks | {HUB.theirs("embedding/kernel")} <= set(names)


def open(file: ArrayFile, hints: Hints) -> Opened:
    """See `opening.Format`."""
    names = HUB.theirs("embedding/kernel"), HUB.theirs("pos_embedding")
    flexible = naflex.unflattened(file, *names, "oihw")
    fields = {"gelu": "tanh", "layer_norm_eps": 1e-6}
    fields["position_resize"] = naflex.RESIZE if flexible else "bicubic"
    file = flexible or file
    images = normalized_as("vit")
    return open_encoder(file, NAME, HUB, fields, hints, _DROPPED, images, _HEADS)
