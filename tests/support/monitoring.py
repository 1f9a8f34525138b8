"""A real Prometheus and a real Alertmanager that watch one server by deploy/prometheus.yml and deploy/alerts.yml.

Minutes of the alerts pass in fractions of a second here; their true durations are tested by ``promtool``.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from server.ports import port_to_bind
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
HOST = "127.0.0.1"
PROGRAMS = ("prometheus", "prometheus-alertmanager", "promtool")
"""By their names in Debian's packages prometheus and prometheus-alertmanager."""
SPEED = 120
"""How many times faster than in production an alert's time goes by."""
INTERVAL = "100ms"
_DURATION = re.compile(r"(?<=\[)(\d+)m(?=\])|^(\d+)m$")


def missing() -> str:
    """Why there is no monitoring on this machine; empty where there is."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"not installed: {', '.join(absent)} (Debian: prometheus, prometheus-alertmanager)" if absent else ""


def faster(duration: str) -> str:
    """Minutes of a rule, in brackets or alone, as so many fewer milliseconds."""
    return _DURATION.sub(lambda found: f"{int(found[1] or found[2]) * 60_000 // SPEED}ms", duration)


class Monitoring:
    """Prometheus and Alertmanager, by their own HTTP interfaces."""

    def __init__(self, prometheus: int, alertmanager: int) -> None:
        self.prometheus, self.alertmanager = f"http://{HOST}:{prometheus}", f"http://{HOST}:{alertmanager}"

    def alerts(self) -> set[str]:
        """Names of those that Alertmanager would notify of now."""
        return {alert["labels"]["alertname"] for alert in _answer(f"{self.alertmanager}/api/v2/alerts?active=true")}

    def values(self, expression: str) -> list[float]:
        """What Prometheus finds now, NaN included."""
        query = urllib.parse.urlencode({"query": expression})
        found = _answer(f"{self.prometheus}/api/v1/query?{query}")["data"]["result"]
        return [float(series["value"][1]) for series in found]

    def is_up(self) -> bool:
        """Whether the target has been scraped."""
        return self.values("up") == [1.0]


@contextlib.contextmanager
def monitoring(folder: Path, metrics: str) -> Iterator[Monitoring]:
    """Both, until the end of the block.

    Args:
        metrics: host:port of the server's metrics page.
    """
    prometheus, alertmanager = (port_to_bind(HOST, 0, "") for _ in range(2))
    found = Monitoring(prometheus, alertmanager)
    rules = yaml.safe_load((DEPLOY / "alerts.yml").read_text(encoding="utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule |= {key: faster(rule[key]) for key in ("expr", "for") if key in rule}
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = dict.fromkeys(config["global"], INTERVAL) | {"scrape_timeout": INTERVAL}
    config["rule_files"] = ["alerts.yml"]
    config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [f"{HOST}:{alertmanager}"]}]}]}
    for scraped in config["scrape_configs"]:
        scraped["static_configs"] = [{"targets": [metrics]}]
    receiver = {"route": {"receiver": "nobody"}, "receivers": [{"name": "nobody"}]}
    for name, content in (("alerts", rules), ("prometheus", config), ("alertmanager", receiver)):
        (folder / f"{name}.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    commands = [
        ["prometheus-alertmanager", "--config.file=alertmanager.yml", f"--web.listen-address={HOST}:{alertmanager}",
         "--cluster.listen-address=", "--storage.path=notified"],
        ["prometheus", "--config.file=prometheus.yml", f"--web.listen-address={HOST}:{prometheus}",
         "--storage.tsdb.path=series", "--rules.alert.resend-delay=0s", "--rules.alert.for-grace-period=0s"],
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        for command in commands:
            log = stack.enter_context((folder / f"{command[0]}.log").open("wb"))
            running = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
            stack.callback(_end, running)
        wait_until(lambda: _is_there(found.alertmanager) and _is_there(found.prometheus) and found.is_up())
        yield found


def _end(running: subprocess.Popen[bytes]) -> None:
    running.terminate()
    running.wait(10)


def _is_there(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready") as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _answer(url: str) -> Any:
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)
