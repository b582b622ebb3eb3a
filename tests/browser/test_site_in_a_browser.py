"""The site in headless Chromium: filters, sorting, copying, links, console, requests, and axe's accessibility rules.

Deselected by default (marker ``browser``); ``make test-browser`` runs it. Needs Debian's chromium and chromium-driver.
"""

import json
import shutil

import pytest

from results import site
from results.record import COMMITTED

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    site.write([COMMITTED], target)
    return target


@pytest.fixture(scope="module")
def driver():
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(word)
    options.binary_location = shutil.which("chromium") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = Chrome(options=options, service=ChromeService(shutil.which("chromedriver")))
    yield chrome
    chrome.quit()


def visible(driver):
    return driver.execute_script(
        "return [...document.querySelectorAll('#zoo tbody tr')].filter((row) => !row.hidden).map((row) => row.dataset.id)"
    )


def choose(driver, name, value):
    driver.execute_script(
        "const e = document.forms[0].elements[arguments[0]]; e.value = arguments[1];"
        "e.dispatchEvent(new Event('input', {bubbles: true}))",
        name,
        value,
    )


def test_filters_narrow_the_zoo_and_sorting_orders_it_by_a_number(driver, folder):
    driver.get(f"file://{folder}/zoo.html")
    everything = visible(driver)
    choose(driver, "method", "swav")
    choose(driver, "data", "imagenet")
    assert 5 < len(visible(driver)) < len(everything) and all(name.startswith("swav_") for name in visible(driver))
    choose(driver, "text", "w2")
    assert visible(driver) == ["swav_rn50w2_400ep"]
    choose(driver, "text", "")
    choose(driver, "metric", "linear_imagenet_swav top1")
    driver.execute_script("document.querySelector('[data-column=published] button').click()")
    assert visible(driver)[0] == "swav_rn50w5_400ep", "78.5 is the largest published number"
    driver.execute_script("document.querySelector('[data-column=published] button').click()")
    numbers = driver.execute_script(
        "return [...document.querySelectorAll('#zoo tbody tr')].filter((row) => !row.hidden)"
        ".map((row) => parseFloat(row.querySelector('[data-what=published]').textContent)).filter((x) => !Number.isNaN(x))"
    )
    assert numbers == sorted(numbers) and len(numbers) > 5
    assert driver.execute_script("return document.querySelector('[aria-sort]').dataset.column") == "published"


def test_the_copy_button_answers_the_keyboard(driver, folder):
    from selenium.webdriver.common.keys import Keys

    driver.get(f"file://{folder}/model/swav_800ep.html")
    button = driver.find_element("css selector", "button.copy")
    driver.execute_script("navigator.clipboard.writeText = async (line) => { window.copied = line; }")
    button.send_keys(Keys.ENTER)
    assert button.text == "copied"
    assert "swav_800ep" in driver.execute_script("return window.copied")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_pass_axe_fit_the_screen_and_stay_silent(driver, folder, scheme, width):
    from axe_selenium_python import Axe

    driver.set_window_size(width, 900)
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    driver.get_log("performance")
    pages = ["index", "zoo", "methods", "method/swav", "protocols", "protocol/linear_imagenet_swav", "tables"]
    for name in [*pages, "table/digits", "model/swav_800ep"]:
        driver.get(f"file://{folder}/{name}.html")
        wide = driver.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0, f"{name} is {wide} pixels wider than a screen of {width}"
        axe = Axe(driver)
        axe.inject()
        found = axe.run(options="{preload: false}")["violations"]
        assert not found, f"{name} ({scheme}, {width}): " + "; ".join(
            f"{v['id']}: {v['nodes'][0]['html'][:120]}" for v in found
        )
    assert not [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    sent = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"}
    assert urls and all(url.startswith(("file:", "data:")) for url in urls), urls
