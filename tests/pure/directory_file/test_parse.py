"""Parsing a directory file: all mistakes at once, each with its line, and nothing that is too large."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest
import yaml

from taskherd.directory_file import document
from taskherd.directory_file.parse import MAX_PROBLEMS, InvalidDirectory, parse

VALID = """\
organizations:
  - {id: 00000000-0000-0000-0000-000000000001, name: acme}
users:
  - id: 00000000-0000-0000-0000-000000000011
    username: alice
    email: alice@example.com
    organizations: {acme: member}
  - id: 00000000-0000-0000-0000-000000000012
    username: bob
    email: bob@example.com
templates:
  - id: 00000000-0000-0000-0000-000000000021
    organization: acme
    name: claude
    active_version: 00000000-0000-0000-0000-000000000031
    versions:
      - id: 00000000-0000-0000-0000-000000000031
        name: v1
        presets: [{id: 00000000-0000-0000-0000-000000000041, name: Default, parameters: {size: [1]}}]
        run:
          command: [agent, "{prompt}"]
          agent: stdio
          env: {set: {NAME: value}}
"""


def problems(content: str | bytes) -> list[str]:
    """Return the mistakes of a file that is invalid."""
    with pytest.raises(InvalidDirectory) as error:
        parse(content if isinstance(content, bytes) else content.encode())
    return list(error.value.problems)


def edited(*edits: tuple[str, str]) -> str:
    """Return the valid file with some texts replaced, each of which occurs in it once."""
    content = VALID
    for old, new in edits:
        assert content.count(old) == 1, old
        content = content.replace(old, new)
    return content


def test_a_valid_file_is_parsed_as_written() -> None:
    """A byte order mark is allowed, and ``run`` stays as it is written."""
    directory = parse(b"\xef\xbb\xbf" + VALID.encode())
    assert [user.username for user in directory.users] == ["alice", "bob"]
    assert directory.templates[0].versions[0].run == {
        "command": ["agent", "{prompt}"],
        "agent": "stdio",
        "env": {"set": {"NAME": "value"}},
    }
    assert directory.pools == {"default"}


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("{acme: member}", "{nowhere: member}", "line 7: users[0].organizations.nowhere: the file has no organization"),
        ("{acme: member}", "{acme: owner}", "line 7: users[0].organizations.acme: Input should be"),
        ("{acme: member}", "{acme: member, Acme: admin}", "line 7: users[0].organizations.Acme: the organization is"),
        ("username: bob", "username: ALICE", "line 9: users[1].username: ALICE is already at users[0].username"),
        ("000012", "000011", f"line 8: users[1].id: {UUID(int=17)} is already at users[0].id"),
        ("username: bob", "usrname: bob", "line 9: users[1].usrname: Extra inputs are not permitted"),
        ("    username: bob\n", "", "line 8: users[1].username: Field required"),
        ("{id: 00000000-0000-0000-0000-000000000001", f"{{id: {UUID(int=0)}", "line 2: organizations[0].id: the nil"),
        ("organization: acme", "organization: a", "line 13: templates[0].organization: the file has no organization"),
        ("active_version: 00000000-0000-0000-0000-000000000031", f"active_version: {UUID(int=9)}", "line 15: "),
        ("agent: stdio", "agent: stdoi", "line 22: templates[0].versions[0].run.agent: Input should be 'stdio'"),
        ("command:", "comand:", "line 20: templates[0].versions[0].run.command: Field required"),
        ("command:", "comand:", "line 21: templates[0].versions[0].run.comand: Extra inputs are not permitted"),
        ("agent: stdio", "pool: No!", "line 22: templates[0].versions[0].run.pool: "),
        ("agent: stdio", "limits: {timeout: soon}", "line 22: templates[0].versions[0].run.limits.timeout: not a dur"),
        ("agent: stdio", "resume: continue", "line 20: templates[0].versions[0].run: `resume: continue` and"),
        ("agent: stdio", "on_loss: retry", "line 22: templates[0].versions[0].run.on_loss.action: Input should be"),
        ("NAME: value", "TASKHERD_TOKEN: value", "line 23: templates[0].versions[0].run.env.set.TASKHERD_TOKEN"),
        ("users:", "runners: [{name: default}]\nusers:", "line 3: runners[0].name: default is also the name of a pool"),
    ],
)
def test_a_mistake_has_its_line_and_path(old: str, new: str, problem: str) -> None:
    """Each mistake names the line and the path in the file, and what is wrong there; so do those in ``run``."""
    found = problems(edited((old, new)))
    assert any(each.startswith(problem) for each in found), found


def test_all_mistakes_are_found_at_once() -> None:
    """Mistakes of YAML, of fields, in ``run``, and contradictions between valid entries come together, by line."""
    content = edited(
        ("email: bob@example.com", "email: bob"),
        ("agent: stdio", "agent: stdoi\n          comand: [x]\n          agent: self"),
        ("username: alice", "username: carol\n    github_com_user_id: 7"),
        (
            "templates:\n",
            f"  - {{id: {UUID(int=19)}, username: CAROL, email: a@b, organizations: {{nope: admin}}}}\ntemplates:\n",
        ),
    )
    assert [each.split(": ")[0:2] for each in problems(content)] == [
        ["line 11", "users[1].email"],
        ["line 12", "users[2].organizations.nope"],
        ["line 12", "users[2].username"],
        ["line 24", "templates[0].versions[0].run.agent"],
        ["line 25", "templates[0].versions[0].run.comand"],
        ["line 26", "'agent' is already given in line 24"],
    ]


def test_the_list_of_mistakes_is_bounded() -> None:
    """Only the first mistakes are listed, and the number of the others."""
    found = problems(VALID + "".join(f"wrong{number}: 1\n" for number in range(MAX_PROBLEMS + 5)))
    assert len(found) == MAX_PROBLEMS + 1
    assert found[-1] == "… and 5 more"


@pytest.mark.parametrize("content", ["", "\n\n", "# only a comment\n", "---\n", "null\n"])
def test_an_empty_file_is_refused(content: str) -> None:
    """Nobody means to sign everybody out with an empty file."""
    assert "the file is empty" in problems(content)[0]


@pytest.mark.parametrize("content", ["{}", "users: []", "organizations: []", "organizations: []\nusers: []\n"])
def test_a_file_without_organizations_is_refused(content: str) -> None:
    """At least one organization must stay."""
    assert "at least one organization; without any, everybody would be signed out" in problems(content)[0]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a: [", "line 2: not valid YAML: while parsing a flow node did not find expected node content"),
        ("a: b: c", "line 1: not valid YAML: mapping values are not allowed"),
        ("a: \x07", "not valid YAML: unacceptable character"),
        ("a: 1\n---\nb: 2", "line 2: a second document begins here"),
        (b"a: 1\nb: \xff\n", "line 2: not UTF-8: the byte 0xff"),
        (VALID.encode("utf-16"), "line 1: not UTF-8: the byte 0xff"),
        ("a: &a [*a]", "line 1: the alias *a stands for nothing"),
        ("a: *a", "line 1: the alias *a stands for nothing"),
        ("a: " + "[" * 60 + "]" * 60, "line 1: more than 50 lists and mappings"),
        ("- 1", "line 1: the file: Input should be a valid dictionary"),
        ("text", "line 1: the file: Input should be a valid dictionary"),
    ],
)
def test_what_is_no_directory_is_refused(content: str | bytes, problem: str) -> None:
    """Content that is not text, not YAML or not a mapping is refused with the line, if it has one."""
    assert problems(content)[0].startswith(problem)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("{a: 1, a: 2}", "'a' is already given in line 19"),
        ("{1: a}", "the key '1' is not a text"),
        ("{[a]: b}", "this key is not a text"),
        ("{<<: {a: 1}}", "merge keys (<<) are not supported"),
        ("{a: !include x}", "the tag !include is not supported"),
        ("{a: !!python/object:os.system x}", "the tag tag:yaml.org,2002:python/object:os.system is not supported"),
        ("!!set {a}", "the tag tag:yaml.org,2002:set is not supported"),
        ("{a: .nan}", ".nan is not a finite number"),
        ("{a: 1.0e+999}", "1.0e+999 is not a finite number"),
        (f"{{a: {2**64}}}", f"{2**64} does not fit into 64 bits"),
        (f"{{a: {-(2**63) - 1}}}", f"{-(2**63) - 1} does not fit into 64 bits"),
        ("{a: 2026-99-99}", "'2026-99-99' is no timestamp"),
        ("{a: !!int x}", "'x' is no int"),
        (f"{{a: {'9' * 5000}}}", f"'{'9' * 80}' is no int"),
        ('{a: "\\0"}', "the text has a NUL"),
    ],
)
def test_what_yaml_guesses_or_the_database_cannot_store_is_refused(value: str, problem: str) -> None:
    """Repeated and odd keys, tags, and values that JSON or PostgreSQL cannot represent are mistakes with a line."""
    assert f"line 19: {problem}" in "\n".join(problems(edited(("{size: [1]}", value))))


def test_aliases_work() -> None:
    """An alias stands for the value of its anchor; a mistake in it has the line of the anchor."""
    shared = edited(("{size: [1]}", "&shared {size: [1]}"), ("NAME: value", "NAME: &name value, OTHER: *name"))
    directory = parse(shared.encode())
    assert directory.templates[0].versions[0].run["env"] == {"set": {"NAME": "value", "OTHER": "value"}}


def bomb() -> str:
    """Return ten aliases of ten aliases of …, twenty levels deep."""
    levels = (f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 20))
    return f"a0: &a0 [{','.join('x' * 10)}]\n" + "".join(levels)


def test_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes, values, and values that aliases stand for are bounded, before they are expanded."""
    assert problems(bomb()) == ["line 6: more than 1,000,000 values"]
    assert problems(b" " * (document.MAX_BYTES + 1)) == ["larger than 10 MB"]
    monkeypatch.setattr(document, "MAX_VALUES", 1000)
    assert problems("[" + "1," * 1000 + "]") == ["line 1: more than 1,000 values"]


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
def test_both_loaders_find_the_same(monkeypatch: pytest.MonkeyPatch, loader: str) -> None:
    """PyYAML without libyaml is slower, not different."""
    monkeypatch.setattr(document, "_LOADER", getattr(yaml, loader))
    assert parse(VALID.encode()).users[0].username == "alice"
    assert problems(bomb()) == ["line 6: more than 1,000,000 values"]
    assert problems("a: " + "[" * 20_000)[0].startswith(("line 1: more than 50", "line 1: not valid YAML: while incr"))
    found: list[Any] = problems(edited(("agent: stdio", "agent: stdoi")))
    assert found[0].startswith("line 22: templates[0].versions[0].run.agent")


@pytest.mark.parametrize(
    "character", ["\u061c", "\u200e", "\u200f", *map(chr, range(0x202A, 0x202F)), "\u2066", "\u2069"]
)
def test_no_name_can_look_like_another(character: str) -> None:
    """Characters that control the direction of text are refused in each name that people read, with its line."""
    tricky = json.dumps(f"evil{character}name")
    found = problems(
        edited(
            ("name: acme}", f"name: acme, display_name: {tricky}}}"),
            ("    username: bob\n", f"    username: bob\n    name: {tricky}\n"),
            ("    name: claude\n", f"    name: claude\n    display_name: {tricky}\n    description: {tricky}\n"),
            ("name: Default", f"name: {tricky}"),
        )
    )
    assert len(found) == 5
    assert all(f"has the control character U+{ord(character):04X}; expected a text without" in each for each in found)
    assert [each.partition(":")[0] for each in found] == ["line 2", "line 10", "line 16", "line 17", "line 22"]


@pytest.mark.parametrize(("before", "line"), [("name: acme}", 2), ("username: bob", 9), ("    name: claude\n", 14)])
@pytest.mark.parametrize(
    "name", ["0b5f6a1c-2d3e-4f50-8a6b-7c8d9e0f1a2b", "0B5F6A1C2D3E4F508A6B7C8D9E0F1A2B", '"' + "1" * 32 + '"']
)
def test_no_name_is_an_id(before: str, line: int, name: str) -> None:
    """Requests name users, organizations and templates by either, and would never find those."""
    old = before.partition(": ")[2].strip("}\n")
    found = problems(edited((before, before.replace(old, name))))
    assert any(
        each.startswith(f"line {line}: ")
        and each.endswith("is a UUID, which the API takes for an id; expected another name")
        for each in found
    ), found


@pytest.mark.parametrize("name", ["me", "Me", "ME"])
def test_nobody_is_called_me(name: str) -> None:
    """Requests mean the caller by that; an organization or a template may have the name."""
    (found,) = problems(edited(("username: bob", f"username: {name}")))
    assert found == "line 9: users[1].username: is the caller in requests to the API; expected another username"
    directory = parse(edited(("    name: claude\n", f"    name: {name}\n")).encode())
    assert directory.templates[0].name == name


@pytest.mark.parametrize("name", ["mee", "0b5f6a1c-2d3e-4f50-8a6b-7c8d9e0f1a2", "0b5f6a1c2d3e-4f508a6b7c8d9e0f1a2b"])
def test_names_that_only_resemble_ids_are_accepted(name: str) -> None:
    """Requests take them for names."""
    directory = parse(edited(("username: bob", f"username: {name}")).encode())
    assert directory.users[1].username == name


def test_names_of_any_script_are_accepted() -> None:
    """Right-to-left ones, and joiners that scripts and emoji need; a description has lines."""
    names = [
        "\u05e9\u05dc\u05d5\u05dd",
        "\u0645\u0631\u062d\u0628\u0627",
        "\u0915\u094d\u200d\u0937",
        "\U0001f469\u200d\U0001f4bb",
    ]
    for name in names:
        content = edited(
            ("name: acme}", f'name: acme, display_name: "{name}"}}'),
            ("    name: claude\n", f'    name: claude\n    description: "{name}\\n"\n'),
        )
        directory = parse(content.encode())
        assert (directory.organizations[0].display_name, directory.templates[0].description) == (name, f"{name}\n")
    assert len(problems(edited(("name: Default", 'name: "a\\x7fb"')))) == 1
