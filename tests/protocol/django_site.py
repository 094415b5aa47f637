"""A Django site in one module, with its WSGI and its ASGI application."""

from __future__ import annotations

import asyncio
import hashlib

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.signals import request_finished
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

CONTENT = bytes(range(256)) * 8000

finished: list[str] = []
streams: list[str] = []


def hello(request):
    return HttpResponse("hello")


def facts(request, name):
    return JsonResponse(
        {
            "name": name,
            "path": request.path,
            "query": request.GET.get("q"),
            "form": request.POST.dict(),
            "cookies": request.COOKIES,
            "client": request.META["REMOTE_ADDR"],
            "url": request.build_absolute_uri(),
            "body": len(request.body) if not request.POST else None,
        }
    )


def upload(request):
    file = request.FILES["file"]
    digest = hashlib.sha256()
    for block in file.chunks():
        digest.update(block)
    return JsonResponse({"name": file.name, "size": file.size, "sha256": digest.hexdigest()})


def cookies(request):
    response = HttpResponse("set")
    response.set_cookie("a", "1")
    response.set_cookie("b", "2", httponly=True)
    return response


def stream(request):
    def pieces():
        for number in range(100):
            yield f"{number}\n"

    return StreamingHttpResponse(pieces(), content_type="text/plain")


def endless(request):
    def pieces():
        try:
            while True:
                yield bytes(10_000)
        finally:
            streams.append("closed")

    return StreamingHttpResponse(pieces())


def file(request):
    return FileResponse(open(__file__, "rb"))


async def in_a_loop(request):
    await asyncio.sleep(0)
    return HttpResponse(request.path)


def fail(request):
    raise ValueError("broken view")


urlpatterns = [
    path("", hello),
    path("facts/<str:name>", facts),
    path("upload", upload),
    path("cookies", cookies),
    path("stream", stream),
    path("endless", endless),
    path("file", file),
    path("async", in_a_loop),
    path("fail", fail),
]

settings.configure(
    ALLOWED_HOSTS=["*"],
    DEBUG=False,
    FILE_UPLOAD_MAX_MEMORY_SIZE=65536,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="not a secret",
    USE_TZ=True,
)
django.setup()
request_finished.connect(lambda **_: finished.append("finished"), weak=False)

wsgi = get_wsgi_application()
asgi = get_asgi_application()
