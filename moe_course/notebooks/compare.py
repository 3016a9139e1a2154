"""What differs between two notebooks, outputs apart, cell by cell."""

import difflib
import json
from typing import Any

from nbformat import NotebookNode

Line = tuple[str, str]  # where it stands, what it says


def difference(found: NotebookNode, wanted: NotebookNode) -> list[str]:
    """A diff that names the cells: lines of `found` behind `-`, of `wanted` behind `+`; empty if they agree."""
    old, new = _lines(found), _lines(wanted)
    matcher = difflib.SequenceMatcher(None, [text for _, text in old], [text for _, text in new], autojunk=False)
    diff = []
    for group in matcher.get_grouped_opcodes(2):
        where = [old[i][0] for tag, i, _, j, _ in group if tag == "delete"]
        where += [new[j][0] for tag, _, _, j, _ in group if tag in ("insert", "replace")]
        diff.append(f"@@ {', '.join(dict.fromkeys(where))} @@")
        for tag, i1, i2, j1, j2 in group:
            if tag == "equal":
                diff += [f"  {text}" for _, text in old[i1:i2]]
            else:
                diff += [f"- {text}" for _, text in old[i1:i2]] + [f"+ {text}" for _, text in new[j1:j2]]
    return diff


def same_code(found: NotebookNode, wanted: NotebookNode) -> bool:
    """Whether both run the same code in the same order, so that the outputs of one are those of the other."""
    return _code(found) == _code(wanted)


def _lines(notebook: NotebookNode) -> list[Line]:
    lines = [("the notebook's metadata", text) for text in _entries(notebook.metadata)]
    for number, cell in enumerate(notebook.cells):
        where = f"cell {number}, {cell.cell_type} {cell.get('id', 'without an id')}"
        texts = [where.split(", ")[1], *_entries(cell.metadata), *cell.source.splitlines()]
        lines += [(where, text) for text in texts]
    return lines


def _entries(metadata: dict[str, Any]) -> list[str]:
    return [f"{key}: {json.dumps(metadata[key], sort_keys=True, ensure_ascii=False)}" for key in sorted(metadata)]


def _code(notebook: NotebookNode) -> list[tuple[str, Any]]:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [(cell.source, sorted(cell.metadata.get("tags", []))) for cell in code]
