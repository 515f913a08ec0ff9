"""The directory's names that appear in a task document."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskherd.domain.value import value

if TYPE_CHECKING:
    from uuid import UUID


@value(frozen=True, slots=True)
class DirectoryNames:
    """Names, icon and avatar of a task's owner and template; read again after each change of the directory."""

    owner_name: str
    owner_avatar_url: str
    organization_id: UUID
    template_id: UUID
    template_name: str
    template_display_name: str
    template_icon: str
