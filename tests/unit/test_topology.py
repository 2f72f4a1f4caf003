"""Lab topologies: what a file may say, what is refused and how, and the routes that follow."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from m2m.errors import ConfigError
from m2m.lab import routing
from m2m.lab.topology import Nginx, Role, chain, load, parse
from m2m.policy.compile import compile_policy
from m2m.policy.language import parse as parse_policy

EXAMPLES = Path(__file__).parents[2] / "examples" / "labs"

LINE = """
name = "line"
[hosts.a]
[hosts.b]
[hosts.c]
[[links]]
between = ["a", "b"]
addresses = ["10.1.0.1/24", "10.1.0.2/24"]
[[links]]
between = ["b", "c"]
addresses = ["10.2.0.1/24", "10.2.0.2/24"]
"""


def test_a_line_of_hosts() -> None:
    line = parse(LINE)
    assert list(line.hosts) == ["a", "b", "c"]
    assert line.address("b") == "10.1.0.2", "of its first link"
    assert [link.other("b") for link in line.links_of("b")] == ["a", "c"]
    assert line.hosts["b"].forwards and line.links[0].rate is None


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_is_sound(path: Path) -> None:
    lab = load(path)
    assert lab.name == path.stem
    assert lab.policy is not None and lab.policy.text is not None
    assert compile_policy(parse_policy(lab.policy.text, file=str(path))).rules
    for host in lab.hosts:
        list(routing.routes(lab, host))
        list(routing.detours(lab, host))


def test_the_policy_of_the_demo_names_addresses_of_its_middleboxes() -> None:
    demo = load(EXAMPLES / "demo.toml")
    assert demo.policy is not None and demo.policy.text is not None
    named = set(re.findall(r"= (10\.[0-9.]+) \}", demo.policy.text))
    boxes = {demo.address(n) for n, host in demo.hosts.items() if host.role is Role.MIDDLEBOX}
    assert named == boxes


def change(old: str, new: str) -> str:
    assert old in LINE
    return LINE.replace(old, new, 1)


# What is wrong, and what the message must name: the key and the value.
WRONG = [
    (LINE + "[", "not valid TOML", "document"),
    ('name = "x"', "hosts: missing", ""),
    (change('"line"', '"two words"'), "name: ", "'two words'"),
    (change("[hosts.a]", "[hosts.a]\nrole = 'gate'"), "hosts.a.role", "'gate'"),
    (change("[hosts.a]", "[hosts.a]\nrole = 'client'"), "policy: missing", ""),
    (change("[hosts.a]", "[hosts.a]\nfoo = 1"), "hosts.a: ", "`foo`"),
    (change("[hosts.a]", "[hosts.A]"), "hosts.A", "'A'"),
    (change("[hosts.a]", "[hosts.lonely]\n[hosts.a]"), "hosts.lonely", "no link"),
    (change("[hosts.a]", "[hosts.a]\nagent = ['--x']"), "hosts.a.agent", "['--x']"),
    (change('"b"]', '"z"]'), "links[0].between", "'z'"),
    (change('"b"]', '"a"]'), "links[0].between", "['a', 'a']"),
    (change('["b", "c"]', '["b", "a"]'), "links[1].between", "['b', 'a']"),
    (change("10.1.0.2/24", "10.1.0.300/24"), "links[0].addresses", "'10.1.0.300/24'"),
    (change("10.1.0.2/24", "10.1.0.2"), "links[0].addresses", "'10.1.0.2'"),
    (change("10.1.0.2/24", "10.9.0.2/24"), "links[0].addresses", "10.9.0.2/24"),
    (change("10.1.0.2/24", "10.1.0.1/24"), "links[0].addresses", "10.1.0.1"),
    (change("10.1.0.2/24", "fd00::2/64"), "links[0].addresses", "'fd00::2/64'"),
    (LINE + 'rate = "fast"', "links[1].rate", "'fast'"),
    (LINE + "mtu = 100", "links[1].mtu", "100"),
    (LINE + "mtu = '9k'", "links[1].mtu", "'9k'"),
    (LINE + "[policy]\nhost = 'a'", "policy: ", "text or file"),
    (LINE + "[policy]\nhost = 'z'\ntext = ''", "policy.host", "'z'"),
    (
        LINE + "[[hosts.a.run]]\nkind = 'nginx'\nports = [99999]",
        "hosts.a.run[0].ports",
        "99999",
    ),
    (LINE + "[[hosts.a.run]]\nkind = 'apache'", "hosts.a.run[0]", "'apache'"),
    (
        LINE + "[[hosts.a.run]]\nkind = 'command'\nname = 'n'\ncommand = []",
        "hosts.a.run[0].command",
        "empty",
    ),
    (
        change("[hosts.a]", "[hosts.a]\nroutes = [{to = 'all', via = '10.1.0.2'}]"),
        "hosts.a.routes[0].to",
        "'all'",
    ),
    (
        change("[hosts.a]", "[hosts.a]\nroutes = [{to = 'default', via = '10.2.0.2'}]"),
        "hosts.a.routes[0].via",
        "'10.2.0.2'",
    ),
    (
        LINE + "[[detours]]\nbetween = ['a', 'c']\nvia = ['x']\nports = [1]",
        "detours[0]",
        "'x'",
    ),
]


@pytest.mark.parametrize(("text", "key", "value"), WRONG, ids=[f"{w[1]}{w[2]}" for w in WRONG])
def test_an_error_names_file_key_and_value(text: str, key: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, file="lab.toml")
    message = str(caught.value)
    assert message.startswith(f"lab.toml: {key}")
    assert value in message


def test_a_policy_file_is_found_beside_the_topology(tmp_path: Path) -> None:
    (tmp_path / "my.m2m").write_text("# nothing\n")
    (tmp_path / "lab.toml").write_text(LINE + "[policy]\nhost = 'a'\nfile = 'my.m2m'")
    policy = load(tmp_path / "lab.toml").policy
    assert policy is not None and policy.text == "# nothing\n"
    (tmp_path / "my.m2m").unlink()
    with pytest.raises(ConfigError, match=r"lab\.toml: policy\.file: .*my\.m2m"):
        load(tmp_path / "lab.toml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        load(tmp_path / "none.toml")


def test_a_page_is_text_or_a_size() -> None:
    text = LINE + (
        "[[hosts.a.run]]\nkind = 'nginx'\nports = [80]\npages = {'index.html' = 'hi', big = 10}"
    )
    (nginx,) = parse(text).hosts["a"].run
    assert isinstance(nginx, Nginx)
    assert nginx.pages == {"index.html": "hi", "big": 10}


# -- the line of the benches ----------------------------------------------------------------


@pytest.mark.parametrize("middleboxes", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["tap", "inline"])
def test_chain_has_its_middleboxes_on_the_plain_path(middleboxes: int, kind: str) -> None:
    line = chain(middleboxes, kind=kind, ports=(80, 5201))
    boxes = [f"mb{i + 1}" for i in range(middleboxes)]
    assert routing.path(line, "client", "server") == ["client", *boxes, "server"]
    assert line.policy is not None and line.policy.text is not None
    compiled = compile_policy(parse_policy(line.policy.text))
    assert [policy.chain for policy in compiled.policies] == [tuple(boxes)] * 2


def test_the_chain_example_is_the_line_of_the_benches() -> None:
    example, made = load(EXAMPLES / "chain.toml"), chain(2, kind="inline")
    assert example.links == made.links
    assert example.policy is not None and made.policy is not None
    assert (example.policy.host, example.policy.text) == (made.policy.host, made.policy.text)
    assert {n: h.role for n, h in example.hosts.items()} == {
        n: h.role for n, h in made.hosts.items()
    }
