"""The pages by axe-core, in Chromium: no violation on desktop and phone, light and dark, whatever they show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from loopback import PATIENCE, Running, Start, png

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra dev")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra dev")
playwright.expect.set_options(timeout=1000 * PATIENCE)

PHOTOS = [
    {"name": "photo.png", "mimeType": "image/png", "buffer": png((200, 180, 160), 300, 400)},
    {"name": "none.png", "mimeType": "image/png", "buffer": b"no photo at all"},
]
DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@pytest.fixture(params=[(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light"), (PHONE, "dark")])
def page(request: pytest.FixtureRequest, browser: Any) -> Iterator[Any]:
    device, scheme = request.param
    with browser.new_context(**device, color_scheme=scheme) as context:
        yield context.new_page()


def violations(page: Any) -> list[str]:
    """Rules that the page breaks, with the elements that do."""
    found = axe.Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['html'][:200]} {node['failureSummary']}" for rule in found for node in rule["nodes"]]


def test_the_page_breaks_no_rule(page: Any, page_server: Running) -> None:
    page.goto(page_server.url)
    playwright.expect(page.locator("#model")).to_contain_text("coat")
    assert violations(page) == []  # empty
    page.set_input_files("#file", PHOTOS)
    playwright.expect(page.locator("#status")).to_contain_text("1 of 2 objects")
    playwright.expect(page.locator("#strip button.failed")).to_have_count(1)
    page.locator("#found button").first.focus()
    assert violations(page) == []  # photos, and what was found on one
    page.locator("#strip button.failed").click()
    playwright.expect(page.locator("#status.bad")).to_contain_text("not an image")
    assert violations(page) == []


def test_the_question_for_a_key_breaks_no_rule(page: Any, launch: Start) -> None:
    page.goto(launch(api_keys=["0123456789abcdef"]).url)
    playwright.expect(page.get_by_role("textbox", name="Key")).to_be_visible()
    assert violations(page) == []


def test_the_description_of_the_api_breaks_no_rule(page: Any, page_server: Running) -> None:
    page.goto(f"{page_server.url}/docs")
    playwright.expect(page.locator("#docs")).to_contain_text("POST /v1/predict")
    assert violations(page) == []


def test_a_broken_rule_is_found(page: Any, page_server: Running) -> None:
    page.goto(page_server.url)
    page.evaluate("document.documentElement.removeAttribute('lang')")
    playwright.expect(page.locator("#model")).to_contain_text("coat")
    assert [each.partition(":")[0] for each in violations(page)] == ["html-has-lang"]
