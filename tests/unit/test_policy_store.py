"""The policy server's memory."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2m.errors import ConfigError
from m2m.policy.messages import Role
from m2m.policy.store import AgentRecord, Store, StoreError
from m2m.protocol.flow import parse_address


def test_a_fresh_store_is_empty_and_private(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "store"
    store = Store(path)
    assert store.last() is None
    assert store.agents() == []
    store.add("a", "text")
    files = list(path.parent.iterdir())
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert len(files) > 1  # SQLite's companions were looked at, too
    store.close()


def test_a_store_made_by_other_hands_becomes_private(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.touch(mode=0o644)
    Store(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_last_version_survives_reopening(tmp_path: Path) -> None:
    with_two = Store(tmp_path / "store")
    with_two.add("a", "one")
    second = with_two.add("b", "two")
    with_two.close()
    again = Store(tmp_path / "store")
    assert again.last() == second
    assert (second.generation, second.file, second.text) == (2, "b", "two")
    assert again.add("c", "three").generation == 3
    again.close()


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20))
def test_generations_only_rise_and_pass_every_floor(floors: list[int]) -> None:
    store = Store(":memory:")
    before = 0
    for floor in floors:
        now = store.add("f", "t", above=floor).generation
        assert now > max(before, floor)
        before = now
    store.close()


def test_old_versions_go_but_generations_go_on() -> None:
    store = Store(":memory:")
    for _ in range(130):
        last = store.add("f", "t")
    (kept,) = store._db.execute("SELECT count(*) FROM version").fetchone()
    assert kept == 100
    assert last.generation == 130
    store.close()


def test_starting_again_with_the_same_file_keeps_what_was_loaded_since() -> None:
    store = Store(":memory:")
    assert store.start_from("p", "file").generation == 1
    assert store.start_from("p", "file").generation == 1
    loaded = store.add("other", "loaded")
    assert store.start_from("p", "file") == loaded
    store.close()


def test_a_file_edited_since_the_last_start_is_a_new_version() -> None:
    store = Store(":memory:")
    store.start_from("p", "file")
    store.add("other", "loaded")
    edited = store.start_from("p", "edited")
    assert (edited.generation, edited.text) == (3, "edited")
    assert store.start_from("p", "edited") == edited
    store.close()


def test_a_file_edited_to_what_was_loaded_needs_no_new_version() -> None:
    store = Store(":memory:")
    store.start_from("p", "file")
    loaded = store.add("p", "loaded")
    assert store.start_from("p", "loaded") == loaded
    store.close()


def test_agents_are_remembered_and_replaced_by_name(tmp_path: Path) -> None:
    fw1 = AgentRecord(
        "fw1", Role.MIDDLEBOX, (parse_address("10.0.0.1"), parse_address("::1")), 5.0, 3, 7, 0.5
    )
    store = Store(tmp_path / "store")
    store.save_agents([fw1, AgentRecord("c", Role.CLIENT, (), 1.0)])
    store.save_agents([fw1._replace(sessions=9)])
    store.close()
    again = Store(tmp_path / "store")
    assert again.agents() == [AgentRecord("c", Role.CLIENT, (), 1.0), fw1._replace(sessions=9)]
    again.close()


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.write_text("this is no database, and long enough not to be an empty one" * 100)
    with pytest.raises(ConfigError, match=r"cannot use the policy store .*not a database"):
        Store(path)


def test_a_store_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "store").close()
    with sqlite3.connect(tmp_path / "store") as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(ConfigError, match="has format 9, this M2M writes 1"):
        Store(tmp_path / "store")


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="File exists"):
        Store(tmp_path / "file" / "store")


def test_a_failed_write_changes_nothing(tmp_path: Path) -> None:
    path = os.fspath(tmp_path / "store")
    store = Store(path)
    first = store.add("a", "one")
    with sqlite3.connect(path) as other:
        other.execute("CREATE TRIGGER full AFTER INSERT ON version BEGIN "
                      "SELECT RAISE(ABORT, 'disk full'); END")  # fmt: skip
    with pytest.raises(StoreError, match="disk full; nothing was changed"):
        store.add("a", "two")
    assert store.last() == first
    store.close()
