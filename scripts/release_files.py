"""The files of a release: which are published, as what, and what stops them.

Large files are published from where they lie. Settings are copied to a staging folder, where paths
of this machine are taken out. Everything is looked through before anything leaves the machine.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from medalign.artifacts import StepError, sha256
from medalign.recipe import RECIPES, read_yaml

RELEASE = RECIPES / "release.yaml"
HEADER = 2**24  # bytes of a weight file that hold its metadata, and are looked through
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
SECRETS = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    "an API key (sk-…)": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "an AWS key id": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
VOCABULARY = ("tokenizer.json", "tokenizer.model", "vocab", "merges")  # any word may be in there
SECRET_NAMES = re.compile(r"(_API_KEY|_TOKEN|_SECRET|_SECRET_ACCESS_KEY|_PASSWORD)$")
# A path of this project's folders is of use to a reader from there on, whoever's machine it was.
PROJECT_PATH = re.compile(r"(?<![\w/.:])/(?:[\w.@+-]+/)+?(?=(?:runs|build|recipes|data)/)")
LOCAL_PATH = re.compile(
    r"(?<![\w/.:$}])(?:/(?:home|root|Users|tmp|mnt|media|content|workspace|work|srv|var|private)/[\w.-]+"
    r"|[A-Z]:\\\\?Users\\)|file:///"
)


@dataclass(frozen=True)
class Item:
    """A file of a repository: its name there, where it lies here, size in bytes, SHA-256.

    how: as is, rewritten (a copy without this machine's paths) or generated.
    """

    name: str
    source: Path
    size: int
    sha256: str
    how: str


@cache
def rules() -> dict[str, Any]:
    """recipes/release.yaml."""
    return read_yaml(RELEASE)


def matches(name: str, pattern: str) -> bool:
    """Whether a path matches: * within a folder, ** over folders."""
    parts = (re.escape(p).replace(r"\*", "[^/]*") for p in pattern.split("**"))
    return re.fullmatch(".*".join(parts), name) is not None


def published(folder: Path, kind: str) -> list[Path]:
    """The files of a folder that its kind publishes.

    StepError for a link that leads out of it, a pickle, and a file that release.yaml does not name.
    """
    known, found = rules()["files"][kind], []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(matches(name, pattern) for pattern in known["left_out"]):
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise StepError(f"{path} is a link that leads out of its folder; put the file there")
        if path.is_dir():
            continue
        if path.suffix in PICKLES:
            raise StepError(f"{path} may be a pickle, which runs code when loaded; remove it")
        if not any(matches(name, pattern) for pattern in known["published"]):
            raise StepError(f"{path} is no file of a release; remove it, or name it in {RELEASE}")
        found.append(path)
    if not found:
        raise StepError(f"{folder} has nothing to publish; make gguf fills it")
    return found


def clean(path: Path, base_id: str) -> str | None:
    """A setting's text without this machine's paths; None if there is nothing to change.

    base_id: the hub id that stands for the base's folder.
    """
    if path.suffix not in (".json", ".yaml") or path.name == "tokenizer.json":
        return None
    text = path.read_text(encoding="utf-8")
    changed = PROJECT_PATH.sub("", text)
    content = json.loads(changed) if path.suffix == ".json" else None
    if isinstance(content, dict) and path.name != "manifest.json":
        said = rules()
        kept = {k: v for k, v in content.items() if k not in said["dropped_keys"]}
        for key in said["base_keys"]:
            if str(kept.get(key, "")).startswith(("build/", "runs/", "/", ".")):
                kept[key] = base_id
        if kept != content:
            changed = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
    return changed if changed != text else None


def staged(path: Path, stage: Path, base_id: str, name: str | None = None) -> Item:
    """A file as it will be published, looked through. StepError for what must not leave."""
    name, source, how = name or path.name, path, "as is"
    if (text := clean(path, base_id)) is not None:
        source, how = generated(stage, name, text).source, "rewritten"
    return looked_through(Item(name, source, source.stat().st_size, sha256(source), how), path)


def generated(stage: Path, name: str, text: str) -> Item:
    """A file made for the release, written into the staging folder and looked through."""
    path = stage / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return looked_through(Item(name, path, path.stat().st_size, sha256(path), "generated"), path)


def looked_through(item: Item, origin: Path) -> Item:
    """`item`, unless it is a pickle, no model file in spite of its name, or tells a secret."""
    with item.source.open("rb") as file:
        head = file.read(HEADER if is_weights(item) else -1)
    packed = head.startswith(b"PK\x03\x04") and zipfile.is_zipfile(item.source)
    if packed or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05" and head.endswith(b".")):
        raise StepError(f"{origin} is a pickle, whatever its name; pickles run code when loaded")
    if item.name.endswith(".safetensors"):
        if len(head) < 9 or not 1 < (size := int.from_bytes(head[:8], "little")) <= HEADER - 8:
            raise StepError(f"{origin} is no safetensors file; make merge writes it anew")
        head = head[8 : 8 + size]
        if not head.startswith(b"{"):
            raise StepError(f"{origin} is no safetensors file; make merge writes it anew")
    elif item.name.endswith(".gguf") and not head.startswith(b"GGUF"):
        raise StepError(f"{origin} is no GGUF file; make gguf writes it anew")
    text = head.decode("utf-8", "replace")
    for line, what in told(text):
        raise StepError(f"{origin}:{line}: holds {what}; take it out (and make it invalid)")
    if not is_weights(item) and not item.name.startswith(VOCABULARY):
        for found in LOCAL_PATH.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            raise StepError(f"{origin}:{line}: names a local path, {found[0]}…; take it out")
    return item


def is_weights(item: Item) -> bool:
    """Whether a file is weights, of which only the metadata is text."""
    return item.name.endswith((".safetensors", ".gguf"))


def told(text: str) -> Iterator[tuple[int, str]]:
    """Line and kind of each secret in a text. The secret itself is never shown."""
    for what, pattern in SECRETS.items():
        for found in pattern.finditer(text):
            yield text.count("\n", 0, found.start()) + 1, what
    for name, value in os.environ.items():
        if SECRET_NAMES.search(name) and len(value) >= 8 and (at := text.find(value)) >= 0:
            yield text.count("\n", 0, at) + 1, f"the value of {name}"
