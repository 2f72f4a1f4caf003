"""Asking the policy server something: one connection, one question, one answer."""

from __future__ import annotations

import os
from typing import TypeVar

import trio

from m2m.auth import DomainKey
from m2m.errors import M2MError
from m2m.policy.channel import Channel, ChannelError, Side
from m2m.policy.endpoint import Endpoint
from m2m.policy.messages import (
    AgentInfo,
    Agents,
    FromServer,
    ListAgents,
    Loaded,
    LoadFile,
    Refused,
    ToServer,
)

__all__ = ["ServerAway", "connect", "list_agents", "load_file"]

_CONNECT = 3.0  # s
_ANSWER = 10.0  # s beyond what the question itself says

Answer = TypeVar("Answer", Loaded, Agents)


class ServerAway(M2MError):
    """The policy server cannot be reached, or does not share our key."""


async def connect(
    server: Endpoint, key: DomainKey, source: str | None = None
) -> Channel[FromServer]:
    """A channel to *server*, from the address *source* if that is given.

    Raises :exc:`ServerAway` after a few seconds at most.
    """
    try:
        with trio.fail_after(_CONNECT):
            stream = await trio.open_tcp_stream(server.host, server.port, local_address=source)
        return await Channel.open(stream, key, Side.CLIENT, FromServer)
    except trio.TooSlowError:
        why = f"no answer within {_CONNECT:g} s"
    except OSError as error:
        why = _reason(error)
    except ChannelError as error:
        why = str(error)
    raise ServerAway(f"cannot reach the policy server at {server}: {why}")


def _reason(error: BaseException) -> str:
    """Why connecting failed, below what Trio says of all the addresses it tried."""
    while isinstance(error, BaseExceptionGroup) or error.__cause__ is not None:
        cause = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__
        assert cause is not None
        error = cause
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return str(error)


async def load_file(
    server: Endpoint, key: DomainKey, file: str, text: str, *, wait: float = 2.0
) -> Loaded:
    """Have *server* replace its policy by *text*, of the file named *file*.

    Returns when all connected agents have it in force, or after *wait* seconds. Raises
    :exc:`M2MError` when it refuses, and :exc:`ServerAway`.
    """
    return await _ask(server, key, LoadFile(file, text, wait), Loaded, wait + _ANSWER)


async def list_agents(server: Endpoint, key: DomainKey) -> tuple[AgentInfo, ...]:
    """Every agent that *server* has ever seen, by name. Raises :exc:`ServerAway`."""
    return (await _ask(server, key, ListAgents(), Agents, _ANSWER)).agents


async def _ask(
    server: Endpoint, key: DomainKey, question: ToServer, kind: type[Answer], within: float
) -> Answer:
    async with await connect(server, key) as channel:
        try:
            with trio.fail_after(within):
                await channel.send(question)
                answer = await channel.receive()
        except trio.TooSlowError:
            raise ServerAway(
                f"the policy server at {server} does not answer within {within:g} s"
            ) from None
        except ChannelError as error:
            raise ServerAway(f"the policy server at {server} went away: {error}") from error
        if isinstance(answer, Refused):
            raise M2MError(answer.why)
        if not isinstance(answer, kind):
            raise ServerAway(f"the policy server at {server} went away before it answered")
        return answer
