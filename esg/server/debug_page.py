"""What `--debug` answers when an application raised: its traceback, as a page or as plain text."""

from __future__ import annotations

import html
import traceback

from esg.loader import application_traceback
from esg.server.asgi import Headers

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font-family: sans-serif; margin: 2em }}
pre {{ background: #f4f4f4; padding: 1em; overflow-x: auto }}
</style>
<h1>{title}</h1>
<pre>{text}</pre>
<p>Shown by <code>--debug</code>, which is for development only.</p>
</html>
"""


def content(error: BaseException, headers: Headers) -> tuple[bytes, bytes]:
    """Media type and body for a client that sent `headers`: HTML if it accepts that by name.

    See RFC 9110, section 12.5.1, for Accept. A browser names text/html; others take plain text.
    """
    text = application_traceback(error)
    if any(name == b"accept" and b"text/html" in value.lower() for name, value in headers):
        title = traceback.format_exception_only(error)[-1].strip()
        page = _PAGE.format(title=html.escape(title), text=html.escape(text))
        return b"text/html", page.encode("utf-8", "backslashreplace")
    return b"text/plain", f"{text}\n".encode("utf-8", "backslashreplace")
