"""Where the harness serves the host."""

from __future__ import annotations

import socket

import pytest

from tests.harness.launch import free_port


def test_the_next_port_is_taken_where_somebody_listens_at_the_first() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        first = listening.getsockname()[1]
        if first == 2**16 - 1:
            pytest.skip("there is no port after the highest")
        assert free_port(first) > first
    assert free_port(first) == first
