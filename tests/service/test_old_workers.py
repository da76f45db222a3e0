"""Two releases side by side: what a worker of an earlier one would pass over is not given to it."""

import grpc

from contract.broker import Broker
from contract.messages import JOB_LEVEL
from llamaherd.v1 import common_pb2, generation_pb2
from tests.service.bundles import bundle
from tests.service.gateways import RunningGateway, answer_of, error_of, open_stream, read_rest
from tests.service.scripted_worker import scripted_worker
from tests.until import until


async def test_a_knob_that_a_live_worker_does_not_know_is_refused_until_it_is_gone(
    broker: Broker, gateway: RunningGateway
) -> None:
    """UNAVAILABLE with a retry delay, since both take from one queue; what both know is served all the while."""
    plain = common_pb2.GenerationSpec(model="mixed", prompt="hello")
    tuned = common_pb2.GenerationSpec(model="mixed", prompt="hello", sampling=common_pb2.Sampling(min_p=0.5))

    async def is_taken(spec: common_pb2.GenerationSpec) -> bool:
        call = gateway.stub.Generate(generation_pb2.GenerateRequest(spec=spec))
        first = await answer_of(call.read())
        call.cancel()
        return isinstance(first, generation_pb2.GenerateResponse)

    async with scripted_worker(broker, {"mixed": bundle()}):
        await until(lambda: is_taken(tuned), what="a worker of today is seen")
        async with scripted_worker(broker, {"mixed": bundle()}) as old:
            old.says = {}  # a release that told no level

            async def is_refused() -> bool:
                return not await is_taken(tuned)

            await until(is_refused, what="the old worker is seen")
            error = await error_of(gateway.stub.Generate(generation_pb2.GenerateRequest(spec=tuned)))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert error.details() == "a worker of model 'mixed' is of an earlier release, without min_p"
            call, received = await open_stream(gateway, generation_pb2.GenerateRequest(spec=plain))
            work = await old.take(received.generation_id, "mixed")
            await work.say("served")
            await work.finish()
            assert (await read_rest(call, received)).text == "served"

            old.says = {"job_level": str(JOB_LEVEL)}  # it comes back upgraded
            await until(lambda: is_taken(tuned), what="the upgrade is seen")
