"""The report in headless Chromium: nothing is fetched, nothing complains, nothing sticks out, all of it can be read and printed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fedml.experiments.report.page import render
from tests.report_runs import EVIL, KINDS, records

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = Path("/usr/bin/chromium")
SCREENS = [(1280, 900), (390, 844)]

# Of every element with text of its own: the contrast to the first opaque background above it (WCAG 2.2, success criterion 1.4.3). Text in
# a plot has its colour in fill.
CONTRAST = """() => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b };
  const clear = c => c === 'transparent' || /, 0\\)$/.test(c);
  let worst = [99, ''], seen = 0;
  for (const e of document.querySelectorAll('body *')) {
    if (e.tagName === 'SCRIPT' || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    let at = e; while (at && clear(getComputedStyle(at).backgroundColor)) at = at.parentElement;
    const style = getComputedStyle(e), front = light(e.namespaceURI.endsWith('svg') ? style.fill : style.color);
    const back = light(at ? getComputedStyle(at).backgroundColor : 'rgb(255, 255, 255)');
    const ratio = (Math.max(front, back) + .05) / (Math.min(front, back) + .05);
    seen += 1; if (ratio < worst[0]) worst = [ratio, e.textContent.slice(0, 60)];
  }
  return [...worst, seen];
}"""

# Letters of a plot that leave it, or lie on other letters by more than a rim.
CROWDED = """() => [...document.querySelectorAll('svg')].flatMap(svg => {
  const whole = svg.getBoundingClientRect();
  const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  const out = boxes.filter(([, b]) => b.left < whole.left - 1 || b.right > whole.right + 1 || b.top < whole.top - 1
      || b.bottom > whole.bottom + 1).map(([t]) => 'outside: ' + t);
  boxes.forEach(([t, a], k) => boxes.slice(k + 1).forEach(([u, b]) => {
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left), high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (wide > 2 && high > 4) out.push(t + ' | ' + u);
  }));
  return out;
})"""


# Words of up to 20 letters that are on two lines.
BROKEN = """() => {
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), out = [], range = document.createRange();
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    if (['SCRIPT', 'STYLE'].includes(node.parentElement.tagName) || node.parentElement.closest('svg')) continue;
    for (const word of node.data.matchAll(/[A-Za-z]{2,20}/g)) {
      const before = node.data.slice(0, word.index).match(/\\S*$/)[0], after = node.data.slice(word.index).match(/^\\S*/)[0];
      if (before.length + after.length > 24) continue;  // an address or a digest, which may have to break
      if (/[A-Za-z0-9]/.test(node.data[word.index - 1] || ' ') || /[0-9]/.test(node.data[word.index + word[0].length] || ' ')) continue;
      range.setStart(node, word.index); range.setEnd(node, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map(r => Math.round(r.top))).size > 1) out.push(word[0]);
    }
  }
  return out;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip(f"there is no Chromium at {CHROMIUM}")
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, shared_folder: Path) -> dict[str, Path]:
    out = {}
    for kind, record in records(shared_folder).items():
        out[kind] = tmp_path_factory.mktemp(kind) / "report.html"
        out[kind].write_text(render(record), encoding="utf-8")
    return out


def opened(browser: Browser, path: Path, size: tuple[int, int], **context: Any) -> tuple[Any, list[str]]:
    """The page, and what it asked for or complained of: every request but that for the file itself fails."""
    trouble: list[str] = []
    page = browser.new_context(viewport={"width": size[0], "height": size[1]}, **context).new_page()

    def answer(route: Any) -> None:
        if route.request.url == path.as_uri():
            route.continue_()
        else:
            trouble.append(f"asked for {route.request.url}")
            route.abort()

    page.route("**/*", answer)
    page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: trouble.append(f"dialog: {dialog.message}"))
    page.goto(path.as_uri())
    page.wait_for_load_state("networkidle")
    return page, trouble


@pytest.mark.parametrize("size", SCREENS, ids=["screen", "phone"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_page_is_quiet_and_fits(browser: Browser, files: dict[str, Path], kind: str, size: tuple[int, int]) -> None:
    page, trouble = opened(browser, files[kind], size)
    assert trouble == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    sticking = (
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > innerWidth + 1)"
    )
    assert page.evaluate(f"{sticking}.map(e => e.outerHTML.slice(0, 80))") == []
    ratio, text, seen = page.evaluate(CONTRAST)
    assert seen > 50
    assert ratio >= 4.5, text
    assert page.evaluate(CROWDED) == []
    assert page.evaluate(BROKEN) == []
    page.context.close()


def test_it_reads_the_same_without_scripts(browser: Browser, files: dict[str, Path]) -> None:
    texts = []
    for allowed in (True, False):
        page, trouble = opened(browser, files["two_classes"], SCREENS[0], java_script_enabled=allowed)
        assert trouble == []
        texts.append(page.locator("main").inner_text())
        assert page.locator("h1").inner_text() == " ".join(EVIL.split())
        page.context.close()
    assert texts[0] == texts[1]
    assert texts[0].index("In short") < texts[0].index("AUROC") < texts[0].index("Limits")


def test_it_prints(browser: Browser, files: dict[str, Path]) -> None:
    page, trouble = opened(browser, files["two_classes"], SCREENS[0])
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert 2 <= pdf.count(b"/Type /Page\n") <= 12
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 680, "height": 1000})  # A4 less its margins, at 96 dots an inch
    wide = "[...document.querySelectorAll('table')].filter(t => t.getBoundingClientRect().right > innerWidth + 1).length"
    assert page.evaluate(wide) == 0
    assert trouble == []
    page.context.close()


def test_each_printed_page_has_the_run_and_its_number(browser: Browser, files: dict[str, Path], tmp_path: Path) -> None:
    pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed")
    for kind in ("two_classes", "private", "segmentation"):
        page, _ = opened(browser, files[kind], SCREENS[0])
        page.pdf(path=str(tmp_path / "report.pdf"), prefer_css_page_size=True)
        page.context.close()
        pages = [one.extract_text() for one in pypdf.PdfReader(tmp_path / "report.pdf").pages]
        run = re.search(r"Report of a federated run · (\S+)", files[kind].read_text(encoding="utf-8"))
        assert run is not None
        assert len(pages) > 2
        for number, text in enumerate(pages, start=1):
            assert f"page {number} of {len(pages)}" in text
            assert f"run {run[1].partition('<')[0]}" in text


def test_the_name_of_a_site_is_not_broken_on_a_phone(browser: Browser, files: dict[str, Path], tmp_path: Path) -> None:
    text = files["segmentation"].read_text(encoding="utf-8")
    named = text.replace('<th scope="row">a', '<th scope="row">cellavisions')
    assert named.count("cellavisions") > 3
    (tmp_path / "named.html").write_text(named, encoding="utf-8")
    page, _ = opened(browser, tmp_path / "named.html", SCREENS[1])
    assert page.evaluate(BROKEN) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= SCREENS[1][0]
    page.context.close()


def test_no_word_is_broken_on_paper(browser: Browser, files: dict[str, Path]) -> None:
    for kind in ("two_classes", "segmentation", "regression"):
        page, _ = opened(browser, files[kind], SCREENS[0])
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 680, "height": 1000})
        assert page.evaluate(BROKEN) == []
        page.context.close()


def test_links_lead_to_sections(browser: Browser, files: dict[str, Path]) -> None:
    page, _ = opened(browser, files["two_classes"], SCREENS[1])
    for link in page.locator("nav a").all():
        link.click()
        place = page.evaluate("location.hash")
        assert page.locator(place).is_visible()
    page.context.close()
