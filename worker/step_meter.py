"""Measures an engine by what it reports. An observation is made for a step, never for a token."""

from telemetry import names
from telemetry.metrics import histogram, observe
from worker.engine.sequence import GenerationRequest, TokenEvent
from worker.engine_wire import StepReport
from worker.progress import Progress

_step_duration = histogram(names.STEP_DURATION)
_batch_size = histogram(names.BATCH_SIZE)


class StepMeter:
    """What the supervisor tells goes into its page, the rest to instruments."""

    def __init__(self, model: str, progress: Progress) -> None:
        self._progress = progress
        self._labels = {names.ATTR_REQUEST_MODEL: model}
        self._num_preemptions = 0
        observe(names.PREEMPTIONS, lambda: [(self._num_preemptions, self._labels)])

    def note_request(self, request: GenerationRequest) -> None:
        """The engine gets this request."""
        self._progress.num_attempts += 1
        self._progress.num_prompt_tokens += len(request.prompt_ids)

    def note_step(self, report: StepReport) -> None:
        """The engine has made this step."""
        if report.num_scheduled:  # else it only closed what had ended
            _step_duration.record(report.took_s, self._labels)
            _batch_size.record(report.num_scheduled, self._labels)
        self._progress.num_output_tokens += sum(type(event) is TokenEvent for event in report.events)
        self._num_preemptions = report.num_preemptions
