"""Settings come from the environment, and a misspelt name stops the process instead of being ignored."""

from collections.abc import Mapping

from pydantic_settings import BaseSettings


def refuse_unknown(settings: type[BaseSettings], environ: Mapping[str, str]) -> None:
    """Stop on a variable that no field reads: pydantic-settings looks up only the names it knows.

    Raises SystemExit with the names, if any variable begins with the class's prefix and is no field of it.
    """
    prefix = settings.model_config.get("env_prefix", "")
    assert prefix, f"{settings.__name__} has no prefix, so every variable would be its own"
    known = {f"{prefix}{name}".upper() for name in settings.model_fields}
    unknown = sorted(n for n in environ if n.upper().startswith(prefix.upper()) and n.upper() not in known)
    if unknown:
        raise SystemExit(f"unknown settings: {', '.join(unknown)}")
