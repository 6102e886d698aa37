"""The web page in a real headless Chromium: photos in by every way, what is drawn, controls, keyboard, phone."""

from __future__ import annotations

import base64
import csv
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import PATIENCE, Running, Start, png
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra dev")
playwright.expect.set_options(timeout=1000 * PATIENCE)

COLOR = (200, 180, 160)
"""Of the photo; its score is its mean: 0.71, and 0.35 for the shoe in its upper left quarter."""
PHOTO = {"name": "photo.png", "mimeType": "image/png", "buffer": png(COLOR, 300, 400)}
PHONE = {"width": 390, "height": 844}


@pytest.fixture
def page(browser: Any, page_server: Running) -> Iterator[Any]:
    """The page, fresh; it must not complain nor ask other hosts for anything."""
    with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        complaints: list[str] = []
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if foreign(request.url) else None)

        def foreign(url: str) -> bool:
            return not url.startswith((page_server.url, "blob:", "data:"))

        page.goto(page_server.url)
        playwright.expect(page.locator("#model")).to_contain_text("coat")
        yield page
        assert complaints == getattr(page, "expected_complaints", [])


def choose(page: Any, *files: dict[str, Any]) -> None:
    page.set_input_files("#file", list(files or [PHOTO]))


def wait_for_result(page: Any, text: str) -> None:
    playwright.expect(page.locator("#status")).to_contain_text(text)


def show_all(page: Any) -> None:
    """The page starts with scores of 50 % and more; the shoe has less."""
    wait_for_result(page, "1 of 2 objects")
    slide(page, "#score", 20)
    wait_for_result(page, "2 of 2 objects")


def names(page: Any) -> list[str]:
    return [text.split("\n")[0] for text in page.locator("#found button").all_inner_texts()]


def pixel(page: Any, x: float, y: float) -> list[int]:
    """RGB of the drawn canvas at a share of its width and height."""
    return page.evaluate(
        """([x, y]) => {
            const canvas = document.getElementById("canvas");
            const at = [Math.floor(x * canvas.width), Math.floor(y * canvas.height)];
            return [...canvas.getContext("2d").getImageData(...at, 1, 1).data].slice(0, 3);
        }""",
        [x, y],
    )


def send(page: Any, event: str, *files: dict[str, Any]) -> None:
    """Drop or paste files, as a browser does."""
    page.evaluate(
        """([event, files]) => {
            const data = new DataTransfer();
            for (const {name, mimeType: type, buffer} of files) {
                data.items.add(new File([Uint8Array.from(atob(buffer), (c) => c.charCodeAt(0))], name, {type}));
            }
            const options = {bubbles: true, cancelable: true};
            document.body.dispatchEvent(event === "paste"
                ? new ClipboardEvent("paste", {...options, clipboardData: data})
                : new DragEvent(event, {...options, dataTransfer: data}));
        }""",
        [event, [{**file, "buffer": base64.b64encode(file["buffer"]).decode()} for file in files]],
    )


def slide(page: Any, control: str, value: int) -> None:
    page.locator(control).fill(str(value))


def test_a_chosen_photo_is_drawn_with_its_masks(page: Any) -> None:
    playwright.expect(page.locator("#controls")).to_be_hidden()
    choose(page)
    show_all(page)
    assert names(page) == ["coat", "shoe"]
    assert page.locator("#legend label").all_inner_texts() == ["coat 1", "shoe 1"]
    slide(page, "#opacity", 50)
    assert pixel(page, 0.98, 0.02) == list(COLOR)  # outside the ellipse
    inside = pixel(page, 0.7, 0.7)
    assert inside != list(COLOR)
    slide(page, "#opacity", 0)
    assert pixel(page, 0.7, 0.7) == list(COLOR)
    slide(page, "#opacity", 50)
    page.uncheck("#masks")
    assert pixel(page, 0.7, 0.7) == list(COLOR)
    page.check("#masks")
    assert pixel(page, 0.7, 0.7) == inside


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_photos_can_be_dropped_and_pasted(page: Any, event: str) -> None:
    send(page, event, PHOTO)
    show_all(page)
    assert names(page) == ["coat", "shoe"]


def test_several_photos_are_kept_side_by_side(page: Any) -> None:
    dark = {"name": "dark.png", "mimeType": "image/png", "buffer": png((50, 50, 50), 80, 60)}
    choose(page, PHOTO, dark)
    wait_for_result(page, "on photo.png")
    playwright.expect(page.locator("#strip button.busy")).to_have_count(0)
    page.get_by_role("button", name="dark.png", exact=True).click()
    wait_for_result(page, "on dark.png")
    page.get_by_role("button", name="photo.png", exact=True).click()
    wait_for_result(page, "on photo.png")


def test_score_and_classes_filter(page: Any) -> None:
    choose(page)
    show_all(page)
    slide(page, "#score", 72)
    wait_for_result(page, "0 of 2")
    slide(page, "#score", 50)
    wait_for_result(page, "1 of 2")
    assert names(page) == ["coat"]
    slide(page, "#score", 20)
    page.locator("#legend label", has_text="coat").locator("input").uncheck()
    assert names(page) == ["shoe"]
    page.locator("#legend label", has_text="coat").locator("input").check()
    assert names(page) == ["coat", "shoe"]


def test_hovering_says_what_is_there(page: Any) -> None:
    choose(page)
    show_all(page)
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.25 * box["height"])
    playwright.expect(page.locator("#tip")).to_have_text("shoe 35 %")  # the smaller one, on top
    playwright.expect(page.locator("#found button.lit")).to_contain_text("shoe")
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.7 * box["height"])
    playwright.expect(page.locator("#tip")).to_have_text("coat 71 %")
    page.mouse.move(box["x"] + 0.99 * box["width"], box["y"] + 0.01 * box["height"])
    playwright.expect(page.locator("#tip")).to_be_hidden()
    playwright.expect(page.locator("#found button.lit")).to_have_count(0)


def test_a_photo_is_looked_at_in_tiles(page: Any) -> None:
    choose(page, PHOTO, PHOTO | {"name": "next.png"})
    show_all(page)
    page.check("#tiles")
    wait_for_result(page, "on photo.png, in 20 tiles")  # of 100 pixels: five by four
    page.get_by_role("button", name="next.png", exact=True).click()
    wait_for_result(page, "on next.png, in")
    playwright.expect(page.locator("#tiles")).not_to_be_checked()
    page.get_by_role("button", name="photo.png", exact=True).click()
    playwright.expect(page.locator("#tiles")).to_be_checked()
    page.uncheck("#tiles")
    wait_for_result(page, "of 2 objects on photo.png, in 0")


def test_too_many_tiles_are_said_and_the_photo_is_looked_at_as_a_whole(browser: Any, launch: Start) -> None:
    server = launch(queue=4)
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(server.url)
        choose(page)
        wait_for_result(page, "2 objects")
        page.click("#tiles")  # not check: the page may have cleared it again before that looks
        wait_for_result(page, "this server takes at most 4")
        wait_for_result(page, "2 objects")
        playwright.expect(page.locator("#tiles")).not_to_be_checked()


def test_json_can_be_downloaded(page: Any, page_server: Running) -> None:
    choose(page)
    show_all(page)
    slide(page, "#score", 50)
    with page.expect_download() as waiting:
        page.get_by_role("button", name="JSON").click()
    assert waiting.value.suggested_filename == "photo.detections.json"
    saved = json.loads(waiting.value.path().read_text())
    answer = page_server.post(PHOTO["buffer"]).json()
    assert saved["detections"] == answer["detections"][:1]
    assert (saved["photo"], saved["image"]) == ("photo.png", {"height": 300, "width": 400})


def save(page: Any, name: str) -> Path:
    with page.expect_download() as waiting:
        page.get_by_role("button", name=name, exact=True).click()
    return Path(waiting.value.path())


def test_picture_cut_outs_and_csv_can_be_downloaded(page: Any) -> None:
    choose(page)
    show_all(page)
    with Image.open(save(page, "Picture")) as picture:
        assert picture.size == (400, 300)
        assert picture.convert("RGB").getpixel((392, 6)) == COLOR
        assert picture.convert("RGB").getpixel((280, 210)) != COLOR
    with zipfile.ZipFile(save(page, "Cut-outs")) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["1-coat.png", "2-shoe.png"]
        with Image.open(io.BytesIO(archive.read("1-coat.png"))) as coat:
            assert coat.size == (400, 300)
            assert coat.getpixel((200, 150)) == (*COLOR, 255)
            assert coat.getpixel((1, 1))[3] == 0
    rows = list(csv.DictReader(io.StringIO(save(page, "CSV").read_text())))
    assert [(row["photo"], row["class"], row["y2"], row["x2"]) for row in rows] == [
        ("photo.png", "coat", "300", "400"),
        ("photo.png", "shoe", "150", "200"),
    ]


def test_zooming_keeps_what_is_under_the_pointer(page: Any) -> None:
    choose(page)
    show_all(page)
    box = page.locator("#canvas").bounding_box()
    corner = (box["x"] + 0.2 * box["width"], box["y"] + 0.2 * box["height"])
    page.mouse.move(*corner)
    page.mouse.wheel(0, -400)
    playwright.expect(page.locator("#zoom-value")).to_have_text("272 %")
    playwright.expect(page.locator("#found button.lit")).to_contain_text("shoe")
    page.mouse.down()
    page.mouse.move(corner[0] - 2 * box["width"], corner[1] - 2 * box["height"], steps=4)
    page.mouse.up()
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.1 * box["height"])
    playwright.expect(page.locator("#tip")).to_have_text("coat 71 %")  # the lower right of the photo now
    page.get_by_role("button", name="Whole photo").click()
    playwright.expect(page.locator("#zoom-value")).to_have_text("100 %")


def test_class_switches_stay_for_the_next_photo(page: Any) -> None:
    choose(page)
    show_all(page)
    page.locator("#legend label", has_text="coat").locator("input").uncheck()
    choose(page, PHOTO | {"name": "next.png"})
    wait_for_result(page, "on next.png")
    assert names(page) == ["shoe"]


def test_photos_can_be_stepped_through_and_removed(page: Any) -> None:
    choose(page, PHOTO, PHOTO | {"name": "b.png"}, PHOTO | {"name": "c.png"})
    playwright.expect(page.locator("#strip button.busy")).to_have_count(0)
    wait_for_result(page, "on photo.png")
    page.keyboard.press("ArrowRight")
    wait_for_result(page, "on b.png")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    wait_for_result(page, "on c.png")
    page.get_by_role("button", name="Remove c.png").click()
    wait_for_result(page, "on b.png")
    page.keyboard.press("Delete")
    wait_for_result(page, "on photo.png")
    page.get_by_role("button", name="Remove", exact=True).click()
    playwright.expect(page.locator("#status")).to_contain_text("does not keep them")
    playwright.expect(page.locator("#canvas")).to_be_hidden()
    playwright.expect(page.locator("#strip li")).to_have_count(0)


def test_labels_do_not_cover_each_other(page: Any) -> None:
    spots = page.evaluate(
        """async () => {
            const { place } = await import("/static/labels.js");
            const taken = [];
            for (let i = 0; i < 6; i++) place([40, 60, 160, 200], [50, 16], [400, 300], taken);
            return taken.map(({ x, y, width, height }) => [x, y, x + width, y + height]);
        }"""
    )
    for i, a in enumerate(spots):
        for b in spots[:i]:
            assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])


def test_everything_is_reached_by_keyboard(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "API"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "demo"
    page.keyboard.press("Enter")
    wait_for_result(page, "on demo.jpg")
    for control in ("zoom-out", "zoom-value", "zoom-in", "remove", "score"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == control
    page.keyboard.press("Home")
    playwright.expect(page.locator("#score-value")).to_have_text("20 %")
    reached = ["score"]
    while reached[-1] != "found" and len(reached) < 20:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.closest('[id]')?.id"))
    assert reached == [
        "score",
        "opacity",
        "masks",
        "boxes",
        "labels",
        "tiles",
        "legend",
        "legend",
        *["downloads"] * 4,
        "found",
    ]
    playwright.expect(page.locator("#found button.lit")).to_have_count(1)


def test_on_a_phone_nothing_is_cut_off(page: Any) -> None:
    page.set_viewport_size(PHONE)
    choose(page)
    show_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for control in ("#canvas", "#score", "#opacity", "#downloads", "#zoom", "#found button"):
        box = page.locator(control).first.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"], control
    page.locator("#canvas").click(position={"x": 100, "y": 100})
    playwright.expect(page.locator("#tip")).to_be_visible()


def test_what_is_no_photo_is_said(page: Any) -> None:
    choose(page, {"name": "a.png", "mimeType": "image/png", "buffer": b"no photo at all"})
    playwright.expect(page.locator("#status.bad")).to_contain_text("not an image")
    page.expected_complaints = [
        "Failed to load resource: the server responded with a status of 415 (Unsupported Media Type)"
    ]


def test_a_server_with_keys_asks_for_one(browser: Any, launch: Start) -> None:
    server = launch(api_keys=["0123456789abcdef"])
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(server.url)
        page.get_by_role("textbox", name="Key").fill("0123456789abcdef")
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#model")).to_contain_text("coat")
        choose(page)
        wait_for_result(page, "1 of 2 objects")


def test_the_api_page_describes_the_api(page: Any, page_server: Running) -> None:
    page.goto(f"{page_server.url}/docs")
    playwright.expect(page.locator("#docs")).to_contain_text("POST /v1/predict")
    assert f"{page_server.url}/v1/predict" in page.locator("#docs pre").first.inner_text()
