"""The parts of libraries that taskherd replaces or relies on have not changed.

A digest identifies the source text of a class, function or table of a library. After an upgrade that changes one, the
failing test names the module to compare with it.
"""

from __future__ import annotations

import ast
import inspect
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version

import pytest

from taskherd.broker.patches import frame_reader, pamqp_patches
from taskherd.library_versions import VersionRange

REPLACED = {
    "broker/patches/frame_reader.py": {
        "aiormq.connection:FrameReceiver": "82bf1a29e9c135a3",
        "aiormq.connection:Connection.connect": "d6ec61e5b540b182",
        "aiormq.connection:Connection._rpc": "50b8a25d41c7ee32",
        "aiormq.connection:Connection.__reader": "5e23bd412f07c28e",
        "pamqp.frame:unmarshal": "a806373358614d8b",
        "pamqp.frame:frame_parts": "c5b9a3e2708db48e",
        "pamqp.commands:Basic.Deliver": "d6371e95963eba19",
        "pamqp.commands:Basic.Ack": "ba4865f85717bc13",
    },
    "broker/patches/delivery_dispatcher.py": {
        "aiormq.channel:Channel._get_frame": "4f38e4d6cf651f47",
        "aiormq.channel:Channel._reader": "669c45f27d25b86f",
        "aiormq.channel:Channel._on_deliver_frame": "56c1cd65f330697f",
        "aiormq.channel:Channel._read_content": "ec52c7fc67b12be4",
        "aiormq.channel:Channel.basic_consume": "14f0c24e5a60340b",
        "aiormq.abc:DeliveredMessage": "a562db4964a4c2b8",
    },
    "broker/patches/frame_writer.py": {
        "aiormq.channel:Channel.basic_publish": "9e3725b65ec9067c",
        "aiormq.channel:Channel._on_return_frame": "2adac7182c806274",
        "aiormq.channel:Channel._on_confirm_frame": "370e05804aa96f92",
        "aiormq.channel:Channel._confirm_delivery": "72ba722c4c786758",
        "aiormq.channel:Channel.lock": "8ec27b351a38a1b5",
        "aiormq.channel:Returning": "2ce5c236fa19b6ad",
        "aiormq.abc:ChannelFrame": "2d60b2843dd96dcc",
        "aiormq.connection:Connection.__writer": "711f6c00cd9799a3",
        "pamqp.commands:Basic.Publish": "af2ec19c26866677",
        "pamqp.commands:Basic.Properties": "74d58a49f884f41e",
        "pamqp.encode:field_table": "552a40bb974f2ea6",
    },
    "broker/patches/channel_closing.py": {
        "aiormq.channel:Channel.__close_after_failure": "ec885e9f8ae94021",
        "aiormq.channel:Channel.rpc": "e99964b185abad1e",
        "aiormq.channel:Channel._on_close": "3e82a4ccd86644ac",
        "aiormq.channel:Channel._on_close_ok_frame": "05a3d81b6e2673a6",
    },
    "broker/patches/pamqp_patches.py": {
        "pamqp.header:ContentHeader": "fcd9c0aa6378d8b1",
        "pamqp.base:BasicProperties": "0994266517ca0ccc",
        "pamqp.base:Frame.unmarshal": "b26869d44bb6fe71",
        "pamqp.commands:Basic.Properties": "74d58a49f884f41e",
        "pamqp.decode:by_type": "42d10fe0770a5301",
        "pamqp.decode:short_str": "921ad4bf74d93075",
        "pamqp.decode:METHODS": "add2385fdc422f29",
    },
}
"""By patch: the parts that it replaces, and those that it relies on."""

EXTENDED = {
    "api/http/server.py": {
        "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol": "ae3ad6c5410895e2",
        "uvicorn.protocols.http.httptools_impl:RequestResponseCycle": "4523b6e7688451ff",
        "uvicorn.protocols.websockets.websockets_sansio_impl:WebSocketsSansIOProtocol.send": "4ea267c383aa471b",
        "uvicorn.protocols.websockets.websockets_sansio_impl:WebSocketsSansIOProtocol.run_asgi": "3a4c0390b5f27645",
        "uvicorn.server:Server.serve": "ed2360112e98e654",
        "uvicorn.server:Server.capture_signals": "7c7db736319e43e7",
    },
    "broker/connection.py": {
        "aio_pika.connection:Connection.__init__": "5896f90a527a328b",
        "aio_pika.connection:Connection.connect": "51eea36955499e45",
        "aiormq.connection:TCPTransportFactory": "1d193f4fe5f11ed8",
        "aiormq.connection:TLSTransportFactory": "b950a3c449f82d59",
        "aiormq.connection:Connection.channel": "6e79fa96e318927d",
        "aiormq.connection:Connection._on_close": "657b9049d8a1e177",
        "aiormq.connection:Connection.__init__": "8bbfd70a6b7c193b",
        "aiormq.channel:Channel._on_close_frame": "351db7021a087252",
    },
    "broker/consumer.py": {
        "aiormq.channel:Channel.basic_ack": "43e43480733f7227",
        "aiormq.channel:Channel.basic_nack": "3f324f556f68787d",
        "aiormq.channel:Channel._on_cancel_frame": "05ee42683dca1e6c",
    },
    "store/sessions.py": {
        "sqlalchemy.dialects.postgresql.asyncpg:AsyncAdapt_asyncpg_connection._prepare": "7414fc2593c999f6",
    },
    "store/read_pool.py": {
        "asyncpg.connection:Connection.get_reset_query": "79d0f10a393e2eab",
        "asyncpg.connection:Connection.reset": "9196161dea665d3f",
    },
}
"""By module: the parts that it overrides in a subclass, or whose undocumented behaviour it relies on."""

PARTS = [
    (module, part, digest)
    for parts in (REPLACED, EXTENDED)
    for module in parts
    for part, digest in parts[module].items()
]


@pytest.mark.parametrize(("module", "part", "digest"), PARTS, ids=[f"{module}<-{part}" for module, part, _ in PARTS])
def test_a_part_of_a_library_is_unchanged(module: str, part: str, digest: str) -> None:
    """The source text of each part has the digest recorded for it."""
    source, _, path = part.partition(":")
    actual = _digest(inspect.getsource(import_module(source)), path)
    library = part.partition(".")[0]
    steps = f"Read what changed in {part} and adapt src/taskherd/{module}; then run tests/broker and tests/api"
    if module in REPLACED:
        steps = (
            f"Read what changed in {part} and adapt src/taskherd/{module}; run tests/broker and "
            "`python -m benchmarks patches`; then move the end of SUPPORTED beyond this version"
        )
    assert actual == digest, (
        f"{library} {version(library)} changed {part}. {steps}. Then record the digest {actual!r} here."
    )


@pytest.mark.parametrize("supported", [frame_reader.SUPPORTED, pamqp_patches.SUPPORTED], ids=str)
def test_the_locked_version_is_in_the_range_of_its_patch(supported: VersionRange) -> None:
    """The locked versions of the tests and of the image are in the ranges, so the patches apply."""
    assert supported.includes(version(supported.library)), (
        f"{supported.library} {version(supported.library)} is outside {supported}: verify the patch with it as the "
        "tests of this module say, and widen SUPPORTED"
    )


def test_the_digest_covers_only_the_part() -> None:
    """The digest changes with the part, not with the rest of its module; a removed part is detected."""
    module = "x = %d\nclass A:\n    def f(self):\n        return %d\n"
    before, inside, elsewhere = module % (1, 1), module % (1, 2), module % (2, 1)
    assert _digest(before, "A.f") != _digest(inside, "A.f")
    assert _digest(before, "A.f") == _digest(elsewhere, "A.f")
    assert _digest(before, "x") != _digest(elsewhere, "x")
    assert _digest(before, "A.g") == "removed"


def _digest(source: str, path: str) -> str:
    node: ast.AST = ast.parse(source)
    for name in path.split("."):
        found = next((each for each in ast.iter_child_nodes(node) if _name(each) == name), None)
        if found is None:
            return "removed"
        node = found
    return sha256((ast.get_source_segment(source, node) or "").encode()).hexdigest()[:16]


def _name(node: ast.AST) -> str | None:
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return name
        case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
            return name
        case _:
            return None
