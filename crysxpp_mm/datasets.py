"""Deprecated: matminer's tables are read by ``crysxpp_mm.data.matminer_tables``."""

from __future__ import annotations

from crysxpp_mm.deprecation import moved_names

__getattr__ = moved_names(
    __name__,
    {
        "load_table": "crysxpp_mm.data.matminer_tables",
        "structure_column": "crysxpp_mm.data.matminer_tables",
    },
)
