"""The pages in a real browser, headless: no error, no request, sorting, a phone's width, the colours of the night."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from kldistill.report import collect, render_run
from tests.helpers.artifacts import write_tokens
from tests.helpers.patience import PATIENCE
from tests.helpers.report_material import HOSTILE, write_full_run, write_sweep

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None,
    reason="no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)",
)

ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
# A page that is loaded may have been given its width later, and is told of it once before a frame is drawn: what it
# does then is done two frames after it has the width.
SHOWN = """
const [width, done] = arguments;
const twice = () => requestAnimationFrame(() => requestAnimationFrame(done));
const look = () => matchMedia(`(width: ${width}px)`).matches ? twice() : requestAnimationFrame(look);
look();
"""
Pages = dict[str, Path]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    driver.set_script_timeout(PATIENCE)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Pages:
    """The page of a run with every artifact, and that of a sweep."""
    model = tiny_model("llama")
    tokens = write_tokens(model, tmp_path_factory.mktemp("tokens"), 24)
    run = write_full_run(tmp_path_factory.mktemp("experiment") / "loss=kl", model, tokens)
    sweep = write_sweep(tmp_path_factory.mktemp("sweep"), {"ce": 0.0, "kl": 0.02}, seeds=2, inits=2)
    render_run(run)
    collect(sweep)
    return {"run": run / "report.html", "sweep": sweep / "report.html"}


def show(browser: webdriver.Chrome, page: Path, width: int = 1200, scheme: str = "light") -> None:
    """Load a page as a window of this width and a system of this colour scheme show it."""
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(page.as_uri())
    browser.execute_async_script(SHOWN, width)


def run_js(browser: webdriver.Chrome, script: str) -> Any:
    return browser.execute_script(f"return {script}")


def column(browser: webdriver.Chrome, table: str, at: int) -> list[str]:
    return run_js(
        browser, f"Array.from(document.querySelector('#{table}').tBodies[0].rows, r => r.cells[{at}].textContent)"
    )


@pytest.mark.parametrize("name", ["run", "sweep"])
def test_it_loads_without_an_error_and_without_a_request(browser: webdriver.Chrome, pages: Pages, name: str) -> None:
    show(browser, pages[name])
    assert run_js(browser, "document.readyState") == "complete"
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert pages[name].as_uri() in sent
    assert [url for url in sent if not url.startswith("data:") and url != pages[name].as_uri()] == []
    assert run_js(browser, "document.querySelectorAll('svg.figure').length") >= 4


def test_the_policy_stops_scripts_that_are_not_the_pages_own(
    browser: webdriver.Chrome, pages: Pages, tmp_path: Path
) -> None:
    hostile = tmp_path / "hostile.html"
    text = pages["run"].read_text().replace("<h1>", "<script>document.title = 'owned'</script><h1>")
    hostile.write_text(text.replace("</main>", "<img src='x' onerror=\"document.title = 'owned'\"></main>"))
    show(browser, hostile)
    assert "owned" not in browser.title
    complaints = [entry["message"] for entry in browser.get_log("browser")]
    assert any("Content Security Policy" in message for message in complaints)


def test_new_tokens_are_sorted_by_any_heading(browser: webdriver.Chrome, pages: Pages) -> None:
    show(browser, pages["run"])
    headings = browser.find_elements(By.CSS_SELECTOR, "#tokens-table thead th")
    names = [heading.text.split(" ↕")[0].split(" ↓")[0] for heading in headings]
    assert {"token", "count", "nats", "adoption"} <= set(names)
    assert headings[names.index("count")].get_attribute("aria-sort") == "descending"

    nats = names.index("nats")
    button = headings[nats].find_element(By.TAG_NAME, "button")
    button.click()
    shown = column(browser, "tokens-table", nats)
    values = [float(value) for value in shown if value != "–"]
    assert len(values) == 23
    assert values == sorted(values, reverse=True)
    assert shown[-1] == "–"
    assert headings[nats].get_attribute("aria-sort") == "descending"
    assert headings[names.index("count")].get_attribute("aria-sort") is None

    button.send_keys(Keys.ENTER)  # by keyboard, the other way
    shown = column(browser, "tokens-table", nats)
    values = [float(value) for value in shown if value != "–"]
    assert values == sorted(values)
    assert shown[-1] == "–"  # what has no value stays last
    assert headings[nats].get_attribute("aria-sort") == "ascending"
    assert run_js(browser, "document.querySelector('#announce').textContent") == "Sorted by nats, ascending."

    headings[0].find_element(By.TAG_NAME, "button").click()
    assert headings[0].get_attribute("aria-sort") == "ascending"
    assert HOSTILE in column(browser, "tokens-table", 0)  # as text


def test_tables_of_a_sweep_are_sorted_too(browser: webdriver.Chrome, pages: Pages) -> None:
    show(browser, pages["sweep"])
    for table, name in (
        ("means-table", "Bits per byte, domain"),
        ("differences-table", "difference"),
        ("runs-table", "KL"),
    ):
        headings = browser.find_elements(By.CSS_SELECTOR, f"#{table} thead th")
        at = next(at for at, heading in enumerate(headings) if heading.text.startswith(name))
        browser.execute_script("arguments[0].querySelector('button').click()", headings[at])
        values = run_js(
            browser,
            f"Array.from(document.querySelector('#{table}').tBodies[0].rows, r => +r.cells[{at}].dataset.value)",
        )
        assert len(values) >= 4
        assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("name", ["run", "sweep"])
def test_a_phone_scrolls_tables_not_the_page(browser: webdriver.Chrome, pages: Pages, name: str) -> None:
    show(browser, pages[name], width=390)
    browser.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    assert run_js(browser, "document.documentElement.scrollWidth") <= 390
    parts = "document.querySelectorAll('figure:not(.wide) svg, .drawing, .box, pre')"
    wider = f"Array.from({parts}, e => e.getBoundingClientRect().right)"
    assert max(run_js(browser, wider)) <= 390
    scrolling = "Array.from(document.querySelectorAll('.box')).some(e => e.scrollWidth > e.clientWidth)"
    assert run_js(browser, scrolling)


def test_what_scrolls_says_so(browser: webdriver.Chrome, pages: Pages) -> None:
    """And what does not, does not. On a phone models stand below each other, each value beside its column's name."""
    wrong = (
        "Array.from(document.querySelectorAll('.scrolls'), e => [e.hidden, e.nextElementSibling])"
        ".filter(([hidden, box]) => hidden !== (box.scrollWidth <= box.clientWidth + 1)).length"
    )
    for width in (1280, 390):
        show(browser, pages["sweep"], width=width)
        assert run_js(browser, "Array.from(document.querySelectorAll('.scrolls')).some(e => !e.hidden)")
        assert run_js(browser, wrong) == 0
    # Where the letters grow no window tells of it.
    show(browser, pages["sweep"], width=1900)
    hidden = "Array.from(document.querySelectorAll('.scrolls')).filter(e => e.hidden).length"
    before = run_js(browser, hidden)
    browser.execute_script("document.documentElement.style.fontSize = '60px'")
    browser.execute_async_script(SHOWN, 1900)
    assert run_js(browser, hidden) < before and run_js(browser, wrong) == 0
    show(browser, pages["run"], width=390)
    table = "document.querySelector('#models-table')"
    assert run_js(browser, f"{table}.scrollWidth <= {table}.parentElement.clientWidth + 1")
    label = f"getComputedStyle({table}.tBodies[0].rows[0].cells[4], '::before').content"
    assert run_js(browser, label) == '"bits/B domain"'


@pytest.mark.parametrize("name", ["run", "sweep"])
def test_light_and_dark_follow_the_system(browser: webdriver.Chrome, pages: Pages, name: str) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        show(browser, pages[name], scheme=scheme)
        seen[scheme] = run_js(
            browser,
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
            " getComputedStyle(document.querySelector('svg.figure text')).fill]",
        )
    assert seen["light"][0] == "rgb(255, 255, 255)"
    brightness = {scheme: [sum(eval_rgb(colour)) for colour in colours] for scheme, colours in seen.items()}
    for at in (1, 2):
        assert brightness["light"][at] < brightness["light"][0] - 300
        assert brightness["dark"][at] > brightness["dark"][0] + 300


def eval_rgb(colour: str) -> list[int]:
    """``rgb(1, 2, 3)`` as numbers."""
    return [int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(",")]
