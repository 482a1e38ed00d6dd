"""Opens the report, and the web app, in headless Chromium as a person would, and keeps screenshots.

Usage: browser.py STRIATE RUN FRAMES PICTURE OUT

RUN needs `striate visualize`, `striate evaluate` and `striate map` before; FRAMES are those it is served with, PICTURE is what is dropped. Fails on any error or warning in the console, on a request that leaves
the page, if the gallery does not sort, search or open a unit, if keys do not lead around, if anything is wider than a phone, or if a picture
that is dropped is not explained. The packages are in tests/readers.txt; Chromium is the system's.
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from playwright.sync_api import expect, sync_playwright

STRIATE = sys.argv[1]
RUN, FRAMES, PICTURE, OUT = map(pathlib.Path, sys.argv[2:6])
CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]


def watched(browser, problems, allowed, **options):
    """A page whose every complaint and every request from elsewhere is a problem."""
    page = browser.new_context(**options).new_page()
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(allowed) else problems.append(f"asked for {r.url[:80]}"))
    return page


def picture(page, path, **options):
    """A screenshot once pictures in view are decoded."""
    page.wait_for_timeout(300)
    page.screenshot(path=path, **options)


def names(page):
    return [card.get_attribute("data-unit") for card in page.locator("#cards .card").all()]


def look_at_units(page, count):
    """The gallery sorts, searches and leads to units, by mouse and by keys."""
    expect(page.locator("#shown")).to_have_text(f"{count} units")
    by_place = names(page)
    options = [option.get_attribute("value") for option in page.locator("#sort option").all()]
    assert "concept-0" in options, options
    for option in options[1:]:
        page.select_option("#sort", option)
        shown = names(page)
        assert len(shown) == len(by_place) and len(set(shown)) == len(shown), option
        assert shown != by_place, f"sorting by {option} changes nothing"
    page.select_option("#sort", "concept-0")
    shares = [float(text.split()[0]) for text in page.locator("#cards .label span").all_inner_texts()[:20]]
    assert shares == sorted(shares, reverse=True), shares
    page.fill("#search", "map 1")
    assert names(page) and all(name.split(":")[1] == "1" for name in names(page)), names(page)
    page.fill("#search", "")

    best = names(page)[0]
    page.locator("#cards .card").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.unit") == names(page)[1]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    expect(page.locator("#unit-page h2")).to_have_text(f"Unit {best}")
    text = page.locator("#unit-page").inner_text()
    assert not re.search(r"\b(null|undefined|NaN|Infinity)\b", text), text
    for heading in ["What it prefers", "Frames", "What it detects", "Units that respond like it"]:
        expect(page.locator("#unit-page h3", has_text=heading)).to_be_visible()
    assert page.locator("#unit-page svg.chart").count() >= 1
    assert all(image.evaluate("i => i.complete && i.naturalWidth > 0") for image in page.locator("#unit-page .pair img").all())
    page.keyboard.press("ArrowRight")
    expect(page.locator("#unit-page h2")).not_to_have_text(f"Unit {best}")
    page.go_back()
    expect(page.locator("#unit-page h2")).to_have_text(f"Unit {best}")
    return best


def images_have_texts(page):
    silent = page.locator("img:not([alt])").count()
    assert silent == 0, f"{silent} pictures without alt"


def fits(page):
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"{wide} pixels too wide"


def the_report(browser, problems):
    report = OUT / "report.html"
    made = subprocess.run([STRIATE, "report", RUN, "--out", report, "--json"], check=True, capture_output=True, text=True)
    units = json.loads(made.stdout)["units"]
    page = watched(browser, problems, ("file:", "data:"), viewport={"width": 1280, "height": 900})
    page.goto(report.resolve().as_uri())
    paint = page.evaluate("""() => new Promise((done) => {
        const first = () => performance.getEntriesByName("first-contentful-paint")[0]?.startTime;
        const ask = () => (first() ? done(first()) : setTimeout(ask, 20));
        ask();
    })""")
    print(f"report of {units} units, {report.stat().st_size / 1e6:.1f} MB: first paint after {paint:.0f} ms")
    picture(page, OUT / "report-top.png")
    best = look_at_units(page, units)
    images_have_texts(page)
    picture(page, OUT / "report-unit.png", full_page=True)
    page.keyboard.press("Escape")
    expect(page.locator("#everything")).to_be_visible()
    page.locator("#units").scroll_into_view_if_needed()
    picture(page, OUT / "report-gallery.png")
    page.locator("#map-canvas").scroll_into_view_if_needed()
    page.locator("#map-canvas").click(position={"x": 300, "y": 200})
    page.keyboard.press("ArrowRight")
    expect(page.locator("#map-panel .near button")).to_have_count(8)
    picture(page, OUT / "report-map.png")
    if page.locator("#explanations").count():
        page.locator("#explanations").scroll_into_view_if_needed()
        picture(page, OUT / "report-explanations.png")
    page.locator("#theme").click()
    picture(page, OUT / "report-dark.png")
    phone = watched(browser, problems, ("file:", "data:"), viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    phone.goto(report.resolve().as_uri())
    fits(phone)
    picture(phone, OUT / "report-phone.png")
    phone.goto(f"{report.resolve().as_uri()}#unit/{best}")
    expect(phone.locator("#unit-page h2")).to_have_text(f"Unit {best}")
    fits(phone)
    picture(phone, OUT / "report-phone-unit.png")


def refused(address, body, status, words):
    request = urllib.request.Request(address, data=body, method="POST")
    try:
        urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        text = json.load(error)["error"]
        assert error.code == status and words in text, (error.code, text)
        return
    raise AssertionError(f"not refused: {words}")


def png(width, height):
    """A valid PNG of one grey, whose pixels take no room in it."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packed = zlib.compressobj(9)
    rows = b"".join(packed.compress(bytes(width + 1)) for _ in range(height)) + packed.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def hostile(address):
    """What people may send gets one clear answer, and the server lives."""
    look = f"{address}look"
    refused(look, b"PK\x03\x04" + bytes(1000), 422, "not a picture")
    refused(look, b"", 422, "no picture")
    refused(look, png(1, 1), 422, "1x1 pixels")
    refused(look, png(20_000, 20_000), 422, "20000x20000 pixels")
    refused(look, PICTURE.read_bytes()[:200], 422, "cannot be decoded")
    refused(f"{address}explain?unit=99:0:0:0", PICTURE.read_bytes(), 404, "stage")
    refused(f"{address}explain?unit=x", PICTURE.read_bytes(), 400, "no unit")
    # What says that it is too long is not read at all: it may be cut off while it still sends.
    try:
        refused(look, bytes(200_000_000), 413, "more than 20 MB")
    except urllib.error.URLError as error:
        assert isinstance(error.reason, (BrokenPipeError, ConnectionResetError)), error
    elsewhere = urllib.request.Request(f"{address}units.json", headers={"Host": "evil.example"})
    try:
        urllib.request.urlopen(elsewhere)
        raise AssertionError("answers to any name")
    except urllib.error.HTTPError as error:
        assert error.code == 403, error.code
    for path in ["pictures/..%2f..%2fconfig.toml", "pictures/units.json", "map/..%2fstate.json", "nothing"]:
        try:
            urllib.request.urlopen(f"{address}{path}")
            raise AssertionError(f"gives away {path}")
        except urllib.error.HTTPError as error:
            assert error.code == 404, (path, error.code)
    urllib.request.urlopen(address, timeout=10)


def many(address, count=200):
    body = PICTURE.read_bytes()

    def one(_):
        with urllib.request.urlopen(urllib.request.Request(f"{address}look", data=body, method="POST"), timeout=120) as answer:
            return json.load(answer)["stages"][0]["units"][0]["name"]

    began = time.time()
    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(one, range(count)))
    assert len(set(found)) == 1, set(found)
    print(f"{count} pictures looked at at the same time in {time.time() - began:.1f} s")


def the_app(browser, problems):
    server = subprocess.Popen([STRIATE, "serve", RUN, "--frames", FRAMES, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://\S+", server.stdout.readline()).group()
        page = watched(browser, problems, (address, "data:", "blob:"), viewport={"width": 1280, "height": 900})
        page.goto(address)
        count = int(re.search(r"\d+", page.locator("#shown").inner_text(timeout=20_000)).group())
        page.set_input_files("#file", PICTURE)
        expect(page.locator("#explanation .heat img").first).to_be_visible(timeout=60_000)
        assert page.locator("#look-result tbody tr").count() >= 12
        assert page.locator("#says li").count() >= 1
        assert page.locator("#look-result .near img").count() == 8
        images_have_texts(page)
        picture(page, OUT / "serve-look.png")
        # Another unit, and a picture that is dropped.
        page.locator("[data-explain]").nth(1).click()
        expect(page.locator("#explanation .heat img").first).to_be_visible(timeout=60_000)
        data = page.evaluate_handle("""(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
            return transfer;
        }""", list(PICTURE.read_bytes()))
        page.dispatch_event("#drop", "drop", {"dataTransfer": data})
        expect(page.locator("#look-status")).to_have_text("dropped.png was looked at.", timeout=60_000)
        look_at_units(page, count)
        picture(page, OUT / "serve-unit.png")
        good = len(problems)
        page.goto(address)
        page.set_input_files("#file", {"name": "zip.png", "mimeType": "image/png", "buffer": b"PK\x03\x04" + bytes(99)})
        expect(page.locator("#look-status")).to_contain_text("not a picture")
        # The browser writes a line of its own for each answer that is no success.
        del problems[good:]
        hostile(address)
        many(address)
        assert server.poll() is None, server.stderr.read()
    finally:
        server.terminate()
        server.wait(10)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    problems = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        the_report(browser, problems)
        the_app(browser, problems)
        browser.close()
    if problems:
        sys.exit("\n".join(["the console or the network says:", *problems]))
    print(f"screenshots are in {OUT}")


main()
