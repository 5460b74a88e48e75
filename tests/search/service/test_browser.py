"""The dashboard as people meet it: in a real Chromium, over HTTP, with the policy that the service sends."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from dashboards.app.data_source import Watch
from search.config.run_config import RunConfig
from search.problem.objectives import OBJECTIVES
from search.service.dashboard import dashboard
from search.service.http.app import create_app
from search.service.rules.settings import ServiceSettings
from studies import StudyState
from studies.records.labels import Labels
from studies.records.trial import WorkSpan
from studies.service.service_store import ServiceStore
from studies.service.submissions import RunState
from studies.service.tokens import Role
from tests.dashboards import records
from tests.search.service.running import TINY, working
from tests.search.service.test_dashboard import SCRIPT, filled
from tests.studies.records import running

# Without a GPU, WebGL is drawn by the processor.
SWITCHES = ["--no-sandbox", "--headless=new", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
# Other work may share the cores.
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)
# What the browser, and Dash, say of requests that nobody answers.
UNANSWERED = ("ERR_FAILED", "the server did not respond")
FRONT = "#front-figure .js-plotly-plot"
# What a browser, JSON, an address or Dash's ids write otherwise.
ODD_NAMES = ("müller", "日本 🙂", "a.b.n_clicks", '"quoted" {100 %25} #1?')
# Where a point of the front is on the screen, and its trial's number.
POINT = """selector => {
  const plot = document.querySelector(selector), front = plot._fullData.find((trace) => trace.name === "front");
  const at = Math.floor(front.x.length / 2), box = plot.getBoundingClientRect();
  const { xaxis, yaxis } = plot._fullLayout;
  return [box.left + xaxis._offset + xaxis.d2p(front.x[at]), box.top + yaxis._offset + yaxis.d2p(front.y[at]),
          front.customdata[at]];
}"""


@pytest.fixture(scope="module")
def chromium(require_system_dep: Callable[[str], Path]) -> Iterator[Browser]:
    program = require_system_dep("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(program), args=SWITCHES)
        yield browser
        browser.close()


# Widths and themes of pages.
LOOKS = ((1280, "light"), (390, "dark"), (1280, "dark"), (390, "light"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test at each width and theme: at one of them, in turns, wherever tests run; at the others as stress."""
    if "width" not in metafunc.fixturenames:
        own = crc32(metafunc.function.__name__.encode()) % len(LOOKS)
        looks = [
            pytest.param(look, marks=() if place == own else pytest.mark.slow, id=f"{look[0]}-{look[1]}")
            for place, look in enumerate(LOOKS)
        ]
        metafunc.parametrize("look", looks, indirect=True)


@pytest.fixture(autouse=True)
def look(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The width and the theme of pages that are not told theirs."""
    width, scheme = getattr(request, "param", LOOKS[0])
    monkeypatch.setattr(opened, "look", (width, scheme), raising=False)


@pytest.fixture
def address(store: ServiceStore, settings: ServiceSettings) -> Iterator[str]:
    app = create_app(store, settings, dashboard(settings))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def opened(
    chromium: Browser,
    address: str,
    name: str,
    width: int | None = None,
    scheme: Any = None,
    complains_of: tuple[str, ...] = (),
    zone: str | None = None,
) -> Iterator[Page]:
    """A page that must load nothing from elsewhere, break no policy, and say nothing else on its console."""
    own_width, own_scheme = opened.look  # type: ignore[attr-defined]
    width, scheme = width or own_width, scheme or own_scheme
    context = chromium.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        base_url=address,
        timezone_id=zone,
        locale="en-US",
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda sent: None if sent.url.startswith((address, "blob:", "data:")) else complaints.append(sent.url),
    )
    page.add_init_script(
        "window.broken = []; document.addEventListener('securitypolicyviolation', (one) => "
        "window.broken.push(one.violatedDirective + ' ' + one.blockedURI))"
    )
    try:
        yield page
        folder = os.environ.get("FTP_TEST_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(folder) / f"{name}-{width}-{scheme}.png", full_page=True)
        assert page.evaluate("window.broken") == []
        # WebGL of the processor says how slow it is, and whoever is signed out is refused.
        expected = ("GPU stall", "401 (Unauthorized)", *complains_of)
        assert [one for one in complaints if not any(words in one for words in expected)] == []
    finally:
        context.close()


def worked_on(store: ServiceStore, name: str) -> None:
    """Do what a runner would, with made-up results."""
    while not store.queue.waiting():
        time.sleep(0.05)
    with store.runs.lease(name):
        assert store.queue.claim(name, "w") is not None
        store.runs.set_state(name, StudyState.RUNNING)
        store.runs.begin_stage(name, "search")
        for start in range(0, 60, 20):
            part = [replace(t, round=0, router=None) for t in records.TRIALS[start : start + 20]]
            store.trials.begin(name, part)
            store.trials.finish(name, part)
            store.events.add(name, [("figures", {"stage": "search", "step": start, "figures": {"trials_per_s": 9.5}})])
            time.sleep(0.5)
        store.runs.set_state(name, StudyState.FINISHED)
        store.queue.end(name, "w")


def answered(page: Page, button: str, *, yes: bool) -> str:
    """Press a button that asks first, and answer; what it asked."""
    # The question may come while the click is still on its way, which then waits for the answer.
    page.once("dialog", lambda dialog: dialog.accept() if yes else dialog.dismiss())
    with page.expect_event("dialog") as asked:
        page.get_by_role("button", name=button).click()
    return str(asked.value.message)


def test_a_study_is_created_watched_looked_into_and_saved(chromium: Browser, address: str, store: ServiceStore) -> None:
    with opened(chromium, address, "created") as page:
        page.goto("/")
        page.get_by_role("link", name="Create the first one").click()
        page.get_by_label("name", exact=True).fill("mine")
        page.get_by_label("trials", exact=True).fill("none")
        more, refined = page.get_by_text("More settings"), page.get_by_label("refine trials", exact=True)
        more.click()
        refined.fill("-1")
        more.click()
        page.get_by_role("button", name="Create and submit").click()
        expect(page.locator("#new-said")).to_contain_text("expected a whole number")
        # Everything that is wrong is said at once, and shown where it was hidden.
        expect(refined).to_be_visible()
        expect(refined).to_have_attribute("aria-invalid", "true")
        refined.fill("10")
        page.get_by_label("trials", exact=True).fill("60")
        page.keyboard.press("Enter")
        expect(page.locator("h1")).to_have_text("mine")
        page.go_back()
        expect(page.get_by_label("name", exact=True)).to_have_value("mine")
        expect(page.get_by_label("trials", exact=True)).to_have_value("60")
        page.go_forward()
        expect(page.locator("h1")).to_have_text("mine")
        expect(page.locator(".badge")).to_contain_text("waits for a runner")

        runner = threading.Thread(target=worked_on, args=(store, "mine"))
        runner.start()
        expect(page.locator(".badge")).to_contain_text("finished")
        runner.join()
        page.wait_for_function(
            "s => (document.querySelector(s)?.data || []).some((one) => one.name === 'front')", arg=FRONT
        )

        page.evaluate("window.scrollTo(0, 0)")
        x, y, number = page.evaluate(POINT, FRONT)
        page.mouse.move(x - 2, y)
        page.mouse.move(x, y)
        expect(page.locator("#trial-panel")).to_contain_text("proposed by")
        page.mouse.click(x, y)
        expect(page.locator("#trial-number")).to_have_value(str(number))
        expect(page.locator("#trial-panel .gtitle")).to_have_text(f"Schedule of trial {number}")
        page.wait_for_function("s => document.querySelector(s).data[0].x.length === 1", arg=FRONT)

        for words, ending in (("CSV of all trials", "mine-trials.csv"), ("HTML", "mine.html"), ("JSON", "mine.json")):
            with page.expect_download() as saved:
                page.get_by_role("link", name=words, exact=True).click()
            assert saved.value.suggested_filename == ending
        with page.expect_download() as saved:
            page.get_by_role("button", name="PNG", exact=True).click()
        assert Path(saved.value.path()).read_bytes().startswith(b"\x89PNG")

        assert "Delete the study mine" in answered(page, "Delete mine", yes=False)
        assert [one.name for one in store.studies.summaries()] == ["mine"]
        answered(page, "Delete mine", yes=True)
        expect(page.locator("#studies")).to_contain_text("No studies")
        assert store.studies.summaries() == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_created_by_form_is_run_by_a_runner_and_seen_to_finish(
    chromium: Browser, address: str, store: ServiceStore, tmp_path: Path
) -> None:
    with working(tmp_path, store.url) as (_, said), opened(chromium, address, "run") as page:
        page.goto("/new")
        page.get_by_text("More settings").click()
        for name, value in {"name": "mine", "trials": 12, **TINY}.items():
            if isinstance(value, bool):
                page.get_by_role("checkbox", name=name).set_checked(value)
            elif name == "cost":
                page.get_by_role("radio", name=value).check()
            else:
                page.get_by_label(name.replace("_", " "), exact=True).fill(str(value))
        page.get_by_role("button", name="Create and submit").click()
        expect(page.locator("h1")).to_have_text("mine")
        expect(page.locator(".badge")).to_contain_text("running", timeout=120_000)
        expect(page.locator(".badge")).to_contain_text(re.compile("finished|failed"), timeout=600_000)
        assert "finished" in page.locator(".badge").inner_text(), said.read_text()
        # What it measured is below the figure, and its front in it.
        expect(page.locator("#measured")).to_contain_text("dense")
        page.wait_for_function(
            "s => (document.querySelector(s)?._fullData || []).some((one) => one.name === 'front' && one.x.length > 1)",
            arg=FRONT,
        )
        page.get_by_role("radio", name="Log").focus()
        page.keyboard.press("Space")
        expect(page.locator(".log")).to_contain_text("search")
        assert store.trials.n_ended("mine") == 12


def test_the_trials_that_one_was_made_from_are_a_click_away(
    chromium: Browser, address: str, store: ServiceStore
) -> None:
    filled(store)
    span = WorkSpan("1", records.BEGAN, 0.4)
    store.trials.append("made up", replace(records.TRIALS[20], number=200, parents=(9,), work=(span,)))
    with opened(chromium, address, "made-from") as page:
        page.goto("/study/made%20up")
        page.wait_for_selector(f"{FRONT} .main-svg")
        # Twice, as a number that is handed over again must count again.
        for _ in range(2):
            page.locator("#trial-number").fill("200")
            page.keyboard.press("Enter")
            expect(page.locator("#trial-panel .gtitle")).to_have_text("Schedule of trial 200")
            page.get_by_role("button", name="Select trial 9, which this one was made from").click()
            expect(page.locator("#trial-panel .gtitle")).to_have_text("Schedule of trial 9")
            expect(page.locator("#trial-number")).to_have_value("9")
        with page.expect_download() as saved:
            page.get_by_role("button", name="Save the schedule of trial 9 with its settings").click()
        assert saved.value.suggested_filename == "made up-trial-9.json"
        assert json.loads(saved.value.path().read_text())["trial"] == 9
        page.get_by_role("button", name="Measure trial 9 on validation items and on the clock").click()
        expect(page.locator("#study-said")).to_have_text("made up: measures trial 9 as soon as a runner is free.")
        assert store.queue.waiting() == ["made up"]
        page.get_by_role("button", name="Ask trial 9 your own prompt").click()
        expect(page.get_by_role("radio", name="Prompts")).to_be_checked()
        expect(page.locator("#prompt-trial")).to_have_value("9")
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.get_by_role("alert")).to_have_text("text is '': expected a prompt of some words.")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_ones_own_prompt_is_shaded_and_answered_by_both_models(
    chromium: Browser, address: str, store: ServiceStore, width: int, scheme: str
) -> None:
    store.studies.create("own", RunConfig(workers=1, device="cpu").model_dump(), OBJECTIVES)
    store.trials.append("own", records.TRIALS[0])
    store.trials.append("own", replace(records.TRIALS[0], number=1, schedule=(0.0,) * 4 + (0.6,) * 8))
    text = "Tom has the red ball. Question: who has the red ball? Answer:"
    with opened(chromium, address, "own-prompt", width, scheme) as page:
        page.goto("/study/own?tab=prompts&trial=1")
        page.get_by_label("Text").fill(text)
        page.get_by_label("new tokens, at most").fill("5")
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.get_by_role("button", name="Ask", exact=True)).to_be_disabled()
        expect(page.get_by_text("The model is loaded, and both answer.")).to_be_visible()
        page.wait_for_selector("#prompt-answer .prompt", timeout=240_000)
        expect(page.locator("#prompt-answer > p").first).to_contain_text(
            "Trial 1: overall sparsity 40.0%, static router"
        )
        shown = page.locator("#prompt-answer .tokens span")
        assert "".join(shown.all_inner_texts()).strip() == text
        # The last token runs every block by the static router, and one in the middle the first four alone.
        titles = shown.evaluate_all("tokens => tokens.map((one) => one.title)")
        assert (titles[-1], titles[2]) == ("12 blocks", "4 blocks")
        assert page.locator("#prompt-answer dt").all_inner_texts() == ["dense", "pruned"]
        expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()
        fits(page, width)


@pytest.mark.parametrize(
    ("zone", "texts"),
    [
        ("Asia/Tokyo", ("Jan 1, 2026, 6:30:09 PM GMT+9", "Jan 1, 2026, 6:30:20 PM GMT+9")),
        pytest.param(
            "America/New_York",
            ("Jan 1, 2026, 4:30:09 AM EST", "Jan 1, 2026, 4:30:20 AM EST"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_times_are_on_the_clock_of_whoever_looks(
    chromium: Browser, address: str, store: ServiceStore, zone: str, texts: tuple[str, str]
) -> None:
    filled(store)
    with opened(chromium, address, "times", zone=zone) as page:
        page.goto("/study/made%20up")
        page.wait_for_selector(f"{FRONT} .main-svg")
        # The same minute, so that the service writes the same text again.
        for number, text in zip((9, 20, 9), (*texts, texts[0]), strict=True):
            page.locator("#trial-number").fill(str(number))
            page.keyboard.press("Enter")
            expect(page.locator("#trial-panel .gtitle")).to_have_text(f"Schedule of trial {number}")
            # A space before AM and PM is a narrow one.
            words = r"\s".join(map(re.escape, text.split()))
            expect(page.locator("#trial-panel time")).to_have_text(re.compile(words))


def test_zoom_legend_and_focus_stay_while_a_study_runs(chromium: Browser, address: str, store: ServiceStore) -> None:
    filled(store)
    store.queue.submit("made up")
    with opened(chromium, address, "zoomed") as page:
        page.goto("/study/made%20up")
        page.wait_for_selector(f"{FRONT} .main-svg")
        page.locator(FRONT).scroll_into_view_if_needed()
        box = page.locator(f"{FRONT} .nsewdrag").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.7 * box["height"], steps=5)
        with page.expect_response(lambda one: '"output":"front-drawn.data"' in (one.request.post_data or "")):
            page.mouse.up()
        shown = "s => document.querySelector(s)._fullLayout.xaxis.range"
        page.wait_for_function("s => document.querySelector(s)._fullLayout.xaxis.range[1] < 40", arg=FRONT)
        zoomed = page.evaluate(shown, FRONT)
        left_out = """s => document.querySelector(s)._fullData
            .filter((one) => one.visible === "legendonly").map((one) => one.name)"""
        # The only proposer of dominated trials within that zoom.
        page.locator(f"{FRONT} .traces").filter(has_text="cmaes").locator(".legendtoggle").click(force=True)
        page.wait_for_function(f"s => ({left_out})(s).length > 0", arg=FRONT)
        # On a busy machine, the legend may move under the click.
        hidden = page.evaluate(left_out, FRONT)
        page.get_by_role("button", name="Stop made up").focus()
        # Of a proposer that had none: what follows it in the figure has another place now.
        new = replace(records.TRIALS[20], number=200, values=(0.0005, 30.0), proposer="another")
        beside = replace(new, number=201, values=(0.05, 30.5))
        for one in (new, beside):
            store.trials.begin("made up", [running(one.schedule, one.proposer)])
            store.trials.finish("made up", [one])
        page.wait_for_function(
            "s => document.querySelector(s).data.some((one) => (one.customdata || []).includes(201))", arg=FRONT
        )
        assert page.evaluate(shown, FRONT) == pytest.approx(zoomed, rel=1e-4)  # as the address has it
        assert page.evaluate(left_out, FRONT) == hidden
        # The state of the study changes what stands around the button.
        store.events.add("made up", [("log", {"text": "more"})])
        with store.runs.lease("made up"):
            store.queue.claim("made up", "w")
            store.runs.set_state("made up", StudyState.RUNNING)
            expect(page.locator(".badge")).to_contain_text("running")
            expect(page.get_by_role("button", name="Stop made up")).to_be_focused()
            store.runs.set_state("made up", StudyState.STOPPED)
            store.queue.end("made up", "w")
        page.evaluate("document.activeElement.blur()")
        number = page.locator("#trial-number")
        page.keyboard.press("ArrowRight")
        expect(number).not_to_have_value("")
        first = number.input_value()
        page.keyboard.press("ArrowRight")
        expect(number).not_to_have_value(first)
        page.keyboard.press("ArrowLeft")
        expect(number).to_have_value(first)
        page.keyboard.press("Escape")
        expect(number).to_have_value("")
        page.wait_for_function("s => document.querySelector(s).data[0].x.length === 0", arg=FRONT)
        # In a field, arrows are the field's.
        number.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(300)
        expect(number).to_have_value("")


@pytest.mark.slow
def test_zooming_along_one_axis_leaves_the_other_as_it_is(chromium: Browser, address: str, store: ServiceStore) -> None:
    filled(store)
    ranges = "s => ['xaxis', 'yaxis'].map((axis) => document.querySelector(s)._fullLayout[axis].range)"
    with opened(chromium, address, "zoomed-along") as page:
        page.goto("/study/made%20up")
        page.wait_for_selector(f"{FRONT} .main-svg")
        everything_x, everything_y = page.evaluate(ranges, FRONT)

        def change(**named: Any) -> Any:
            """Change the axes as a user does, and wait until the server has drawn them so."""
            layout = {name.replace("_", "."): value for name, value in named.items()}
            with page.expect_response(lambda one: '"output":"front-drawn.data"' in (one.request.post_data or "")):
                page.evaluate(
                    "([s, layout]) => window.Plotly.relayout(document.querySelector(s), layout)", [FRONT, layout]
                )
            page.wait_for_timeout(300)
            return page.evaluate(ranges, FRONT)

        # KL is upwards, on a logarithmic axis.
        x, y = change(xaxis_range=[12.0, 30.0], yaxis_range=[-2.5, -0.5])
        assert (x, y) == (pytest.approx([12, 30]), pytest.approx([-2.5, -0.5]))
        x, y = change(**{"xaxis_range[0]": 14.0, "xaxis_range[1]": 32.0})
        assert (x, y) == (pytest.approx([14, 32]), pytest.approx([-2.5, -0.5]))
        x, y = change(**{"yaxis_range[0]": -2.0})
        assert (x, y) == (pytest.approx([14, 32]), pytest.approx([-2, -0.5]))
        x, y = change(xaxis_autorange=True)
        assert (x, y) == (pytest.approx(everything_x, rel=0.1), pytest.approx([-2, -0.5]))
        x, y = change(yaxis_autorange=True)
        assert (x, y) == (pytest.approx(everything_x, rel=0.1), pytest.approx(everything_y, rel=0.1))

        # The address holds it, for whoever reloads, comes back or follows a link.
        change(xaxis_range=[12.0, 30.0], yaxis_range=[-2.0, 0.0])
        page.wait_for_url(lambda url: url.endswith("?zoom=12_30_0.01_1"))
        page.reload()
        is_shown = f"s => String(({ranges})(s).flat().map((end) => Math.round(end * 100) / 100)) === '12,30,-2,0'"
        page.wait_for_function(f"s => document.querySelector(s)?._fullLayout && ({is_shown})(s)", arg=FRONT)
        page.locator("#trial-number").fill("20")
        page.keyboard.press("Enter")
        page.wait_for_url(lambda url: url.endswith("?trial=20&zoom=12_30_0.01_1"))
        change(xaxis_range=[14.0, 32.0])
        page.wait_for_url(lambda url: url.endswith("?trial=20&zoom=14_32_0.01_1"))
        page.go_back()
        page.wait_for_function(is_shown, arg=FRONT)
        assert page.url.endswith("?zoom=12_30_0.01_1")


def test_the_address_holds_what_a_page_shows(chromium: Browser, address: str, store: ServiceStore) -> None:
    filled(store)
    filled(store, SCRIPT)
    with opened(chromium, address, "address") as page:
        # A clipboard as browsers have it, whatever this one allows.
        page.add_init_script(
            "Object.defineProperty(navigator, 'clipboard', {value: "
            "{writeText: (text) => { window.copied = text; return Promise.resolve(); }}})"
        )
        page.goto("/study/made%20up?tab=log&trial=9&x=flops&y=__class__&other=1")
        # What is no quantity counts as the default.
        expect(page.get_by_role("radio", name="Log")).to_be_checked()
        expect(page.locator(".nothing").filter(has_text="No log")).to_be_visible()
        page.goto("/study/made%20up?trial=9")
        expect(page.locator("#trial-panel .gtitle")).to_have_text("Schedule of trial 9")
        page.wait_for_function("s => document.querySelector(s)?._fullData?.[0]?.x?.length === 1", arg=FRONT)
        number, log = page.locator("#trial-number"), page.get_by_role("radio", name="Log")
        number.fill("20")
        page.keyboard.press("Enter")
        page.wait_for_url(lambda url: url.endswith("/study/made%20up?trial=20"))
        log.check(force=True)
        page.wait_for_url(lambda url: url.endswith("/study/made%20up?tab=log&trial=20"))
        page.go_back()
        expect(log).not_to_be_checked()
        expect(page.locator("#front-figure")).to_be_visible()
        expect(number).to_have_value("20")
        page.go_back()
        expect(number).to_have_value("9")
        expect(page.locator("#trial-panel .gtitle")).to_have_text("Schedule of trial 9")
        page.go_forward()
        page.go_forward()
        expect(log).to_be_checked()
        expect(number).to_have_value("20")
        page.reload()
        expect(log).to_be_checked()
        assert page.url.endswith("?tab=log&trial=20")
        page.get_by_role("button", name="Copy link").click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        assert page.evaluate("window.copied") == page.url
        # Another page and back again.
        page.get_by_role("link", name="Compare").click()
        page.wait_for_selector("#compare-figure .main-svg")
        assert page.url.endswith("/compare")
        page.go_back()
        expect(log).to_be_checked()
        page.goto("/compare?study=made+up&x=overall_sparsity")
        page.wait_for_function(
            "() => document.querySelector('#compare-figure .js-plotly-plot')?.data?.map((one) => one.name).join()"
            " === 'made up'"
        )
        expect(page.locator("#compare-verdicts")).not_to_contain_text(SCRIPT)


def test_a_table_of_trials_and_the_figure_select_the_same_trial(
    chromium: Browser, address: str, store: ServiceStore
) -> None:
    filled(store)
    with opened(chromium, address, "trials") as page:
        page.goto("/study/made%20up")
        rows, number = page.locator(".trials tbody tr"), page.locator("#trial-number")
        expect(rows.first).to_contain_text("0")
        page.locator(".trials th").get_by_role("button", name="KL to dense").click()
        page.get_by_label("conditions").fill("kl > 0.01")
        page.keyboard.press("Enter")
        page.wait_for_url(lambda url: url.endswith("?where=kl+%3E+0.01&order=kl"))
        expect(page.locator(".trials th[aria-sort=ascending]")).to_contain_text("KL to dense")
        ring = "number => document.querySelector('#front-figure .js-plotly-plot')?._fullData?.[0]?.x?.length === 1"
        # Anywhere on its row.
        rows.nth(2).get_by_role("cell").nth(1).click()
        selected = page.locator(".trials tr.chosen")
        expect(selected).to_have_count(1)
        expect(number).to_have_value(selected.get_by_role("button").inner_text().removeprefix("▶ "))
        page.wait_for_function(ring)
        # What is selected elsewhere is marked, too, though it is on another page.
        number.fill("20")
        page.keyboard.press("Enter")
        expect(selected.get_by_role("button", name="Select trial 20")).to_be_visible()
        expect(page.locator("#rows-count")).to_contain_text("the selected one on top")
        page.get_by_role("button", name="Next page").click()
        expect(page.locator("#rows-count")).to_contain_text("page 2 of")
        page.reload()
        expect(page.locator("#rows-count")).to_contain_text("page 2 of")
        expect(selected.get_by_role("button", name="Select trial 20")).to_be_visible()


def test_a_long_list_is_searched_and_turned_and_keeps_its_address(
    chromium: Browser, address: str, store: ServiceStore
) -> None:
    for number in range(60):
        store.studies.create(f"study {number:02}", {"model": "demo", "data": "demo"}, records.STUDY.objectives)
    with opened(chromium, address, "long-list") as page:
        page.goto("/?order=oldest")
        count, first = page.locator("#list-count"), page.locator(".studies .name").first
        expect(count).to_have_text("60 studies, page 1 of 3")
        expect(first).to_have_text("study 00")
        page.get_by_role("button", name="Next page").click()
        expect(first).to_have_text("study 25")
        page.wait_for_url(lambda url: url.endswith("/?order=oldest&page=2"))
        page.get_by_label("search").fill("study 5")
        # Another search begins with its first page, and is no step to go back.
        expect(first).to_have_text("study 05")
        page.wait_for_url(lambda url: url.endswith("/?q=study+5&order=oldest"))
        page.reload()
        expect(page.get_by_label("search")).to_have_value("study 5")
        expect(count).to_have_text("15 of 60 studies")
        first.click()
        expect(page.locator("h1")).to_have_text("study 05")
        page.go_back()
        expect(count).to_have_text("15 of 60 studies")
        page.get_by_label("search").fill("")
        expect(count).to_have_text("60 studies, page 1 of 3")
        # A sweep stands in one row, which opens; what is said on a study's page is found here.
        for seed in range(3):
            labels = Labels(("<i>",), sweep="gr&d")
            store.studies.create(f"gr&d-s{seed}", {"seed": seed}, records.STUDY.objectives, labels=labels)
        page.goto("/")
        expect(count).to_have_text("63 studies in 61 rows, page 1 of 3")
        page.get_by_role("link", name="gr&d", exact=True).click()
        expect(count).to_have_text("3 of 63 studies")
        expect(page.get_by_role("link", name="Compare these")).to_be_visible()
        page.get_by_role("link", name="gr&d-s1", exact=True).click()
        page.get_by_text("Tags and note").click()
        page.get_by_label("tags, separated by commas").fill("best, 1B")
        page.get_by_role("button", name="Save", exact=True).click()
        expect(page.get_by_text("Saved.")).to_be_visible()
        page.locator("#study-head").get_by_role("link", name="1B").click()
        page.wait_for_url(lambda url: url.endswith("/?tag=1B"))
        expect(count).to_have_text("1 of 63 studies")
        page.get_by_role("link", name="sweep gr&d").click()
        expect(count).to_have_text("3 of 63 studies")
        page.get_by_role("link", name="Show all studies").click()
        expect(count).to_have_text("63 studies in 61 rows, page 1 of 3")


def test_a_page_tells_how_long_a_stage_runs_and_what_it_says_last(
    chromium: Browser, address: str, store: ServiceStore
) -> None:
    store.create_submitted("mine", {"trials": 300}, records.STUDY.objectives)
    with opened(chromium, address, "runs") as page:
        page.goto("/study/mine")
        what = page.get_by_role("region", name="What runs")
        expect(what).to_contain_text("No runner is there")
        with store.runs.lease("mine"):
            store.queue.claim("mine", "w")
            store.runs.set_state("mine", StudyState.RUNNING)
            store.events.add("mine", [("began", {"stages": ["search", "measure"]})])
            store.runs.begin_stage("mine", "search")
            store.events.add("mine", [("log", {"text": "at first"})])
            expect(what).to_contain_text("at first")
            expect(what).to_contain_text(re.compile(r"Stage 1 of 2: search, for \d+ s"))
            store.events.add("mine", [("log", {"text": "and then"})])
            expect(what).to_contain_text("and then")
            page.goto("/")
            expect(page.locator(".studies")).to_contain_text(re.compile(r"stage 1 of 2: search, for \d+ s"))
            expect(page.locator(".studies .line")).to_have_text("and then")
            store.runs.set_state("mine", StudyState.STOPPED)
            store.queue.end("mine", "w")


def test_a_page_says_that_the_service_is_away_and_draws_what_it_missed_once_it_is_back(
    chromium: Browser, address: str, store: ServiceStore
) -> None:
    filled(store)
    drawn = "() => (document.querySelector('#growth-trials .js-plotly-plot')?.data || []).length > 0"
    with opened(chromium, address, "away", complains_of=UNANSWERED) as page:
        page.goto("/study/made%20up")
        page.wait_for_selector(f"{FRONT} .main-svg")
        bar = page.get_by_role("alert").filter(has_text="The service does not answer")
        assert bar.count() == 0
        page.route(re.compile("/_dash-|/api/"), lambda asked: asked.abort())
        page.get_by_role("radio", name="Progress").check(force=True)
        expect(bar).to_have_count(1)
        assert not page.evaluate(drawn)
        # Plotly would show axes of nothing meanwhile.
        assert (
            page.locator("#growth-trials .js-plotly-plot").evaluate("one => getComputedStyle(one).visibility")
            == "hidden"
        )
        page.unroute_all()
        page.wait_for_function(drawn)
        expect(bar).to_have_count(0)


def test_a_view_that_fails_says_so_until_it_is_drawn(
    chromium: Browser, address: str, store: ServiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store)

    def broken(*_: object) -> None:
        raise TypeError("made to fail")

    with opened(chromium, address, "failed", complains_of=("500 (Internal", "Callback error", "Cannot read")) as page:
        page.goto("/study/made%20up")
        page.wait_for_selector(f"{FRONT} .main-svg")
        with monkeypatch.context() as failing:
            failing.setattr(Watch, "log", broken)
            page.get_by_role("radio", name="Log").check(force=True)
            bar = page.get_by_role("alert").filter(has_text="The view Log failed")
            expect(bar).to_have_count(1)
            assert page.get_by_role("alert").filter(has_text="does not answer").count() == 0
            # Others are drawn all the same, and do not hide it.
            page.get_by_role("radio", name="Prompts").check(force=True)
            page.wait_for_selector(".prompt")
            expect(bar).to_have_count(1)
        page.get_by_role("button", name=re.compile("^(Dark|Light)$")).click()
        page.get_by_role("radio", name="Log").check(force=True)
        expect(page.locator("#log")).to_contain_text("No log")
        expect(bar).to_have_count(0)


def test_a_page_that_is_lost_while_the_service_is_away_is_loaded_once_it_is_back(
    chromium: Browser, address: str, store: ServiceStore
) -> None:
    with opened(chromium, address, "lost", complains_of=UNANSWERED) as page:
        page.route(re.compile("/_dash-update|/api/"), lambda asked: asked.abort())
        page.goto("/")
        expect(page.get_by_role("alert")).to_contain_text("The service does not answer")
        page.unroute_all()
        expect(page.locator("#studies")).to_contain_text("No studies")
        expect(page.get_by_role("alert")).to_have_count(0)


def test_a_page_whose_session_has_ended_asks_to_sign_in(chromium: Browser, address: str, store: ServiceStore) -> None:
    filled(store)
    secret = store.tokens.add("bob", Role.READER)
    store.tokens.add("ada", Role.EDITOR)
    with opened(chromium, address, "signed-out", complains_of=("body stream already read",)) as page:
        page.goto("/login")
        page.locator("input[name=token]").fill(secret)
        page.keyboard.press("Enter")
        page.wait_for_selector(".studies")
        store.tokens.remove("bob")
        page.wait_for_url("**/login*")


def test_pages_are_named_and_fields_say_what_they_are_for_and_what_is_wrong(
    chromium: Browser, address: str, store: ServiceStore
) -> None:
    filled(store)
    with opened(chromium, address, "named") as page:
        page.goto("/new")
        expect(page).to_have_title("New study - ftp-search")
        trials = page.get_by_label("trials", exact=True)
        about = page.locator("#about-trials").inner_text()
        expect(trials).to_have_accessible_description(about)
        expect(trials).to_have_attribute("aria-invalid", "false")
        trials.fill("many")
        trials.blur()
        expect(trials).to_have_attribute("aria-invalid", "true")
        expect(trials).to_have_accessible_description(re.compile(re.escape(about) + " .*expected a whole number"))
        expect(page.get_by_role("group", name="cost")).to_have_accessible_description(re.compile("."))
        trials.fill("20")
        trials.blur()
        expect(trials).to_have_attribute("aria-invalid", "false")
        page.get_by_role("link", name="Studies", exact=True).click()
        expect(page).to_have_title("Studies - ftp-search")
        page.get_by_role("link", name="made up", exact=True).click()
        expect(page).to_have_title("made up - ftp-search")
        page.get_by_role("link", name="Compare").click()
        expect(page).to_have_title("Compare - ftp-search")


@pytest.mark.slow
def test_figures_keep_their_height_when_a_page_changes_its_width(
    chromium: Browser, address: str, store: ServiceStore
) -> None:
    filled(store)
    # Of the figures of one view, by name: for a moment, the page shows the view that is left.
    heights = """names => names
        .map((name) => document.querySelector(`#${name} .js-plotly-plot`))
        .filter((plot) => plot && plot.checkVisibility() && plot.data && plot.data.length)
        .map((plot) => [plot._fullLayout.height, plot.getBoundingClientRect().height])"""
    widths = "names => names.map((name) => document.querySelector(`#${name} .js-plotly-plot`)._fullLayout.width)"
    # It becomes narrower from there.
    with opened(chromium, address, "narrower", 1280) as page:
        page.goto("/study/made%20up")
        page.wait_for_selector(f"{FRONT} .main-svg")
        progress = ["growth-trials", "growth-seconds", "credit", "busy"]
        for view, names in (("Progress", progress), ("Front", ["front-figure"])):
            page.get_by_role("radio", name=view).check(force=True)
            page.wait_for_function(f"names => ({heights})(names).length === names.length", arg=names)
            page.wait_for_function(f"names => ({heights})(names).every(([own, place]) => own === place)", arg=names)
            before, wide = page.evaluate(heights, names), page.evaluate(widths, names)
            page.set_viewport_size({"width": 1000, "height": 900})
            page.wait_for_function(
                f"([names, wide]) => ({widths})(names).every((width, n) => width < wide[n])", arg=[names, wide]
            )
            page.wait_for_function(
                f"([names, before]) => JSON.stringify(({heights})(names)) === JSON.stringify(before)",
                arg=[names, before],
            )
            page.set_viewport_size({"width": 1280, "height": 900})


def fits(page: Page, width: int) -> None:
    """Fails if a page stays wider than its window; a figure is as wide as Plotly likes until its place is known."""
    page.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_every_view_is_readable(chromium: Browser, address: str, store: ServiceStore, width: int, scheme: str) -> None:
    filled(store)
    filled(store, SCRIPT)
    store.queue.submit("made up")
    store.events.add("made up", [("log", {"text": SCRIPT})])
    for view, sign in (
        *(("Front", FRONT), ("Schedules", "#parallel .main-svg"), ("Progress", "#busy .main-svg")),
        *(("Routers", "#routers h2"), ("Prompts", ".prompt"), ("Log", ".log")),
    ):
        with opened(chromium, address, f"view-{view}", width, scheme) as page:
            page.goto("/study/made%20up")
            # Tabs are radio buttons, which keys reach and move.
            page.get_by_role("radio", name=view).focus()
            page.keyboard.press("Space")
            page.wait_for_selector(sign)
            fits(page, width)
            tops = page.locator(".tabs label").evaluate_all(
                "tabs => tabs.map((one) => one.getBoundingClientRect().top)"
            )
            assert len(tops) == 6 and len(set(tops)) == 1
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    for name, path, sign in (
        *(("list", "/", ".studies"), ("new", "/new", "#create")),
        ("compare", "/compare", "#compare-figure .main-svg"),
    ):
        with opened(chromium, address, name, width, scheme) as page:
            page.goto(path)
            page.wait_for_selector(sign)
            fits(page, width)


def test_names_are_text_wherever_they_stand(chromium: Browser, address: str, store: ServiceStore) -> None:
    filled(store, SCRIPT)
    with opened(chromium, address, "script") as page:
        page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
        page.goto("/")
        page.get_by_role("link", name=SCRIPT, exact=True).click()
        expect(page.locator("h1")).to_have_text(SCRIPT)
        page.get_by_role("link", name="Compare").click()
        page.wait_for_selector("#compare-figure .main-svg")


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ODD_NAMES[:-1]), ODD_NAMES[-1]]
)
def test_buttons_act_on_studies_of_any_name(chromium: Browser, address: str, store: ServiceStore, name: str) -> None:
    filled(store, name)
    with opened(chromium, address, "odd-name") as page:

        def pressed(word: str, said: str, state: RunState) -> None:
            page.get_by_role("button", name=f"{word} {name}", exact=True).click()
            expect(page.get_by_role("status").filter(has_text=said)).to_have_count(1)
            assert Watch(store).standing(name).state is state

        page.goto("/")
        pressed("Resume", "goes on as soon as", RunState.QUEUED)
        pressed("Stop", "stops as soon as", RunState.FINISHED)
        page.get_by_role("link", name=name, exact=True).click()
        expect(page.locator("h1")).to_have_text(name)
        pressed("Resume", "goes on as soon as", RunState.QUEUED)
        pressed("Stop", "stops as soon as", RunState.FINISHED)
        expect(page.get_by_role("button", name="Delete")).to_have_count(1)
        assert f"Delete the study {name} " in answered(page, f"Delete {name}", yes=True)
        expect(page.locator("#studies")).to_contain_text("No studies")
        assert store.studies.summaries() == []


def test_a_reader_signs_in_and_out(chromium: Browser, address: str, store: ServiceStore) -> None:
    filled(store)
    secret = store.tokens.add("bob", Role.READER)
    with opened(chromium, address, "signed-in") as page:
        page.goto("/study/made%20up")
        page.locator("input[name=token]").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("no such token")
        expect(page.locator("main")).to_contain_text("ftp-search token add NAME")
        assert page.locator("main").evaluate("one => getComputedStyle(one).maxWidth") == "460px"
        page.locator("input[name=token]").fill(secret)
        page.keyboard.press("Enter")
        expect(page.locator("h1")).to_have_text("made up")
        page.get_by_role("link", name="Studies", exact=True).click()
        page.wait_for_selector(".studies")
        assert page.get_by_role("button", name="Delete").count() == 0
        expect(page.locator("#who")).to_have_text("bob, reader")
        # What readers may not do, they are not led to.
        assert page.get_by_role("link", name="New study").count() == 0
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url("**/login")
