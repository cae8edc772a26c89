"""Publish a run on the Hugging Face Hub: model, adapter, GGUF, education set. A dry run by default.

    python scripts/publish_hub.py --run runs/smollm2-135m/dpo-lora-cpu --namespace someone
    HF_TOKEN=… python scripts/publish_hub.py --run … --namespace someone --yes

What a release holds, recipes/release.yaml says. Each repository gets one commit on the state that
was looked at; what is there already is not sent again. New ones are private unless --public.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import httpx
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from medalign.artifacts import StepError, run_step
from medalign.release import KINDS, Repository, repositories
from medalign.release_files import Item

ATTEMPTS = 4
ADVICE = {
    400: "it does not take what was sent",
    401: "HF_TOKEN is not valid; make one at huggingface.co/settings/tokens",
    403: "HF_TOKEN may not write there; it needs the role write and a place in the namespace",
    404: "it does not know the repository; run the same again",
    409: "someone else committed meanwhile; look at it and run again",
    412: "someone else committed meanwhile; look at it and run again",
    429: "too many requests; wait and run again",
}


def behind(error: BaseException | None) -> HfHubHTTPError | httpx.TransportError | None:
    """The hub's answer or the network's failure behind what the library raised, if there is one."""
    while error is not None and not isinstance(error, (HfHubHTTPError, httpx.TransportError)):
        error = error.__cause__
    return error


def passing(error: BaseException) -> bool:
    """Whether the same request may succeed later: a server's fault, or the network's."""
    found = behind(error)
    if isinstance(found, HfHubHTTPError):
        return found.response.status_code >= 500
    return found is not None


def state(api: HfApi, repository: Repository) -> tuple[str | None, bool, dict[str, RepoFile]]:
    """Head commit, whether private, and the files of a repository on the hub."""
    info = api.repo_info(repository.id, repo_type=repository.type)
    tree = api.list_repo_tree(
        repository.id, recursive=True, revision=info.sha, repo_type=repository.type
    )
    return info.sha, bool(info.private), {f.path: f for f in tree if isinstance(f, RepoFile)}


def there(item: Item, file: RepoFile | None) -> bool:
    """Whether the hub has this very content under this name."""
    if file is None or file.size != item.size:
        return False
    if file.lfs is not None:
        return file.lfs.sha256 == item.sha256
    return file.blob_id == git_hash(item.source.read_bytes())


def stale(repository: Repository, files: dict[str, RepoFile]) -> list[str]:
    """Weights on the hub that are not of this release, and would be loaded with it."""
    names = {item.name for item in repository.items}
    endings = (".safetensors", ".safetensors.index.json", ".gguf", ".bin")
    return [name for name in files if name.endswith(endings) and name not in names]


def commit(api: HfApi, repository: Repository, private: bool) -> str:
    """Bring a repository to the release by one commit. Returns what was done.

    StepError if the hub refuses, or if it changed since it was looked at. Faults of the server or
    the network are tried again; the commit stays pinned to the head seen first.
    """
    head = None
    for attempt in Retrying(
        retry=retry_if_exception(passing),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(max=20),
        reraise=True,
    ):
        with attempt:
            kind = repository.type
            api.create_repo(repository.id, private=private, repo_type=kind, exist_ok=True)
            now, hidden, files = state(api, repository)
            if private and not hidden:
                raise StepError(f"{repository.id} is public on the hub; give --public if it may be")
            kept = ", private as it was" if hidden and not private else ""
            if old := stale(repository, files):
                raise StepError(
                    f"{repository.id} holds weights of another release: {', '.join(old)}; "
                    "delete them there, then run again"
                )
            if all(there(item, files.get(item.name)) for item in repository.items):
                return f"up to date ({now})" + kept
            head = head or now
            operations = [CommitOperationAdd(item.name, item.source) for item in repository.items]
            for item, operation in zip(repository.items, operations, strict=True):
                if operation.upload_info.sha256.hex() != item.sha256:
                    raise StepError(f"{item.source} changed meanwhile; run again")
            done = api.create_commit(
                repository.id,
                operations,
                commit_message=repository.message,
                repo_type=repository.type,
                parent_commit=head,
            )
            return f"committed {done.oid}" + kept
    raise AssertionError("tenacity raises the last error")


def publish(api: HfApi, repository: Repository, private: bool) -> str:
    """commit(), every refusal of the hub as a StepError without the token in it."""
    try:
        return commit(api, repository, private)
    except (HfHubHTTPError, httpx.TransportError, RuntimeError, ValueError) as error:
        found, advice = behind(error), "run the same again, what was uploaded is kept"
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(found, HfHubHTTPError):
            code = found.response.status_code
            said = f"the hub answered {code} ({found.server_message or said})"
            advice = ADVICE.get(code, advice)
        elif found is not None:
            said = f"the hub was not reached ({found})"
        text = f"{repository.id}: {said}; {advice}"
        raise StepError(text.replace(str(api.token), "…")) from error


def show(repository: Repository, private: bool) -> None:
    """Print the plan of a repository: every file with size in bytes, SHA-256 and how it comes."""
    size = sum(item.size for item in repository.items)
    print(f"\n{repository.type} {repository.id} ({'private' if private else 'public'})")
    print(f"  licence {repository.license}; {len(repository.items)} files, {size:,} bytes")
    print(f"  commit  {repository.message}")
    for item in repository.items:
        print(f"  {item.size:>13,}  {item.sha256}  {item.name}  [{item.how}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="the folder of a finished run")
    parser.add_argument("--namespace", required=True, help="user or organization on the hub")
    parser.add_argument("--only", default=",".join(KINDS), help=f"of {','.join(KINDS)}")
    parser.add_argument("--yes", action="store_true", help="publish; HF_TOKEN holds the token")
    parser.add_argument("--public", action="store_true", help="make new repositories public")
    parser.add_argument("--accept-research", action="store_true", help="trained on restricted data")
    args = parser.parse_args()
    kinds = tuple(filter(None, args.only.split(",")))
    if not kinds or not set(kinds) <= set(KINDS):
        raise StepError(f"--only {args.only!r}: there are {', '.join(KINDS)}")
    try:
        validate_repo_id(f"{args.namespace}/name")
    except HFValidationError as error:
        raise StepError(f"--namespace {args.namespace}: {error}") from error
    token = os.environ.get("HF_TOKEN")
    if args.yes and not token:
        raise StepError("HF_TOKEN is not set; make one at huggingface.co/settings/tokens (write)")
    if args.yes and is_offline_mode():
        raise StepError("HF_HUB_OFFLINE is set, nothing can be published; set it to 0")
    with tempfile.TemporaryDirectory(prefix="medalign-release-") as folder:
        found = repositories(
            args.run.resolve(), args.namespace, kinds, Path(folder), args.accept_research
        )
        for repository in found:
            show(repository, private=not args.public)
        if not args.yes:
            print("\nNothing was made: a dry run. --yes publishes.")
            return
        api = HfApi(token=token)
        for repository in found:
            done = publish(api, repository, private=not args.public)
            print(f"{repository.id}: {done}", flush=True)


if __name__ == "__main__":
    run_step(main)
