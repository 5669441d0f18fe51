"""The page in a real browser, where there is one: its console is empty, and slider, scrubber and player work."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitlens.report import Panel
from bitlens.report.page import page, videos

pytestmark = pytest.mark.slow


@pytest.fixture
def browser() -> Iterator[Any]:
    """Debian's Chromium, without a window, driven by Selenium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    service, program = shutil.which("chromedriver"), shutil.which("chromium")
    if service is None or program is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=390,844"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
    yield driver
    driver.quit()


def test_two_videos_are_compared(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    clip = np.linspace(0, 1, 6 * 64 * 64, dtype=np.float32).reshape(6, 64, 64)
    measured, truth = Panel("measurement", "", clip[:1]), Panel("truth", "", clip)
    file = tmp_path / "page.html"
    file.write_text(page("demo", [videos("films", "", [Panel("low", "27 dB", clip**2)], measured, truth)]))
    browser.get(file.as_uri())

    def find(name: str) -> Any:
        return browser.find_element(By.CSS_SELECTOR, f".compare .{name}")

    under, error, over, _ = browser.find_elements(By.CSS_SELECTOR, ".view img")
    side = over.find_element(By.XPATH, "..")
    assert "left: low, 27 dB; right: truth" in find("captions").text and "frame 1 of 6" in find("captions").text
    assert "50%" in side.get_attribute("style") and under.get_attribute("src") != over.get_attribute("src")
    find("divide").send_keys(Keys.ARROW_RIGHT * 5)
    assert "55%" in side.get_attribute("style")
    before = over.get_attribute("src")
    find("frame").send_keys(Keys.ARROW_RIGHT * 2)
    assert "frame 3 of 6" in find("captions").text and over.get_attribute("src") != before
    find("left").send_keys(Keys.ARROW_UP)
    assert "left: measurement" in find("captions").text
    assert not error.is_displayed()
    find("show").send_keys(Keys.ARROW_DOWN * 2)
    assert "errors" in find("view").get_attribute("class") and error.is_displayed()
    find("show").send_keys(Keys.ARROW_UP)
    assert "apart" in find("view").get_attribute("class") and not error.is_displayed()
    find("play").click()
    assert find("play").text == "pause"
    find("play").click()
    width = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert width <= 0  # nothing hangs over on a phone
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
