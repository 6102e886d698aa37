"""What a user says about weights that do not say it themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Given:
    """Options that belong to a weights file.

    Attributes:
        class_names: names by class id; the background's, id 0, may be left out. None: those in the file.
        settings: ``FIELD=VALUE`` changes of the spec; they win over everything else.
        ignore_layers: layers of the file, or patterns with ``*``, that the model may lack.
    """

    class_names: tuple[str, ...] | None = None
    settings: tuple[str, ...] = ()
    ignore_layers: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        class_names: Sequence[str] | None = None,
        settings: Sequence[str] = (),
        ignore_layers: Sequence[str] = (),
    ) -> Given:
        """The same from lists."""
        names = None if class_names is None else tuple(class_names)
        return cls(names, tuple(settings), tuple(ignore_layers))


NOTHING = Given()
"""The user says nothing."""
