"""Where the policy server listens, as people write it."""

from __future__ import annotations

import pytest

from m2m.errors import ConfigError
from m2m.policy.endpoint import POLICY_PORT, Endpoint


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.1", "10.0.0.1", POLICY_PORT),
        ("10.0.0.1:99", "10.0.0.1", 99),
        ("policy.example:65535", "policy.example", 65535),
        ("[::1]", "::1", POLICY_PORT),
        ("[2001:db8::1]:5000", "2001:db8::1", 5000),
    ],
)
def test_written_endpoints_are_read_and_written_back(text: str, host: str, port: int) -> None:
    endpoint = Endpoint.parse(text)
    assert endpoint == (host, port)
    assert Endpoint.parse(str(endpoint)) == endpoint


def test_a_host_left_out_is_filled_in_where_that_makes_sense() -> None:
    assert Endpoint.parse(":99", host="*") == ("*", 99)
    with pytest.raises(ConfigError, match="':99' is not HOST"):
        Endpoint.parse(":99")


@pytest.mark.parametrize("text", ["", "::1", "a:b", "a:", "[::1", "a b", "a:1:2", "[::1]x"])
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not HOST, HOST:PORT or \[IPv6\]:PORT"):
        Endpoint.parse(text)


@pytest.mark.parametrize("port", [0, 65536, 99999])
def test_what_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(ConfigError, match=f"port {port} in .* is not between 1 and 65535"):
        Endpoint.parse(f"a:{port}")
