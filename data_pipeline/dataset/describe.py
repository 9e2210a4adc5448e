"""Print the tables of docs/dataset.md: ``python -m data_pipeline.dataset.describe``."""

from __future__ import annotations

from data_pipeline.schema import ENTRY_ATTRIBUTES, ENTRY_FIELDS, FILE_ATTRIBUTES, SCHEMA_VERSION, TASKS, Field


def markdown() -> str:
    """Return the schema as Markdown tables."""
    sections = (
        ("Arrays of an entry, `/entries/ID/NAME`", ENTRY_FIELDS),
        ("Attributes of an entry, on `/entries/ID`", ENTRY_ATTRIBUTES),
        ("Attributes of the file", FILE_ATTRIBUTES),
    )
    tables = [f"## {title}\n\n{_table(fields)}" for title, fields in sections]
    return f"Schema version {SCHEMA_VERSION}. `F` frames, `N` atoms, `B` bonds, `G` force groups.\n\n" + "\n".join(
        tables
    )


def _table(fields: tuple[Field, ...]) -> str:
    lines = ["| name | type | shape | unit | meaning |", "|---|---|---|---|---|"]
    for one in fields:
        shape = f"({', '.join(one.shape)})" if one.shape else ""
        meaning = one.meaning if one.required else f"{one.meaning} Optional."
        if one.tasks != TASKS:
            meaning += f" Task {', '.join(one.tasks)} alone."
        lines.append(f"| `{one.name}` | {one.dtype} | {shape} | {one.unit} | {meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
