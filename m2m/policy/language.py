"""The policy language: from text to a syntax tree in which every name and value is sound (§3.2).

::

    nf firewall inline { fw1 = 10.0.1.2 }
    match(srcip=10.0.1.0/24 & dstport=80) >> {firewall} fail=closed

What only the whole rule set can tell (unreachable rules, predicates that match nothing, chains
that no set of hosts can serve) is found by :mod:`m2m.policy.compile`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from lark import Lark, Token
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from m2m.policy.rules import ALLOWED, Asker, ChangeMode, Choose, Fail, Kind, Live, Shows
from m2m.policy.source import Place, PolicyError, Source, shown
from m2m.policy.syntax import (
    And,
    Anything,
    Field,
    GatewayDecl,
    InstanceDecl,
    NfDecl,
    Not,
    Or,
    PolicyFile,
    Predicate,
    RuleDecl,
    Span,
    Step,
    Term,
)
from m2m.policy.values import Wrong, host_address, spans_of
from m2m.protocol.flow import Address, format_address, is_ipv4
from m2m.protocol.wire import MAX_CHAIN

__all__ = ["MAX_NESTING", "PolicyError", "parse", "parse_predicate", "parse_source"]

MAX_NESTING = 64
"""Parentheses and ``~`` within one another, at most."""

_MAX_STEPS = MAX_CHAIN - 1  # the server is the last hop of every chain
_NF_NAME = re.compile(r"[a-z][a-z0-9_-]{0,14}", re.ASCII)
_INSTANCE_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,62}", re.ASCII)

_FIELDS = ", ".join(Field)
_TERMINALS = {
    "_NF": "'nf'",
    "_GATEWAY": "'gateway'",
    "_SERVES": "'serves'",
    "_MATCH": "'match'",
    "_PORT": "'port'",
    "_SHOWS": "'shows'",
    "_CHOOSE": "'choose'",
    "FAIL": "'fail'",
    "CHANGE": "'change'",
    "LIVE": "'live'",
    "ALLOW": "'allow'",
    "_LPAR": "'('",
    "_RPAR": "')'",
    "_LBRACE": "'{'",
    "_RBRACE": "'}'",
    "_INTO": "'>>'",
    "_ARROW": "'->'",
    "_COMMA": "','",
    "_EQ": "'='",
    "EQUAL": "'='",
    "UNEQUAL": "'!='",
    "_AND": "'&'",
    "_OR": "'|'",
    "NOT": "'~'",
    "STAR": "'*'",
    "ANY": "'any'",
    "NF_NAME": "the name of an NF type",
    "KIND": "the kind of the NF type (tap, inline or proxy)",
    "LISTEN": "a port",
    "CHOICE": "hash, least-loaded or agent",
    "INSTANCE_NAME": "the name of an instance",
    "ADDRESS": "an address",
    "GATEWAY_NAME": "the name of a gateway",
    "NETWORK": "a network",
    "CHAIN_NAME": "the name of an NF type",
    "FAILURE": "open or closed",
    "MODE": "lf, op or ss+op",
    "LIVENESS": "follow or stay",
    "ASKER": "operator, nf or policy",
    "FIELD": f"a field ({_FIELDS})",
    "VALUE": "a value",
    "$END": "the end of the file",
}

_WHOLE = {"start": "file", "predicate": "predicate"}  # what is read, by its rule of the grammar

_E = TypeVar("_E", bound=StrEnum)
_Node: TypeAlias = Any
"""A tree or a token of lark's; the grammar says which of them stands where."""


def parse(text: str, file: str = "<policy>") -> PolicyFile:
    """Read a policy. *file* is the name by which errors call it.

    Raises :exc:`PolicyError` for the first thing that is wrong, and nothing else.
    """
    return parse_source(Source(file, text))


def parse_source(source: Source) -> PolicyFile:
    """Like :func:`parse`, for a :class:`Source`."""
    return _Reader(source).policy_file(_tree(source, "start"))


def parse_predicate(text: str, file: str = "<predicate>") -> Predicate:
    """Read what stands between the parentheses of ``match(...)``. Raises :exc:`PolicyError`."""
    source = Source(file, text)
    return _Reader(source).predicate(_tree(source, "predicate"))


def _tree(source: Source, start: str) -> _Node:
    try:
        return _parser().parse(source.text, start=start)
    except UnexpectedInput as error:
        raise _syntax_error(source, error, _WHOLE[start]) from None


@cache
def _parser() -> Lark:
    grammar = Path(__file__).with_name("grammar.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", start=["start", "predicate"], propagate_positions=True)


def _syntax_error(source: Source, error: UnexpectedInput, whole: str) -> PolicyError:
    advice = ""
    end = f"the end of the {whole}"
    if isinstance(error, UnexpectedToken):
        expected: Iterable[str] = error.expected
        if error.token.type == "$END":
            found = end
            lines = source.text.rstrip().split("\n")
            place = Place(len(lines), len(lines[-1]) + 1)
        else:
            found = shown(error.token)
            place = Place(error.line, error.column)
    else:
        assert isinstance(error, UnexpectedCharacters)
        expected = error.allowed or ()
        character = source.text[error.pos_in_stream or 0]
        found = shown(character) if character.isprintable() else f"U+{ord(character):04X}"
        if not character.isascii():
            found += f" (U+{ord(character):04X})" if character.isprintable() else ""
            advice = "only ASCII and the arrow → can stand outside comments"
        place = Place(error.line, error.column)
    names = {_TERMINALS[name] for name in expected if name in _TERMINALS} or {end}
    return PolicyError(source, place, _one_of(sorted(names)), found, advice)


def _one_of(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _similar(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean {close[0]}? " if close else ""


class _Reader:
    """Turns the parse tree into syntax, checking names and values on the way."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def policy_file(self, tree: _Node) -> PolicyFile:
        nfs: dict[str, NfDecl] = {}
        for node in tree.children:
            if node.data != "nf":
                continue
            nf = self._nf(node)
            if nf.name in nfs:
                raise self._error(
                    nf.place,
                    "a new name for an NF type",
                    shown(nf.name),
                    f"line {nfs[nf.name].place.line} declares it already; put all its instances "
                    "there, or take another name",
                )
            nfs[nf.name] = nf
        rules = tuple(self._rule(node, nfs) for node in tree.children if node.data == "rule")
        gateways = self._gateways([node for node in tree.children if node.data == "gateway"])
        return PolicyFile(self._source, tuple(nfs.values()), rules, gateways)

    def _gateways(self, trees: list[_Node]) -> tuple[GatewayDecl, ...]:
        """All of them: no two have a name, an address or a network in common."""
        gateways: list[GatewayDecl] = []
        for tree in trees:
            name, address, *networks = tree.children
            self._name(name, _INSTANCE_NAME, "a gateway", 63)
            try:
                host = host_address(str(address))
            except Wrong as wrong:
                raise self._wrong(address, wrong) from None
            serves: list[Span] = []
            for token in networks:
                serves.append(self._network(token, host, [*gateways, (name, host, serves)]))
            for other in gateways:
                if name == other.name or host == other.address:
                    raise self._error(
                        _place(name if name == other.name else address),
                        f"a new {'name' if name == other.name else 'address'} for a gateway",
                        shown(name) if name == other.name else format_address(host),
                        f"line {other.place.line} has it already; put all its networks there",
                    )
            gateways.append(GatewayDecl(str(name), host, tuple(serves), _place(name)))
        return tuple(gateways)

    def _network(self, token: Token, host: Address, served: list[Any]) -> Span:
        """Not one of those that are *served* already, and of the same family as *host*."""
        try:
            ((low, high),) = spans_of(Field.SRCIP, str(token))
        except Wrong as wrong:
            raise self._wrong(token, wrong) from None
        if is_ipv4(low.to_bytes(16)) != is_ipv4(host):
            raise self._error(
                _place(token),
                "networks of the family of the gateway's address",
                f"{token} behind {format_address(host)}",
                "headers are not translated between families; declare another gateway for it",
            )
        for name, _, spans, *_ in served:
            if any(low <= last and first <= high for first, last in spans):
                raise self._error(
                    _place(token),
                    "a network that no gateway serves yet",
                    f"{token}, of which {name} serves a part",
                    "hosts have one gateway; divide the networks between the two",
                )
        return low, high

    def _nf(self, tree: _Node) -> NfDecl:
        name, kind, port, shown_as, choice, *rest = tree.children
        place = _place(name)
        self._name(name, _NF_NAME, "an NF type", 15)
        instances: dict[str, InstanceDecl] = {}
        hosts: dict[Address, str] = {}
        for node in rest:
            if node is None:
                raise self._error(
                    place,
                    "at least one instance of every NF type",
                    f"none of {shown(name)}",
                    "write NAME = ADDRESS between the braces",
                )
            instance = self._instance(node)
            if instance.name in instances:
                raise self._error(
                    instance.place,
                    f"a new name for an instance of {name}",
                    shown(instance.name),
                    f"line {instances[instance.name].place.line} has it already",
                )
            if instance.address in hosts:
                raise self._error(
                    _place(node.children[1]),
                    f"a new address for an instance of {name}",
                    format_address(instance.address),
                    f"{hosts[instance.address]} runs there already; a host runs an NF type once",
                )
            instances[instance.name] = instance
            hosts[instance.address] = instance.name
        named = self._word(Kind, kind, "a kind of NF")
        return NfDecl(
            str(name),
            named,
            Choose.HASH if choice is None else self._word(Choose, choice, "a way to choose"),
            tuple(instances.values()),
            place,
            self._port(named, port, place),
            self._shows(named, shown_as),
        )

    def _port(self, kind: Kind, token: Token | None, place: Place) -> int:
        """Where a proxy listens; others do not."""
        if token is None:
            if kind is Kind.PROXY:
                raise self._error(
                    place,
                    "the port where a proxy listens",
                    "none",
                    "write port=NUMBER behind the kind",
                )
            return 0
        self._proxies_alone(kind, token, "a port", "packets pass it: leave port= out")
        try:
            ((low, high),) = spans_of(Field.DSTPORT, str(token))
        except Wrong as wrong:
            raise self._wrong(token, wrong) from None
        if low != high or not low:
            raise self._error(_place(token), "one port from 1 to 65535", shown(token))
        return low

    def _shows(self, kind: Kind, token: Token | None) -> Shows:
        """What is seen behind a proxy; behind others it is the session itself."""
        if token is None:
            return Shows.CLIENT
        advice = "behind it sessions are what they were: leave shows= out"
        self._proxies_alone(kind, token, "shows=", advice)
        return self._word(Shows, token, "whose connections are seen behind a proxy")

    def _proxies_alone(self, kind: Kind, token: Token, what: str, advice: str) -> None:
        """Only those have *what*."""
        if kind is not Kind.PROXY:
            found = f"that of one that is {kind}"
            raise self._error(_place(token), f"{what} of proxies alone", found, advice)

    def _instance(self, tree: _Node) -> InstanceDecl:
        name, address = tree.children
        self._name(name, _INSTANCE_NAME, "an instance", 63)
        try:
            return InstanceDecl(str(name), host_address(str(address)), _place(name))
        except Wrong as wrong:
            raise self._wrong(address, wrong) from None

    def _rule(self, tree: _Node, nfs: dict[str, NfDecl]) -> RuleDecl:
        condition, chain, *given = tree.children
        options = self._options(given)
        steps: list[Step] = []
        for name in chain.children:
            if name is None:
                break
            if name not in nfs:
                known = ", ".join(nfs) or "none"
                raise self._error(
                    _place(name),
                    "the name of a declared NF type",
                    shown(name),
                    f"{_similar(name, nfs)}Declared are: {known}",
                )
            if any(name == step.nf for step in steps):
                raise self._error(
                    _place(name),
                    "every NF type at most once in a chain",
                    f"{shown(name)} again",
                    "a session passes a host once; declare a second NF type for a second visit",
                )
            if len(steps) == _MAX_STEPS:
                raise self._error(
                    _place(name), f"at most {_MAX_STEPS} NF types in a chain", f"{shown(name)} more"
                )
            steps.append(Step(str(name), _place(name)))
        if "fail" in options and not steps:
            (failure,) = options["fail"]
            raise self._error(
                _place(failure),
                "no fail= behind an empty chain",
                shown(failure),
                "an exempted session has no chain that could fail; leave it out",
            )
        return RuleDecl(
            self.predicate(condition),
            tuple(steps),
            self._one(options, "fail", Fail.CLOSED, "a way to fail"),
            self._one(options, "change", ChangeMode.OP, "a mode of changes"),
            self._one(options, "live", Live.STAY, "what live sessions do"),
            self._askers(options["allow"]) if "allow" in options else ALLOWED,
            self._source.extract(tree.meta.start_pos, tree.meta.end_pos),
            _place(tree.meta),
        )

    def _options(self, given: list[_Node]) -> dict[str, list[Token]]:
        """The values of what stands behind a chain, by the option's name."""
        options: dict[str, list[Token]] = {}
        for tree in given:
            name, *values = tree.children
            if name in options:
                raise self._error(
                    _place(name),
                    "every option at most once in a rule",
                    f"{shown(name + '=')} again",
                    "leave one of them out",
                )
            options[str(name)] = [value for value in values if value is not None]
        return options

    def _one(self, options: dict[str, list[Token]], name: str, default: _E, what: str) -> _E:
        return self._word(type(default), options[name][0], what) if name in options else default

    def _askers(self, words: list[Token]) -> tuple[Asker, ...]:
        named = {self._word(Asker, word, "who may ask") for word in words}
        return tuple(asker for asker in Asker if asker in named)

    def predicate(self, tree: _Node) -> Predicate:
        return self._predicate(tree, 0)

    def _predicate(self, tree: _Node, depth: int) -> Predicate:
        place = _place(tree.meta)
        if depth > MAX_NESTING:
            raise self._error(
                place,
                f"parentheses and ~ at most {MAX_NESTING} deep",
                f"a depth of {depth}",
                "split the predicate into several rules",
            )
        match tree.data:
            case "anything":
                return Anything(place)
            case "term":
                return self._term(tree)
            case "group":
                return self._predicate(tree.children[0], depth + 1)
            case "negation":
                inner = self._predicate(tree.children[1], depth + 1)
                text = self._source.extract(tree.meta.start_pos, tree.meta.end_pos)
                return Not(inner, text, place)
            case _:
                parts = tuple(self._predicate(part, depth) for part in tree.children)
                return And(parts, place) if tree.data == "conjunction" else Or(parts, place)

    def _term(self, tree: _Node) -> Term:
        name, operator, value = tree.children
        if name not in list(Field):
            raise self._error(
                _place(name),
                f"a field ({_FIELDS})",
                shown(name),
                _similar(name, Field).rstrip(),
            )
        field = Field(name)
        try:
            spans = spans_of(field, str(value))
        except Wrong as wrong:
            raise self._wrong(value, wrong) from None
        return Term(field, operator == "!=", spans, f"{name}{operator}{value}", _place(name))

    def _word(self, kind: type[_E], token: Token, what: str) -> _E:
        try:
            return kind(str(token))
        except ValueError:
            raise self._error(
                _place(token),
                f"{what} ({', '.join(kind)})",
                shown(token),
                _similar(token, kind).rstrip(),
            ) from None

    def _name(self, token: Token, pattern: re.Pattern[str], what: str, limit: int) -> None:
        if not pattern.fullmatch(token):
            raise self._error(
                _place(token),
                f"a name for {what}",
                shown(token),
                f"a name begins with a letter from a to z, goes on with those, digits, _, - "
                f"{'and . ' if limit > 15 else ''}and has at most {limit} characters",
            )

    def _wrong(self, token: Token, wrong: Wrong) -> PolicyError:
        line, column = _place(token)
        return self._error(
            Place(line, column + wrong.at), wrong.expected, wrong.found, wrong.advice
        )

    def _error(self, place: Place, expected: str, found: str, advice: str = "") -> PolicyError:
        return PolicyError(self._source, place, expected, found, advice)


def _place(at: _Node) -> Place:
    """The place of a token or of a tree's metadata."""
    return Place(at.line, at.column)
