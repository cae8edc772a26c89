"""Vertex AI: the plan is what is sent, its calls fit the SDK, and failures say what is left.

The SDK's own REST client talks to a fake of the service on 127.0.0.1.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from medalign import deploy_vertex
from medalign.artifacts import ROOT, StepError
from medalign.settings import declared
from medalign.vertex_calls import Call, Deployed, Name, State
from medalign.vertex_cloud import refused
from medalign.vertex_plan import deployment, start
from medalign.vertex_settings import SETTINGS, Place, Settings, facts
from medalign.vertex_traffic import canary, rollback, shared, undeployment

PROJECT = "my-project-123"
PARENT = f"projects/{PROJECT}/locations/us-central1"
PLACE = Place(PROJECT, "us-central1")
SHA = "0123456789abcdef" * 4
TYPE = "type.googleapis.com/google.cloud.aiplatform.v1."
QUOTA = "The following quotas are exceeded: CustomModelServingL4GPUsPerProjectPerRegion"


class Fake(ThreadingHTTPServer):
    """Vertex AI in memory: models with versions, endpoints, operations that are pending once."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, dict]] = []
        self.refusals: list[tuple[str, int, str]] = []  # request's form, status, message
        self.failures: dict[str, dict] = {}  # verb → error of its operation
        self.versions: dict[str, list[dict]] = {}
        self.endpoints: dict[str, dict] = {}
        self.operations: dict[str, dict] = {}
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def changes(self) -> list[str]:
        """The requests that change something."""
        return [f"{method} {path}" for method, path, _ in self.asked if method != "GET"]

    def body(self, wanted: str) -> dict:
        """The body of the last request whose path ends so."""
        return [body for _, path, body in self.asked if path.endswith(wanted)][-1]

    def operation(self, verb: str, response: dict) -> dict:
        name = f"{PARENT}/operations/{len(self.operations) + 1}"
        error = self.failures.pop(verb, None)
        outcome = {"error": error} if error else {"response": response}
        self.operations[name] = {"name": name, "done": True, **outcome}
        return {"name": name, "done": False}

    def upload(self, body: dict) -> dict:
        model = body["model"]
        parent = body.get("parentModel") or f"{PARENT}/models/{body['modelId']}"
        there = self.versions.setdefault(parent, [])
        version = str(len(there) + 1)
        there.append(
            model
            | {"name": parent, "versionId": version}
            | {"supportedDeploymentResourcesTypes": ["DEDICATED_RESOURCES"]}
        )
        response = {"@type": TYPE + "UploadModelResponse", "model": parent}
        return self.operation("upload", response | {"modelVersionId": version})

    def deploy(self, endpoint: dict, body: dict) -> dict:
        number = str(100 + len(endpoint["deployedModels"]))
        model, _, version = body["deployedModel"]["model"].partition("@")
        there = {"id": number, "model": model, "modelVersionId": version}
        there["createTime"] = f"2026-01-01T00:00:{number[1:]}Z"
        answer = self.operation("deploy", {"@type": TYPE + "DeployModelResponse"})
        if "error" not in self.operations[answer["name"]]:
            endpoint["deployedModels"].append(there)
            split = body["trafficSplit"]
            endpoint["trafficSplit"] = {(number if k == "0" else k): v for k, v in split.items()}
        return answer

    def answer(self, method: str, path: str, body: dict) -> dict | None:
        if path in self.operations:
            return self.operations[path]
        if path == f"{PARENT}/models:upload":
            return self.upload(body)
        if path == f"{PARENT}/models":
            return {"models": [v[-1] for v in self.versions.values()]}
        if path.endswith(":listVersions"):
            return {"models": self.versions[path.removesuffix(":listVersions")]}
        if "/models/" in path:
            name, _, version = path.partition("@")
            return self.versions[name][int(version or 1) - 1]
        if path == f"{PARENT}/endpoints" and method == "GET":
            return {"endpoints": list(self.endpoints.values())}
        if path == f"{PARENT}/endpoints":
            name = f"{PARENT}/endpoints/{7000 + len(self.endpoints)}"
            made = body | {"name": name, "deployedModels": [], "trafficSplit": {}}
            made["createTime"] = "2026-01-01T00:00:00Z"
            self.endpoints[name] = made
            return self.operation("create", {"@type": TYPE + "Endpoint", "name": name})
        name, _, verb = path.partition(":")
        if (endpoint := self.endpoints.get(name)) is None:
            return None
        if verb == "deployModel":
            return self.deploy(endpoint, body)
        if verb == "undeployModel":
            left = [d for d in endpoint["deployedModels"] if d["id"] != body["deployedModelId"]]
            endpoint |= {"deployedModels": left, "trafficSplit": body.get("trafficSplit", {})}
            return self.operation("undeploy", {"@type": TYPE + "UndeployModelResponse"})
        if method == "PATCH":
            endpoint["trafficSplit"] = body["trafficSplit"]
        if method == "DELETE":
            del self.endpoints[name]
            return self.operation("delete", {"@type": "type.googleapis.com/google.protobuf.Empty"})
        return endpoint


class Handler(BaseHTTPRequestHandler):
    server: Fake

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        # Over REST the SDK asks for operations below /ui/, for all else below /v1/.
        path = re.sub("^/(v1|ui)/", "", unquote(urlsplit(self.path).path))
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
        first = not any(asked == path for _, asked, _ in self.server.asked)
        self.server.asked.append((self.command, path, body))
        for refusal in self.server.refusals:
            wanted, status, message = refusal
            if re.search(wanted, f"{self.command} {path}"):
                self.server.refusals.remove(refusal)
                return self.reply(status, {"error": {"code": status, "message": message}})
        if "/operations/" in path and first:
            return self.reply(200, {"name": path, "done": False})
        content = self.server.answer(self.command, path, body)
        if content is None:
            return self.reply(404, {"error": {"code": 404, "message": f"{path} not found"}})
        self.reply(200, content)

    do_POST = do_PATCH = do_DELETE = do_GET


@pytest.fixture
def vertex(monkeypatch):
    """The fake, with credentials that need none and no waiting between attempts."""
    import google.auth
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.aiplatform import initializer

    monkeypatch.setattr(google.auth, "default", lambda *_, **__: (AnonymousCredentials(), PROJECT))
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(initializer.global_config, "_credentials", None)
    fake = Fake()
    threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield fake
    fake.shutdown()
    fake.server_close()


@pytest.fixture
def settings():
    return declared(SETTINGS, Settings)


@pytest.fixture
def small(tmp_path):
    return run_of(tmp_path, "medalign-135m", "recipes/smollm2-135m/dpo-lora-cpu.yaml")


@pytest.fixture
def large(tmp_path):
    return run_of(tmp_path, "medalign-7b", "recipes/mistral-7b/dpo-a100.yaml")


def run_of(where, name, recipe, adapter="a" * 64):
    """A run's folder as training and merging leave it, without weights."""
    run = where / recipe.split("/")[-1].removesuffix(".yaml")
    inputs = {
        "recipe": {"path": recipe, "sha256": SHA},
        "datasets[0].path": {"path": "build/pairs/train.jsonl", "sha256": "d" * 64},
        "datasets[1].path": {"path": "build/pairs/silver.jsonl", "sha256": "e" * 64},
    }
    contents = {
        "adapter/manifest.json": {"name": name, "inputs": inputs},
        "merged/manifest.json": {"name": name, "inputs": {"adapter": {"sha256": adapter}}},
        "merged/config.json": {},
        f"{name}-Q4_K_M.gguf": {},
    }
    for file, content in contents.items():
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).write_text(json.dumps(content))
    return run


def vertex_command(monkeypatch, capsys, step, *words):
    """What a command prints."""
    command = ["deploy_vertex.py", step, *map(str, words), "--project", PROJECT]
    monkeypatch.setattr(sys, "argv", command)
    deploy_vertex.main()
    return capsys.readouterr().out


@pytest.fixture
def command(monkeypatch, capsys, vertex):
    """Run a command against the fake."""

    def run(step, *words):
        return vertex_command(monkeypatch, capsys, step, *words, "--api-endpoint", vertex.address)

    return run


def calls_in(printed: str) -> list[tuple[str, dict]]:
    """The calls of a printed plan, read as Python."""
    text = re.split(r"^(?:first|note|cost|dry run|\[1/)", printed, maxsplit=1, flags=re.M)[0]
    found = []
    for statement in ast.parse(text).body:
        call = statement.value
        arguments = {
            k.arg: k.value.id if isinstance(k.value, ast.Name) else ast.literal_eval(k.value)
            for k in call.keywords
        }
        found.append((ast.unparse(call.func), arguments))
    return found


THREE = State(
    model=f"{PARENT}/models/medalign-7b",
    versions={"default": "1"},
    endpoint=f"{PARENT}/endpoints/7000",
    deployed=(
        Deployed("11", "medalign-7b", "1", 1.0, 0),
        Deployed("12", "medalign-7b", "2", 2.0, 90),
        Deployed("13", "medalign-7b", "3", 3.0, 10),
    ),
)


# The plan


def every_call(settings, small, large):
    """A call of each kind, in each of its forms."""
    known = facts(small, PLACE, 12)
    yield start(settings, PLACE)
    yield start(settings, PLACE, "https://elsewhere.example")
    yield from deployment(settings, settings.models["medalign-135m"], known, State())
    served, known = settings.models["medalign-7b"], facts(large, PLACE, 12)
    for machine in served.machines:
        yield from deployment(settings, served, known, State(), machine=machine)
        yield from deployment(settings, served, known, THREE, machine=machine)
    there = deployment(settings, served, known, State())[0].arguments["version_aliases"][0]
    yield from deployment(settings, served, known, State(THREE.model, {there: "9"}))
    yield from canary(THREE, "medalign-7b", 50)
    yield from rollback(THREE, "medalign-7b")
    yield from undeployment(THREE, "medalign-7b", delete=True)


def test_every_call_binds_to_the_sdks_signature(settings, small, large):
    from google.cloud import aiplatform

    seen = set()
    for call in every_call(settings, small, large):
        seen.add(call.function)
        root, *path = call.function.split(".")
        there = {"aiplatform": aiplatform, "endpoint": aiplatform.Endpoint}[root]
        for name in path:
            there = getattr(there, name)
        unbound = [object()] if root == "endpoint" else []
        inspect.signature(there).bind(*unbound, **call.arguments)
    assert seen == {
        "aiplatform.init",
        "aiplatform.Model",
        "aiplatform.Model.upload",
        "aiplatform.Endpoint",
        "aiplatform.Endpoint.create",
        "endpoint.deploy",
        "endpoint.update",
        "endpoint.undeploy",
        "endpoint.delete",
    }


def test_declared_accelerators_and_region_are_the_sdks(settings):
    from google.cloud.aiplatform import utils

    utils.validate_region(settings.region)
    for served in settings.models.values():
        for machine in served.machines.values():
            assert machine.machine_type in settings.prices.per_hour
            if machine.accelerator_type:
                utils.validate_accelerator_type(machine.accelerator_type)


def test_an_offline_plan_is_complete_and_needs_no_sdk(monkeypatch, capsys, large):
    monkeypatch.setitem(sys.modules, "google.cloud", None)
    printed = vertex_command(monkeypatch, capsys, "plan", "--run", large, "--offline")
    (_, begin), (_, upload), (_, create), (_, deploy) = calls_in(printed)
    assert (begin["project"], begin["location"]) == (PROJECT, "us-central1")
    uri = f"gs://{PROJECT}-medalign/medalign-7b/{'a' * 12}"
    assert upload["artifact_uri"] == uri
    assert f"merged/*' {uri}/" in printed
    assert upload["model_id"] == "medalign-7b" and "parent_model" not in upload
    assert "--max-model-len=8192" in upload["serving_container_args"]
    assert upload["serving_container_predict_route"] == "/v1/chat/completions"
    assert upload["labels"] == {
        "app": "medalign",
        "family": "mistral-7b",
        "run": "dpo-a100",
        "recipe": "dpo-a100",
        "recipe-hash": SHA[:12],
        "data-hash": f"{'d' * 12}_{'e' * 12}",
        "adapter-hash": "a" * 12,
    }
    assert create["dedicated_endpoint_enabled"] is True
    assert deploy["model"] == "model"
    assert deploy["accelerator_type"] == "NVIDIA_L4" and deploy["traffic_percentage"] == 100
    assert (deploy["min_replica_count"], deploy["max_replica_count"]) == (1, 3)
    assert "dry run" in printed


def test_the_plan_is_the_default_step(monkeypatch, capsys, small):
    words = ["deploy_vertex.py", "--offline", "--run", str(small), "--project", PROJECT]
    monkeypatch.setattr(sys, "argv", words)
    deploy_vertex.main()
    printed = capsys.readouterr().out
    assert len(calls_in(printed)) == 4
    assert "--build-arg GGUF=" in printed and "docker push us-central1-docker.pkg.dev" in printed
    assert "artifact_uri" not in calls_in(printed)[1][1]  # its GGUF is in the image


def test_the_cost_is_replicas_times_price_times_hours_with_its_source(
    monkeypatch, capsys, large, tmp_path
):
    text = SETTINGS.read_text()
    priced = yaml.safe_load(text)
    priced["prices"] |= {"noted": "1999-12", "per_hour": {"g2-standard-12": 2.5}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(priced))
    words = ["--run", large, "--offline", "--settings", tmp_path / "own.yaml", "--hours", "10"]
    printed = vertex_command(monkeypatch, capsys, "plan", *words)
    assert "1 to 3 replicas x 2.50 USD an hour x 10 h = 25 to 75 USD" in printed
    assert "noted 1999-12" in printed and "check the price list, https://" in printed
    printed = vertex_command(monkeypatch, capsys, "plan", *words, "--region", "europe-west4")
    assert "2.50 USD an hour (of us-central1)" in printed
    printed = vertex_command(monkeypatch, capsys, "plan", *words, "--machine", "a100")
    assert "no price of a2-highgpu-1g is declared" in printed


def test_a_plan_without_credentials_says_that_it_was_not_looked_up(monkeypatch, capsys, small):
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud.aiplatform import initializer

    def none(*_, **__):
        raise DefaultCredentialsError("none here")

    monkeypatch.setattr(google.auth, "default", none)
    monkeypatch.setattr(initializer.global_config, "_credentials", None)
    printed = vertex_command(monkeypatch, capsys, "plan", "--run", small)
    assert "not looked up (no Google credentials; gcloud auth application-default login" in printed
    assert len(calls_in(printed)) == 4
    with pytest.raises(StepError, match="gcloud auth application-default login"):
        vertex_command(monkeypatch, capsys, "apply", "--run", small, "--yes")


def test_without_the_sdk_the_extra_is_named(monkeypatch, capsys, small):
    monkeypatch.setitem(sys.modules, "google.cloud", None)
    with pytest.raises(StepError, match=r"pip install medalign\[vertex\]"):
        vertex_command(monkeypatch, capsys, "rollback", "--name", "medalign-7b")
    assert "pip install" in vertex_command(monkeypatch, capsys, "plan", "--run", small)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--project", "My_Project"], "project id 'My_Project'"),
        (["--project", "short"], "project id 'short'"),
        (["--region", "global"], "region 'global'"),
        (["--region", "us central1"], "region 'us central1'"),
        (["--artifact-uri", "s3://bucket/model"], "artifact URI 's3://bucket/model'"),
        (["--artifact-uri", "gs://Bucket/model"], "artifact URI 'gs://Bucket/model'"),
        (["--artifact-uri", "runs/merged"], "artifact URI 'runs/merged'"),
        (["--machine", "tpu"], "no machine 'tpu'; there are: l4, a100"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(monkeypatch, capsys, large, words, message):
    command = ["x", "plan", "--offline", "--run", str(large), "--project", PROJECT, *words]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(StepError, match=re.escape(message)):
        deploy_vertex.main()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["labels"].update(run="Upper Case"), "label run = 'Upper Case'"),
        (lambda s: s["labels"].update(run="x" * 64), "label run = 'xxx"),
        (lambda s: s["labels"].update(Run="x"), "label 'Run'"),
        (lambda s: s["labels"].update(run="{nothing}"), "nothing"),
        (lambda s: s["models"]["medalign-7b"]["container"]["env"].update(HF_TOKEN="x"), "HF_TOKEN"),
        (
            lambda s: s["models"]["medalign-7b"]["machines"]["l4"].update(max_replica_count=0),
            "max_",
        ),
        (
            lambda s: s["models"]["medalign-7b"]["machines"]["l4"].pop("accelerator_type"),
            "together",
        ),
        (lambda s: s["models"]["medalign-7b"]["machines"]["l4"].update(replicas=2), "replicas"),
        (lambda s: s.update(canary_percent=101), "canary_percent"),
    ],
)
def test_bad_settings_are_refused_with_their_field(
    monkeypatch, capsys, large, tmp_path, change, message
):
    content = yaml.safe_load(SETTINGS.read_text())
    change(content)
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(content))
    words = ["--run", large, "--offline", "--settings", tmp_path / "bad.yaml"]
    with pytest.raises(StepError, match=re.escape(message)):
        vertex_command(monkeypatch, capsys, "plan", *words)


@pytest.mark.parametrize(
    ("missing", "hint"),
    [
        ("adapter/manifest.json", "make sft or make dpo"),
        ("merged/manifest.json", "make merge"),
        ("merged/config.json", "make merge"),
    ],
)
def test_an_unfinished_run_is_refused_with_the_step_to_take(
    monkeypatch, capsys, large, missing, hint
):
    (large / missing).unlink()
    with pytest.raises(StepError, match=hint):
        vertex_command(monkeypatch, capsys, "plan", "--run", large, "--offline")


def test_a_secret_of_the_environment_is_not_printed(monkeypatch, capsys, small):
    monkeypatch.setenv("MEDALIGN_API_KEY", "only-for-me")
    printed = vertex_command(monkeypatch, capsys, "plan", "--run", small, "--offline")
    assert "only-for-me" not in printed


# Traffic


@pytest.mark.parametrize(("shares", "total"), [((90, 10), 50), ((33, 33, 34), 90), ((1, 1, 98), 7)])
def test_shares_add_up_and_keep_their_order(shares, total):
    deployed = tuple(Deployed(str(n), "m", "1", n, share) for n, share in enumerate(shares))
    found = shared(deployed, total)
    assert sum(found.values()) == total
    for one, share in zip(deployed, found.values(), strict=True):
        assert abs(share - one.traffic * total / 100) < 1


def test_a_new_version_starts_as_a_canary_beside_the_others(settings, large):
    served, known = settings.models["medalign-7b"], facts(large, PLACE, 12)
    upload, endpoint, deploy = deployment(settings, served, known, THREE)
    assert upload.arguments["parent_model"] == THREE.model
    assert upload.arguments["is_default_version"] is False
    assert endpoint.arguments == {"endpoint_name": THREE.endpoint}
    assert deploy.arguments["traffic_split"] == {"0": 10, "11": 0, "12": 81, "13": 9}
    assert "traffic_percentage" not in deploy.arguments


def test_rollback_goes_to_the_version_before_the_newest_in_use():
    assert rollback(THREE, "m")[-1].arguments == {"traffic_split": {"11": 0, "12": 100, "13": 0}}
    back = State(endpoint="e", deployed=(THREE.deployed[0], Deployed("12", "m", "2", 2.0, 100)))
    assert rollback(back, "m")[-1].arguments == {"traffic_split": {"11": 100, "12": 0}}
    with pytest.raises(StepError, match="no version deployed before"):
        rollback(State(endpoint="e", deployed=(Deployed("12", "m", "2", 2.0, 100),)), "m")
    with pytest.raises(StepError, match=r"no deployed version '99'; there are: 11 \(version 1, 0"):
        rollback(THREE, "m", "99")


def test_undeploying_all_never_leaves_the_rest_without_traffic():
    _, *undeploys = undeployment(THREE, "m")
    assert [call.arguments for call in undeploys] == [
        {"deployed_model_id": "11", "traffic_split": {"12": 90, "13": 10}},
        {"deployed_model_id": "13", "traffic_split": {"12": 100}},
        {"deployed_model_id": "12"},
    ]
    with pytest.raises(StepError, match="leave --deployed out"):
        undeployment(THREE, "m", "11", delete=True)


def test_there_is_no_canary_of_one():
    with pytest.raises(StepError, match="one deployed version"):
        canary(State(endpoint="e", deployed=(Deployed("1", "m", "1", 1.0, 100),)), "m", 10)
    with pytest.raises(StepError, match="nothing is deployed"):
        canary(State(endpoint="e"), "m", 10)
    with pytest.raises(StepError, match="no endpoint 'm'"):
        canary(State(), "m", 10)


def test_a_call_is_printed_as_the_python_it_is():
    call = Call(
        "endpoint.deploy", {"model": Name("model"), "labels": {"a" * 50: "b" * 50, "c": "d"}}
    )
    [(function, arguments)] = calls_in(call.text())
    assert (function, arguments) == (call.function, call.arguments)


# Against the fake


def test_apply_sends_what_the_plan_printed(command, vertex, large):
    planned = calls_in(command("plan", "--run", large))
    assert vertex.changes() == []
    printed = command("apply", "--run", large)
    assert vertex.changes() == [] and "dry run" in printed
    applied = command("apply", "--run", large, "--yes")
    assert calls_in(applied) == planned
    assert vertex.changes() == [
        f"POST {PARENT}/models:upload",
        f"POST {PARENT}/endpoints",
        f"POST {PARENT}/endpoints/7000:deployModel",
    ]
    upload, create, deploy = planned[1][1], planned[2][1], planned[3][1]
    sent = vertex.body("models:upload")
    assert sent["modelId"] == "medalign-7b"
    model, container = sent["model"], sent["model"]["containerSpec"]
    assert model["labels"] == upload["labels"]
    assert model["versionAliases"] == [*upload["version_aliases"], "default"]
    assert model["artifactUri"] == upload["artifact_uri"]
    assert container["imageUri"] == upload["serving_container_image_uri"]
    assert container["args"] == upload["serving_container_args"]
    assert container["env"] == [{"name": "VLLM_NO_USAGE_STATS", "value": "1"}]
    assert container["ports"] == [{"containerPort": 8080}]
    assert container["predictRoute"] == "/v1/chat/completions"
    assert container["healthRoute"] == "/health"
    assert vertex.body(f"{PARENT}/endpoints")["dedicatedEndpointEnabled"] is True
    assert create["display_name"] == vertex.endpoints[f"{PARENT}/endpoints/7000"]["displayName"]
    sent = vertex.body(":deployModel")
    resources = sent["deployedModel"]["dedicatedResources"]
    assert resources["machineSpec"]["machineType"] == deploy["machine_type"]
    assert resources["machineSpec"]["acceleratorCount"] == 1
    assert (resources["minReplicaCount"], resources["maxReplicaCount"]) == (1, 3)
    [metric] = resources["autoscalingMetricSpecs"]
    assert metric["metricName"].endswith("accelerator/duty_cycle") and metric["target"] == 60
    assert sent["trafficSplit"] == {"0": 100}


def test_applying_again_finds_everything_and_sends_nothing(command, vertex, small):
    command("apply", "--run", small, "--yes")
    before = vertex.changes()
    printed = command("apply", "--run", small, "--yes")
    assert [name for name, _ in calls_in(printed)] == [
        "aiplatform.init",
        "aiplatform.Model",
        "aiplatform.Endpoint",
    ]
    assert "cost: nothing is added" in printed
    assert vertex.changes() == before


def test_the_life_of_a_deployment(command, vertex, tmp_path):
    recipe = "recipes/mistral-7b/dpo-a100.yaml"
    runs = [run_of(tmp_path / a, "medalign-7b", recipe, a * 64) for a in "ab"]
    command("apply", "--run", runs[0], "--yes")
    printed = command("apply", "--run", runs[1], "--yes")
    assert "1 deployed before are billed beside it" in printed
    endpoint = vertex.endpoints[f"{PARENT}/endpoints/7000"]
    assert vertex.body("models:upload")["parentModel"] == f"{PARENT}/models/medalign-7b"
    assert vertex.body(":deployModel")["deployedModel"]["model"].endswith("medalign-7b@2")
    assert endpoint["trafficSplit"] == {"101": 10, "100": 90}

    sent = len(vertex.changes())
    words = ["canary", "--name", "medalign-7b", "--percent", "50"]
    assert "dry run" in command(*words) and len(vertex.changes()) == sent
    command(*words, "--yes")
    assert endpoint["trafficSplit"] == {"101": 50, "100": 50}
    command("rollback", "--run", runs[1], "--yes")
    assert endpoint["trafficSplit"] == {"100": 100, "101": 0}
    assert vertex.changes()[-1] == f"PATCH {PARENT}/endpoints/7000"

    command("undeploy", "--name", "medalign-7b", "--deployed", "101", "--yes")
    assert [d["id"] for d in endpoint["deployedModels"]] == ["100"]
    command("undeploy", "--name", "medalign-7b", "--delete", "--yes")
    assert vertex.endpoints == {}
    assert vertex.changes()[-2:] == [
        f"POST {PARENT}/endpoints/7000:undeployModel",
        f"DELETE {PARENT}/endpoints/7000",
    ]


@pytest.mark.parametrize(
    "request_", ["POST .*:upload", "POST .*/endpoints$", "POST .*:deployModel"]
)
def test_a_refusal_with_503_is_sent_again(command, vertex, small, request_):
    vertex.refusals = [(request_, 503, "busy")] * 2
    command("apply", "--run", small, "--yes")
    assert sum(bool(re.search(request_, change)) for change in vertex.changes()) == 3
    assert len(vertex.versions[f"{PARENT}/models/medalign-135m"]) == 1
    assert len(vertex.endpoints) == 1


def test_503_that_does_not_end_is_told_with_the_next_step(command, vertex, small):
    vertex.refusals = [("POST .*:upload", 503, "busy")] * 9
    with pytest.raises(StepError, match=r"not available now: .*busy.* Before that nothing"):
        command("apply", "--run", small, "--yes")
    assert len(vertex.changes()) == 4


@pytest.mark.parametrize(("method", "again"), [("GET", False), ("POST", True), ("PATCH", True)])
def test_only_a_request_that_was_itself_refused_is_sent_again(method, again):
    import requests
    from google.api_core.exceptions import from_http_response

    response = requests.Response()
    response.request = requests.Request(method, "http://127.0.0.1/v1/models:upload").prepare()
    response.status_code = 503
    assert refused(from_http_response(response)) is again
    response.status_code = 500
    assert refused(from_http_response(response)) is False


def test_what_was_accepted_before_a_failure_is_not_done_twice(command, vertex, small):
    vertex.refusals = [(r"GET .*/models/medalign-135m@1", 403, "may not look")]
    with pytest.raises(StepError, match=r"Model\.upload: .*may not look.*may have been accepted"):
        command("apply", "--run", small, "--yes")
    assert vertex.changes() == [f"POST {PARENT}/models:upload"]
    command("apply", "--run", small, "--yes")
    assert vertex.changes().count(f"POST {PARENT}/models:upload") == 1
    assert vertex.changes()[-1].endswith(":deployModel")


@pytest.mark.parametrize("as_operation", [True, False], ids=["operation", "status 429"])
def test_a_quota_error_says_what_was_made_and_how_to_go_on(command, vertex, large, as_operation):
    if as_operation:
        vertex.failures["deploy"] = {"code": 8, "message": QUOTA}
    else:
        vertex.refusals = [("POST .*:deployModel", 429, QUOTA)]
    with pytest.raises(StepError) as caught:
        command("apply", "--run", large, "--yes")
    message = str(caught.value)
    assert message.startswith("endpoint.deploy: quota used up: ") and QUOTA in message
    assert "Quotas" in message and "--machine" in message and "\n" not in message
    assert f"version 1 of {PARENT}/models/medalign-7b, in the registry" in message
    assert "gcloud ai models delete medalign-7b" in message
    assert f"endpoint {PARENT}/endpoints/7000" in message
    assert f"gcloud ai endpoints delete 7000 --project={PROJECT}" in message
    assert vertex.changes().count(f"POST {PARENT}/endpoints/7000:deployModel") == 1

    command("apply", "--run", large, "--yes")  # takes up what is there
    assert vertex.changes()[3:] == [f"POST {PARENT}/endpoints/7000:deployModel"]


def test_the_undoing_of_a_later_version_names_that_version(command, vertex, tmp_path):
    recipe = "recipes/mistral-7b/dpo-a100.yaml"
    runs = [run_of(tmp_path / a, "medalign-7b", recipe, a * 64) for a in "ab"]
    command("apply", "--run", runs[0], "--yes")
    vertex.failures["deploy"] = {"code": 13, "message": "Model server exited unexpectedly"}
    with pytest.raises(StepError) as caught:
        command("apply", "--run", runs[1], "--yes")
    assert "Model server exited unexpectedly" in str(caught.value)
    assert "gcloud ai models delete-version medalign-7b@2 " in str(caught.value)


def test_an_endpoint_with_nothing_on_it_can_be_deleted(command, vertex, small):
    vertex.failures["deploy"] = {"code": 13, "message": "no"}
    with pytest.raises(StepError):
        command("apply", "--run", small, "--yes")
    with pytest.raises(StepError, match="--delete deletes the endpoint"):
        command("undeploy", "--name", "medalign-135m", "--yes")
    command("undeploy", "--name", "medalign-135m", "--delete", "--yes")
    assert vertex.endpoints == {}


def test_a_missing_permission_is_told(command, vertex, small):
    vertex.refusals = [("GET .*/models", 403, "Permission 'aiplatform.models.list' denied")]
    with pytest.raises(StepError, match=r"looking up .*denied.*roles/aiplatform\.user"):
        command("plan", "--run", small)


def test_two_endpoints_of_one_name_are_not_guessed_between(command, vertex, small):
    command("apply", "--run", small, "--yes")
    twin = f"{PARENT}/endpoints/7001"
    vertex.endpoints[twin] = vertex.endpoints[f"{PARENT}/endpoints/7000"] | {"name": twin}
    with pytest.raises(StepError, match="several endpoints are called medalign-135m: 7000, 7001"):
        command("rollback", "--name", "medalign-135m", "--yes")


def test_an_address_where_nobody_answers_is_told(monkeypatch, capsys, vertex, small):
    vertex.server_close()
    words = ["--run", small, "--api-endpoint", vertex.address]
    with pytest.raises(StepError, match=r"not reached.*--api-endpoint"):
        vertex_command(monkeypatch, capsys, "plan", *words)


# The image


def test_the_image_runs_as_another_user_and_copies_what_is_there():
    lines = (ROOT / "deploy/Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY")]
    for source in (s for sources in copied for s in sources if not s.startswith(("-", "$", "/"))):
        if not source.startswith("build/"):
            assert (ROOT / source).exists(), source
    last_user = [line.split()[1] for line in lines if line.startswith("USER")]
    assert last_user == ["medalign"]
    assert not re.search(r"(ARG|ENV).*(KEY|TOKEN|SECRET|PASSWORD)", "\n".join(lines))
    variables = " ".join(line for line in lines if line.startswith("ENV"))
    container = declared(SETTINGS, Settings).models["medalign-135m"].container
    assert f"AIP_HTTP_PORT={container.port}" in variables
    assert f"AIP_PREDICT_ROUTE={container.predict_route}" in variables
    assert f"AIP_HEALTH_ROUTE={container.health_route}" in variables
