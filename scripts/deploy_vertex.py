"""Deploy a model on Vertex AI: registry, dedicated endpoint, canary, rollback.

    python scripts/deploy_vertex.py plan --run runs/mistral-7b/dpo-a100 --project my-project-123
    python scripts/deploy_vertex.py apply --run runs/mistral-7b/dpo-a100 --project … --yes
    python scripts/deploy_vertex.py canary --name medalign-7b --percent 50 --project … --yes
    python scripts/deploy_vertex.py rollback --name medalign-7b --project … --yes
    python scripts/deploy_vertex.py undeploy --name medalign-7b --delete --project … --yes

Prints the SDK calls and makes none; with --yes makes just those. deploy/vertex.yaml declares the
rest. Google's default credentials are used (gcloud auth application-default login).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from medalign import vertex_plan, vertex_traffic
from medalign.artifacts import ROOT, StepError, require_file, run_step
from medalign.settings import declared
from medalign.vertex_calls import Call, State
from medalign.vertex_cloud import NotReady, carry_out, look_up
from medalign.vertex_settings import SETTINGS, Place, Served, Settings, facts, filled


def percent(text: str) -> int:
    """A share of the traffic, for argparse."""
    if not (text.isdigit() and int(text) <= 100):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 0 to 100")
    return int(text)


def preparation(served: Served, known: dict[str, str], run: Path, calls: list[Call]) -> list[str]:
    """The commands that must have been run first: they bring the artifact where it is served from.

    StepError if the artifact is missing.
    """
    upload = next((c for c in calls if c.function == "aiplatform.Model.upload"), None)
    if upload is None:
        return []
    where = Path(os.path.relpath(run, ROOT))
    if served.artifact == "merged":
        require_file(run / "merged/config.json", "make merge RECIPE=… makes it")
        uri = upload.arguments["artifact_uri"].rstrip("/")
        return [f"gcloud storage cp --recursive '{where}/merged/*' {uri}/"]
    found = sorted(run.glob(f"{known['name']}-*.gguf"))
    if not found:
        raise StepError(f"{run}: no {known['name']}-….gguf; make gguf RECIPE=… makes it")
    image = upload.arguments["serving_container_image_uri"]
    gguf = where / found[0].name
    return [
        f"docker build -f deploy/Dockerfile --build-arg GGUF={gguf} -t {image} .",
        f"docker push {image}",
    ]


def cost(settings: Settings, calls: list[Call], state: State, hours: float) -> str:
    """What the deployment costs, from the declared prices, and where those are from."""
    deploy = next((c.arguments for c in calls if c.function == "endpoint.deploy"), None)
    if deploy is None:
        return "cost: nothing is added"
    prices, machine = settings.prices, deploy["machine_type"]
    low, high = deploy["min_replica_count"], deploy["max_replica_count"]
    check = f"noted {prices.noted} {prices.how}: check the price list, {prices.source}"
    before = len(state.deployed)
    others = f"; {before} deployed before are billed beside it" if before else ""
    if machine not in prices.per_hour:
        return f"cost: no price of {machine} is declared in {SETTINGS.name}{others} ({check})"
    price, money = prices.per_hour[machine], prices.currency
    region = "" if calls[0].arguments["location"] == prices.region else f" (of {prices.region})"
    return (
        f"cost: {low} to {high} replicas x {price:.2f} {money} an hour{region} x {hours:g} h = "
        f"{low * price * hours:,.0f} to {high * price * hours:,.0f} {money}{others}\n"
        f"      ({check})"
    )


def planned(
    args: argparse.Namespace, settings: Settings, place: Place
) -> tuple[list[Call], list[str]]:
    """The calls of the step, and what is to be said of them."""
    begin = vertex_plan.start(settings, place, args.api_endpoint)
    notes = []
    known = facts(args.run, place, settings.hash_characters) if args.run else {}
    if (name := args.name or known.get("name")) is None:
        raise StepError("which model? Give --run runs/…, or --name medalign-…")
    if name not in settings.models:
        raise StepError(f"{SETTINGS.name} has no model {name!r}, but {', '.join(settings.models)}")
    state = State()
    try:
        if not getattr(args, "offline", False):
            state = look_up(name, begin, settings)
    except NotReady as error:
        if args.step != "plan":
            raise
        notes.append(f"note: not looked up ({error})")
    if getattr(args, "offline", False) or notes:
        notes.append("note: planned as if the project had neither model nor endpoint")
    match args.step:
        case "canary":
            calls = vertex_traffic.canary(state, name, args.percent, args.deployed)
        case "rollback":
            calls = vertex_traffic.rollback(state, name, args.deployed)
        case "undeploy":
            calls = vertex_traffic.undeployment(state, name, args.deployed, args.delete)
            notes.append("note: versions stay in the registry (gcloud ai models delete)")
        case _:
            served = settings.models[name]
            options = {k: getattr(args, k) for k in ("machine", "image", "artifact_uri", "traffic")}
            calls = vertex_plan.deployment(settings, served, known, state, **options)
            first = preparation(served, known, args.run, calls)
            notes = [*(f"first: {line}" for line in first), *notes]
            notes.append(cost(settings, [begin, *calls], state, args.hours))
    return [begin, *calls], notes


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--project", default=os.environ.get("GOOGLE_CLOUD_PROJECT"))
    common.add_argument("--region", help="default: that of the settings")
    common.add_argument("--settings", type=Path, default=SETTINGS)
    common.add_argument("--api-endpoint", help="another address of the API")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    for step in ("plan", "apply"):
        of = steps.add_parser(step, parents=[common])
        of.add_argument("--run", type=Path, required=True)
        of.add_argument("--machine", help="an entry of the model's machines")
        of.add_argument("--image", help="another container image")
        of.add_argument("--artifact-uri", help="gs://… where the artifact was copied to")
        of.add_argument("--traffic", type=percent, help="of a new version beside others")
        of.add_argument("--hours", type=float, default=730, help="for the cost; a month")
        of.set_defaults(name=None)
        if step == "plan":
            of.add_argument("--offline", action="store_true", help="do not look at the project")
    for step in ("canary", "rollback", "undeploy"):
        of = steps.add_parser(step, parents=[common])
        which = of.add_mutually_exclusive_group(required=True)
        which.add_argument("--run", type=Path)
        which.add_argument("--name", help="the model's name")
        of.add_argument("--deployed", help="id of a deployed version")
        if step == "canary":
            of.add_argument("--percent", type=percent, required=True)
        if step == "undeploy":
            of.add_argument("--delete", action="store_true", help="the endpoint as well")
    for step in ("apply", "canary", "rollback", "undeploy"):
        steps.choices[step].add_argument("--yes", action="store_true", help="do it")
    return parser


def main() -> None:
    words = sys.argv[1:]
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words = ["plan", *words]
    args = arguments().parse_args(words)
    if not args.project:
        raise StepError("no project: give --project, or set GOOGLE_CLOUD_PROJECT")
    settings = declared(args.settings, Settings)
    place = Place(args.project, filled(args.region or settings.region, {}))
    calls, notes = planned(args, settings, place)
    print("\n\n".join(call.text() for call in calls), *notes, sep="\n")
    if getattr(args, "yes", False):
        carry_out(calls, settings)
    else:
        doing = "apply --yes" if args.step == "plan" else "--yes"
        print(f"dry run: nothing was sent that changes anything; {doing} makes these calls")


if __name__ == "__main__":
    run_step(main)
