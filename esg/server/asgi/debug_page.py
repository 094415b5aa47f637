"""What `--debug` shows: the traceback of a failed request, as a page or as plain text, and why a
reload failed.
"""

from __future__ import annotations

import traceback

from esg.loader import application_traceback
from esg.server.asgi.types import Application, Headers, Receive, Scope, Send

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
{note}<p>Shown by <code>--debug</code>, which is for development only.</p>
</html>
"""


def content(error: BaseException, headers: Headers) -> tuple[bytes, bytes]:
    """Media type and body for a client that sent `headers`: HTML if it accepts that by name.

    See RFC 9110, section 12.5.1, for Accept. A browser names text/html; others get plain text.
    """
    text = application_traceback(error)
    if _wants_page(headers):
        title = traceback.format_exception_only(error)[-1].strip()
        return b"text/html", _page(title, text)
    return b"text/plain", f"{text}\n".encode("utf-8", "backslashreplace")


def in_front_of(app: Application, reason: str, detail: str) -> Application:
    """An application that shows browsers why a reload failed, and passes other requests to `app`.

    A GET from a client that accepts HTML by name counts as a browser's. The previous code serves
    all other requests.
    """
    last_line = detail.strip().rpartition("\n")[2] or reason
    page = _page(f"Reload failed: {last_line}", detail or reason, _STILL_SERVED)

    async def shown(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or not _wants_page(scope["headers"]):
            await app(scope, receive, send)
            return
        headers = [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-length", b"%d" % len(page)),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 500, "headers": headers})
        await send({"type": "http.response.body", "body": page})

    return shown


_STILL_SERVED = "<p>The last good code goes on serving clients that aren't browsers.</p>\n"


def _wants_page(headers: Headers) -> bool:
    return any(name == b"accept" and b"text/html" in value.lower() for name, value in headers)


def _page(title: str, text: str, note: str = "") -> bytes:
    import html  # seldom needed, and slow to import

    page = _PAGE.format(title=html.escape(title), text=html.escape(text), note=note)
    return page.encode("utf-8", "backslashreplace")
