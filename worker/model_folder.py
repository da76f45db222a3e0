"""Reads the JSON files of a Hugging Face model folder."""

import json
from pathlib import Path
from typing import Any


class ModelFolderError(ValueError):
    """The folder is no model that this project can serve; the text says what is wrong with which file."""


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in `folder/name`; {} if there is no such file. Raises ModelFolderError."""
    path = folder / name
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFolderError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ModelFolderError(f"{path} holds no JSON object")
    return document
