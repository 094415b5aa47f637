"""Starts a server that has no command line: `python bench/launch.py SERVER INTERFACE APP PORT`."""

import importlib
import os
import sys
from typing import Any


def main() -> None:
    server, interface, target, port = sys.argv[1:]
    sys.path.insert(0, os.getcwd())
    module, _, name = target.partition(":")
    app: Any = getattr(importlib.import_module(module), name)
    if server == "freastal":
        import freastal

        serve = freastal.serve_asgi if interface == "asgi" else freastal.serve
        serve(app, host="127.0.0.1", port=int(port))
    else:
        import fastpysgi

        fastpysgi.run(app, host="127.0.0.1", port=int(port))


if __name__ == "__main__":
    main()
