"""The directory's names that appear in a task document, and in the labels of metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

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


class TemplatePool(NamedTuple):
    """The name of a template and of the pool that runs its tasks, as metrics label what happens to them.

    Templates of several organizations with the same name are not distinguished.
    """

    template: str
    pool: str


OTHER: Final = TemplatePool("other", "other")
"""The label of all templates and pools that metrics do not name."""
