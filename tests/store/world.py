"""Tasks of three people in two organizations, as a script; of each table the first row is one that nobody asks for.

Who sees what: Alice her own task and, as an admin of beta, Dora's; Bob his own; Ada, as an admin of acme, those of
Alice, Bob and Eve; Eve, who has left acme, none; Dora her own. Alice's second task is deleted.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

ZERO, ACME, BETA = (UUID(int=number) for number in (0x0, 0xA, 0xB))
ZED, ALICE, BOB, ADA, EVE, DORA = (UUID(int=number) for number in (0xF1, 0xA1, 0xB1, 0xAD, 0xE1, 0xD1))
EVERYBODY: Final = (ALICE, BOB, ADA, EVE, DORA, ZED)
CLAUDE, BETAS, UNUSED = (UUID(int=number) for number in (0x11, 0x12, 0x13))
V_CLAUDE, V_BETAS, V_UNUSED, PRESET, P_UNUSED = (UUID(int=number) for number in range(0x21, 0x26))
OF_ZED, OF_ALICE, OF_BOB, OF_DORA, DELETED, OF_EVE = (UUID(int=number) for number in range(0x31, 0x37))
SEEN: Final = {
    OF_ZED: {ZED},
    OF_ALICE: {ALICE, ADA},
    OF_BOB: {BOB, ADA},
    OF_DORA: {ALICE, DORA},
    OF_EVE: {ADA},
    DELETED: set[UUID](),
}

_STATE: Final = '{"builds":[["","","","","","",0,["","editor"]]],"app":0,"since":"2026-01-01T00:00:00Z"}'
_DOCUMENT: Final = (
    '{"workspace_name":"ws","workspace_agent_health":{"healthy":false,"reason":"lost"},'
    '"workspace_agent_lifecycle":"ready","workspace_app_id":"app","current_state":{"state":"working"}}'
)


_VERSIONS: Final = {CLAUDE: V_CLAUDE, BETAS: V_BETAS, UNUSED: V_UNUSED}


def _task(task_id: UUID, owner: UUID, organization: UUID, template: UUID, name: str, **others: str) -> str:
    preset, deleted, hours = others.get("preset", "NULL"), others.get("deleted", "NULL"), others.get("hours", "0")
    return (
        f"('{task_id}', '{owner}', '{organization}', '{template}', '{_VERSIONS[template]}', {preset}, '{name}', '', "
        f"timestamptz '2026-01-01T00:00Z' + interval '{hours} hours', 2, '2026-01-02T00:00Z', {deleted}, 'active', "
        f"'{_DOCUMENT}', '{_STATE}', 2)"
    )


WORLD: Final = f"""
INSERT INTO organizations (id, name, display_name) VALUES
    ('{ZERO}', 'zero', ''), ('{BETA}', 'Beta', ''), ('{ACME}', 'Acme', '');
INSERT INTO users (id, username, name, email, avatar_url) VALUES
    ('{ZED}', 'zed', '', '', 'zed.png'), ('{DORA}', 'Dora', '', '', ''), ('{ALICE}', 'Alice', '', '', 'alice.png'),
    ('{BOB}', 'Bob', '', '', ''), ('{ADA}', 'Ada', '', '', ''), ('{EVE}', 'Eve', '', '', '');
INSERT INTO memberships (user_id, organization_id, role, active) VALUES
    ('{ZED}', '{ZERO}', 'admin', true), ('{ALICE}', '{ACME}', 'member', true), ('{BOB}', '{ACME}', 'member', true),
    ('{ADA}', '{ACME}', 'admin', true), ('{EVE}', '{ACME}', 'admin', false), ('{DORA}', '{BETA}', 'member', true),
    ('{ALICE}', '{BETA}', 'admin', true);
INSERT INTO templates (id, organization_id, name, display_name, icon, active_version_id) VALUES
    ('{UNUSED}', '{ZERO}', 'unused', 'Unused', 'unused.svg', '{V_UNUSED}'),
    ('{BETAS}', '{BETA}', 'betas', 'Betas', 'betas.svg', '{V_BETAS}'),
    ('{CLAUDE}', '{ACME}', 'claude', 'Claude Code', 'claude.svg', '{V_CLAUDE}');
INSERT INTO template_versions (id, template_id, name, run) VALUES
    ('{V_UNUSED}', '{UNUSED}', 'v-unused', '{{"pool":"unused"}}'), ('{V_BETAS}', '{BETAS}', 'v-betas', '{{"pool":""}}'),
    ('{V_CLAUDE}', '{CLAUDE}', 'v-claude', '{{"pool":"gpu"}}');
INSERT INTO presets (id, template_version_id, name, is_default, parameters) VALUES
    ('{P_UNUSED}', '{V_UNUSED}', 'unused', false, '["unused"]'),
    ('{PRESET}', '{V_CLAUDE}', 'small', false, '["small"]');
INSERT INTO tasks (id, owner_id, organization_id, template_id, template_version_id, preset_id, name, display_name,
                   created_at, version, updated_at, deleted_at, status, document, state, prompt_version) VALUES
    {_task(OF_ZED, ZED, ZERO, UNUSED, "fix-it", preset=f"'{P_UNUSED}'")},
    {_task(OF_ALICE, ALICE, ACME, CLAUDE, "Fix-It", preset=f"'{PRESET}'", hours="1")},
    {_task(OF_BOB, BOB, ACME, CLAUDE, "fix-it", hours="4")},
    {_task(OF_DORA, DORA, BETA, BETAS, "fix-it", hours="3")},
    {_task(DELETED, ALICE, ACME, CLAUDE, "gone", deleted="'2026-01-03T00:00Z'", hours="5")},
    {_task(OF_EVE, EVE, ACME, CLAUDE, "fix-it", hours="2")};
"""
