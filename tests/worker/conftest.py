"""Fixtures of these tests: a real server and a broker."""

from tests.worker.servers import broker, redis_url, server

__all__ = ["broker", "redis_url", "server"]
