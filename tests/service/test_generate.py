"""Generate and Complete: what comes back, and in which order."""

from contract.messages import ChoiceEnd, EndReason
from llamaherd.v1 import common_pb2, generation_pb2
from tests.service.gateways import RunningGateway, error_of, open_stream, prompt, read_rest, read_until
from tests.service.scripted_worker import ScriptedWorker


async def test_a_stream_is_accepted_started_tokens_finished_completed(
    gateway: RunningGateway, worker: ScriptedWorker
) -> None:
    """Every event once, in order; tokens join to what the worker said; counts and ids are right."""
    call, received = await open_stream(gateway, prompt("abc"))
    work = await worker.take(received.generation_id)
    for text in ("Hello", ",", " world"):
        await work.say(text)
    await work.finish()
    await read_rest(call, received)

    assert received.kinds == ["accepted", "started", "tokens", "choice_finished", "completed"]
    assert received.text == "Hello, world"
    assert received.ids == [token.token_id for token in work.tokens]
    assert received.messages[0].accepted.prompt_tokens == 5, "BOS, the space before, a, b, c"
    finished = received.only("choice_finished").choice_finished
    assert (finished.reason, finished.num_tokens) == (common_pb2.FINISH_REASON_EOS, 3)
    completed = received.messages[-1].completed
    assert (completed.usage.prompt_tokens, completed.usage.output_tokens, completed.attempts) == (5, 3, 1)
    assert completed.timings.total_ms >= completed.timings.first_token_ms >= completed.timings.queue_ms


async def test_joined_bytes_of_token_messages_are_the_tokens(gateway: RunningGateway, worker: ScriptedWorker) -> None:
    """Serialized token messages concatenate to one message with the same tokens."""
    call, received = await open_stream(gateway, prompt())
    work = await worker.take(received.generation_id)
    for n in range(40):
        await work.say(*(f"<{n}.{m}>" for m in range(n % 3 + 1)))
    await work.finish()
    await read_rest(call, received)

    joined = b"".join(m.SerializeToString() for m in received.messages if m.tokens)
    tokens = generation_pb2.GenerateResponse.FromString(joined).tokens

    assert [(t.position, t.id, t.text) for t in tokens] == [(t.position, t.token_id, t.text) for t in work.tokens]


async def test_settings_that_will_be_used_are_echoed(gateway: RunningGateway, worker: ScriptedWorker) -> None:
    """What was given stands; what was not is the model's own default, and the seed is a random one."""
    request = prompt()
    request.spec.sampling.top_k = 7
    request.spec.stopping.stop_strings.append("END")
    (call, first), (other, second) = await open_stream(gateway, request), await open_stream(gateway, request)
    call.cancel()
    other.cancel()

    settings = first.messages[0].accepted.settings
    assert settings.model == "chat"
    assert settings.sampling.top_k == 7
    assert round(settings.sampling.temperature, 6) == 0.6
    assert round(settings.sampling.top_p, 6) == 0.9
    assert settings.sampling.seed != second.messages[0].accepted.settings.sampling.seed
    assert settings.stopping.max_new_tokens == 1024
    assert settings.stopping.max_time_ms == 3_600_000
    assert list(settings.stopping.stop_strings) == ["END"]
    for group in (settings.sampling, settings.stopping):
        for field in group.DESCRIPTOR.fields:
            assert field.is_repeated or group.HasField(field.name), f"{field.name} is absent"


async def test_a_greedy_model_stays_greedy_until_a_temperature_is_given(gateway: RunningGateway) -> None:
    """do_sample false in the model's own settings means temperature 0."""
    plain, warm = prompt(model="base"), prompt(model="base")
    warm.spec.sampling.temperature = 0.5

    (call, first), (other, second) = await open_stream(gateway, plain), await open_stream(gateway, warm)
    call.cancel()
    other.cancel()

    assert first.messages[0].accepted.settings.sampling.temperature == 0
    assert second.messages[0].accepted.settings.sampling.temperature == 0.5


async def test_the_job_is_what_the_request_says(gateway: RunningGateway, worker: ScriptedWorker) -> None:
    """Ids are used as given; a chat is encoded by the model's format, and only then a leading space is stripped."""
    ids = prompt()
    ids.spec.token_ids.ids.extend([1, 5, 9])
    ids.spec.output.logprobs = True
    ids.spec.sampling.seed = 2**64 - 1
    ids.spec.stopping.max_total_tokens = 10
    ids.spec.priority = common_pb2.PRIORITY_HIGH
    chat = prompt()
    chat.spec.chat.messages.add(role=common_pb2.ROLE_USER, content="hi")
    (first_call, first), (second_call, second) = await open_stream(gateway, ids), await open_stream(gateway, chat)

    ids_job = (await worker.take(first.generation_id, job_class="high")).taken.job
    chat_job = (await worker.take(second.generation_id)).taken.job
    first_call.cancel()
    second_call.cancel()

    assert ids_job.prompt_ids == (1, 5, 9)
    assert (ids_job.strip_leading_space, ids_job.logprobs, ids_job.sampling.seed) == (False, True, 2**64 - 1)
    assert ids_job.stopping.max_new_tokens == 7
    assert len(chat_job.prompt_ids) == 1 + 1 + len("[INST] hi [/INST]")
    assert (chat_job.strip_leading_space, chat_job.logprobs) == (True, False)


async def test_a_waiting_stream_learns_its_position(gateway: RunningGateway, worker: ScriptedWorker) -> None:
    """`queued` comes after `accepted` when others stand before it."""
    (first, _), (second, received) = (
        await open_stream(gateway, low_priority()),
        await open_stream(gateway, low_priority()),
    )
    message = await second.read()
    first.cancel()
    second.cancel()

    assert message.queued.position >= 1
    assert received.kinds == ["accepted"]


async def test_a_stop_string_is_named_and_held_back_text_comes_with_the_end(
    gateway: RunningGateway, worker: ScriptedWorker
) -> None:
    """What the worker says of a choice's end reaches the client whole."""
    call, received = await open_stream(gateway, prompt())
    work = await worker.take(received.generation_id)
    await work.say("one", "two")
    await work.finish(ends=[ChoiceEnd(0, "STOP_STRING", 2, stop_string="END", text="E")])
    await read_rest(call, received)

    finished = received.only("choice_finished").choice_finished
    assert (finished.reason, finished.stop_string, finished.text) == (common_pb2.FINISH_REASON_STOP_STRING, "END", "E")


async def test_a_choice_that_ends_in_a_row_is_told_once(gateway: RunningGateway, worker: ScriptedWorker) -> None:
    """An end told with tokens is not told again with the generation's end."""
    call, received = await open_stream(gateway, prompt())
    work = await worker.take(received.generation_id)
    end = ChoiceEnd(0, "LENGTH", 2)
    await work.say("a", "b", ends=(end,))
    await work.finish(ends=[end])
    await read_rest(call, received)

    assert received.kinds == ["accepted", "started", "tokens", "choice_finished", "completed"]


async def test_another_worker_goes_on_where_the_first_stopped(gateway: RunningGateway, worker: ScriptedWorker) -> None:
    """`started` comes once per attempt, and no token is lost or doubled over the change."""
    call, received = await open_stream(gateway, prompt())
    work = await worker.take(received.generation_id)
    await work.say("a", "b")
    await worker.hand_back(work)
    assert (await work.say("zombie")).outcome.value == "fenced"
    again = await worker.adopt(received.generation_id)
    await again.say("c")
    await again.finish()
    await read_rest(call, received)

    assert received.text == "abc"
    assert received.kinds == ["accepted", "started", "tokens", "started", "tokens", "choice_finished", "completed"]
    assert [m.started.attempt for m in received.messages if m.HasField("started")] == [1, 2]
    assert received.messages[-1].completed.attempts == 2


async def test_complete_answers_with_everything_at_once(gateway: RunningGateway, worker: ScriptedWorker) -> None:
    """Text, tokens, end, settings, usage and timings in one message."""
    request = generation_pb2.CompleteRequest(spec=prompt().spec, request_id="complete-1")
    call = gateway.stub.Complete(request)
    generation_id = (await open_stream(gateway, prompt(request_id="complete-1")))[1].generation_id
    work = await worker.take(generation_id)
    await work.say("x", "y")
    await work.finish(ends=[ChoiceEnd(0, "TIME_LIMIT", 2, text="z")])

    answer = await call

    assert answer.generation_id == generation_id
    (choice,) = answer.choices
    assert (choice.text, [t.text for t in choice.tokens]) == ("xyz", ["x", "y"])
    assert choice.finished.reason == common_pb2.FINISH_REASON_TIME_LIMIT
    assert (answer.usage.prompt_tokens, answer.usage.output_tokens) == (7, 2)
    assert answer.settings.model == "chat"


async def test_get_generation_tells_the_state_and_the_text_so_far(
    gateway: RunningGateway, worker: ScriptedWorker
) -> None:
    """Queued, running, finished; the text grows."""
    call, received = await open_stream(gateway, prompt())
    ask = generation_pb2.GetGenerationRequest(generation_id=received.generation_id)

    queued = await gateway.stub.GetGeneration(ask)
    work = await worker.take(received.generation_id)
    await work.say("so ", "far")
    running = await gateway.stub.GetGeneration(ask)
    await work.finish()
    await read_rest(call, received)
    finished = await gateway.stub.GetGeneration(ask)

    assert queued.state == generation_pb2.GENERATION_STATE_QUEUED
    assert (running.state, running.choices[0].text) == (generation_pb2.GENERATION_STATE_RUNNING, "so far")
    assert not running.choices[0].HasField("finished")
    assert finished.state == generation_pb2.GENERATION_STATE_FINISHED
    assert finished.choices[0].finished.reason == common_pb2.FINISH_REASON_EOS
    assert finished.usage.output_tokens == 2
    assert finished.accept_time.seconds > 0
    assert finished.attempts == 1


async def test_get_generation_names_the_error_of_a_failed_one(gateway: RunningGateway, worker: ScriptedWorker) -> None:
    """FAILED, with the reason a stream would have ended with."""
    call, received = await open_stream(gateway, prompt())
    work = await worker.take(received.generation_id)
    await work.finish(EndReason.FAILED)
    await error_of(call, received)

    answer = await gateway.stub.GetGeneration(generation_pb2.GetGenerationRequest(generation_id=received.generation_id))

    assert (answer.state, answer.error_reason) == (generation_pb2.GENERATION_STATE_FAILED, "GENERATION_FAILED")


async def test_cancel_ends_a_waiting_generation_at_once(gateway: RunningGateway, worker: ScriptedWorker) -> None:
    """Its stream ends with OK, one choice cancelled, and `completed`; cancelling again changes nothing."""
    call, received = await open_stream(gateway, prompt())
    ask = generation_pb2.CancelGenerationRequest(generation_id=received.generation_id)

    first = await gateway.stub.CancelGeneration(ask)
    again = await gateway.stub.CancelGeneration(ask)
    await read_rest(call, received)

    assert first == again
    assert first.state == generation_pb2.GENERATION_STATE_FINISHED
    assert first.reason == common_pb2.FINISH_REASON_CANCELLED
    assert received.kinds == ["accepted", "choice_finished", "completed"]
    assert received.only("choice_finished").choice_finished.reason == common_pb2.FINISH_REASON_CANCELLED


async def test_cancel_reaches_the_worker_with_its_next_step(gateway: RunningGateway, worker: ScriptedWorker) -> None:
    """While the worker does not know it the state is RUNNING."""
    call, received = await open_stream(gateway, prompt())
    work = await worker.take(received.generation_id)
    await work.say("a")
    ask = generation_pb2.CancelGenerationRequest(generation_id=received.generation_id)

    answer = await gateway.stub.CancelGeneration(ask)
    reply = await work.say("b")
    await work.finish(EndReason.CANCELLED, [ChoiceEnd(0, "CANCELLED", 2)])
    await read_rest(call, received)

    assert answer.state == generation_pb2.GENERATION_STATE_RUNNING
    assert reply.cancel
    assert received.text == "ab"
    assert received.kinds[-2:] == ["choice_finished", "completed"]


async def test_cancel_of_a_finished_generation_tells_how_it_ended(
    gateway: RunningGateway, worker: ScriptedWorker
) -> None:
    """The first end stands."""
    call, received = await open_stream(gateway, prompt())
    work = await worker.take(received.generation_id)
    await work.finish(ends=[ChoiceEnd(0, "LENGTH", 0)])
    await read_rest(call, received)

    answer = await gateway.stub.CancelGeneration(
        generation_pb2.CancelGenerationRequest(generation_id=received.generation_id)
    )

    assert answer.state == generation_pb2.GENERATION_STATE_FINISHED
    assert answer.reason == common_pb2.FINISH_REASON_LENGTH


async def test_tokens_come_while_others_are_made(gateway: RunningGateway, worker: ScriptedWorker) -> None:
    """The first token is read before the second is made."""
    call, received = await open_stream(gateway, prompt())
    work = await worker.take(received.generation_id)
    for n in range(5):
        await work.say(f"{n}")
        await read_until(call, received, n + 1)
    await work.finish()
    await read_rest(call, received)

    assert received.text == "01234"


def low_priority() -> generation_pb2.GenerateRequest:
    """A class that no other test uses."""
    request = prompt()
    request.spec.priority = common_pb2.PRIORITY_LOW
    return request
