"""The page of the app as people use it, in a headless Chromium; skipped where there is none."""

import json
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from small_models import with_random_weights

from cellfluxrl import CellFluxFlowMatchScheduler, CellFluxRLPipeline, CellFluxUNet2DModel, CompoundEncoder
from cellfluxrl.app.inputs import example_controls
from cellfluxrl.app.models import Models

pytest.importorskip("gradio", reason="the app needs gradio: pip install 'cellfluxrl[app]'")
webdriver = pytest.importorskip("selenium.webdriver", reason="these tests need selenium")

# ruff: noqa: E402
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
PATIENCE = 60  # seconds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and CHROMEDRIVER), reason="no chromium and chromedriver (Debian: chromium, chromium-driver)"
    ),
]


@pytest.fixture(scope="module")
def models(pipeline, suite) -> Models:
    base = CellFluxRLPipeline(
        unet=with_random_weights(CellFluxUNet2DModel.from_preset("tiny", sample_size=16), seed=1),
        scheduler=CellFluxFlowMatchScheduler(solver="midpoint"),
        encoder=CompoundEncoder(),
        rewards=suite,
    )
    base.set_progress_bar_config(disable=True)
    return Models(pipeline, "my/pipeline", base, "my/base")


@pytest.fixture(scope="module")
def address(models) -> Iterator[str]:
    from cellfluxrl.app.layout import build_app, launch

    app = build_app(models)
    yield launch(app, wait=False)
    app.close()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[WebDriver]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(chromium, address) -> Callable[..., WebDriver]:
    """Opens the page in a window of some size."""

    def open_page(width: int = 1360, height: int = 1000) -> WebDriver:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        chromium.get(address)
        seen(chromium, "#cf-generate")
        return chromium

    return open_page


def seen(driver: WebDriver, selector: str, text: str = "") -> WebElement:
    """The first visible element of a selector, with a text in it; waits for it."""

    def find(driver: WebDriver) -> WebElement | None:
        found = driver.find_elements(By.CSS_SELECTOR, selector)
        return next((e for e in found if e.is_displayed() and text in e.text), None)

    wait = WebDriverWait(driver, PATIENCE, ignored_exceptions=[StaleElementReferenceException])
    return wait.until(find, f"nothing of {selector!r} with {text!r} is to be seen")


def pictures(driver: WebDriver) -> list[str]:
    return [image.get_attribute("src") for image in driver.find_elements(By.CSS_SELECTOR, "#cf-cells img")]


def generate(driver: WebDriver) -> None:
    seen(driver, "#cf-generate").click()
    seen(driver, "#cf-summary", "taxol")
    seen(driver, "#cf-cells img")


def click(driver: WebDriver, element: WebElement) -> None:
    """Out of the way of the button that stays at the lower edge."""
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def download(driver: WebDriver, selector: str, folder: Path) -> Path:
    """The file that a button gives, once it is whole."""
    behaviour = {"behavior": "allow", "downloadPath": str(folder)}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    before = set(folder.iterdir())
    click(driver, seen(driver, selector))

    def new(_driver: WebDriver) -> Path | None:
        files = set(folder.iterdir()) - before
        return next((f for f in files if f.suffix in (".zip", ".csv") and f.stat().st_size), None)

    return WebDriverWait(driver, PATIENCE).until(new, f"{selector} gives no file")


def upload(driver: WebDriver, path: Path) -> None:
    click(driver, seen(driver, "#cf-upload button"))
    seen(driver, "#cf-file")
    driver.find_element(By.CSS_SELECTOR, "#cf-file input[type=file]").send_keys(str(path))


def test_the_page_starts_without_asking_anybody_else(page, address):
    driver = page()
    seen(driver, "#cf-summary", "No cells generated yet")
    assert "taxol" in seen(driver, "#cf-structure").text
    assert len(driver.find_elements(By.CSS_SELECTOR, "#cf-gallery .thumbnail-item")) == 8
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    # Chromium's own pages are chrome://...
    assert {urlsplit(u).netloc for u in asked if u.startswith(("http", "ws"))} == {urlsplit(address).netloc}
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_generation_shows_base_beside_rl_rewards_the_way_and_files(page, models, tmp_path):
    driver = page()
    generate(driver)
    rows = [heading.text for heading in driver.find_elements(By.CSS_SELECTOR, "#cf-cells h3")]
    assert [row.split("\n")[0] for row in rows] == ["Control", "Base taxol", "After RL taxol"]
    assert len(pictures(driver)) == 1 + 4 + 4
    panels = driver.find_elements(By.CSS_SELECTOR, "#cf-comparison figure")
    assert len(panels) == len(models.pipe.rewards.statistic_names)
    assert "Real cells" in seen(driver, "#cf-comparison table").text
    scores = download(driver, "#cf-scores", tmp_path)
    assert scores.read_text().startswith("source,image,control,compound")
    with zipfile.ZipFile(download(driver, "#cf-tiff", tmp_path)) as archive:
        assert "after_rl_4.ome.tiff" in archive.namelist()
    with zipfile.ZipFile(download(driver, "#cf-png", tmp_path)) as archive:
        assert archive.read("after_rl_1_outlines.png")[:4] == b"\x89PNG"

    before = pictures(driver)
    click(driver, seen(driver, "#cf-outlines input"))
    WebDriverWait(driver, PATIENCE).until(lambda d: pictures(d) != before)
    slider = driver.find_element(By.CSS_SELECTOR, "#cf-time input[type=range]")
    slider.send_keys(Keys.ARROW_LEFT)
    seen(driver, "#cf-cells h3", "t = 0.95")
    assert pictures(driver)[0] != pictures(driver)[1]


def test_an_invalid_smiles_says_why_and_what_to_do(page):
    driver = page()
    click(driver, driver.find_elements(By.CSS_SELECTOR, "#cf-mode input")[1])
    field = seen(driver, "#cf-smiles textarea, #cf-smiles input")
    field.send_keys("CC(=O")
    message = seen(driver, "#cf-structure [role=alert]", "character 3").text
    assert "choose a known compound" in message
    seen(driver, "#cf-generate").click()
    seen(driver, "#cf-message [role=alert]", "character 3")
    assert pictures(driver) == []
    field.send_keys(")C")
    seen(driver, "#cf-structure img")
    seen(driver, "#cf-generate").click()
    seen(driver, "#cf-message [role=alert]", "set the candidates to 1, or choose a mechanism")


def test_a_wrong_file_is_told_and_nothing_else_is_taken_in_its_place(page, models, tmp_path):
    driver = page()
    (tmp_path / "notes.png").write_text("these are notes, and no image")
    upload(driver, tmp_path / "notes.png")
    message = seen(driver, "#cf-control [role=alert]", "notes.png").text
    assert "Traceback" not in message
    assert "TIFF, .npy or .npz" in message
    seen(driver, "#cf-generate").click()
    seen(driver, "#cf-message [role=alert]", "No control is chosen")
    assert pictures(driver) == []
    third = driver.find_elements(By.CSS_SELECTOR, "#cf-gallery .thumbnail-item")[2]
    click(driver, third)
    seen(driver, "#cf-control", "actin")
    generate(driver)
    assert "simulated cell 3" in seen(driver, "#cf-summary").text


def test_an_uploaded_control_is_used(page, models, tmp_path):
    driver = page()
    np.save(tmp_path / "mine.npy", example_controls(models).images[5])
    upload(driver, tmp_path / "mine.npy")
    WebDriverWait(driver, PATIENCE).until(
        lambda d: len(d.find_elements(By.CSS_SELECTOR, "#cf-gallery .thumbnail-item")) == 1
    )
    generate(driver)
    assert "mine.npy" in seen(driver, "#cf-summary").text


def test_in_a_narrow_window_nothing_is_cut_off_and_the_results_come_into_view(page):
    driver = page(390, 844)
    width = "return document.documentElement.scrollWidth"
    assert driver.execute_script(width) == 390
    generate(driver)
    assert driver.execute_script(width) == 390
    for image in driver.find_elements(By.CSS_SELECTOR, "#cf-cells img, #cf-comparison img"):
        box = image.rect
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    top = "return document.querySelector('#cf-summary').getBoundingClientRect().top"
    WebDriverWait(driver, PATIENCE).until(lambda d: 0 <= d.execute_script(top) < 600)


def test_everything_can_be_done_with_the_keyboard(page):
    driver = page()

    def press(*keys: str) -> WebElement:
        for key in keys:
            webdriver.ActionChains(driver).send_keys(key).perform()
        return driver.switch_to.active_element

    def tab_to(selector: str) -> WebElement:
        for _ in range(60):
            active = press(Keys.TAB)
            if driver.execute_script("return arguments[0].matches(arguments[1])", active, selector):
                return active
        raise AssertionError(f"the tabulator does not reach {selector}")

    tab_to("#cf-gallery [aria-label='Thumbnail 2 of 8']")
    press(Keys.ENTER)
    tab_to("#cf-compound input")
    webdriver.ActionChains(driver).send_keys("nocod").perform()
    time.sleep(0.5)  # the list is filtered as one types
    press(Keys.ENTER)
    seen(driver, "#cf-structure", "nocodazole")
    tab_to("#cf-generate")
    press(Keys.ENTER)
    seen(driver, "#cf-summary", "nocodazole")
    assert "simulated cell 2" in seen(driver, "#cf-summary").text
    seen(driver, "#cf-cells img")
    tab_to("#cf-time input[type=range]")
    press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    seen(driver, "#cf-cells h3", "t = 0.90")
