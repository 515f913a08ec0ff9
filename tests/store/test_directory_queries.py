"""What callers find in the directory: in their own organizations only, by name in a stated order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from taskherd.store import directory_queries
from taskherd.store.directory_queries import TemplateFilter, UserFilter
from taskherd.store.read_pool import ReadPool, Row
from tests.store.conftest import execute_script

ACME, BETA, DEFAULT, ENDED = (UUID(int=number) for number in (0xA, 0xB, 0xC, 0xD))
ALICE, BOB, CAROL, DORA, EVE = (UUID(int=number) for number in (0xA1, 0xB1, 0xC1, 0xD1, 0xE1))
CLAUDE, BETAS, CODEX, GONE, OLD = (UUID(int=number) for number in range(0x11, 0x16))
V1, V2 = UUID(int=0x21), UUID(int=0x22)

DIRECTORY = f"""
INSERT INTO organizations (id, name, display_name, active) VALUES
    ('{BETA}', 'Beta', '', true), ('{ACME}', 'acme', '', true), ('{DEFAULT}', 'Default', '', true),
    ('{ENDED}', 'ended', '', false);
INSERT INTO users (id, username, name, email, avatar_url, github_com_user_id, active) VALUES
    ('{DORA}', 'dora', '', 'dora@beta.example', '', 4, true), ('{ALICE}', 'alice', '', 'one@acme.example', '', 1, true),
    ('{BOB}', 'Bob', '', 'two@acme.example', '', 2, true), ('{CAROL}', 'carol', '', 'three@acme.example', '', 3, false),
    ('{EVE}', 'eve', '', 'four@acme.example', '', 5, true);
INSERT INTO memberships (user_id, organization_id, role, active) VALUES
    ('{ALICE}', '{BETA}', 'member', true), ('{ALICE}', '{ACME}', 'member', true),
    ('{ALICE}', '{DEFAULT}', 'admin', true), ('{ALICE}', '{ENDED}', 'admin', true),
    ('{BOB}', '{ACME}', 'member', true), ('{BOB}', '{DEFAULT}', 'member', false),
    ('{CAROL}', '{ACME}', 'member', true), ('{DORA}', '{BETA}', 'admin', true), ('{EVE}', '{ACME}', 'admin', false);
INSERT INTO templates (id, organization_id, name, display_name, icon, active_version_id, active) VALUES
    ('{CODEX}', '{ACME}', 'codex', 'Reviews', '', '{CODEX}', true),
    ('{CLAUDE}', '{ACME}', 'Claude', '', '', '{V2}', true),
    ('{BETAS}', '{BETA}', 'claude', '', '', '{BETAS}', true), ('{GONE}', '{ACME}', 'gone', '', '', '{GONE}', false),
    ('{OLD}', '{ENDED}', 'old', '', '', '{OLD}', true);
INSERT INTO template_versions (id, template_id, name, run, active) VALUES
    ('{V1}', '{CLAUDE}', 'V1', '{{}}', false), ('{V2}', '{CLAUDE}', 'V2', '{{}}', true);
INSERT INTO presets (id, template_version_id, name, is_default, parameters, active) VALUES
    (gen_random_uuid(), '{V2}', 'Small', false, '[]', true), (gen_random_uuid(), '{V2}', 'large', false, '[]', true),
    (gen_random_uuid(), '{V2}', 'usual', true, '[]', true), (gen_random_uuid(), '{V2}', 'absent', false, '[]', false);
"""


@pytest.fixture
async def reader(database_url: str, engine: AsyncEngine) -> AsyncIterator[ReadPool]:
    """Yield a pool for readers, with a directory of four organizations."""
    await execute_script(engine, DIRECTORY)
    pool = ReadPool(database_url, size=1, application_name="taskherd-tests")
    yield pool
    await pool.close()


def names(rows: Sequence[Row], column: str = "name") -> list[str]:
    """Return the names of rows."""
    return [row[column] for row in rows]


async def test_users_who_share_an_organization(reader: ReadPool) -> None:
    """By name in any case, with the organizations that both are in; not those who left, or are deactivated."""
    users = await directory_queries.users(reader, ALICE, UserFilter(10))
    assert names(users, "username") == ["alice", "Bob", "dora"]
    assert [row["organization_ids"] for row in users] == [[ACME, BETA, DEFAULT], [ACME], [BETA]]
    users = await directory_queries.users(reader, BOB, UserFilter(10))
    assert names(users, "username") == ["alice", "Bob"]
    assert [row["organization_ids"] for row in users] == [[ACME], [ACME]]
    assert names(await directory_queries.users(reader, EVE, UserFilter(10)), "username") == ["eve"]
    for criteria, expected in (
        (UserFilter(2), ["alice", "Bob"]),
        (UserFilter(10, github_com_user_id=2), ["Bob"]),
        (UserFilter(10, github_com_user_id=3), []),
        (UserFilter(10, search="o"), ["alice", "Bob", "dora"]),
        (UserFilter(10, search="ob"), ["Bob"]),
        (UserFilter(10, search="beta.ex"), ["dora"]),
        (UserFilter(10, search="b_b"), []),
        (UserFilter(10, github_com_user_id=2, search="dora"), []),
    ):
        assert names(await directory_queries.users(reader, ALICE, criteria), "username") == expected, criteria


async def test_one_user(reader: ReadPool) -> None:
    """By id, or by name in any case, if the caller could list the user."""
    for caller, user, expected in (
        (ALICE, "BOB", BOB), (ALICE, BOB, BOB), (ALICE, EVE, None), (ALICE, "carol", None), (BOB, DORA, None),
        (EVE, EVE, EVE), (EVE, "bob", None),
    ):  # fmt: skip
        row = await directory_queries.user(reader, caller, user)
        assert (None if row is None else row["id"]) == expected


async def test_organizations_that_two_share(reader: ReadPool) -> None:
    """The one named default comes first, then by name in any case; those that ended are left out."""
    for caller, user, expected in (
        (ALICE, ALICE, ["Default", "acme", "Beta"]), (ALICE, BOB, ["acme"]), (BOB, ALICE, ["acme"]), (ALICE, EVE, []),
        (EVE, ALICE, []), (EVE, EVE, []),
    ):  # fmt: skip
        assert names(await directory_queries.organizations_of(reader, caller, user)) == expected
    for caller, wanted, expected_id in (
        (ALICE, "ACME", ACME), (ALICE, BETA, BETA), (ALICE, "ended", None), (EVE, "acme", None), (BOB, BETA, None),
    ):  # fmt: skip
        row = await directory_queries.organization(reader, caller, wanted)
        assert (None if row is None else row["id"]) == expected_id


async def test_templates_of_the_callers_organizations(reader: ReadPool) -> None:
    """By name in any case, those of the same name by their organizations; by a part of either name."""
    for caller, criteria, expected in (
        (ALICE, TemplateFilter(10), [CLAUDE, BETAS, CODEX]),
        (ALICE, TemplateFilter(2), [CLAUDE, BETAS]),
        (ALICE, TemplateFilter(10, organization=ACME), [CLAUDE, CODEX]),
        (ALICE, TemplateFilter(10, name="claude"), [CLAUDE, BETAS]),
        (ALICE, TemplateFilter(10, name="claud"), []),
        (ALICE, TemplateFilter(10, part="laud"), [CLAUDE, BETAS]),
        (ALICE, TemplateFilter(10, part="view"), [CODEX]),
        (ALICE, TemplateFilter(10, BETA, "claude", "e"), [BETAS]),
        (BOB, TemplateFilter(10), [CLAUDE, CODEX]),
        (BOB, TemplateFilter(10, organization=BETA), []),
        (EVE, TemplateFilter(10), []),
    ):
        rows = await directory_queries.templates(reader, caller, criteria)
        assert [row["id"] for row in rows] == expected, criteria
    for caller, organization, template, found in (
        (ALICE, BETA, "CLAUDE", BETAS), (ALICE, ACME, "claude", CLAUDE), (ALICE, ACME, BETAS, None),
        (ALICE, ACME, "gone", None), (ALICE, ENDED, OLD, None), (BOB, BETA, "claude", None),
    ):  # fmt: skip
        row = await directory_queries.template(reader, caller, organization, template)
        assert (None if row is None else row["id"]) == found
    for caller, template_id, is_found in ((ALICE, BETAS, True), (BOB, BETAS, False), (ALICE, GONE, False)):
        assert (await directory_queries.template_by_id(reader, caller, template_id) is not None) is is_found


async def test_versions_and_their_presets(reader: ReadPool) -> None:
    """One that ended is found by its id only, because tasks refer to it; the default preset comes first."""
    for caller, version, is_found in ((ALICE, V1, True), (BOB, V2, True), (DORA, V2, False), (EVE, V1, False)):
        assert (await directory_queries.version(reader, caller, version) is not None) is is_found
    for caller, template, name, found in (
        (ALICE, CLAUDE, "v2", V2), (ALICE, CLAUDE, "v1", None), (ALICE, CODEX, "v2", None), (DORA, CLAUDE, "v2", None),
    ):  # fmt: skip
        row = await directory_queries.version_of(reader, caller, template, name)
        assert (None if row is None else row["id"]) == found
    assert names(await directory_queries.presets(reader, ALICE, V2) or []) == ["usual", "large", "Small"]
    assert await directory_queries.presets(reader, ALICE, V1) == []
    assert await directory_queries.presets(reader, DORA, V2) is None
