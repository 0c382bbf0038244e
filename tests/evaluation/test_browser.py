"""The report in a real browser, on a desktop's and on a phone's width: no console error, every chart drawn, model text inert."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from star.evaluation.report import write_report

websocket = pytest.importorskip("websocket")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]
HOSTILE = "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\"><svg onload=alert(1)>"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-allow-origins=*",
)
# Every chart's drawn marks, what sticks out of the page sideways, and what a script would have changed.
PROBE = """(() => {
  const charts = [...document.querySelectorAll('svg')].map(svg => {
    const marks = [...svg.querySelectorAll('.bar,.dot,.line')].map(mark => mark.getBoundingClientRect());
    const box = svg.getBoundingClientRect();
    return {name: svg.getAttribute('aria-label'), width: box.width, height: box.height,
            drawn: marks.length > 0 && marks.every(mark => mark.width > 0 || mark.height > 0)};
  });
  return JSON.stringify({charts, title: document.title, width: innerWidth, wide: document.documentElement.scrollWidth,
                         scripts: document.scripts.length, images: document.images.length});
})()"""


class Tab:
    """One page of a headless browser, over its debugging protocol."""

    def __init__(self, address: str) -> None:
        self.socket = websocket.create_connection(address, timeout=60)
        self.number, self.events = 0, []

    def call(self, method: str, **parameters: object) -> dict:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def errors(self) -> list[dict]:
        bad = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled", "Page.javascriptDialogOpening")
        return [event for event in self.events if event["method"] in bad]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    profile = tmp_path_factory.mktemp("profile")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", f"--remote-debugging-port={port}", "about:blank"]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield Tab(_address(port, browser))
    finally:
        browser.terminate()
        browser.wait(20)


def _address(port: int, browser: subprocess.Popen) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and browser.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as reply:
                return next(page for page in json.load(reply) if page["type"] == "page")["webSocketDebuggerUrl"]
        except (OSError, StopIteration):
            time.sleep(0.2)
    raise RuntimeError("the browser did not start")


def score(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.04, "high": mean + 0.04}


def model(name: str, accuracy: float) -> dict:
    categories = {"simple_python": {**score(accuracy), "rows": 400}, "multi_turn_base": {**score(0.05), "rows": 200}}
    names = ("exact_match", "mean_reward", "pass_at_1", "pass_at_4", "pass_at_8", "bfcl_overall_v3", "entropy")
    return {
        "name": name,
        "parameters": 600_000_000,
        "memory": 1_200_000_000,
        "tokens_per_second": 900.0,
        "scores": {key: score(accuracy) for key in names} | {"format_errors": score(0.05)},
        "by_kind": {HOSTILE: {"rows": 50, "exact_match": accuracy, "mean_reward": accuracy}},
        "mistakes": {"wrong text": {HOSTILE: 3}},
        "call_confusion": {"call_call": 40, "call_none": 3, "none_none": 20, "none_call": 2},
        "bfcl": {
            "categories": categories,
            "floor": {"overall_v3": 0.198},
            "package": "bfcl-eval 2026.3.23",
            "data": "BFCL_v4",
            "data_sha256": "0" * 64,
            "unanswered": 3,
        },
    }


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    failure = {"id": HOSTILE, "kind": HOSTILE, "query": HOSTILE, "expected": HOSTILE, "predicted": HOSTILE * 9}
    evaluation = {
        "title": HOSTILE,
        "suite": {"heldout": {"rows": 65}},
        "models": [model(name, accuracy) for name, accuracy in (("teacher", 0.8), ("distilled", 0.6), (HOSTILE, 0.7))],
        "comparisons": [
            {
                "a": HOSTILE,
                "b": "teacher",
                "metric": "exact_match",
                "difference": -0.1,
                "low": -0.2,
                "high": 0.0,
                "p_value": 0.1,
            }
        ],
        "curves": {HOSTILE: [{"step": step, "loss": 2 / (step + 1)} for step in range(50)]},
        "failures": [{**failure, "reward": -1.0, "model": HOSTILE, "mistake": "bad format"}],
        "lineage": {HOSTILE: "0" * 64},
    }
    file = tmp_path_factory.mktemp("report") / "report.html"
    write_report(file, evaluation)
    return file


@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_in_a_browser(tab: Tab, report: Path, width: int) -> None:
    tab.events.clear()
    for domain in ("Page", "Runtime", "Log"):
        tab.call(f"{domain}.enable")
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    tab.call("Page.navigate", url=report.as_uri())
    deadline = time.monotonic() + 30
    while (
        tab.call("Runtime.evaluate", expression="document.readyState + location.protocol")["result"]["value"]
        != "completefile:"
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    seen = json.loads(tab.call("Runtime.evaluate", expression=PROBE)["result"]["value"])
    assert tab.errors() == []
    assert seen["width"] == width and seen["wide"] <= width
    assert len(seen["charts"]) >= 8
    for chart in seen["charts"]:
        assert chart["drawn"] and chart["width"] > 100 and chart["height"] > 20, chart
    assert (seen["scripts"], seen["images"]) == (0, 0)
    assert seen["title"].startswith("<script>")
