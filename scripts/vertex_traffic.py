"""The calls that share the traffic out among deployed versions, and that take versions away."""

from __future__ import annotations

from dataclasses import replace

from medalign.artifacts import StepError
from medalign.vertex_calls import Call, Deployed, State


def on_endpoint(state: State, name: str) -> Call:
    """The call that has the endpoint. StepError if there is none, or nothing on it."""
    if not state.endpoint:
        raise StepError(f"there is no endpoint {name!r} in this project and region; apply makes it")
    return Call("aiplatform.Endpoint", {"endpoint_name": state.endpoint}, "endpoint")


def shared(deployed: tuple[Deployed, ...], total: int) -> dict[str, int]:
    """`total` per cent shared out as traffic is now; all to the newest where none has any."""
    if not deployed:
        return {}
    sum_now = sum(d.traffic for d in deployed)
    weights = {d.id: d.traffic for d in deployed} if sum_now else {deployed[-1].id: 1}
    whole = sum(weights.values())
    shares = {d.id: total * weights.get(d.id, 0) // whole for d in deployed}
    largest_rests = sorted(weights, key=lambda i: -(total * weights[i] % whole))
    for i in largest_rests[: total - sum(shares.values())]:
        shares[i] += 1
    return shares


def split(state: State, name: str, shares: dict[str, int]) -> list[Call]:
    """The calls that set the traffic."""
    return [on_endpoint(state, name), Call("endpoint.update", {"traffic_split": shares})]


def one_of(state: State, name: str, wanted: str) -> Deployed:
    """The deployed version of that id. StepError if there is none."""
    on_endpoint(state, name)
    for deployed in state.deployed:
        if deployed.id == wanted:
            return deployed
    there = ", ".join(f"{d.id} (version {d.version}, {d.traffic} %)" for d in state.deployed)
    raise StepError(f"{name} has no deployed version {wanted!r}; there are: {there or 'none'}")


def canary(state: State, name: str, percent: int, wanted: str | None = None) -> list[Call]:
    """Give a deployed version, by default the newest, `percent` of the traffic."""
    on_endpoint(state, name)
    if not state.deployed:
        raise StepError(f"nothing is deployed on {name}; apply deploys a version")
    chosen = one_of(state, name, wanted or state.deployed[-1].id)
    others = tuple(d for d in state.deployed if d != chosen)
    if not others and percent != 100:
        raise StepError(f"{name} has one deployed version: all traffic is its, there is no canary")
    return split(state, name, {chosen.id: percent, **shared(others, 100 - percent)})


def rollback(state: State, name: str, wanted: str | None = None) -> list[Call]:
    """Give all traffic to the version deployed before the newest that has traffic."""
    on_endpoint(state, name)
    with_traffic = [n for n, d in enumerate(state.deployed) if d.traffic]
    if not wanted and (not with_traffic or with_traffic[-1] == 0):
        raise StepError(
            f"{name} has no version deployed before the one in use; apply an earlier run"
        )
    chosen = one_of(state, name, wanted or state.deployed[with_traffic[-1] - 1].id)
    return split(state, name, {d.id: 100 if d == chosen else 0 for d in state.deployed})


def undeployment(
    state: State, name: str, wanted: str | None = None, delete: bool = False
) -> list[Call]:
    """Undeploy one version or all, those without traffic first; delete: the endpoint as well.

    What an undeployed version had is shared out among the rest.
    """
    calls = [on_endpoint(state, name)]
    if wanted and delete:
        raise StepError("an endpoint can be deleted with nothing on it only: leave --deployed out")
    idle_first = sorted(state.deployed, key=lambda d: d.traffic)
    leave = [one_of(state, name, wanted)] if wanted else idle_first
    stay = state.deployed
    for deployed in leave:
        stay = tuple(d for d in stay if d.id != deployed.id)
        shares = shared(stay, 100)
        stay = tuple(replace(d, traffic=shares[d.id]) for d in stay)
        arguments = {"deployed_model_id": deployed.id} | ({"traffic_split": shares} if stay else {})
        calls.append(Call("endpoint.undeploy", arguments, None, f"{deployed.id} is undeployed"))
    if delete:
        calls.append(Call("endpoint.delete"))
    if len(calls) == 1:
        raise StepError(f"nothing is deployed on {name}; --delete deletes the endpoint")
    return calls
