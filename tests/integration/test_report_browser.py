"""The report page in a real browser: it loads alone, fits a phone, and shows what it should."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, headless_browser

from alignflow.reporting.model import ReportData
from alignflow.reporting.page import render_page

SAMPLE = Path(__file__).parents[1] / "assets" / "report.json"
SECTIONS = [
    "verdict",
    "scores",
    "wins",
    "worst",
    "training",
    "data",
    "lineage",
    "time",
    "samples",
    "run",
]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    report = ReportData.model_validate_json(SAMPLE.read_text(encoding="utf-8"))
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_page(report), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with headless_browser() as browser:
        yield browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_stands_alone_and_fits(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
    page.goto(page_file.as_uri())
    for details in page.locator("details").all():
        details.evaluate("element => element.open = true")

    assert requests == [page_file.as_uri()]
    assert complaints == []
    assert [s for s in SECTIONS if page.locator(f"#{s}").is_visible()] == SECTIONS
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """() => [...document.querySelectorAll("main *:not(.hidden)")].filter(
            e => !e.closest(".scroll") && e.getBoundingClientRect().right > innerWidth + 1
        ).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert outside == []
    page.close()


def test_verdict_is_on_the_first_screen_of_a_phone(browser: Any, page_file: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(page_file.as_uri())
    box = page.get_by_role("heading", name="Passed").bounding_box()
    lead = page.locator(".lead").bounding_box()
    assert box["y"] + box["height"] < lead["y"] + lead["height"] < 400
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser: Any, page_file: Path, scheme: str) -> None:
    # WCAG 2.2, 1.4.3: a contrast of 4.5 for text.
    page = browser.new_page(color_scheme=scheme)
    page.goto(page_file.as_uri())
    colors = page.evaluate(
        """() => { const style = getComputedStyle(document.documentElement);
            const names = ["paper", "card", "ink", "soft", "good", "bad", "note", "note-wash"];
            return Object.fromEntries(names.map(n => [n, style.getPropertyValue("--" + n)])); }"""
    )
    pairs = [
        (text, ground) for text in ("ink", "soft", "good", "bad") for ground in ("paper", "card")
    ]
    for text, ground in [*pairs, ("note", "note-wash"), ("note", "card")]:
        assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    page.close()


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two `#rrggbb` colours by WCAG's definition."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    channels = [int(color.strip()[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
