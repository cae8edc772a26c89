"""step_log for Axolotl, which trains in a process of its own: a plugin of the bench's recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from axolotl.integrations.base import BasePlugin

from medalign.step_log import watch


class StepLogPlugin(BasePlugin):
    """Writes the log to where STEP_LOG says."""

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        watch(Path(os.environ["STEP_LOG"]))
