"""The report in a real browser: it draws without a network, runs nothing of a study's text, and fits a phone."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.comparison import compare_all, write_page
from orchestrator.report import write_report
from tests.browser.test_mlflow_page import Page, browser, chromium, wait_until
from tests.orchestrator.fabricated import Trials, fabricate

pytestmark = pytest.mark.browser

__all__ = ["chromium"]

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
WATCH = """
window.faults = [];
addEventListener('securitypolicyviolation', (e) => faults.push(`${e.violatedDirective} ${e.blockedURI}`));
addEventListener('error', (e) => faults.push(String(e.message || e.target?.src)), true);
"""
N_DRAWN = "document.querySelectorAll('.js-plotly-plot .main-svg').length / 3"
N_PLACES = "document.querySelectorAll('[data-figure]').length"
FETCHED = "performance.getEntriesByType('resource').map((e) => e.name).filter((n) => !n.startsWith('data:'))"
WIDTHS = "[...document.querySelectorAll('.plot-area .main-svg')].map((s) => s.clientWidth)"
SIZES = ((1400, False), (420, True))

Open = Callable[..., Page]


@pytest.fixture
def open_page(chromium: str, tmp_path: Path) -> Iterator[Open]:
    """Open a file at a width; waits until every chart is drawn."""
    with browser(chromium, tmp_path / "profile", width=1400, height=1000) as page:

        def show(path: Path, width: int = 1400, *, mobile: bool = False, dark: bool = False) -> Page:
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            page._call("Page.enable")
            page._call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
            page._call("Emulation.setEmulatedMedia", features=[scheme])
            page._call(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=1000,
                deviceScaleFactor=1,
                mobile=mobile,
            )
            page.open(path.as_uri())
            wait_until(lambda: page.evaluate(f"{N_PLACES} && {N_DRAWN} >= {N_PLACES}"), page)
            return page

        yield show


@pytest.fixture
def report() -> Path:
    """Of a study with hostile text, two hyperparameters and a diverged seed."""
    trials: Trials = [
        ({"lr": lr, "optimizer": optimizer}, [0.3 + lr, "diverged" if optimizer == HOSTILE else 0.3])
        for lr in (1e-3, 1e-4)
        for optimizer in ("adam", HOSTILE)
    ]
    space = {"lr": {"choices": [1e-3, 1e-4]}, "optimizer": {"choices": ["adam", HOSTILE]}}
    return write_report(fabricate(trials, space=space, description=HOSTILE, reason=HOSTILE)).html


@pytest.mark.parametrize(("width", "mobile"), SIZES)
def test_charts_and_pictures_are_drawn_and_nothing_is_fetched_or_run(
    width: int, mobile: bool, open_page: Open, report: Path
) -> None:
    page = open_page(report, width, mobile=mobile)
    assert page.evaluate("faults") == []
    assert page.evaluate("window.hacked") is None
    assert page.evaluate(FETCHED) == []
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert page.evaluate("document.images.length") >= 12
    assert "window.hacked = 1" in page.text()


@pytest.mark.parametrize(("width", "mobile"), SIZES)
def test_the_page_is_no_wider_than_its_window(
    width: int, mobile: bool, open_page: Open, report: Path
) -> None:
    page = open_page(report, width, mobile=mobile)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(f"Math.max(...{WIDTHS})") <= width


def test_a_click_on_an_arm_hides_it_in_every_chart_of_curves(open_page: Open, report: Path) -> None:
    page = open_page(report)
    hidden = """[...document.querySelectorAll('#curves .js-plotly-plot')].map(
        (c) => c.data.filter((t) => t.meta.arm === 0).every((t) => t.visible === false))"""
    page.evaluate("document.querySelector('[data-arm=\"0\"]').click()")
    found = page.evaluate(hidden)
    assert len(found) >= 6
    assert all(found)
    page.evaluate("document.querySelector('[data-arm=\"0\"]').click()")
    assert not any(page.evaluate(hidden))


def test_charts_follow_the_dark_page(open_page: Open, report: Path) -> None:
    ink = "document.querySelector('.js-plotly-plot').layout.font.color"
    light = open_page(report).evaluate(ink)
    page = open_page(report, dark=True)
    assert page.evaluate(ink) != light
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 25, 28)"


def test_it_prints_on_a_few_sheets_that_cut_no_chart(open_page: Open, report: Path) -> None:
    page = open_page(report)
    pdf = base64.b64decode(
        page._call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"]
    )
    assert pdf.startswith(b"%PDF")
    assert 2 <= pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") <= 14
    page._call("Emulation.setEmulatedMedia", media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert set(page.evaluate(WIDTHS)) == {322}


def test_a_comparison_draws_too(open_page: Open, tmp_path: Path) -> None:
    fabricate(name="first")
    fabricate(name="second", fixed={"width": 16, "latent_dim": 4}, description=HOSTILE)
    page = open_page(write_page(compare_all(["first", "second"]), tmp_path / "both.html"), 420, mobile=True)
    assert page.evaluate("faults") == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
