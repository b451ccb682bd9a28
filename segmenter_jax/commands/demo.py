"""The page: what it shows, what it calls, what it takes."""

import argparse
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np
from PIL import Image

from segmenter_jax.data.images import decode_image
from segmenter_jax.inference.attention_maps import attention_maps
from segmenter_jax.inference.predictor import Predictor, load
from segmenter_jax.inference.uploads import MULTI_SCALE, Limits, read_upload, segment_upload
from segmenter_jax.pictures.figures import attention_figure
from segmenter_jax.pictures.viewer import VIEWER_CSS, VIEWER_JS, message_html, viewer_html
from segmenter_jax.runtime.compilation import prepare_compilation
from segmenter_jax.runtime.errors import one_line
from segmenter_jax.runtime.host import keep_freed_memory

# Pictures that wait for the model; whoever comes later is told so.
_MAX_WAITING = 20

# Bytes of a request around a picture.
_FORM = 2**20

# In seconds: how often uploads are looked through, and how old they become.
_CLEANING = (300, 3600)

_INTRODUCTION = """\
## Segmentation
Upload, paste or drop a picture. **The first one takes longer**: the network is compiled for it \
(seconds to a minute), and once more for multi-scale and for the attention of each size of \
picture. Pictures are computed one after another, and are deleted within {minutes} minutes.

{classes} classes · {protocol} · {device}"""


def _gradio(folder: pathlib.Path) -> ModuleType:
    """Gradio, which keeps what it writes in a folder and reports to nobody."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(folder / "examples")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise ImportError('the page needs Gradio: pip install "segmenter_jax[demo]"') from error
    return gradio


class _BodyLimit:
    """Refuses requests that are larger than any picture may be, in whatever form it is sent."""

    def __init__(self, app: Any, limit: int):
        self._app, self._limit = app, limit

    async def __call__(self, scope: Any, receive: Callable, send: Callable) -> None:
        from starlette.exceptions import HTTPException

        received = 0

        async def limited() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise HTTPException(413, f"requests are limited to {self._limit} bytes")
            return message

        await self._app(scope, limited if scope["type"] == "http" else receive, send)


def _upload_field(gradio: ModuleType, **options: Any) -> Any:
    """A field for a picture, which hands on the file as it was uploaded."""

    field = gradio.Image(type="filepath", sources=["upload", "clipboard"], **options)
    keep = field.async_move_resource_to_block_cache

    def handed_on(payload: Any) -> str | None:
        return payload.path if payload else None

    async def kept(path: Any) -> str | None:
        if "://" in str(path):
            raise gradio.Error("addresses are not fetched: upload the file")
        return await keep(path)

    # Gradio's own would decode the file, with errors and limits of its own, and fetch addresses.
    # In a class of our own they would make it write a file beside this one.
    field.preprocess, field.async_move_resource_to_block_cache = handed_on, kept
    return field


def _answers(predictor: Predictor, limits: Limits) -> tuple[Callable, Callable]:
    """What the page calls: a file to its view, a file and a pixel to a figure or a sentence."""

    def segment(path: str | None, multi_scale: bool) -> str:
        if path is None:
            return message_html("")
        try:
            found = segment_upload(predictor, path, limits, multi_scale)
        except (ValueError, OSError) as error:
            return message_html(one_line(error))
        return viewer_html(
            found.image,
            found.ids,
            found.confidence,
            predictor.classes,
            predictor.colors,
            pathlib.Path(path).stem,
        )

    def attention(path: str | None, pixel: Any) -> Image.Image:
        if path is None:
            raise ValueError("there is no picture")
        if not isinstance(pixel, dict) or not all(type(pixel.get(axis)) is int for axis in "xy"):
            raise ValueError("the pixel must be two whole numbers, x and y")
        shown = attention_maps(
            predictor, read_upload(predictor, path, limits), patch=(pixel["x"], pixel["y"])
        )
        heads = {f"head {i}": values for i, values in enumerate(shown.maps)}
        maps = {"mean of the heads": np.mean(shown.maps, axis=0)} | heads
        return attention_figure(shown.image, maps, shown.patch_size, shown.title, shown.patch)

    return segment, attention


def _page(
    gradio: ModuleType, predictor: Predictor, limits: Limits, samples: Sequence[pathlib.Path]
) -> Any:
    segment, attention = _answers(predictor, limits)

    # Gradio recognises the event by its type, which must be known when the function is made.
    def attend(path: str | None, event: gradio.EventData) -> Image.Image:
        try:
            return attention(path, event._data)
        except (ValueError, OSError) as error:
            raise gradio.Error(one_line(error), print_exception=False) from error

    introduction = _INTRODUCTION.format(
        minutes=sum(_CLEANING) // 60,
        classes=len(predictor.classes),
        protocol=predictor.engine().settings.protocol(),
        device=jax.local_devices()[0].device_kind,
    )
    scales = ", ".join(f"{scale:g}" for scale in MULTI_SCALE["scales"])
    with gradio.Blocks(
        title="segmenter_jax", analytics_enabled=False, delete_cache=_CLEANING
    ) as page:
        gradio.Markdown(introduction)
        with gradio.Row():
            with gradio.Column(scale=1, min_width=300):
                upload = _upload_field(
                    gradio,
                    label=f"Picture, up to {limits.size >> 20} MB and "
                    f"{limits.pixels / 1e6:g} megapixels",
                    elem_id="upload",
                )
                multi_scale = gradio.Checkbox(
                    label="Multi-scale", info=f"scales {scales}, each also flipped; slower"
                )
                if samples:
                    gradio.Examples([[str(path)] for path in samples], upload, label="Samples")
            with gradio.Column(scale=2, min_width=400):
                view = gradio.HTML(css_template=VIEWER_CSS, js_on_load=VIEWER_JS, elem_id="view")
        figure = gradio.Image(
            label="Attention of the patch that was clicked",
            interactive=False,
            buttons=["download", "fullscreen"],
            elem_id="attention",
        )
        # One model, so one call at a time, of whichever kind.
        one = {"concurrency_id": "model", "concurrency_limit": 1}
        gradio.on(
            [upload.change, multi_scale.change],
            segment,
            [upload, multi_scale],
            view,
            api_name="segment",
            trigger_mode="always_last",
            **one,
        )
        upload.change(lambda: None, None, figure, api_visibility="private", queue=False)
        view.click(attend, upload, figure, api_name="attention", **one)
    # What is sent past the queue would be computed at the same time.
    return page.queue(max_size=_MAX_WAITING, api_open=False)


def run(arguments: argparse.Namespace) -> None:
    """Serves the page until it is interrupted."""
    keep_freed_memory()
    prepare_compilation()
    limits = Limits(size=int(arguments.max_mb * 2**20), pixels=int(arguments.max_megapixels * 1e6))
    samples = [pathlib.Path(sample).expanduser().absolute() for sample in arguments.samples]
    with tempfile.TemporaryDirectory(prefix="segmenter_jax_demo_") as folder:
        gradio = _gradio(pathlib.Path(folder))
        predictor = load(arguments.model)
        for sample in samples:
            channels = predictor.description.model.in_channels
            decode_image(sample.read_bytes(), str(sample), channels=channels)
        from starlette.middleware import Middleware

        page = _page(gradio, predictor, limits, samples)
        page.launch(
            server_name=arguments.host,
            server_port=arguments.port,
            share=arguments.share,
            max_file_size=limits.size,
            app_kwargs={"middleware": [Middleware(_BodyLimit, limit=limits.size + _FORM)]},
            theme=gradio.themes.Base(font="system-ui", font_mono="monospace"),
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
        )
