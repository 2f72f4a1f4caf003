"""The policy language: what it reads, and how it says what it cannot read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m2m.errors import ConfigError
from m2m.policy.compile import compile_policy
from m2m.policy.language import MAX_NESTING, PolicyError, parse, parse_predicate
from m2m.policy.rules import ALLOWED, Asker, ChangeMode, Choose, Fail, Kind, Live
from m2m.policy.source import Source
from m2m.policy.syntax import Anything, matches, refusals
from m2m.protocol.flow import Flow, parse_address

DOCUMENT = Path(__file__).parents[2] / "docs" / "policy-language.md"
PRELUDE = """\
nf firewall inline { fw1 = 10.0.2.2 }
nf ids tap choose=least-loaded { ids1 = 10.0.4.2, ids2 = 10.0.5.2 }
"""
WEB = Flow.of(6, "10.0.1.5", 4000, "10.0.9.1", 80)
DNS6 = Flow.of(17, "2001:db8::5", 4000, "2001:db8::53", 53)


def predicate_matches(predicate: str, flow: Flow) -> bool:
    [rule] = parse(f"match({predicate}) >> {{}}").rules
    return matches(rule.predicate, flow)


def error_of(text: str, file: str = "site.m2m") -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        compile_policy(parse(text, file))
    return caught.value


def test_reads_nf_types() -> None:
    firewall, ids = parse(PRELUDE).nfs
    assert (firewall.name, firewall.kind, firewall.choose) == ("firewall", Kind.INLINE, Choose.HASH)
    assert (ids.name, ids.kind, ids.choose) == ("ids", Kind.TAP, Choose.LEAST_LOADED)
    assert [(one.name, one.address) for one in ids.instances] == [
        ("ids1", parse_address("10.0.4.2")),
        ("ids2", parse_address("10.0.5.2")),
    ]


def test_reads_rules() -> None:
    text = PRELUDE + (
        "match(srcip=10.0.1.0/24 &  # clients\n"
        "      dstport=80)\n"
        "  >> {firewall → ids->dpi} fail=open\n"
        "match(any) >> {}\n"
        "match ( * ) >> { ids }\n"
        "nf dpi tap { d = 2001:db8::1, }  # types may follow the rules that use them\n"
    )
    first, second, third = parse(text).rules
    assert [step.nf for step in first.chain] == ["firewall", "ids", "dpi"]
    assert (first.fail, second.fail) == (Fail.OPEN, Fail.CLOSED)
    assert first.place == (3, 1)
    assert first.text == (
        "match(srcip=10.0.1.0/24 & dstport=80) >> {firewall → ids->dpi} fail=open"
    )
    assert second.chain == ()
    assert isinstance(second.predicate, Anything)
    assert isinstance(third.predicate, Anything)


def test_reads_options_in_any_order() -> None:
    plain, full, nobody = parse(
        PRELUDE
        + "match(dstport=1) >> {ids}\n"
        + "match(dstport=2) >> {ids} allow={policy, nf,} live=follow change=ss+op fail=open\n"
        + "match(dstport=3) >> {} change=lf allow={}"
    ).rules
    assert (plain.change, plain.live, plain.allow) == (ChangeMode.OP, Live.STAY, ALLOWED)
    assert (full.fail, full.change, full.live) == (Fail.OPEN, ChangeMode.SS_OP, Live.FOLLOW)
    assert full.allow == (Asker.NF, Asker.POLICY)
    assert full.text.endswith("allow={policy, nf,} live=follow change=ss+op fail=open")
    assert (nobody.change, nobody.allow) == (ChangeMode.LF, ())


def test_reads_a_predicate_alone() -> None:
    assert matches(parse_predicate("srcip=10.0.1.0/24 & (dstport=80 | dstport=81)"), WEB)
    assert not matches(parse_predicate("~dstport=80"), WEB)
    assert isinstance(parse_predicate("*"), Anything)
    with pytest.raises(PolicyError) as caught:
        parse_predicate("dstport=80)", "--match")
    assert (caught.value.place, caught.value.expected) == ((1, 11), "the end of the predicate")
    with pytest.raises(PolicyError, match="found the end of the predicate"):
        parse_predicate("", "--match")


def test_an_empty_file_is_a_policy() -> None:
    assert parse("").rules == ()
    assert parse("# nothing yet").nfs == ()


def test_line_endings_and_byte_order_mark_do_not_matter() -> None:
    policy = parse("\ufeff" + PRELUDE.replace("\n", "\r\n") + "match(any) >> {ids}\r\n")
    assert policy.rules[0].place == (3, 1)


@pytest.mark.parametrize(
    ("predicate", "flow", "expected"),
    [
        ("srcip=10.0.1.5", WEB, True),
        ("srcip=10.0.1.6", WEB, False),
        ("srcip=10.0.0.0/16", WEB, True),
        ("srcip=10.0.0.0/24", WEB, False),
        ("srcip=0.0.0.0/0", DNS6, False),
        ("srcip=::/0", DNS6, True),
        ("srcip=::/0", WEB, False),
        ("dstip=10.0.9.1-10.0.9.1", WEB, True),
        ("dstip=10.0.9.0-10.0.9.9", WEB, True),
        ("dstip=2001:db8::1-2001:db8::53", DNS6, True),
        ("dstip=2001:db8::/32", DNS6, True),
        ("srcport=4000", WEB, True),
        ("dstport=4000", WEB, False),
        ("dstport=79-80", WEB, True),
        ("dstport=81-90", WEB, False),
        ("dstport!=80", WEB, False),
        ("dstport!=81", WEB, True),
        ("proto=tcp", WEB, True),
        ("proto=TCP", WEB, True),
        ("proto=6", WEB, True),
        ("proto=udp", WEB, False),
        ("proto=17", DNS6, True),
        ("~srcip=10.0.0.0/8", DNS6, True),
        ("~srcip=10.0.0.0/8", WEB, False),
        ("srcip!=10.0.0.0/8", DNS6, True),
        ("~~dstport=80", WEB, True),
    ],
)
def test_terms(predicate: str, flow: Flow, expected: bool) -> None:
    assert predicate_matches(predicate, flow) is expected


@pytest.mark.parametrize(
    ("predicate", "expected"),
    [
        ("dstport=80 | dstport=80 & dstport=81", True),  # & before |
        ("(dstport=80 | dstport=80) & dstport=81", False),
        ("~dstport=81 & dstport=80", True),  # ~ before &
        ("~dstport=80 | dstport=80", True),
        ("~(dstport=80 | dstport=81)", False),
    ],
)
def test_precedence(predicate: str, expected: bool) -> None:
    assert predicate_matches(predicate, WEB) is expected


def test_other_protocols_never_match() -> None:
    sctp = WEB._replace(proto=132)
    assert not predicate_matches("*", sctp)
    assert not predicate_matches("~proto=tcp", sctp)
    assert not predicate_matches("proto!=tcp", sctp)
    assert not predicate_matches("~(dstport=1 & srcport=1)", sctp)


def test_refusals_name_the_terms_that_failed() -> None:
    [rule] = parse("match(srcip=10.0.0.0/8 & (dstport=443 | ~srcport=4000)) >> {}").rules
    assert refusals(rule.predicate, WEB) == (
        "dstport=443 failed: dstport is 80",
        "~srcport=4000 failed: what it negates is true of this session",
    )
    assert refusals(rule.predicate, WEB._replace(dport=443)) == ()
    assert refusals(rule.predicate, DNS6) == ("srcip=10.0.0.0/8 failed: srcip is 2001:db8::5",)


def test_an_error_points_at_the_place() -> None:
    error = error_of("\n\nmatch(srcip=10.0.1.0/24 dstport=80) >> {}\n")
    assert (error.file, error.line, error.column) == ("site.m2m", 3, 25)
    assert str(error) == (
        "site.m2m:3:25: expected '&', ')' or '|', found 'dstport'\n"
        "    match(srcip=10.0.1.0/24 dstport=80) >> {}\n"
        "                            ^"
    )


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("match(dstport=80-70000) >> {}", 1, 18),
        ("match(srcip=10.0.0.1-10.0.0.x) >> {}", 1, 22),
        ("match(srcip=10.0.0.0/x) >> {}", 1, 22),
        ("match(any) >> {\n  nope}", 2, 3),
        ("nf a tap { x = 10.0.0.1 }\nnf a tap { x = 10.0.0.1 }", 2, 4),
        ("nf a tap { x = 10.0.0.1,\n y = 10.0.0.1 }", 2, 6),
        ("match(srcport=1 | (dstport=1 & dstport=2)) >> {}", 1, 20),
        ("match(any) >> {}\nmatch(dstport=80) >> {}", 2, 1),
        ("match(any) >> {} live=follow\n  live=stay", 2, 3),
        ("match(any) >> {} allow={nf,\n  me}", 2, 3),
        ("match(any) >> {} change=op+ss", 1, 25),
        ("match(any) >> {}  # and\n   match", 2, 9),
    ],
)
def test_places(text: str, line: int, column: int) -> None:
    assert error_of(text).place == (line, column)


def test_the_caret_stands_below_the_column_whatever_stands_before_it() -> None:
    for line in ("\tmatch(\tport=1) >> {}", "match(" + " " * 300 + "port=1) >> {}"):
        _, shown, caret = str(error_of(line)).split("\n")
        assert shown[caret.index("^") :].startswith("port")
        assert len(shown) <= 120


def test_an_error_shows_nothing_that_a_terminal_obeys() -> None:
    error = error_of("match(srcip=\x1b[31m10.0.0.1) >> {}")
    assert "\x1b" not in str(error)
    assert "U+001B" in str(error)


def test_similar_names_are_suggested() -> None:
    assert "did you mean firewall?" in str(error_of(PRELUDE + "match(any) >> {firewal}"))
    assert "did you mean srcport?" in str(error_of("match(srcprt=1) >> {}"))
    assert "did you mean least-loaded?" in str(error_of("nf a tap choose=leastloaded {a=10.0.0.1}"))


def test_nesting_is_bounded() -> None:
    def nested(depth: int) -> str:
        return f"match({'(' * depth}dstport=80{')' * depth}) >> {{}}"

    parse(nested(MAX_NESTING))
    assert f"at most {MAX_NESTING} deep" in str(error_of(nested(MAX_NESTING + 1)))
    assert "deep" in str(error_of(nested(20_000)))
    assert "deep" in str(error_of(f"match({'~' * 20_000}dstport=80) >> {{}}"))


def test_chains_are_bounded() -> None:
    nfs = "".join(f"nf n{i} tap {{ a = 10.0.0.{i} }}\n" for i in range(1, 17))
    compile_policy(parse(nfs + f"match(any) >> {{{'->'.join(f'n{i}' for i in range(1, 16))}}}"))
    error = error_of(nfs + f"match(any) >> {{{'->'.join(f'n{i}' for i in range(1, 17))}}}")
    assert error.expected == "at most 15 NF types in a chain"


def test_names_have_a_length() -> None:
    parse(f"nf {'n' * 15} tap {{ {'i' * 63} = 10.0.0.1 }}")
    assert error_of(f"nf {'n' * 16} tap {{ i = 10.0.0.1 }}").expected == "a name for an NF type"
    assert error_of(f"nf n tap {{ {'i' * 64} = 10.0.0.1 }}").expected == "a name for an instance"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read policy file .*none\.m2m: No such file"):
        Source.read(tmp_path / "none.m2m")
    (tmp_path / "latin.m2m").write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8 text: byte 5 is 0xe9"):
        Source.read(tmp_path / "latin.m2m")


def documented_errors() -> list[tuple[str, str]]:
    """The rows of the error table that have an example: (what was expected, the example)."""
    rows = []
    for line in DOCUMENT.read_text("utf-8").partition("## Errors")[2].splitlines():
        row = re.match(r"\| `([^`]+)`[^|]*\|[^|]*\| `([^`]+)` \|", line)
        if row:
            rows.append((row[1].removesuffix("...").strip(), row[2]))
    return rows


@pytest.mark.parametrize(("expected", "text"), documented_errors())
def test_documented_errors(expected: str, text: str) -> None:
    error = error_of(PRELUDE + text)
    assert error.expected.startswith(expected.removesuffix("..., )").removesuffix(", ...)"))
    assert error.line == 3


def test_the_error_table_is_read() -> None:
    assert len(documented_errors()) > 25


def test_documented_policies_compile() -> None:
    blocks = re.findall(r"```m2m\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        assert compile_policy(parse(block)).rules


def test_the_documented_error_is_what_is_printed() -> None:
    shown = re.search(r"```\n(site\.m2m:.*?)\n```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    assert shown is not None
    text = PRELUDE + "\n\nmatch(srcip=10.0.1.5/24) >> {firewall}\n"
    assert str(error_of(text)) == shown[1]


TOKENS = [
    "nf", "match", "fail", "choose", "any", "*", "(", ")", "{", "}", ">>", "->", "→", ",", "=",
    "!=", "&", "|", "~", "srcip", "dstip", "srcport", "dstport", "proto", "tcp", "inline", "tap",
    "change", "live", "allow", "ss+op", "+", "follow", "operator", "match(any) >> {a} allow={nf}",
    "hash", "open", "closed", "a", "b", "10.0.0.1", "10.0.0.0/8", "::1", "::/0", "80", "80-90",
    "10.0.0.1-10.0.0.9", "9" * 5000, "\n", "#", "-", "fe80::1%lo", "1.2.3", "/", "nf a tap {b=::1}",
    "match(any) >> {a}", "match(srcport=80)", ">> {}",
]  # fmt: skip


@given(st.text())
@example("match(srcport=" + "9" * 5000 + ") >> {}")
@example("match(srcip=10.0.0.0/" + "9" * 5000 + ") >> {}")
@example("match(srcip=" + "1" * 5000 + ") >> {}")
@example("\u2028\x85\x00\x1c")
def test_any_text_is_a_policy_or_a_policy_error(text: str) -> None:
    only_policy_errors(text)


@given(st.lists(st.sampled_from(TOKENS), max_size=30))
def test_any_words_are_a_policy_or_a_policy_error(words: list[str]) -> None:
    only_policy_errors(" ".join(words))


def only_policy_errors(text: str) -> None:
    try:
        compile_policy(parse(text))
    except PolicyError as caught:
        error = caught
    else:
        return
    lines = text.replace("\r\n", "\n").removeprefix("\ufeff").split("\n")
    assert 1 <= error.line <= len(lines)
    assert 1 <= error.column <= len(lines[error.line - 1]) + 1
    assert str(error).startswith(f"<policy>:{error.line}:{error.column}: expected ")
