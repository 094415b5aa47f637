"""Tables that translate gunicorn's, hypercorn's and uvicorn's names into ESG's settings."""

from __future__ import annotations

import ast
from collections.abc import Mapping

WORKER_CLASSES: Mapping[str, Mapping[str, str]] = {
    "asgi": {},
    "uvicorn.workers.UvicornWorker": {},
    "uvicorn_worker.UvicornWorker": {},
    "esg.workers.ESGWorker": {},
    "esg.workers.ESGH11Worker": {"http": "h11", "loop": "asyncio"},
    "uvicorn.workers.UvicornH11Worker": {"http": "h11"},
    "uvicorn_worker.UvicornH11Worker": {"http": "h11"},
    "sync": {"interface": "wsgi"},
    "gthread": {"interface": "wsgi"},
    "asyncio": {"loop": "asyncio"},
    "uvloop": {"loop": "uvloop"},
}
"""Worker classes that ESG replaces, and the settings that each of them implies. The last two are
hypercorn's."""

_CANT = {
    "gevent": "it patches the standard library, and ESG's workers run asyncio",
    "eventlet": "it patches the standard library, and ESG's workers run asyncio",
    "tornado": "Tornado's applications have their own interface",
    "aiohttp": "aiohttp's applications have their own interface",
    "trio": "ESG's workers run asyncio",
}

RENAMED: Mapping[str, str] = {
    "accesslog": "access_logfile",
    "access_log_format": "access_logformat",
    "errorlog": "error_logfile",
    "keepalive": "timeout_keep_alive",
    "logconfig": "log_config",
    "logconfig_dict": "log_config",
    "logconfig_json": "log_config",
    "loglevel": "log_level",
    "pidfile": "pid",
    "preload_app": "preload",
    "proc_name": "name",
    "pythonpath": "app_dir",
    "raw_env": "env_file",
    "wsgi_app": "app",
}
"""Settings that have another name in gunicorn's configuration file."""

PLURALS: Mapping[str, str] = {
    "headers": "header",
    "reload_dirs": "reload_dir",
    "reload_excludes": "reload_exclude",
    "reload_includes": "reload_include",
}
"""Options that have another name in uvicorn's Python interface."""


def why_not(worker_class: str) -> str:
    """Why ESG can't replace a worker class that isn't in WORKER_CLASSES."""
    reasons = [reason for word, reason in _CANT.items() if word in worker_class.lower()]
    return reasons[0] if reasons else "ESG has its own workers"


def assigned_names(source: str) -> list[str]:
    """The names that a Python configuration file sets or defines. The file isn't run."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError):
        return []
    names: list[str] = []
    for statement in body:
        if isinstance(statement, ast.Assign):
            names += [target.id for target in statement.targets if isinstance(target, ast.Name)]
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            names.append(statement.target.id)
        elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            names.append(statement.name)
    return list(dict.fromkeys(names))
