"""The Hugging Face hub, through its own library, against a hub on the loopback address."""

import json
import shutil
import sys

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from segmenter_jax import publish
from segmenter_jax.checkpoints.checksums import weights_digest
from segmenter_jax.checkpoints.model_dir import load_description
from segmenter_jax.conversion import hub
from segmenter_jax.conversion.arrays import SourceError
from segmenter_jax.conversion.convert import ConvertOptions, convert, load_init
from segmenter_jax.conversion.locate import locate
from segmenter_jax.conversion.opening import Hints
from segmenter_jax.conversion.sources import open_source
from segmenter_jax.inference.predictor import read_model
from segmenter_jax.training.workdir import workdir_of
from tests.conversion.hub_server import TOKEN, Repository, running, stop
from tests.golden_params import golden_params
from tests.models_on_disk import golden_description, write_golden_model

huggingface_hub = pytest.importorskip(
    "huggingface_hub", reason="the hub's library is not installed: pip install segmenter_jax[hub]"
)

CARD = "---\nlicense: apache-2.0\ntags: []\n---\n# A model\n"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub, and the library as HF_ENDPOINT, HF_HOME and the like would make it ask it."""
    with running() as server:
        from huggingface_hub import constants, file_download

        values = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "HF_STORED_TOKENS_PATH": str(tmp_path / "tokens"),
            "HF_HUB_DISABLE_XET": True,
            "DOWNLOAD_CHUNK_SIZE": 50_000,
            "HF_HUB_DISABLE_TELEMETRY": True,
        }
        for name, value in values.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
        yield server


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model directory."""
    return write_golden_model(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def folder(model):
    """What is published of it."""
    out = model.parent / "out"
    assert publish.main([str(model), "me/street", "--license=mit", f"--output={out}"]) == 0
    return out


@pytest.fixture(scope="module")
def published(folder):
    """Files of a published model, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def repo(server, published):
    server.repos["me/street"] = Repository(published)
    return server.repos["me/street"]


def assert_is_the_model(address):
    description, params = read_model(address)
    assert description == golden_description()
    assert weights_digest(params) == weights_digest(golden_params("segm_mask"))


def log_in(monkeypatch, token=TOKEN):
    monkeypatch.setenv("HF_TOKEN", token)


def upload(folder, private=False, revision=None):
    return hub.upload(folder, "me/street", private=private, revision=revision, message="a model")


def test_what_was_published_loads_bit_exact(server, model, tmp_path, monkeypatch, capsys):
    log_in(monkeypatch)
    assert publish.main([str(model), "me/street", "--license=mit", "--private"]) == 0
    repo = server.repos["me/street"]
    assert repo.private and len(repo.commits) == 2
    assert f"published: hf://me/street@{repo.refs['main']}" in capsys.readouterr().out
    assert_is_the_model("hf://me/street")


def test_branches_with_slashes_tags_and_commits(server, folder, tmp_path, monkeypatch, repo):
    log_in(monkeypatch)
    changed = shutil.copytree(folder, tmp_path / "changed") / "model.json"
    changed.write_text(changed.read_text().replace('"stride": 48', '"stride": 32'))
    address = upload(changed.parent, revision="tries/small")
    assert address == f"hf://me/street@{repo.refs['tries/small']}"
    assert load_description(locate("hf://me/street@tries/small").path).stride == 32
    assert load_description(locate(address).path).stride == 32
    repo.refs["v1.0"] = repo.refs["main"]
    assert_is_the_model("hf://me/street@v1.0")
    with pytest.raises(SourceError, match=r"hf://me/street@none: .* no branch, tag or commit 'no"):
        locate("hf://me/street@none")


def test_nothing_private_is_put_where_all_can_see_it(server, folder, repo, monkeypatch):
    log_in(monkeypatch)
    with pytest.raises(SourceError, match="hf://me/street: is public already; nothing was upl"):
        upload(folder, private=True)
    assert len(repo.commits) == 1 and not server.received


def test_what_is_in_the_cache_needs_no_network(server, repo):
    assert_is_the_model("hf://me/street")
    commit = repo.refs["main"]
    stop(server)
    assert_is_the_model("hf://me/street")
    assert_is_the_model(f"hf://me/street@{commit}")
    with pytest.raises(SourceError, match=r"hub cannot be reached \(ConnectError: .*\); what"):
        locate("hf://me/other")


def test_an_interrupted_download_goes_on_where_it_stopped(server, repo, published):
    server.cuts = [100_000, 150_000]
    assert_is_the_model("hf://me/street")
    asked = [r for verb, path, r in server.requests if verb == "GET" and path.endswith("tensors")]
    assert asked == [None, "bytes=100000-", "bytes=250000-"]


def test_half_a_download_is_no_model_without_a_network(server, repo, monkeypatch):
    with monkeypatch.context() as patched:
        # As where the process is killed between two files.
        patched.setattr(hub, "_FIRST", ())
        patched.setattr(hub, "_ELSE", ("none",))
        with pytest.raises(SourceError, match="holds no weights"):
            locate("hf://me/street")
    stop(server)
    with pytest.raises(SourceError, match="hf://me/street: "):
        locate("hf://me/street")


@pytest.mark.parametrize("name, kind", [("model.safetensors", "sha256"), ("model.json", "sha1")])
def test_wrong_bytes_are_noticed_and_fetched_anew(server, repo, name, kind):
    server.damaged = {name}
    with pytest.raises(SourceError, match=rf"{name}: the hub says that its {kind} is"):
        locate("hf://me/street")
    server.damaged = set()
    path = locate("hf://me/street").path / name
    # Damage of later days, and no network to mend it.
    path.resolve().write_bytes(path.read_bytes()[:-1] + b"x")
    stop(server)
    with pytest.raises(SourceError, match="it was removed: try again to fetch it anew"):
        locate("hf://me/street")


def test_repositories_that_are_none_of_ours_to_read(server, repo, monkeypatch):
    with pytest.raises(SourceError, match="hf://me/none: there is no repository me/none, or it is"):
        locate("hf://me/none")
    repo.gated = True
    with pytest.raises(SourceError, match=r"is gated: accept its licence at http.*/me/street, the"):
        locate("hf://me/street")
    repo.gated, repo.private = False, True
    with pytest.raises(SourceError, match="or it is private: then log in with `hf auth login`"):
        locate("hf://me/street")
    log_in(monkeypatch, "hf_bad")
    with pytest.raises(SourceError, match="hf://me/street: the hub does not accept the token"):
        locate("hf://me/street")
    log_in(monkeypatch)
    assert_is_the_model("hf://me/street")


def test_a_bad_token_publishes_nothing(server, folder, monkeypatch):
    log_in(monkeypatch, "hf_bad")
    with pytest.raises(SourceError, match="hf://me/street: the hub does not accept the token; lo"):
        upload(folder)
    assert not server.repos


def test_what_the_hub_says_of_a_model_card_is_passed_on(server, folder, monkeypatch):
    log_in(monkeypatch)
    server.yaml_errors = ['"license" must be one of the list']
    with pytest.raises(SourceError, match='"license" must be one of the list'):
        upload(folder)
    assert len(server.repos["me/street"].commits) == 1


@pytest.mark.parametrize("address", ["hf://street", "hf://a/b/c", "hf://a/b@", "hf://a b/c"])
def test_other_addresses_are_refused(address):
    with pytest.raises(SourceError, match=r"expected hf://owner/name or hf://owner/name@revision"):
        locate(address)


def test_a_repository_without_weights_or_with_a_part_of_them(server):
    server.repos["a/docs"] = Repository({"README.md": b"x", "sub/model.safetensors": b"x"})
    with pytest.raises(SourceError, match="hf://a/docs: holds no weights; looked for"):
        locate("hf://a/docs")
    index = json.dumps({"weight_map": {"x": "model-1-of-2.safetensors", "y": "model-2-of-2.x"}})
    files = {"model.safetensors.index.json": index.encode(), "model-1-of-2.safetensors": b"x"}
    server.repos["a/part"] = Repository(files)
    with pytest.raises(SourceError, match=r"names model-2-of-2\.x, which is not"):
        read_model("hf://a/part", num_classes=2)


def test_foreign_weights_are_known_by_repository_commit_and_licence(server, golden_dir):
    weights = (golden_dir / "google_vit_augreg.npz").read_bytes()
    repo = server.repos["goo/vit"] = Repository(
        {"README.md": CARD.encode(), "w.npz": weights, "old/w.npz": b"x", "more.txt": b"x"}
    )
    opened = open_source("hf://goo/vit", Hints())
    assert opened.source == f"hf://goo/vit@{repo.refs['main']}"
    assert (opened.format, opened.license) == ("google", {"license": "apache-2.0"})
    fetched = {path for verb, path, _ in server.requests if verb == "GET" and "/resolve/" in path}
    assert {path.rpartition("/")[2] for path in fetched} == {"README.md", "w.npz"}


def test_provenance_tells_the_commit_and_what_was_before(server, repo):
    source = f"hf://me/street@{repo.refs['main']}"
    description, _, _ = convert("hf://me/street", ConvertOptions())
    before = golden_description().provenance
    found = description.provenance
    assert (found["source"], found["license"], found["parent"]) == (source, "mit", before)
    _, origin, _ = load_init("hf://me/street", golden_description(), seed=0)
    assert (origin["source"], origin["license"], origin["parent"]) == (source, "mit", before)


def test_a_card_lies_beside_local_files_too(server, repo, tmp_path):
    folder = huggingface_hub.snapshot_download("me/street", local_dir=tmp_path / "copy")
    assert locate(folder).license == {"license": "mit"}


def test_safetensors_come_before_other_files(server, published):
    files = published | {"pytorch_model.bin": b"x", "pytorch_model.bin.index.json": b"{}"}
    server.repos["me/both"] = Repository(files)
    assert_is_the_model("hf://me/both")
    assert not [path for _, path, _ in server.requests if "pytorch_model" in path]


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SourceError, match=r'hf://a/b: needs .* pip install "segmenter_jax\[hub\]"'):
        locate("hf://a/b")


def test_an_address_is_of_no_run():
    assert workdir_of("hf://me/street") is workdir_of("https://example.org/w.npz") is None


def test_parameters_of_all_names_are_in_the_file(published):
    import safetensors.numpy

    named = safetensors.numpy.load(published["model.safetensors"])
    expected = flatten_dict(golden_params("segm_mask"), sep="/")
    assert named.keys() == expected.keys()
    assert {array.dtype for array in named.values()} == {np.dtype(np.float32)}


def test_license_fields_are_read_and_nothing_else(tmp_path):
    cases = {
        "---\nlicense: other\nlicense_name: dinov3\nx: 1\n---\n": {
            "license": "other",
            "license_name": "dinov3",
        },
        "no front matter\n---\nlicense: mit\n---\n": {},
        "---\nlicense: [a\n---\n": {},
        "---\n- a\n---\n": {},
        "---\nlicense: [mit, bsd]\n---\n": {},
    }
    for text, expected in cases.items():
        (tmp_path / "README.md").write_text(text)
        assert hub.license_of(tmp_path) == expected, text
    assert hub.license_of(tmp_path / "none") == {}
