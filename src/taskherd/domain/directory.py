"""What the directory says of a task's owner and template, as far as a task document shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskherd.domain.value import value

if TYPE_CHECKING:
    from uuid import UUID


@value(frozen=True, slots=True)
class DirectoryNames:
    """The names, icon and avatar that a document is rendered with; read anew whenever the directory has changed."""

    owner_name: str
    owner_avatar_url: str
    organization_id: UUID
    template_id: UUID
    template_name: str
    template_display_name: str
    template_icon: str
