"""Runs some of the tests of WebSockets over TLS."""

from __future__ import annotations

import pytest

from .test_websocket import (
    Echo,
    test_a_client_that_answers_no_ping_is_disconnected,
    test_a_client_that_leaves_without_a_close_frame_is_a_disconnect,
    test_a_client_that_never_answers_a_close_is_disconnected,
    test_a_client_that_reads_nothing_is_reset,
    test_a_close_by_the_application_reaches_the_client,
    test_a_close_by_the_client_reaches_the_application,
    test_a_denial_response_is_sent,
    test_a_message_that_is_too_big_closes_with_1009,
    test_a_send_that_waits_ends_with_the_connection,
    test_a_slow_client_stops_the_application,
    test_compression_is_agreed_on,
    test_frames_of_any_size_are_echoed,
    test_frames_sent_together_with_the_handshake_are_read,
    test_messages_go_both_ways,
    test_the_number_of_queued_messages_is_limited,
)
from .ws_client import WebSocket

__all__ = [
    "test_a_client_that_answers_no_ping_is_disconnected",
    "test_a_client_that_leaves_without_a_close_frame_is_a_disconnect",
    "test_a_client_that_never_answers_a_close_is_disconnected",
    "test_a_client_that_reads_nothing_is_reset",
    "test_a_close_by_the_application_reaches_the_client",
    "test_a_close_by_the_client_reaches_the_application",
    "test_a_denial_response_is_sent",
    "test_a_message_that_is_too_big_closes_with_1009",
    "test_a_send_that_waits_ends_with_the_connection",
    "test_a_slow_client_stops_the_application",
    "test_compression_is_agreed_on",
    "test_frames_of_any_size_are_echoed",
    "test_frames_sent_together_with_the_handshake_are_read",
    "test_messages_go_both_ways",
    "test_the_number_of_queued_messages_is_limited",
]


@pytest.fixture
def tls(authority, certificate):
    """Over TLS."""
    certfile, keyfile = certificate
    settings = {"ssl_certfile": certfile, "ssl_keyfile": keyfile}
    return settings, authority.client_context()


@pytest.fixture
def parser_settings():
    """TLS doesn't depend on the parser or the library."""
    return {}


async def test_the_scope_has_wss_and_the_tls_extension(serve):
    echo = Echo()
    await WebSocket.open(serve(echo))
    assert echo.scope["scheme"] == "wss"
    assert echo.scope["extensions"]["tls"]["tls_version"] in (0x0303, 0x0304)
