"""The page in a real browser: it plays speech, draws the waveform, stops, and works with the keyboard alone."""

from __future__ import annotations

import asyncio
import io
import re
import shutil
from collections.abc import AsyncIterator

import av
import httpx2
import numpy as np
import pytest
from gateways import Gateway
from live import PATIENCE, Live
from numpy.typing import NDArray
from playwright.async_api import Browser, Page, async_playwright, expect

from cosyserve_client import Client

CHROMIUM = shutil.which("chromium")
LONG = "This text is long enough to be spoken still when its first words are heard. " * 10

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
# Without sandbox, which needs rights that root in a container lacks.
ARGUMENTS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]

HEARD, TO_COME = (11, 99, 206), (201, 209, 219)
"""Colours of the waveform, by daylight."""

MILLISECONDS = 1000 * PATIENCE


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture
def told() -> list[str]:
    """Errors and warnings in the console of `page`, breaches of its policy among them; none are expected."""
    return []


@pytest.fixture
async def page(browser: Browser, gateway: Gateway, voice: str, told: list[str]) -> AsyncIterator[Page]:
    page = await browser.new_page()
    page.set_default_timeout(MILLISECONDS)
    expect.set_options(timeout=MILLISECONDS)
    page.on("console", lambda message: message.type in ("warning", "error") and told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    await page.goto(gateway.url)
    await expect(page.get_by_label("Voice", exact=True)).to_have_value(voice)
    yield page
    assert not told


def pixels(screenshot: bytes) -> NDArray[np.uint8]:
    """Pixels of a picture, [pixels, red green blue]."""
    with av.open(io.BytesIO(screenshot)) as file:
        return next(file.decode(video=0)).to_ndarray(format="rgb24").reshape(-1, 3)


def colours(screenshot: bytes) -> int:
    """Count the colours of a picture: a blank one has few."""
    return len(np.unique(pixels(screenshot), axis=0))


async def painted(page: Page, colour: tuple[int, int, int]) -> bool:
    """Return whether the waveform has that colour."""
    picture = pixels(await page.locator("canvas").screenshot())
    return bool(np.mean(np.all(picture == colour, axis=1)) > 0.01)


async def test_it_speaks_and_shows_it(page: Page) -> None:
    assert not await painted(page, HEARD)
    await page.get_by_label("Text", exact=True).fill("Hello.")
    await page.get_by_role("button", name="Speak").click()
    await expect(page.locator("#status")).to_have_text("Done.")
    for figure in ("#first-audio", "#seconds"):
        await expect(page.locator(figure)).to_have_text(re.compile(r"^\d+\.\d\d s$"))
    await expect(page.locator("#gaps")).to_have_text(re.compile(r"^\d+$"))
    await expect(page.get_by_role("button", name="Stop", exact=True)).to_be_disabled()
    assert await painted(page, HEARD)
    assert colours(await page.screenshot()) > 50


async def test_the_keyboard_is_enough(page: Page, gateway: Gateway, server: Live) -> None:
    focused = "document.activeElement.id"
    reached = []
    while "stop" not in reached and len(reached) < 20:
        await page.keyboard.press("Tab")
        reached.append(await page.evaluate(focused))
        if reached[-1] == "text":
            await page.keyboard.press("Control+a")
            await page.keyboard.insert_text(LONG)
            await page.keyboard.press("Control+Enter")
            await expect(page.locator("#status")).to_have_text("Speaking.")
    assert reached == ["text", "voice", "speed", "instructions", "speak", "stop"]
    assert await painted(page, TO_COME)
    await page.keyboard.press("Enter")
    await expect(page.locator("#status")).to_have_text("Stopped.")
    await asyncio.to_thread(gateway.wait_idle)
    await asyncio.to_thread(server.wait_idle)


async def test_a_refusal_is_shown(page: Page, told: list[str]) -> None:
    await page.get_by_label("Text", exact=True).fill("...")
    await page.keyboard.press("Control+Enter")
    await expect(page.get_by_role("alert")).to_contain_text("input: ")
    await expect(page.locator("#status")).to_have_text("Failed.")
    (line,) = told
    assert "400" in line
    told.clear()


async def test_a_voice_is_recorded_and_speaks(page: Page, client: Client) -> None:
    await page.get_by_text("Add a voice").click()
    await page.get_by_label("Name").fill("recorded")
    await page.get_by_role("button", name="Record").click()
    await page.wait_for_timeout(1500)
    await page.get_by_role("button", name="Stop recording").click()
    await expect(page.locator("#voice-status")).to_have_text(re.compile(r"^\d\.\d s of audio\.$"))
    add = page.get_by_role("button", name="Add this voice")
    await add.click()  # without the speaker's consent
    assert "recorded" not in {voice.name for voice in client.list_voices()}
    await page.get_by_role("checkbox").check()
    await add.click()
    await expect(page.get_by_label("Voice", exact=True)).to_have_value("recorded")
    voice = client.remove_voice("recorded")
    assert voice.consent
    assert voice.prompt_seconds > 0.5


async def test_it_fits_a_phone_in_the_dark(browser: Browser, gateway: Gateway) -> None:
    page = await browser.new_page(viewport={"width": 360, "height": 740}, color_scheme="dark")
    await page.goto(gateway.url)
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert await page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
    assert colours(await page.screenshot()) > 50


def test_everything_comes_from_the_gateway(gateway: Gateway) -> None:
    answer = httpx2.get(gateway.url)
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    pages = [httpx2.get(f"{gateway.url}/{name}") for name in ("", "page.css", "page.js")]
    assert all(page.is_success and "://" not in page.text for page in pages)
