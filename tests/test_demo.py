"""The page: its command, and its server as a program sees it."""

import json
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import pytest

from segmenter_jax import demo, load
from tests.demo_server import serve
from tests.hostile_uploads import NOISE, encoded, refused
from tests.models_on_disk import CLASSES, write_golden_model

SECRET = "the secret of another folder"


def test_without_gradio_one_line_says_what_to_install(monkeypatch, capsys):
    for name in ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE", "GRADIO_ANALYTICS_ENABLED"):
        # Restored afterwards.
        monkeypatch.setenv(name, "")
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert demo.main(["model"]) == 1
    expected = 'the page needs Gradio: pip install "segmenter_jax[demo]"'
    assert capsys.readouterr().err == f"segmenter_jax.demo: error: {expected}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    pytest.importorskip("gradio", reason="the page needs Gradio")
    folder = tmp_path_factory.mktemp("server")
    (folder / "secret.txt").write_text(SECRET)
    (folder / "secret.png").write_bytes(encoded(NOISE, "PNG"))
    sample = folder / "sample.png"
    sample.write_bytes(encoded(NOISE, "PNG"))
    model = write_golden_model(folder / "model")
    with serve(folder, model, "--samples", sample, "--max_mb", 0.2) as address:
        yield folder, address


def request(url, body=None, **headers):
    """Status and text of an answer."""
    if isinstance(body, dict):
        body, headers = json.dumps(body).encode(), {"Content-Type": "application/json"} | headers
    asked = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def upload(address, data, name="photo.png"):
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + data + b"\r\n--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    return request(f"{address}/gradio_api/upload", body, **kind)


def uploaded(address, data, name="photo.png"):
    status, answer = upload(address, data, name)
    assert status == 200, answer
    return {"path": json.loads(answer)[0], "meta": {"_type": "gradio.FileData"}}


def call(address, name, data, **more):
    """What the queue answers: the first output, or the error."""
    functions = json.loads(request(f"{address}/config")[1])["dependencies"]
    index = next(f["id"] for f in functions if f["api_name"] == name)
    body = {"data": data, "fn_index": index, "session_hash": os.urandom(5).hex()} | more
    status, answer = request(f"{address}/gradio_api/queue/join", body)
    assert status == 200, answer
    stream = request(f"{address}/gradio_api/queue/data?session_hash={body['session_hash']}")[1]
    messages = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]
    done = next(m for m in messages if m["msg"] == "process_completed")
    return done["output"]["data"][0] if done["success"] else done["output"]["error"]


def test_a_picture_is_answered_with_what_the_model_says(place):
    folder, address = place
    page = call(address, "segment", [uploaded(address, encoded(NOISE, "PNG")), False])
    shares = dict(re.findall(r"</i>(.*?)<b>(.*?) %</b>", page))
    ids = load(folder / "model").predict(NOISE)
    counts = np.bincount(ids.ravel(), minlength=len(CLASSES))
    expected = {c: f"{100 * n / ids.size:.1f}" for c, n in zip(CLASSES, counts, strict=True) if n}
    assert shares == expected
    assert 'download="photo_ids.png"' in page


def test_a_click_is_answered_with_the_attention_of_its_patch(place):
    _, address = place
    picture = uploaded(address, encoded(NOISE, "PNG"))
    figure = call(address, "attention", [picture], event_data={"x": 10, "y": 20})
    status, data = request(f"{address}/gradio_api/file={figure['path']}")
    assert status == 200 and data[8:12] == "WEBP"
    for pixel, reason in (
        ({"x": 56, "y": 0}, "pixel x=56, y=0 is outside the picture of 56 x 40"),
        ({"x": "10", "y": None}, "the pixel must be two whole numbers, x and y"),
        (None, "the pixel must be two whole numbers, x and y"),
    ):
        assert reason in call(address, "attention", [picture], event_data=pixel)
    assert "there is no picture" in call(address, "attention", [None], event_data={"x": 1, "y": 1})


@pytest.mark.parametrize("name", [n for n, (data, _) in refused().items() if len(data) < 200_000])
def test_a_bad_file_is_answered_with_a_sentence(place, name):
    _, address = place
    data, reason = refused()[name]
    page = call(address, "segment", [uploaded(address, data, name), False])
    assert page.startswith('<p class="seg-message" role="alert">')
    assert f"{name}: {reason}" in page and "/" not in page.removesuffix("</p>")


def test_uploads_over_the_limit_are_refused_in_every_form(place):
    _, address = place
    status, answer = upload(address, b"x" * 300_000)
    assert status == 413 and "exceeded maximum allowed size of 209715 bytes" in answer
    status, answer = upload(address, b"x" * 2_000_000)
    assert status == 413
    hidden = {"data": [{"path": None, "url": "data:image/png;base64," + "A" * 2_000_000}, False]}
    status, answer = request(f"{address}/gradio_api/call/segment", hidden)
    assert status == 413 and "requests are limited to" in answer


@pytest.mark.parametrize(
    "path",
    [
        "{folder}/secret.txt",
        "{folder}/secret.png",
        "{folder}/sample.png",
        "{folder}/model/model.json",
        "secret.txt",
        "../secret.txt",
        "/etc/passwd",
        "{upload}/../../../secret.txt",
        "{upload}%2F..%2F..%2F..%2F..%2F..%2Fetc%2Fpasswd",
        "file:///etc/passwd",
    ],
)
def test_no_file_but_uploads_is_given_away(place, path):
    folder, address = place
    picture = uploaded(address, encoded(NOISE, "PNG"))
    there = os.path.dirname(picture["path"])
    assert request(f"{address}/gradio_api/file={picture['path']}")[0] == 200
    path = path.format(folder=folder, upload=there)
    for route in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/", "svelte/"):
        status, answer = request(f"{address}/{route}{path}")
        assert status in (307, 400, 403, 404) and SECRET not in answer and "root:" not in answer
    answer = call(address, "segment", [picture | {"path": urllib.parse.unquote(path)}, False])
    assert not answer or "data:image" not in answer


def test_names_do_not_lead_out_of_the_folder(place):
    folder, address = place
    before = sorted(folder.rglob("*"))
    path = uploaded(address, encoded(NOISE, "PNG"), "../../../evil<img src=x>.png")["path"]
    assert "<" not in path and ".." not in path and sorted(folder.rglob("*")) == before


def test_no_address_is_fetched(place):
    _, address = place
    own = f"{address}/config"
    meta = {"_type": "gradio.FileData"}
    for url in (own, "http://169.254.169.254/latest/meta-data", "https://example.com/a.png"):
        assert request(f"{address}/gradio_api/proxy={url}")[0] in (400, 403, 404)
        answer = call(address, "segment", [{"path": url, "meta": meta}, False])
        assert "addresses are not fetched" in answer


def test_nothing_passes_the_queue(place):
    _, address = place
    picture = uploaded(address, encoded(NOISE, "PNG"))
    status, answer = request(f"{address}/gradio_api/run/segment", {"data": [picture, False]})
    assert status == 404 and "join the queue" in answer


def test_pages_of_other_origins_are_refused(place):
    _, address = place
    headers = {"Origin": "https://evil.example", "Host": address.removeprefix("http://")}
    asked = urllib.request.Request(f"{address}/config", headers=headers)
    with urllib.request.urlopen(asked) as answer:
        assert answer.headers.get("Access-Control-Allow-Origin") != "https://evil.example"
