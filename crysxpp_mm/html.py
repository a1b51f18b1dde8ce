"""Small tables of facts for notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape


def facts_table(title: str, facts: Mapping[str, object]) -> str:
    """Make a table of two columns in HTML; every text is escaped.

    Args:
        title: Title above the table.
        facts: Text of each row by its name; an empty text or None leaves the row out.

    Example:
        >>> "<td" in facts_table("salt", {"formula": "NaCl"})
        True
    """
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th>'
        f'<td style="text-align:left">{escape(str(value))}</td></tr>'
        for name, value in facts.items()
        if value not in (None, "")
    )
    return f"<div><p><b>{escape(title)}</b></p><table><tbody>{rows}</tbody></table></div>"
