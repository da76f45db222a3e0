"""GET /metrics, for Prometheus. On threads of its own; it tells numbers and names of models, nothing of any request."""

import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from telemetry.metrics import SCRAPE_PATH

READ_TIMEOUT_S = 10.0


def serve_metrics(host: str, port: int, more: Callable[[], bytes]) -> tuple[PrometheusMetricReader, "ScrapeServer"]:
    """A reader of this process' metrics, and the server that tells them; see ScrapeServer."""
    registry = CollectorRegistry()
    server = ScrapeServer(host, port, registry, more)
    return PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False, registry=registry), server


class ScrapeServer:
    """Listens from its making until `close`.

    Args:
        registry: what is told, in Prometheus' text format.
        more: text that is told after it.

    Raises OSError if the address cannot be bound.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry, more: Callable[[], bytes]) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = READ_TIMEOUT_S

            def do_GET(self) -> None:
                if self.path.partition("?")[0] != SCRAPE_PATH:
                    self.send_error(HTTPStatus.NOT_FOUND)
                    return
                body = generate_latest(registry) + more()
                self.send_response(HTTPStatus.OK)
                self.send_header("content-type", CONTENT_TYPE_PLAIN_0_0_4)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                """Quiet: a scrape is no event."""

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        self._server = Server((host, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The bound port."""
        return self._server.server_port

    def close(self) -> None:
        """Stop listening; a scrape under way ends by itself."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
