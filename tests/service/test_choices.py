"""Several answers to one prompt, through every RPC: each whole, with its own end and its own counts."""

from contract.messages import ChoiceEnd, EndReason
from llamaherd.v1 import common_pb2, generation_pb2
from tests.service.gateways import Received, RunningGateway, open_stream, prompt, read_rest, read_until
from tests.service.scripted_worker import ScriptedWorker, Work


def three() -> generation_pb2.GenerateRequest:
    """A prompt with three choices."""
    request = prompt()
    request.spec.sampling.n = 3
    return request


async def say_three(work: Work) -> None:
    """Choice 1 ends first, then choice 0, then choice 2."""
    assert work.taken.job.num_choices == 3
    await work.say_in((0, "a"), (1, "b"), (2, "c"))
    await work.say_in((0, "d"), (1, "e"), (2, "f"), ends=(ChoiceEnd(1, "EOS", 2),))
    await work.say_in((0, "g"), (2, "h"), ends=(ChoiceEnd(0, "STOP_STRING", 3, stop_string="!"),))
    await work.say_in((2, "i"))
    ends = (ChoiceEnd(0, "STOP_STRING", 3, stop_string="!"), ChoiceEnd(1, "EOS", 2), ChoiceEnd(2, "LENGTH", 4))
    await work.finish(ends=ends)


TEXTS = ["adg", "be", "cfhi"]


def texts_of(received: Received) -> list[str]:
    """Text by choice; checks that each choice counts its own tokens."""
    texts, counts = ["", "", ""], [0, 0, 0]
    for message in received.messages:
        for token in message.tokens:
            assert token.index == counts[token.choice]
            counts[token.choice] += 1
            texts[token.choice] += token.text
    return texts


async def test_each_choice_ends_when_it_ends(worker: ScriptedWorker, gateway: RunningGateway) -> None:
    """choice_finished comes with the choice's last token, while the others go on."""
    call, received = await open_stream(gateway, three())
    assert received.messages[0].accepted.settings.sampling.n == 3
    await say_three(await worker.take(received.generation_id))
    await read_rest(call, received)

    assert texts_of(received) == TEXTS
    ends = [m.choice_finished for m in received.messages if m.HasField("choice_finished")]
    assert [(end.choice, end.num_tokens) for end in ends] == [(1, 2), (0, 3), (2, 4)]
    assert ends[1].stop_string == "!"
    assert received.kinds[-1] == "completed"
    assert received.messages[-1].completed.usage.output_tokens == 9


async def test_an_end_is_told_before_the_others_go_on(worker: ScriptedWorker, gateway: RunningGateway) -> None:
    """A reader knows that choice 1 has ended as soon as it has."""
    call, received = await open_stream(gateway, three())
    work = await worker.take(received.generation_id)
    await work.say_in((0, "a"), (1, "b"), (2, "c"), ends=(ChoiceEnd(1, "EOS", 1),))
    await read_until(call, received, 3)
    received.add(await call.read())
    assert received.messages[-1].choice_finished.choice == 1
    call.cancel()


async def test_a_snapshot_and_a_whole_answer_have_every_choice(worker: ScriptedWorker, gateway: RunningGateway) -> None:
    """GetGeneration in the middle and at the end, and Complete."""
    call, received = await open_stream(gateway, three())
    work = await worker.take(received.generation_id)
    await work.say_in((0, "a"), (1, "b"), (2, "c"), ends=(ChoiceEnd(1, "EOS", 1),))
    await read_until(call, received, 3)
    ask = generation_pb2.GetGenerationRequest(generation_id=received.generation_id)
    middle = await gateway.stub.GetGeneration(ask)
    assert [choice.text for choice in middle.choices] == ["a", "b", "c"]
    assert [choice.HasField("finished") for choice in middle.choices] == [False, True, False]

    await work.say_in((2, "d"))
    await work.finish(ends=[ChoiceEnd(0, "TIME_LIMIT", 1, text="!"), ChoiceEnd(1, "EOS", 1), ChoiceEnd(2, "EOS", 2)])
    await read_rest(call, received)
    whole = await gateway.stub.GetGeneration(ask)
    assert [choice.text for choice in whole.choices] == ["a!", "b", "cd"]
    assert [len(choice.tokens) for choice in whole.choices] == [1, 1, 2]
    assert [choice.finished.num_tokens for choice in whole.choices] == [1, 1, 2]


async def test_complete_answers_with_all_choices(worker: ScriptedWorker, gateway: RunningGateway) -> None:
    """In the order of their numbers, whatever the order of their ends."""
    request = generation_pb2.CompleteRequest(spec=three().spec, request_id="three at once")
    answering = gateway.stub.Complete(request)
    call, received = await open_stream(
        gateway, generation_pb2.GenerateRequest(spec=three().spec, request_id="three at once")
    )
    await say_three(await worker.take(received.generation_id))
    answer = await answering

    assert [choice.text for choice in answer.choices] == TEXTS
    assert [choice.finished.choice for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.output_tokens == 9
    await read_rest(call, received)


async def test_a_cancel_from_outside_ends_only_what_runs(worker: ScriptedWorker, gateway: RunningGateway) -> None:
    """Choices that had ended keep their end; the counts of the others are their own."""
    call, received = await open_stream(gateway, three())
    work = await worker.take(received.generation_id)
    await work.say_in((0, "a"), (1, "b"), (0, "c"), (2, "d"), ends=(ChoiceEnd(1, "EOS", 1),))
    await read_until(call, received, 4)
    await work.finish(EndReason.CANCELLED, [])  # as a script that knows no choices would
    await read_rest(call, received)

    ends = {m.choice_finished.choice: m.choice_finished for m in received.messages if m.HasField("choice_finished")}
    assert {choice: end.num_tokens for choice, end in ends.items()} == {0: 2, 1: 1, 2: 1}
    assert ends[1].reason == common_pb2.FINISH_REASON_EOS
    assert {ends[0].reason, ends[2].reason} == {common_pb2.FINISH_REASON_CANCELLED}
    ask = generation_pb2.GetGenerationRequest(generation_id=received.generation_id)
    finished = [choice.finished for choice in (await gateway.stub.GetGeneration(ask)).choices]
    assert finished == [ends[0], ends[1], ends[2]]


async def test_a_queued_generation_that_is_cancelled_has_its_choices(gateway: RunningGateway) -> None:
    """Nobody took it: three ends without a token."""
    call, received = await open_stream(gateway, three())
    await gateway.stub.CancelGeneration(generation_pb2.CancelGenerationRequest(generation_id=received.generation_id))
    await read_rest(call, received)

    ends = [m.choice_finished for m in received.messages if m.HasField("choice_finished")]
    assert [(end.choice, end.num_tokens) for end in ends] == [(0, 0), (1, 0), (2, 0)]
