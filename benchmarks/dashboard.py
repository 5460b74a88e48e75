"""How fast the dashboard is with a hundred thousand trials: the first paint, and what a click, a zoom and a view take.

    python benchmarks/dashboard.py --trials 100000

Fills a database with made-up trials, serves it, and looks at it in the system's Chromium. Times are wall-clock, from
navigation, or from what a user does to when the page shows it; `cold` is a service that has read no trial yet.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import uvicorn
from playwright.sync_api import Page, sync_playwright

from search.service.dashboard import dashboard
from search.service.http.app import create_app
from search.service.rules.settings import ServiceSettings
from studies import StudyState, Trial, TrialState
from studies.service.service_store import ServiceStore

PROPOSERS = ("deap", "tpe", "evopress", "cmaes")
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
SWITCHES = ["--no-sandbox", "--headless=new", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
FRONT = "#front-figure .js-plotly-plot"
# The figure of each view that is drawn last.
VIEWS = {"Schedules": "#heatmap .js-plotly-plot", "Progress": "#busy .js-plotly-plot", "Front": FRONT}


def trials(n: int, n_blocks: int = 12) -> list[Trial]:
    """Made-up trials that get better as the search goes on."""
    chance = np.random.default_rng(0)
    level = chance.uniform(0.02, 0.8, n)[:, None]
    schedules = np.round(np.minimum(0.95, chance.uniform(0.3, 1.7, (n, n_blocks)) * level) * 20) / 20
    sparsity = schedules.mean(1)
    kl = 3 * sparsity**2.6 * chance.uniform(1, 3, n) * (1 - 0.3 * np.arange(n) / n)
    cost = 40 * (1 - 0.85 * sparsity) + chance.uniform(0, 1, n)
    return [
        Trial(
            number=number,
            schedule=tuple(schedules[number].tolist()),
            values=(float(kl[number]), float(cost[number])),
            state=TrialState.FINISHED,
            fidelity=1.0,
            proposer=PROPOSERS[number % len(PROPOSERS)],
            seconds=0.4,
            finished_at=BEGAN + timedelta(seconds=0.1 * number),
            metrics={
                "accuracy": max(0.3, 0.98 - 0.2 * float(kl[number])),
                "flops": 4e9 * (1 - float(sparsity[number])),
            },
        )
        for number in range(n)
    ]


def fill(url: str, n: int) -> None:
    """A database with one study."""
    with ServiceStore(url) as store:
        store.studies.create(
            "large", {"model": "demo", "data": "demo", "trials": n, "workers": 4}, ("kl", "latency_ms")
        )
        made = trials(n)
        for start in range(0, n, 5000):
            part = made[start : start + 5000]
            store.trials.begin("large", part)
            store.trials.finish("large", part)
        store.runs.set_state("large", StudyState.FINISHED)


def timed(page: Page, act: Callable[[], object], shown: str, argument: object = None) -> float:
    """Milliseconds from an action until the page says that it shows what comes of it."""
    began = time.perf_counter()
    act()
    page.wait_for_function(shown, arg=argument, polling="raf")
    return 1000 * (time.perf_counter() - began)


def looked_at(page: Page, address: str, repeats: int) -> dict[str, float]:
    """Times of one visit, milliseconds."""
    # Not the empty axes that are there before.
    drawn = "s => (document.querySelector(s)?.data || []).some((trace) => trace.name === 'front')"
    found = {
        "page": timed(page, lambda: page.goto(f"{address}/study/large"), "() => Boolean(document.querySelector('h1'))")
    }
    began = time.perf_counter()
    page.wait_for_function(drawn, arg=FRONT, polling="raf")
    found["first paint of the front"] = found["page"] + 1000 * (time.perf_counter() - began)
    page.wait_for_timeout(2000)
    selected: list[float] = []
    for _ in range(repeats):
        before = page.locator("#trial-panel").inner_text()
        shown = "before => document.querySelector('#trial-panel').innerText !== before"
        selected.append(timed(page, page.locator("#trial-after").click, shown, before))
        page.wait_for_timeout(500)
    found["select a trial"] = statistics.median(selected)
    box = page.locator(f"{FRONT} .nsewdrag").bounding_box()
    assert box is not None
    title = f"document.querySelector('{FRONT}')._fullLayout.title.subtitle.text"
    before = page.evaluate(title)
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.2 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.6 * box["height"], steps=4)
    found["zoom, with points chosen anew"] = timed(page, page.mouse.up, f"before => {title} !== before", before)
    for view, sign in VIEWS.items():
        found[f"view {view}"] = timed(
            page,
            page.locator(f"#view label:has-text('{view}')").click,
            "s => ((plot) => plot?.checkVisibility() && plot.data?.length > 0)(document.querySelector(s))",
            sign,
        )
        page.wait_for_timeout(1500)
    return found


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--database", help="Where a study named large is already; otherwise one is made up.")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    url = given.database or f"sqlite:///{folder / 'studies.db'}"
    if given.database is None:
        fill(url, given.trials)
    store, settings = ServiceStore(url), ServiceSettings(out=folder)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(store, settings, dashboard(settings)), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    times = {}
    try:
        with sync_playwright() as playwright:
            program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=program, args=SWITCHES)
            for visit in ("cold", "warm"):
                page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
                page.set_default_timeout(120_000)
                times[visit] = {name: round(value) for name, value in looked_at(page, address, given.repeats).items()}
                page.close()
            browser.close()
    finally:
        server.should_exit = True
        thread.join()
        shutil.rmtree(folder)
    print(json.dumps({"trials": given.trials, "ms": times}, indent=2))


if __name__ == "__main__":
    main()
