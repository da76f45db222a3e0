"""As many file descriptors as this process may need: a connection that finds none is not taken, and nobody is told."""

import resource

import structlog

OTHERS = 512  # beside clients' connections: those to Redis (256 at once), its log, its modules, gRPC's own

log = structlog.get_logger(__name__)


def allow_connections(max_connections: int) -> None:
    """Raise this process' soft limit to what so many connections take, up to its hard one; warn if that is less."""
    needed = max_connections + OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):  # the system's own bound was lowered below the hard limit
        allowed = soft
    if allowed < needed:
        log.warning(
            "too few file descriptors for max_connections: raise the hard limit, or lower the setting",
            needed=needed,
            allowed=allowed,
            max_connections=max_connections,
        )
