"""The Predictor and its command line."""

import io
import os

import jax
import numpy as np
import pytest
from PIL import Image

import segmenter_jax
from segmenter_jax import predict
from segmenter_jax.inference.plan import planned_outputs
from segmenter_jax.pictures import overlay
from segmenter_jax.pictures.video import Frame, declared_frames, read_frames
from segmenter_jax.pictures.video_writing import write_video
from segmenter_jax.runtime.ownership import sole_owner
from tests.models_on_disk import CLASSES, COLORS, write_golden_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return write_golden_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def predictor(model_dir):
    return segmenter_jax.load(model_dir, devices=jax.local_devices()[:1])


def picture(height=70, width=90, seed=0):
    """A smooth picture, so that classes differ between regions."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def test_ids_are_int32_at_the_pictures_own_size_whatever_it_comes_as(predictor, tmp_path):
    image = picture()
    path = tmp_path / "photo.png"
    Image.fromarray(image).save(path)
    expected = predictor.predict(image)
    assert expected.shape == (70, 90) and expected.dtype == np.int32
    assert len(np.unique(expected)) > 1
    for given in (path, str(path), Image.fromarray(image), np.dstack([image, image[..., :1]])):
        np.testing.assert_array_equal(predictor.predict(given), expected)


def test_grey_arrays_are_read_as_grey_pictures(predictor):
    grey = picture()[..., 0]
    expected = predictor.predict(np.repeat(grey[..., None], 3, axis=2))
    for given in (grey, grey[..., None], Image.fromarray(grey)):
        np.testing.assert_array_equal(predictor.predict(given), expected)


def test_16_bit_pictures_are_scaled_to_8_bits(predictor):
    grey = picture()[..., 0]
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    np.testing.assert_array_equal(predictor.predict(deep), predictor.predict(grey))
    with pytest.raises(ValueError, match="32-bit pictures are not supported"):
        predictor.predict(Image.fromarray(grey.astype(np.float32)))


def test_lists_give_lists_and_generators_give_iterators(predictor):
    images = [picture(50, 60, 1), picture(80, 40, 2)]
    singly = [predictor.predict(image) for image in images]
    listed = predictor.predict(images)
    assert isinstance(listed, list)
    streamed = predictor.predict(image for image in images)
    assert not isinstance(streamed, list)
    for results in (listed, list(streamed)):
        for found, expected in zip(results, singly, strict=True):
            np.testing.assert_array_equal(found, expected)
    assert predictor.predict([]) == []


def test_probabilities_sum_to_one_and_have_the_ids_as_their_maximum(predictor):
    image = picture()
    probs = predictor.predict_probs(image, scales=(0.75, 1.25), flip=True)
    assert probs.shape == (70, 90, 7) and probs.dtype == np.float32
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-5)
    ids = predictor.predict(image, scales=(0.75, 1.25), flip=True)
    np.testing.assert_array_equal(probs.argmax(-1), ids)


def test_flip_averages_make_mirrored_pictures_agree(predictor):
    image = picture()
    probs = predictor.predict_probs(image, flip=True)
    mirrored = predictor.predict_probs(image[:, ::-1], flip=True)
    np.testing.assert_allclose(mirrored[:, ::-1], probs, atol=1e-5)


def test_overlay_paints_the_prediction(predictor):
    image = picture()
    found = predictor.overlay(image, alpha=0.3)
    expected = overlay(image, predictor.predict(image), COLORS, 0.3)
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_predictor_knows_classes_and_colors(predictor):
    assert predictor.classes == CLASSES
    assert predictor.colors == COLORS


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((8, 8, 3)), "arrays must be uint8 with values in 0..255, got float64"),
        (np.zeros((8, 8, 2), np.uint8), r"arrays must be \(H, W, 3\) .* got \(8, 8, 2\)"),
        (np.zeros((0, 8, 3), np.uint8), r"image must be \(H, W, 3\) .* got \(0, 8, 3\)"),
    ],
)
def test_wrong_arrays_are_refused(predictor, array, message):
    with pytest.raises(ValueError, match=message):
        predictor.predict(array)


def test_missing_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere: does not exist"):
        segmenter_jax.load(tmp_path / "nowhere")


def test_single_pixels_and_thin_pictures_are_segmented(predictor):
    for size in ((1, 1), (1, 40), (40, 1)):
        image = np.full((*size, 3), 200, np.uint8)
        assert predictor.predict(image).shape == size


def run(*arguments):
    return predict.main([str(a) for a in arguments])


@pytest.fixture
def folder(tmp_path):
    """Pictures in a folder and a subfolder, one turned by EXIF, and one that is broken."""
    root = tmp_path / "photos"
    (root / "trip").mkdir(parents=True)
    Image.fromarray(picture(48, 64, 1)).save(root / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(40, 60, 2)).save(root / "trip" / "b.jpg", exif=exif)
    data = io.BytesIO()
    Image.fromarray(picture(48, 64, 3)).save(data, "JPEG")
    (root / "broken.jpg").write_bytes(data.getvalue()[:200])
    (root / "notes.txt").write_text("not a picture")
    return root


def test_folders_are_mirrored_and_a_bad_file_is_reported_and_skipped(
    model_dir, folder, tmp_path, capsys
):
    out = tmp_path / "out"
    code = run(model_dir, folder, "-o", out, "--save", "overlay,ids,palette")
    printed = capsys.readouterr()
    assert code == 1
    assert "broken.jpg" in printed.err and "Traceback" not in printed.err
    assert "2 of 3 files segmented" in printed.out
    assert "window 64, stride 48, base 64, scales 1, flip no" in printed.out
    written = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert written == {
        "legend.png",
        "results.jsonl",
        *(f"{kind}/{stem}.png" for kind in ("ids", "palette") for stem in ("a", "trip/b")),
        *(f"overlay/{stem}.jpg" for stem in ("a", "trip/b")),
    }
    # The turned picture is as tall as it is shown.
    ids = np.asarray(Image.open(out / "ids" / "trip" / "b.png"))
    assert ids.shape == (60, 40)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "palette" / "trip" / "b.png")), ids)


def test_written_ids_are_those_of_the_predictor(model_dir, predictor, folder, tmp_path):
    out = tmp_path / "out"
    assert run(model_dir, folder / "a.png", "-o", out, "--scales", "0.75,1", "--flip") == 0
    expected = predictor.predict(folder / "a.png", scales=(0.75, 1), flip=True)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "ids" / "a.png")), expected)
    assert not (out / "palette").exists()


def test_names_that_collide_keep_their_suffix(tmp_path):
    for name in ("x.png", "x.jpg", "y.png"):
        (tmp_path / name).touch()
    planned = planned_outputs([str(tmp_path)])
    assert {p.name: str(s) for p, s in planned.items()} == {
        "x.jpg": "x_jpg",
        "x.png": "x_png",
        "y.png": "y",
    }


def test_what_a_folder_leaves_out_is_said(tmp_path, capsys):
    for name in ("x.jfif", ".Trash-1000/y.png", "__MACOSX/z.png", "IMG.HEIC"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(s) for s in planned_outputs([str(tmp_path)]).values()] == ["x"]
    assert capsys.readouterr().err == (
        f"{tmp_path}: left out: 2 hidden or kept by a system: .Trash-1000, __MACOSX; "
        "1 not read (.heic): IMG.HEIC\n"
    )
    (tmp_path / "x.jfif").unlink()
    with pytest.raises(ValueError, match=r"no pictures in this folder; left out: .*IMG\.HEIC"):
        planned_outputs([str(tmp_path)])


def test_a_torn_picture_is_refused_by_its_name(predictor, tmp_path):
    data = io.BytesIO()
    Image.fromarray(picture(48, 64, 3)).save(data, "JPEG")
    (tmp_path / "torn.jpg").write_bytes(data.getvalue()[:900] + b"\xff\xd9")
    with pytest.raises(ValueError, match=r"torn\.jpg: truncated or corrupt JPEG image"):
        predictor.predict(tmp_path / "torn.jpg")


def test_inputs_that_would_overwrite_each_other_are_refused(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").touch()
    with pytest.raises(ValueError, match=r"one/x.png and .*two/x.png would both write x_png"):
        planned_outputs([str(tmp_path / f / "x.png") for f in ("one", "two")])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{model}", "{tmp}/absent.jpg", "-o", "{tmp}/o"], 1, "absent.jpg: no such file or folder"),
        (["{model}", "{tmp}", "-o", "{tmp}/o"], 1, "no pictures in this folder"),
        (["{tmp}/none", "{photo}", "-o", "{tmp}/o"], 1, "none: does not exist"),
        (
            ["{model}", "{photo}", "-o", "{tmp}/o", "--stride", "65"],
            1,
            "stride=65 must be in 1..window=64",
        ),
        (["{model}", "{photo}"], 2, "-o/--output"),
        (["{model}", "{photo}", "-o", "{tmp}/o", "--save", "mask"], 2, r"unknown results ['mask']"),
        (["{model}", "{photo}", "-o", "{tmp}/o", "--scales", "a"], 2, "'a' is not a list of num"),
    ],
)
def test_failures_take_one_clear_line(
    model_dir, folder, tmp_path, capsys, arguments, code, message
):
    empty = tmp_path / "empty"
    empty.mkdir()
    filled = [a.format(model=model_dir, tmp=empty, photo=folder / "a.png") for a in arguments]
    if code == 2:
        with pytest.raises(SystemExit, match="2"):
            run(*filled)
    else:
        assert run(*filled) == 1
    printed = capsys.readouterr().err
    assert message in printed.splitlines()[-1]
    if code == 1:
        assert len(printed.splitlines()) == 1


def test_debug_shows_the_traceback(model_dir, tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        run(model_dir, tmp_path / "absent.jpg", "-o", tmp_path, "--debug")


def test_patterns_are_mirrored_below_their_fixed_part(tmp_path, monkeypatch):
    for name in ("a/x.png", "a/b/y.jpg", "a/b/.hidden.jpg", "a/b/z.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    planned = planned_outputs(["a/**/*"])
    assert {str(p): str(s) for p, s in planned.items()} == {"a/x.png": "x", "a/b/y.jpg": "b/y"}
    with pytest.raises(ValueError, match=r"a/\*\.gif: no pictures match"):
        planned_outputs(["a/*.gif"])


def test_finished_results_are_kept_unless_they_are_to_be_overwritten(
    model_dir, folder, tmp_path, capsys
):
    out = tmp_path / "out"
    assert run(model_dir, folder / "a.png", "-o", out) == 0
    kept = out / "ids" / "a.png"
    kept.write_bytes(b"finished")
    assert run(model_dir, folder, "-o", out, "--batch_size", 3) == 1
    assert "1 of 2 files segmented into" in (printed := capsys.readouterr().out)
    assert "1 were there already" in printed
    assert kept.read_bytes() == b"finished"
    # One killed before its end wrote no legend.
    (out / "legend.png").unlink()
    assert run(model_dir, folder / "a.png", "-o", out) == 0
    assert (out / "legend.png").exists()
    # A result is missing: all are made again.
    (out / "overlay" / "a.jpg").unlink()
    assert run(model_dir, folder / "a.png", "-o", out) == 0
    assert kept.read_bytes() != b"finished"
    kept.write_bytes(b"finished")
    assert run(model_dir, folder / "a.png", "-o", out, "--overwrite") == 0
    assert kept.read_bytes() != b"finished"
    assert "made again" not in capsys.readouterr().err


def test_results_of_another_model_settings_or_file_are_made_again_and_it_is_said(
    model_dir, predictor, folder, tmp_path, capsys
):
    out, photo = tmp_path / "out", folder / "a.png"
    other = write_golden_model(tmp_path / "other", mean=(0.2,))
    assert run(other, photo, folder / "trip", "-o", out, "--save", "ids") == 0
    assert "made again" not in capsys.readouterr().err
    Image.fromarray(picture(50, 60, 7)).save(photo)
    assert run(model_dir, photo, "-o", out, "--save", "ids") == 0
    printed = capsys.readouterr()
    assert printed.err.count("made again") == 1 and str(photo) in printed.err
    assert f"results in {out} were made by another model" in printed.err
    assert "1 of 1 files segmented" in printed.out
    ids = np.asarray(Image.open(out / "ids" / "a.png"))
    np.testing.assert_array_equal(ids, predictor.predict(photo))


@pytest.mark.parametrize("output", ["results", "."])
def test_results_inside_the_input_are_not_segmented(model_dir, folder, capsys, output):
    (folder / "broken.jpg").unlink()
    assert run(model_dir, folder, "-o", folder / output) == 0
    written = sorted(folder.rglob("*.*"))
    assert run(model_dir, folder, "-o", folder / output) == 0
    assert sorted(folder.rglob("*.*")) == written
    printed = capsys.readouterr()
    assert "left out: 5 results of earlier runs" in printed.err
    assert "0 of 0 files segmented" in printed.out and "2 were there already" in printed.out
    # Those of another run neither, but for who asks for them.
    names = {path.name for path in planned_outputs([f"{folder}/**/*"])}
    assert names == {"a.png", "b.jpg"}
    names = {path.name for path in planned_outputs([f"{folder / output}/overlay"])}
    assert names == {"a.jpg", "b.jpg"}
    with pytest.raises(ValueError, match="no pictures but 2 results of earlier runs"):
        planned_outputs([f"{folder / output}/ids/../overl*/**"])


def test_a_folder_of_results_that_is_in_use_is_refused(model_dir, folder, tmp_path, capsys):
    with sole_owner(tmp_path / "out"):
        assert run(model_dir, folder, "-o", tmp_path / "out") == 1
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err


def test_confidence_and_best_classes_are_those_of_the_probabilities(
    model_dir, predictor, folder, tmp_path
):
    image = folder / "a.png"
    probs = predictor.predict_probs(image)
    maps = predictor.predict_maps(image, ("confidence", "top_ids"), top_k=2)
    np.testing.assert_array_equal(maps["confidence"], probs.max(-1))
    np.testing.assert_array_equal(maps["top_ids"], np.argsort(-probs, -1, kind="stable")[..., :2])
    assert maps["top_ids"].dtype == np.int32
    assert run(model_dir, image, "-o", tmp_path / "out", "--save", "confidence") == 0
    written = np.asarray(Image.open(tmp_path / "out" / "confidence" / "a.png"))
    np.testing.assert_array_equal(written, np.rint(probs.max(-1) * 255))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """60 frames of a picture that moves."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    wide = picture(48, 190, 4)
    return write_clip(path, (wide[:, 2 * i : 2 * i + 70] for i in range(60)), [1 / 30] * 60)


def write_clip(path, images, seconds):
    """Writes images as a video, each shown for its seconds."""
    start = 0.0
    with write_video(path) as append:
        for image, duration in zip(images, seconds, strict=True):
            append(Frame(image, start, duration))
            start += duration
    return path


def times(path):
    """Start of each frame of a video, and the end of the last, in seconds."""
    frames = list(read_frames(path))
    return [*(f.start for f in frames), frames[-1].start + frames[-1].duration]


def test_videos_come_out_with_their_length_size_and_rate(model_dir, predictor, clip, tmp_path):
    out = tmp_path / "out"
    assert run(model_dir, clip, "-o", out, "--native") == 0
    np.testing.assert_allclose(times(out / "overlay" / "clip.mp4"), np.arange(61) / 30, atol=1e-5)
    painted = [frame.image for frame in read_frames(out / "overlay" / "clip.mp4")]
    assert [f.shape for f in painted] == [(48, 70, 3)] * 60
    names = sorted(p.name for p in (out / "ids" / "clip").iterdir())
    assert names == [f"{i:06d}.png" for i in range(60)]
    frame = list(read_frames(clip))[37].image
    ids = np.asarray(Image.open(out / "ids" / "clip" / "000037.png"))
    np.testing.assert_array_equal(ids, predictor.predict(frame, base_size=None))
    expected = overlay(frame, ids, COLORS)
    assert np.abs(painted[37].astype(int) - expected).mean() < 12


def test_videos_are_skipped_when_finished_or_bad_and_become_gifs_when_asked(
    model_dir, tmp_path, capsys
):
    folder, out = tmp_path / "clips", tmp_path / "out"
    folder.mkdir()
    delays = [0.02, 2.0, 3.0]
    write_clip(folder / "short.gif", [picture(40, 50, seed) for seed in (1, 2, 3)], delays)
    (folder / "broken.mp4").write_bytes(b"not a video")
    arguments = (model_dir, folder, "-o", out, "--save", "overlay")
    assert run(*arguments) == 1
    printed = capsys.readouterr()
    assert "broken.mp4: not a readable video" in printed.err
    assert "1 of 2 files segmented" in printed.out
    assert [p.name for p in (out / "overlay").iterdir()] == ["short.gif"]
    expected = np.cumsum([0, *delays])
    np.testing.assert_allclose(times(out / "overlay" / "short.gif"), expected, atol=1e-5)
    assert run(*arguments) == 1
    assert "0 of 1 files segmented" in capsys.readouterr().out
    assert run(model_dir, folder / "short.gif", "-o", out, "--video", ".mp4") == 0
    np.testing.assert_allclose(times(out / "overlay" / "short.mp4"), expected, atol=1e-5)


def test_videos_are_segmented_in_the_order_of_the_inputs(model_dir, tmp_path, capsys):
    clips = [tmp_path / f"{name}.mp4" for name in "edcba"]
    for path in clips:
        path.write_bytes(b"not a video")
    assert run(model_dir, *clips, "-o", tmp_path / "out") == 1
    skipped = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert [line.split(":")[1].strip() for line in skipped] == list(map(str, clips))


def test_a_video_that_cannot_be_written_does_not_stop_the_rest(model_dir, tmp_path, capsys):
    folder, out = tmp_path / "clips", tmp_path / "out"
    folder.mkdir()
    for name in ("a.gif", "b.gif"):
        write_clip(folder / name, [picture(40, 50)], [0.2])
    (out / "overlay" / "a.gif").mkdir(parents=True)
    assert run(model_dir, folder, "-o", out, "--save", "overlay", "--overwrite") == 1
    assert "a.gif" in capsys.readouterr().err
    assert declared_frames(out / "overlay" / "b.gif") == 1


def test_nothing_is_left_of_a_video_that_fills_the_disk(model_dir, clip, tmp_path, small_files):
    out = tmp_path / "out"
    with small_files(4000):
        assert run(model_dir, clip, "-o", out, "--save", "overlay,ids") == 1
    left = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert left == {"results.jsonl"}
    assert run(model_dir, clip, "-o", out, "--save", "overlay,ids") == 0
    assert declared_frames(out / "overlay" / "clip.mp4") == 60


def test_a_video_that_is_cut_short_is_written_as_far_as_it_goes_and_fails(
    model_dir, tmp_path, capsys
):
    clip = write_clip(tmp_path / "cut.gif", [picture(40, 50, i) for i in range(5)], [0.1] * 5)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
    out = tmp_path / "out"
    for _ in range(2):
        # It does not become finished by being called twice.
        assert run(model_dir, clip, "-o", out, "--save", "overlay") == 1
        printed = capsys.readouterr()
        assert "cut.gif: truncated or corrupt GIF: 3 frames could be read" in printed.err
        assert "0 of 1 files segmented" in printed.out
        assert declared_frames(out / "overlay" / "cut.gif") == 3
