"""Metrics that OpenTelemetry's conventions name are named, counted and divided as they say."""

from opentelemetry.semconv._incubating.metrics import gen_ai_metrics, rpc_metrics

from telemetry import names

# The boundaries that the conventions advise, as their page on each metric has them.
SECONDS_OF_CALLS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
SECONDS_OF_REQUESTS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
SECONDS_TO_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
SECONDS_A_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
CONVENTIONS = {
    rpc_metrics.RPC_SERVER_CALL_DURATION: ("s", SECONDS_OF_CALLS),
    gen_ai_metrics.GEN_AI_SERVER_REQUEST_DURATION: ("s", SECONDS_OF_REQUESTS),
    gen_ai_metrics.GEN_AI_SERVER_TIME_TO_FIRST_TOKEN: ("s", SECONDS_TO_FIRST),
    gen_ai_metrics.GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN: ("s", SECONDS_A_TOKEN),
    gen_ai_metrics.GEN_AI_CLIENT_TOKEN_USAGE: ("{token}", TOKENS),
}


def test_what_has_a_name_there_has_no_other_here() -> None:
    """Names of OpenTelemetry's own package; whatever else we tell begins with our name."""
    ours = {metric.name for metric in names.METRICS if not metric.name.startswith("llamaherd.")}

    assert ours == CONVENTIONS.keys()


def test_units_and_buckets_are_those_of_the_conventions() -> None:
    """So that dashboards made for others fit."""
    told = {metric.name: (metric.unit, metric.buckets) for metric in names.METRICS if metric.name in CONVENTIONS}

    assert told == CONVENTIONS
