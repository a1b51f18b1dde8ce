"""Deprecated: pictures are drawn by ``crysxpp_mm.plots``."""

from __future__ import annotations

from crysxpp_mm.deprecation import moved_names

__getattr__ = moved_names(
    __name__,
    dict.fromkeys(("COLORS", "draw_label_curves", "draw_map", "map_to_plane"), "crysxpp_mm.plots"),
)
