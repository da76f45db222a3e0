"""Prints the README's settings tables from the settings classes; with --write puts them between their markers."""

import sys
from pathlib import Path

from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from service.settings import GatewaySettings
from worker.settings import WorkerSettings

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- settings -->\n", "<!-- /settings -->"


def tables() -> str:
    """One Markdown table for each process."""
    return "\n".join(
        f"**{title}**\n\n| variable | default | meaning |\n|---|---|---|\n{_rows(settings)}"
        for title, settings in (("Gateway", GatewaySettings), ("Worker", WorkerSettings))
    )


def written(readme: str) -> str:
    """The README with the tables as they should be."""
    head, _, rest = readme.partition(BEGIN)
    return f"{head}{BEGIN}{tables()}{END}{rest.partition(END)[2]}"


def _rows(settings: type[BaseSettings]) -> str:
    prefix = settings.model_config.get("env_prefix", "")
    rows = ""
    for name, field in settings.model_fields.items():
        default = "(required)" if field.default is PydanticUndefined else f"`{field.default}`"
        default = "" if field.default in (None, "") else default
        rows += f"| `{prefix}{name.upper()}` | {default} | {field.description} |\n"
    return rows


if __name__ == "__main__":
    if "--write" in sys.argv:
        README.write_text(written(README.read_text()))
    else:
        print(tables())
