"""The page in a real browser: Debian's `chromium` with its driver, through Selenium."""

import os
import pathlib
import shutil
import time

import pytest
from PIL import Image

from tests.demo_server import serve
from tests.hostile_uploads import NOISE, encoded, png_of_zeros
from tests.models_on_disk import CLASSES, write_golden_model

pytestmark = pytest.mark.slow

NASTY = "<img src=x onerror=\"document.title='hacked'\">${1+1}{{value}}"
# Screenshots are kept in this folder, where it is named.
SHOTS = os.environ.get("DEMO_SCREENSHOTS")


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("gradio", reason="the page needs Gradio")
    webdriver = pytest.importorskip("selenium.webdriver", reason="the driver needs Selenium")
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if None in programs:
        pytest.skip("there is no chromium with chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument("--window-size=1400,1600")
    # Whatever the page asks of others fails, as on a machine without a network.
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    sample = folder / "sample.png"
    Image.fromarray(NOISE).resize((560, 400)).save(sample)
    model = write_golden_model(folder / "model", classes=(NASTY, *CLASSES[1:]))
    with serve(folder, model, "--samples", sample, "--max_mb", 1) as address:
        yield address


@pytest.fixture
def page(browser, address):
    browser.get(address)
    return Page(browser)


class Page:
    """What a person does and sees."""

    def __init__(self, browser):
        self.browser = browser
        self.wait("#upload input[type=file]")

    def find(self, selector):
        return self.browser.find_elements("css selector", selector)

    def wait(self, selector, text="", seconds=90):
        """The first element of a selector with a text in it, once it is there."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                for element in self.find(selector):
                    if text in (element.get_attribute("textContent") or ""):
                        return element
            # It was replaced meanwhile.
            except Exception as error:
                if "stale" not in str(error):
                    raise
            time.sleep(0.1)
        self.shot("failed")
        raise AssertionError(f"no {selector} with {text!r}")

    def upload(self, path):
        self.wait("#upload input[type=file]").send_keys(str(path))

    def remove(self):
        self.wait("#upload button[aria-label='Remove Image']").click()

    def shot(self, name):
        if SHOTS:
            self.browser.save_screenshot(str(pathlib.Path(SHOTS) / f"{name}.png"))

    def pointer(self, element, across, down):
        """An action that moves the pointer into an element, to shares of its sides."""
        from selenium.webdriver import ActionChains

        size = element.size
        x, y = (across - 0.5) * size["width"], (down - 0.5) * size["height"]
        return ActionChains(self.browser).move_to_element_with_offset(element, int(x), int(y))


def photo(folder, name="photo.png"):
    path = folder / name
    path.write_bytes(encoded(Image.fromarray(NOISE).resize((560, 400)), "PNG"))
    return path


def test_a_picture_is_overlaid_hovered_and_clicked(page, tmp_path):
    page.upload(photo(tmp_path))
    figure = page.wait("#view .seg-figure")
    mask = page.wait("#view .seg-mask")
    size = page.browser.execute_script("return [arguments[0].naturalWidth, 0]", mask)
    assert size[0] == 560 and mask.is_displayed()
    legend = page.wait("#view .seg-legend", "%").text
    assert all(name in (*CLASSES, NASTY) for name in legend.splitlines()[::2])

    page.pointer(figure, 0.25, 0.5).perform()
    told = page.wait("#view .seg-pixel", "confidence").text
    assert told.startswith(("x 139, y", "x 140, y", "x 141, y"))

    script = "const e = arguments[0]; e.value = 90; e.dispatchEvent(new Event('input',"
    page.browser.execute_script(f"{script} {{bubbles: true}}))", page.find(".seg-opacity")[0])
    assert mask.value_of_css_property("opacity") == "0.9"
    page.shot("overlay")

    page.pointer(figure, 0.25, 0.5).click().perform()
    attention = page.wait("#attention img")
    page.browser.execute_script("arguments[0].scrollIntoView()", attention)
    time.sleep(0.5)
    page.shot("attention")


def test_names_of_classes_are_text(page, tmp_path):
    page.upload(photo(tmp_path))
    page.wait("#view .seg-figure")
    assert not page.find("#view img[src=x]")
    assert page.browser.title == "segmenter_jax"


def test_several_scales_change_the_picture(page, tmp_path):
    page.upload(photo(tmp_path))
    before = page.wait("#view .seg-values").get_attribute("src")
    page.find("input[type=checkbox]")[0].click()
    end = time.monotonic() + 120
    while page.wait("#view .seg-values").get_attribute("src") == before:
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_sample_is_segmented(page):
    page.wait("button.gallery-item").click()
    page.wait("#view .seg-figure")


def test_a_wrong_file_is_answered_with_a_sentence_and_the_old_answer_goes(page, tmp_path):
    page.upload(photo(tmp_path))
    page.wait("#view .seg-figure")
    page.remove()
    wrong = tmp_path / "wrong.png"
    wrong.write_bytes(b"this is no picture")
    page.upload(wrong)
    page.wait("#view .seg-message", "wrong.png: not a readable image (18 bytes)")
    assert not page.find("#view .seg-figure")
    page.shot("wrong_file")


def test_very_large_files_and_pictures_are_answered_with_a_sentence(page, tmp_path):
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png_of_zeros(30_000, 30_000))
    page.upload(bomb)
    page.wait("#view .seg-message", "bomb.png: the image is over the limit of 20000000 pixels")
    page.shot("bomb")
    page.remove()
    large = tmp_path / "large.png"
    large.write_bytes(encoded(NOISE, "PNG") + bytes(2_000_000))
    page.upload(large)
    page.wait("[data-testid=toast-body], .toast-body", "maximum")
    page.shot("large_file")
