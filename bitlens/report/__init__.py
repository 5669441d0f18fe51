"""What people look at: `pictures` (tables in the terminal, animations, contact sheets) and `page` (one HTML file)."""

from bitlens.report.pictures import (
    Panel,
    console,
    contact_sheet,
    exposed,
    side_by_side,
    table,
    write_contact_sheet,
    write_side_by_side,
)

__all__ = [
    "Panel", "console", "contact_sheet", "exposed", "side_by_side", "table", "write_contact_sheet",
    "write_side_by_side",
]  # fmt: skip
