"""A file of settings, read as declared."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from medalign.artifacts import StepError, require_file

Schema = TypeVar("Schema", bound=BaseModel)


def declared(path: Path, schema: type[Schema]) -> Schema:
    """The YAML file as its schema. StepError names the field that is wrong."""
    require_file(path, "git checkout brings it back")
    try:
        return schema(**yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise StepError(f"{path}: {'; '.join(faults)}") from error
    except (yaml.YAMLError, TypeError) as error:
        raise StepError(f"{path}: not a table of settings: {error}") from error
