"""The calls of a deployment on Vertex AI: model version, endpoint, deployment.

Argument names are those of google-cloud-aiplatform; nothing here imports it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from medalign.artifacts import StepError
from medalign.vertex_calls import Call, Name, State
from medalign.vertex_settings import STORAGE, Place, Served, Settings, filled, labels, matched
from medalign.vertex_traffic import on_endpoint, shared


def start(settings: Settings, place: Place, api_endpoint: str | None = None) -> Call:
    """The call that all others need first."""
    address = api_endpoint or settings.api_endpoint
    arguments = {"project": place.project, "location": place.region}
    arguments["api_transport"] = settings.api_transport
    return Call("aiplatform.init", arguments | ({"api_endpoint": address} if address else {}))


def upload(
    settings: Settings,
    served: Served,
    known: dict[str, str],
    state: State,
    image: str | None,
    artifact_uri: str | None,
) -> tuple[Call, str | None]:
    """The call that has the model's version, and that version's id if it is there already.

    A version carries an alias that is the hash of its arguments, by which a later run finds it.
    """
    container, name = served.container, known["name"]
    arguments: dict[str, Any] = {
        "display_name": name,
        "description": f"{name}, run {known['run']} of recipe {known['recipe']}",
        "serving_container_image_uri": image or filled(container.image, known),
        "serving_container_args": [filled(argument, known) for argument in container.args],
        "serving_container_environment_variables": container.env,
        "serving_container_ports": [container.port],
        "serving_container_predict_route": container.predict_route,
        "serving_container_health_route": container.health_route,
        "serving_container_deployment_timeout": container.deployment_timeout,
        "serving_container_shared_memory_size_mb": container.shared_memory_size_mb,
        "labels": labels(settings.labels, known),
    }
    if served.artifact == "merged" or artifact_uri:
        uri = artifact_uri or filled(settings.artifact_uri, known)
        arguments["artifact_uri"] = matched(STORAGE, "artifact URI", uri, "gs://bucket/folder")
    digest = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()
    alias = f"build-{digest[:12]}"
    if version := state.versions.get(alias):
        existing = {"model_name": f"{state.model}@{version}"}
        return Call("aiplatform.Model", existing, "model"), version
    where = f"--project={known['project']} --region={known['region']}"
    undo = f"gcloud ai models delete {name} {where}"
    if state.model:
        arguments["parent_model"] = state.model
        undo = f"gcloud ai models delete-version {{model.name}}@{{model.version_id}} {where}"
    else:
        arguments["model_id"] = name
    arguments |= {"is_default_version": not state.model, "version_aliases": [alias]}
    arguments["version_description"] = f"adapter {known['adapter_hash']}"
    arguments = {key: value for key, value in arguments.items() if value not in (None, [], {})}
    made = "version {model.version_id} of {model.resource_name}, in the registry"
    return Call("aiplatform.Model.upload", arguments, "model", made, undo), None


def deployment(
    settings: Settings,
    served: Served,
    known: dict[str, str],
    state: State,
    *,
    machine: str | None = None,
    image: str | None = None,
    artifact_uri: str | None = None,
    traffic: int | None = None,
) -> list[Call]:
    """Upload, endpoint, deployment: what of it is not there yet.

    traffic: per cent for the new version, where others are deployed; else it gets all.
    StepError for a machine that is not declared.
    """
    if (machine := machine or served.machine) not in served.machines:
        raise StepError(f"no machine {machine!r}; there are: {', '.join(served.machines)}")
    name = known["name"]
    first, version = upload(settings, served, known, state, image, artifact_uri)
    calls = [first]
    if state.endpoint:
        calls.append(on_endpoint(state, name))
    else:
        arguments = {
            "display_name": name,
            "description": f"{name}, deployed by deploy_vertex.py",
            "labels": labels({"app": settings.labels.get("app", "medalign")}, known),
            "dedicated_endpoint_enabled": True,
            "inference_timeout": settings.inference_timeout,
        }
        where = f"--project={known['project']} --region={known['region']}"
        undo = f"gcloud ai endpoints delete {{endpoint.name}} {where}"
        made = "endpoint {endpoint.resource_name}, which costs nothing while nothing is deployed"
        calls.append(Call("aiplatform.Endpoint.create", arguments, "endpoint", made, undo))
    if version and any(d.version == version and d.model == name for d in state.deployed):
        return calls
    arguments = {"model": Name("model"), "deployed_model_display_name": f"{name}-{known['run']}"}
    arguments |= served.machines[machine].model_dump(exclude_none=True)
    if state.deployed:
        percent = settings.canary_percent if traffic is None else traffic
        arguments["traffic_split"] = {"0": percent, **shared(state.deployed, 100 - percent)}
    else:
        arguments["traffic_percentage"] = 100
    made = "version {model.version_id} is deployed, and billed from now on"
    return [*calls, Call("endpoint.deploy", arguments, made=made)]
