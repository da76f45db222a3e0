"""Settings come from the environment, and a misspelt name stops the process instead of being ignored."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings

Settings = TypeVar("Settings", bound=BaseSettings)


class WrongSettings(ValueError):
    """Variables that nobody reads, or whose values are wrong; the text names each."""


def read(settings: type[Settings], environ: Mapping[str, str], **given: Any) -> Settings:
    """The settings of this process' environment, where `given` says nothing else. Raises WrongSettings."""
    refuse_unknown(settings, environ)
    try:
        return settings(**given)
    except ValidationError as error:
        prefix = settings.model_config.get("env_prefix", "")
        lines = (_line(prefix, each["loc"], each["msg"]) for each in error.errors(include_url=False))
        raise WrongSettings("\n".join(lines)) from None


def refuse_unknown(settings: type[BaseSettings], environ: Mapping[str, str]) -> None:
    """Stop on a variable that no field reads: pydantic-settings looks up only the names it knows.

    Raises WrongSettings with the names, if any variable begins with the class's prefix and is no field of it.
    """
    prefix = settings.model_config.get("env_prefix", "")
    assert prefix, f"{settings.__name__} has no prefix, so every variable would be its own"
    known = {f"{prefix}{name}".upper() for name in settings.model_fields}
    unknown = sorted(n for n in environ if n.upper().startswith(prefix.upper()) and n.upper() not in known)
    if unknown:
        raise WrongSettings(f"unknown settings: {', '.join(unknown)}")


def _line(prefix: str, where: tuple[int | str, ...], fact: str) -> str:
    """What is wrong with one variable, or with how several of them go together."""
    fact = fact.removeprefix("Value error, ")
    return f"{prefix}{'_'.join(map(str, where))}".upper() + f": {fact}" if where else f"settings: {fact}"
