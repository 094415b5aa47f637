"""Runs the tests of other modules over TLS."""

from __future__ import annotations

import pytest

from .test_closing import *  # noqa: F403 - these tests are collected here, with this module's `tls`
from .test_disconnects import *  # noqa: F403
from .test_flow_control import *  # noqa: F403
from .test_keep_alive import *  # noqa: F403
from .test_parked import *  # noqa: F403
from .test_pipelining import *  # noqa: F403
from .test_request_bodies import *  # noqa: F403
from .test_timeouts import *  # noqa: F403

# These check a connection before its first byte; with TLS, HTTP hasn't begun by then.
del test_a_client_that_closes_without_a_request_is_disconnected  # noqa: F821
del test_a_client_that_never_sends_a_byte_is_disconnected  # noqa: F821
del test_draining_serves_the_first_request_of_a_new_connection  # noqa: F821
# These write to the socket itself.
del test_a_cancelled_receive_loses_nothing  # noqa: F821
del test_a_loop_that_always_blocks_reads_before_clients_count_as_late  # noqa: F821


@pytest.fixture
def tls(authority, certificate):
    """Over TLS."""
    certfile, keyfile = certificate
    settings = {"ssl_certfile": certfile, "ssl_keyfile": keyfile}
    return settings, authority.client_context()


@pytest.fixture
def piece():
    """Clients send everything at once here; the original modules also try pieces."""
    return
