"""ESG: a process manager and an ASGI server in one program."""

from esg.payload import WorkerInfo, current_worker

__version__ = "0.1.0"

__all__ = ["WorkerInfo", "__version__", "current_worker"]
