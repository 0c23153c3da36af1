"""What a run leaves behind, and its JSON."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import Record, from_json, to_json

FORMAT = 1


@dataclass
class Results:
    """One run: where, how and what was measured, and which implementations were missing."""

    environment: dict[str, Any]
    settings: dict[str, Any]
    missing: list[str]
    records: list[Record]


def save(results: Results, path: Path) -> None:
    """Writes one record a line."""
    head = {
        "format": FORMAT,
        "environment": results.environment,
        "settings": results.settings,
        "missing": results.missing,
    }
    records = ",\n".join(json.dumps(_rounded(to_json(record))) for record in results.records)
    path.write_text(json.dumps(head, indent=1)[:-2] + f',\n "records": [\n{records}\n]}}\n')


def load(path: Path) -> Results:
    content = json.loads(path.read_text())
    if content.get("format") != FORMAT:
        raise ValueError(f"{path}: format is {content.get('format')}, must be {FORMAT}")
    records = [from_json(entry) for entry in content["records"]]
    return Results(content["environment"], content["settings"], content["missing"], records)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    return value
