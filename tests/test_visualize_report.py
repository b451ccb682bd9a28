"""The report of a run: one page that holds all it shows."""

import base64
import html.parser
import io
import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from segmenter_jax import visualize
from segmenter_jax.evaluation.metrics import SegmentationReport
from segmenter_jax.pictures.page import confusion_html
from tests.models_on_disk import CLASSES, write_golden_model

NASTY = "<script>document.title='hacked'</script> & \"sky\""
NAMES = (NASTY, *CLASSES[1:])
MATRIX = np.diag([90, 80, 0, 60, 50, 40, 30]) + 5 * np.eye(7, k=1, dtype=int)


class Page(html.parser.HTMLParser):
    """Headings, cells, addresses and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.cells, self.addresses, self.words = [], [], [], []
        self.open = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        if "style" in self.open[-1:] or "script" in self.open[-1:]:
            return
        self.words.append(data)
        if "h2" in self.open[-1:]:
            self.headings.append(data)
        if {"td", "th"} & {*self.open}:
            self.cells[-1] += data

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def pictures(self):
        """Every picture, decoded."""
        data = [a.partition(",")[2] for a in self.addresses if a.startswith("data:image/")]
        return [Image.open(io.BytesIO(base64.b64decode(x))) for x in data]


def write_run(folder, matrix=MATRIX, names=NAMES):
    """What training leaves, without checkpoints."""
    config = {"total_steps": 6, "dataset": {"name": "town", "eval_split": "val"}, "seed": 17}
    origin = {"source": "/weights/vit.npz", "sha256": "abc123", "report": ["mapped: 9"]}
    rows = [{"step": i, "train/loss": 1 / i, "train/grad_norm": i} for i in range(1, 7)]
    rows.append({"step": 6, "eval/mean_iou": 0.5})
    (folder / "predictions").mkdir(parents=True)
    report = SegmentationReport(np.asarray(matrix), names, "window 64, stride 48", 3)
    for name, text in {
        "config.json": json.dumps(config),
        "init_from.json": json.dumps(origin | {"network": {"left": "out"}}),
        "metrics.jsonl": "\n".join(map(json.dumps, rows)),
        "report.json": report.to_json(),
    }.items():
        (folder / name).write_text(text)
    Image.new("RGB", (96, 32), (1, 2, 3)).save(folder / "predictions/street_7.png")
    Image.new("RGB", (60, 60), (200, 2, 3)).save(folder / "worst.png")
    write_golden_model(
        folder / "model/best", classes=names, provenance={"step": 4, "mean_iou": 0.25}
    )
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "town")


def report(*arguments):
    return visualize.main(["report", *map(str, arguments)])


def test_a_page_holds_all_of_a_run_and_needs_nothing_else(run, capsys):
    assert report(run) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    text = (run / "report.html").read_text()
    page = Page(text)
    assert page.headings == [
        *("Learning curves", "Classes", "Confusion matrix", "Predictions", "Worst pictures"),
        *("Model", "Where it began", "Config"),
    ]
    # Once in the table of classes, and as row and column of the matrix.
    assert all(page.cells.count(name) == 3 for name in NAMES)
    told = " ".join(page.words)
    for words in ("6 of 6", "window 64, stride 48", "street_7", "abc123", "mapped: 9", "town"):
        assert words in told
    assert "Best model: step 4, mean IoU 25.00 %" in told and "17" in page.cells
    assert [p.size for p in page.pictures()][1:] == [(96, 32), (60, 60)]
    assert all(a.startswith(("#", "data:image/")) for a in page.addresses)
    assert "http" not in text and "@import" not in text and "url(" not in text
    assert NASTY not in text


def test_scores_and_confusions_are_those_of_the_matrix(run):
    report(run)
    cells = Page((run / "report.html").read_text()).cells
    row = cells.index("building")
    # A bar, IoU, accuracy, share of the pixels, and what it is taken for.
    assert cells[row : row + 6] == ["building", "", "88.89", "94.12", "22.37", "road, 5.9 %"]
    matrix_row = cells.index("building", cells.index("label \\ prediction") + 8)
    assert cells[matrix_row : matrix_row + 8] == ["building", "", "94", "6", "", "", "", ""]


def test_150_classes_have_names_in_sight_of_every_cell():
    names = [f"class {i}" for i in range(150)]
    page = Page(text := confusion_html(np.eye(150, dtype=int), names))
    assert all(page.cells.count(name) == 2 for name in names)
    assert 'title="class 149 as class 149: 100.0 %"' in text


def test_a_run_that_was_not_evaluated_has_a_page(run, tmp_path):
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(run / name, tmp_path / name)
    assert report(tmp_path, "-o", tmp_path / "page.html") == 0
    page = Page((tmp_path / "page.html").read_text())
    assert page.headings == ["Learning curves", "Config"]
    assert "It was not evaluated yet." in " ".join(page.words)


def test_features_and_attention_are_added_where_a_picture_is_given(run, tmp_path):
    Image.new("RGB", (80, 64), (90, 120, 60)).save(tmp_path / "photo.jpg")
    assert report(run, "--picture", tmp_path / "photo.jpg", "-o", tmp_path / "page.html") == 0
    page = Page((tmp_path / "page.html").read_text())
    assert {"Features", "Attention"} <= {*page.headings} and len(page.pictures()) == 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "not the workdir of a run (it has no config.json)"),
        ("config.json", "{", "config.json: not valid JSON"),
        ("config.json", "[]", "config.json: found list, expected a JSON object"),
        ("metrics.jsonl", None, "not the workdir of a run (it has no metrics.jsonl)"),
        ("metrics.jsonl", '5\n{"loss": 1}\n', "metrics.jsonl: no numbers yet"),
        ("report.json", "{}", "report.json: not the report of an evaluation: field 'classes' is"),
        (
            "report.json",
            '{"classes": [{"class": "sky"}], "confusion_matrix": [[0.5]]}',
            "report.json: not the report of an evaluation: classes must have names, and a",
        ),
        ("init_from.json", "no", "init_from.json: not valid JSON"),
        ("worst.png", "no", "worst.png: no picture that can be read"),
        ("model/best/model.json", "{}", "model.json: field 'format_version'"),
    ],
)
def test_damage_is_one_line_and_leaves_no_page(run, tmp_path, capsys, name, content, message):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("report.html"))
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_text(content)
    assert report(copy) == 1
    printed = capsys.readouterr().err
    assert message in printed and len(printed.splitlines()) == 1
    assert not list(copy.glob("*report.html"))


def test_classes_of_two_runs_and_confusion_are_drawn(run, tmp_path, capsys):
    other = SegmentationReport(MATRIX + 1, NAMES, "window 32", 3).to_json()
    (tmp_path / "other.json").write_text(other)
    for name, reports in (("classes", [run, tmp_path / "other.json"]), ("confusion", [run])):
        out = tmp_path / f"{name}.png"
        assert visualize.main([name, *map(str, reports), "-o", str(out)]) == 0
        assert Image.open(out).width > 500
    assert "warning: 'window 32' is not 'window 64, stride 48'" in capsys.readouterr().err
    (tmp_path / "other.json").write_text(other.replace('"car"', '"cart"'))
    arguments = ["classes", str(run), str(tmp_path / "other.json"), "-o", str(out)]
    assert visualize.main(arguments) == 1
    assert "other.json: its classes are not those of" in capsys.readouterr().err


@pytest.mark.slow
def test_a_browser_shows_and_sorts_the_page_without_a_network(run, tmp_path):
    if not (chromium := shutil.which("chromium")):
        pytest.skip("there is no chromium")
    report(run)
    # Tells what is seen: pictures that were loaded, and the first class once sorted by IoU.
    probe = """<script>
      document.querySelectorAll('.sortable th')[1].click();
      const seen = [...document.images].filter(image => image.naturalWidth > 0).length;
      document.title = `${seen} of ${document.images.length} pictures, then ` +
        document.querySelector('.sortable tbody td').textContent;
    </script>"""
    page = tmp_path / "page.html"
    page.write_text((run / "report.html").read_text() + f"<body onload=''>{probe}")
    flags = ["--headless", "--no-sandbox", "--dump-dom", "--virtual-time-budget=5000"]
    flags.append("--host-resolver-rules=MAP * ~NOTFOUND")
    command = [chromium, *flags, page.as_uri()]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    assert "<title>3 of 3 pictures, then road</title>" in seen
