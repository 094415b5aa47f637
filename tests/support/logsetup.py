"""How a test makes a LogSetup."""

from __future__ import annotations

from typing import Any

from esg.log.files import LogFiles
from esg.log.records import worker_subject
from esg.log.setup import LogSetup
from esg.settings.schema import Config

SUBJECT = worker_subject(3, 2, 4711)


def setup(**settings: Any) -> LogSetup:
    """The set-up for these settings, with only the standard streams open."""
    config = Config(app="example:app", **settings, origins=dict.fromkeys(settings, "test"))
    return LogSetup.open(config, LogFiles())
