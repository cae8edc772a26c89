"""What stands around the server: dashboard, alerts, allowlist, vLLM's command line."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml
from conftest import ROOT, script
from fake_model import FakeModel, running
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from medalign.admission import Limits
from medalign.api import create_app
from medalign.gateway import Served
from medalign.serving_metrics import Metrics
from medalign.worker import free_port

DEPLOY = ROOT / "deploy"
NAME = re.compile(r"\bmedalign_\w+")


def scraped() -> set[str]:
    """Every sample name of a real scrape in which everything has happened once."""
    metrics = Metrics()
    metrics.requests.labels("/x", 200).inc()
    metrics.latency.labels("/x").observe(1)
    text = generate_latest(metrics.registry).decode()
    return {s.name for family in text_string_to_metric_families(text) for s in family.samples}


def expressions() -> dict[str, str]:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    found = {
        f"panel {panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }
    rules = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
    return found | {
        f"alert {rule['alert']}": rule["expr"]
        for group in rules["groups"]
        for rule in group["rules"]
    }


def test_every_metric_of_dashboard_and_alerts_is_scraped():
    known = scraped()
    named = {name: set(NAME.findall(text)) for name, text in expressions().items()}
    assert all(named.values())
    assert not {n: m - known for n, m in named.items() if m - known}
    own = {name.rsplit("_bucket", 1)[0] for names in named.values() for name in names}
    shown = {re.sub(r"_(count|sum|bucket|created)$", "", name) for name in known}
    assert {name for name in shown if name.removesuffix("_total") not in own | {
        name.removesuffix("_total") for name in own
    }} == set()  # fmt: skip


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed")
def test_promtool_takes_the_rules():
    done = subprocess.run(
        ["promtool", "check", "rules", DEPLOY / "alerts.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed")
def test_prometheus_answers_every_panel_and_rule(tmp_path):
    """A real Prometheus scrapes a real server; each expression gives data, none an error."""
    model = FakeModel()
    model.answers["sections"] = "**Definition**: broken"
    with running(model.app) as model.url:
        app = create_app(model, Served("medalign", key="k"), Limits(slots=1, queue=0))
        with running(app) as url, httpx.Client(
            base_url=url, headers={"Authorization": "Bearer k"}, timeout=20
        ) as client, prometheus(tmp_path, url) as server:  # fmt: skip
            missing = dict(expressions())
            for _ in range(300):
                traffic(client)
                for name, expression in list(missing.items()):
                    query = expression.replace("$__rate_interval", "20s")
                    query = re.sub(r"\[(5m|15m|1h|1d)\]", "[20s]", query)
                    query = re.sub(r" [><=]=? ?[0-9.]+( or .*)?$", "", query.strip())
                    reply = httpx.get(server + "/api/v1/query", params={"query": query}).json()
                    assert reply["status"] == "success", (name, reply)
                    values = [float(row["value"][1]) for row in reply["data"]["result"]]
                    if values and not any(map(math.isnan, values)):
                        del missing[name]
                if not missing:
                    break
            assert not missing


def traffic(client: httpx.Client) -> None:
    """One of each kind of answer, a full queue's refusal, an error."""
    for text in ("refuse", "sections", "other", "fail"):
        body = {"model": "medalign", "messages": [{"role": "user", "content": text}]}
        client.post("/v1/chat/completions", json=body)
    client.post("/v1/completions", json={})


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """Debian's Prometheus, scraping `target` every second under deploy/'s configuration."""
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "1s"
    job = config["scrape_configs"][0]
    (folder / "key").write_text("k")
    job["authorization"]["credentials_file"] = str(folder / "key")
    job["static_configs"] = [{"targets": [target.removeprefix("http://")]}]
    shutil.copy(DEPLOY / "alerts.yml", folder)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml"]
    command += [f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}"]
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
    transport = httpx.HTTPTransport(retries=10)  # with growing pauses, while it starts
    with httpx.Client(transport=transport) as client:
        assert client.get(f"http://{address}/-/healthy").status_code == 200
    try:
        yield f"http://{address}"
    finally:
        child.terminate()
        child.wait(30)


def test_allowlist_is_of_routes_that_exist_and_hides_the_others():
    text = (DEPLOY / "nginx.conf").read_text()
    allowed = re.compile(re.search(r"location ~ (\S+) \{", text)[1])
    routes = {route.path for route in create_app(FakeModel(), Served("m")).routes}
    outside = {route for route in routes if allowed.search(route)}
    assert outside == {
        *("/v1/chat/completions", "/v1/completions", "/v1/models", "/models", "/health")
    }
    assert "location / { return 404; }" in text


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs/mistral-7b/dpo-a100"
    (folder / "merged").mkdir(parents=True)
    (folder / "merged/config.json").write_text("{}")
    return folder


def test_vllm_serves_the_merged_model_under_its_own_template(run):
    done = script("vllm_command.py", "--run", run)
    vllm, gateway = done.stdout.splitlines()
    assert f"vllm serve {run}/merged --served-model-name medalign-7b" in vllm
    assert "--chat-template recipes/templates/mistral-v3.jinja" in vllm
    assert "--host 127.0.0.1" in vllm and "--trust-remote-code" not in vllm
    assert "serve.py --upstream http://127.0.0.1:8001 --name medalign-7b" in gateway
    shutil.rmtree(run / "merged")
    assert "make merge" in script("vllm_command.py", "--run", run).stderr
    assert "does not exist" in script("vllm_command.py", "--run", run.with_name("other")).stderr
