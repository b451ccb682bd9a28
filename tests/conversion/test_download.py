"""The download cache, against a local server that misbehaves on demand."""

import hashlib
import http.server
import threading

import numpy as np
import pytest

from segmenter_jax.conversion import download
from segmenter_jax.conversion.arrays import SourceError
from segmenter_jax.conversion.locate import locate, web_address
from segmenter_jax.conversion.published import PUBLISHED, licence
from segmenter_jax.inference.predictor import read_model
from segmenter_jax.models import VARIANTS
from segmenter_jax.runtime.console import logger

CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append(self.headers.get("Range"))
        if server.status != 200:
            self.send_error(server.status)
            return
        start = 0
        asked = self.headers.get("Range")
        if asked and self.headers.get("If-Range") == server.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(CONTENT) - start + server.extra_length))
        self.end_headers()
        stop = server.stops.pop(0) if server.stops else len(CONTENT)
        self.wfile.write(CONTENT[start:stop])


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests, server.stops, server.status = [], [], 200
        server.etag, server.extra_length = '"one"', 0
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGMENTER_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    return tmp_path / "cache"


@pytest.fixture
def url(server):
    return f"http://127.0.0.1:{server.server_port}/augreg/w.npz"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_published_names_download_once(server, url, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "augreg/Ti_16", url)
    place = locate("augreg/Ti_16")
    path = place.path
    assert path.read_bytes() == CONTENT and not place.is_model and place.source == url
    assert locate("augreg/Ti_16").path == path
    assert len(server.requests) == 1
    record = path.with_name("w.npz.sha256").read_text().strip()
    assert record == hashlib.sha256(CONTENT).hexdigest()


def test_a_file_in_the_cache_needs_no_network(server, url):
    path = download.cached(url)
    server.shutdown()
    server.server_close()
    assert download.cached(url) == path


def test_a_changed_file_in_the_cache_is_noticed(url):
    path = download.cached(url)
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(SourceError, match="has changed since it was put into the cache"):
        download.cached(url)


def test_an_interrupted_download_goes_on_where_it_stopped(server, url, tmp_path):
    server.stops = [1_500_000, 2_000_000]
    download.download(url, tmp_path / "w.npz")
    assert (tmp_path / "w.npz").read_bytes() == CONTENT
    assert server.requests == [None, "bytes=1500000-", "bytes=2000000-"]
    assert names(tmp_path) == ["w.npz"]


def test_a_later_call_begins_again(server, url, tmp_path):
    server.stops = [1_500_000]
    with pytest.raises(SourceError, match="ended after 1500000 of 3000000 bytes"):
        download.download(url, tmp_path / "w.npz", attempts=1)
    assert names(tmp_path) == []
    download.download(url, tmp_path / "w.npz")
    assert (tmp_path / "w.npz").read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, url, tmp_path, monkeypatch):
    server.stops = [1_500_000]

    def change(seconds):
        server.etag = '"two"' if server.requests else server.etag

    monkeypatch.setattr(download.time, "sleep", change)
    download.download(url, tmp_path / "w.npz")
    assert server.requests == [None, "bytes=1500000-"]
    assert (tmp_path / "w.npz").read_bytes() == CONTENT


def test_a_server_that_promises_too_much(server, url, tmp_path):
    server.extra_length = 1000
    with pytest.raises(SourceError, match="cannot download"):
        download.download(url, tmp_path / "w.npz")
    assert not (tmp_path / "w.npz").exists()


def test_a_full_disk_is_no_fault_of_the_connection(server, url, tmp_path, small_files):
    with small_files(10**6), pytest.raises(OSError, match=f"{tmp_path}/w.npz"):
        download.download(url, tmp_path / "w.npz")
    assert len(server.requests) == 1


def test_a_missing_file_is_told_with_what_to_do(server, url, cache):
    server.status = 404
    with pytest.raises(SourceError, match=r"answers 404 Not Found; or fetch http.* put it at /"):
        download.cached(url)
    assert len(server.requests) == 1
    assert not list(cache.rglob("*.npz"))


def test_a_failing_server_is_asked_again(server, url, tmp_path):
    server.status = 503
    with pytest.raises(SourceError, match="answers 503"):
        download.download(url, tmp_path / "w.npz", attempts=3)
    assert len(server.requests) == 3


def test_without_a_network_the_error_says_where_to_put_the_file(server, url, cache):
    server.shutdown()
    server.server_close()
    with pytest.raises(SourceError, match=r"or fetch http://127.0.0.1.* and put it at ") as error:
        download.cached(url)
    path = str(error.value).rpartition("put it at ")[2]
    with open(path, "wb") as file:
        file.write(CONTENT)
    assert download.cached(url).read_bytes() == CONTENT


def test_published_names_are_the_augreg_files():
    augreg = {name: address for name, address in PUBLISHED.items() if name.startswith("augreg/")}
    assert sorted(augreg) == [f"augreg/{n}" for n in ("B_16", "B_8", "L_16", "S_16", "Ti_16")]
    for name, address in augreg.items():
        assert address.startswith(f"https://storage.googleapis.com/vit_models/{name}-i21k-300ep-")
        assert address.endswith(("res_384.npz", "res_224.npz"))


def test_published_names_are_variants_with_addresses_of_their_owners():
    meta, google = "https://dl.fbaipublicfiles.com/", "https://storage.googleapis.com/"
    for name, address in {
        "dinov2_g/14": f"{meta}dinov2/dinov2_vitg14/dinov2_vitg14_pretrain.pth",
        "dinov2reg_S/14": f"{meta}dinov2/dinov2_vits14/dinov2_vits14_reg4_pretrain.pth",
        "siglip2_g-opt/16@384": f"{google}big_vision/siglip2/siglip2_g-opt16_384.npz",
        "mae_H/14": f"{meta}mae/pretrain/mae_pretrain_vit_huge.pth",
        "loca_B/16@i21k": f"{google}scenic-bucket/loca/loca_vbase_imnet21k",
    }.items():
        assert PUBLISHED[name] == address
    assert not any("dinov3" in name for name in PUBLISHED)
    sizes = {name.partition("/")[0].replace("siglip2", "siglip") for name in PUBLISHED}
    assert sizes - {"augreg"} <= set(VARIANTS)
    assert all(licence(name) for name in PUBLISHED)


def test_the_licence_is_said_when_weights_are_fetched(url, monkeypatch, caplog):
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setitem(PUBLISHED, "mae_B/16", url)
    for _ in range(2):
        locate("mae_B/16")
    # A record may have come by two handlers: whether the logger propagates, others have changed.
    (said,) = {r: r.getMessage() for r in caplog.records if r.name == logger.name}.values()
    assert said.startswith("fetching mae_B/16, whose licence is CC-BY-NC 4.0, not for commercial")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dinov3_L/16", "DINOv3's weights are gated.*github.com/facebookresearch/dinov3.*License"),
        ("facebook/dinov3-vits16-pretrain-lvd1689m", "DINOv3's weights are gated"),
        ("timm/vit_small_patch16_dinov3.lvd1689m", "DINOv3's weights are gated"),
        ("tue-mps/ade20k_semantic_eomt_large_512_dinov3", "differences to DINOv3's.*gated"),
    ],
)
def test_gated_weights_are_never_fetched(name, message):
    with pytest.raises(SourceError, match=message):
        locate(name)


def test_a_name_that_is_almost_published_is_told_what_is():
    with pytest.raises(SourceError, match=r"no published name such as siglip2_B/16@\d+, siglip"):
        locate("siglip2_B/16")


def test_bucket_paths_are_fetched_over_https():
    address = "https://storage.googleapis.com/vit_models/augreg/w.npz"
    assert web_address("gs://vit_models/augreg/w.npz") == web_address(address) == address
    assert web_address("gs://others/w.npz") is web_address("w.npz") is None


def test_plain_http_is_no_source(url):
    with pytest.raises(ValueError, match="cannot be read"):
        locate(url)


def test_a_failed_fetch_of_weights_by_address_takes_one_clear_error(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"cannot download https://127.0.0.1:9/w.npz: "):
        read_model("https://127.0.0.1:9/w.npz")
