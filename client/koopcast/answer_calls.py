"""A job's calls that bring displacements: whole answers, or reports first and the displacements one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, overload

from koopcast.answers import AnswerReader, Message, Sources
from koopcast.arguments import check_finite, check_horizons, check_operators, check_whole
from koopcast.bulk import predict_ahead
from koopcast.channel import Connection
from koopcast.operator import Operator
from koopcast.operator_messages import override_to_message
from koopcast.prediction import Prediction, Tensors
from koopcast.v1 import prediction_pb2
from koopcast.wire import Floats, Layout

__all__ = ["AnswerCalls"]

Read = TypeVar("Read")


class AnswerCalls:
    """The part of `koopcast.Job` that asks for displacements; its attributes are the job's."""

    name: str
    keep_weights: bool
    bytes_received: int
    _connection: Connection
    _lease_id: str
    _layout: Layout
    _wire_dtype: str
    _last: tuple[int, int, Callable[[], Floats]] | None

    @overload
    def predict_ahead(
        self,
        horizon: float | None = None,
        *,
        from_step: int | None = None,
        operators: None = None,
        clock_intervals: Sequence[float] | None = None,
        from_clock: float | None = None,
        max_blocks: int = 256,
        reports_only: bool = False,
        timeout_seconds: float | None = None,
    ) -> Prediction: ...

    @overload
    def predict_ahead(
        self,
        horizon: Sequence[float],
        *,
        from_step: int | None = None,
        operators: None = None,
        clock_intervals: Sequence[float] | None = None,
        from_clock: float | None = None,
        max_blocks: int = 256,
        reports_only: bool = False,
        timeout_seconds: float | None = None,
    ) -> list[Prediction]: ...

    @overload
    def predict_ahead(
        self,
        horizon: Sequence[float] | float | None = None,
        *,
        from_step: int | None = None,
        operators: Sequence[Operator],
        clock_intervals: Sequence[float] | None = None,
        from_clock: float | None = None,
        max_blocks: int = 256,
        reports_only: bool = False,
        timeout_seconds: float | None = None,
    ) -> list[Prediction]: ...

    def predict_ahead(  # noqa: PLR0913  # one argument an option of the question
        self,
        horizon: Sequence[float] | float | None = None,
        *,
        from_step: int | None = None,
        operators: Sequence[Operator] | None = None,
        clock_intervals: Sequence[float] | None = None,
        from_clock: float | None = None,
        max_blocks: int = 256,
        reports_only: bool = False,
        timeout_seconds: float | None = None,
    ) -> Prediction | list[Prediction]:
        """Asks for the weights' displacement `horizon` trainer steps ahead.

        Args:
            horizon: steps ahead of `from_step`, > 0 and at most 2**53; a sequence of them gives a list, in order. None:
                the job's trusted horizon, which grows with accepted and shrinks with rejected jumps (see `report`).
            from_step: where the trainer is; by default the step of the last snapshot.
            operators: answer with the rank, ridge, debiasing and stabilisation of each of these instead of the job's,
                on the same window; gives a list, all horizons of the first operator, then of the second, and so on.
            clock_intervals: the horizons on the clock that the snapshots were pushed with (e.g. summed learning rate),
                one for each: the snapshots are then resampled to a uniform clock, on which training under a
                schedule is more nearly autonomous.
            from_clock: with `clock_intervals`, the clock at `from_step`; by default the last snapshot's.
            max_blocks: blocks to report on at most, 1 to 4096; `Prediction.summary` speaks of all.
            reports_only: get the reports alone: a displacement is fetched when it is looked at, each time anew, as long
                as the window stays as it is and nothing else is asked.
            timeout_seconds: deadline; by default the client's plus what the bytes need at 10 MB/s.

        Raises:
            ArgumentValueError, ArgumentTypeError: a horizon <= 0, NaN or infinite; no horizon.
            FailedPrecondition: too few snapshots (the details hold both numbers), or a clock too uneven to resample.
            InvalidArgument: `from_step` or `from_clock` before the last snapshot.
        """
        self._check_open()
        horizons = [] if horizon is None else check_horizons(horizon)
        from_step = None if from_step is None else check_whole("from_step", from_step, 0)
        overrides = check_operators(operators)
        request = prediction_pb2.PredictAheadRequest(
            job=self.name,
            lease_id=self._lease_id,
            horizons=horizons,
            from_step=from_step,
            operators=[override_to_message(operator) for operator in overrides],
            include_base=self.keep_weights and self._last is None and not reports_only,
            clock_intervals=[] if clock_intervals is None else check_horizons(clock_intervals),
            from_clock=None if from_clock is None else check_finite("from_clock", from_clock),
            max_blocks=check_whole("max_blocks", max_blocks, 1, 2**32 - 1),
            reports_only=bool(reports_only),
        )
        count = 0 if reports_only else max(1, len(horizons)) * max(1, len(overrides))
        sources = Sources(self._base_source(timeout_seconds))
        if reports_only:
            sources = Sources(sources.base, self._displacement_source(timeout_seconds))

        def read(reader: AnswerReader, messages: Iterator[Message]) -> list[Prediction]:
            if not reports_only:
                reader.prepare(self._wire_dtype)  # while the service computes
            return reader.read(messages, sources)

        predictions = self._ask(request, self._deadline(timeout_seconds, self._answer_bytes(count)), read)
        single = operators is None and not isinstance(horizon, Sequence)
        return predictions[0] if single else predictions

    def _displacement_source(
        self, timeout_seconds: float | None
    ) -> Callable[[prediction_pb2.PredictionReport], Tensors]:
        """Fetches displacements of the last answers."""

        def read(reader: AnswerReader, messages: Iterator[Message]) -> Tensors:
            reader.prepare(self._wire_dtype)
            (prediction,) = reader.read(messages, Sources(self._base_source(timeout_seconds)))
            return prediction.displacement

        def fetch(report: prediction_pb2.PredictionReport) -> Tensors:
            request = self._request(report, include_base=False)
            return self._ask(request, self._deadline(timeout_seconds, self._answer_bytes(1)), read)

        return fetch

    def _base_source(
        self, timeout_seconds: float | None
    ) -> Callable[[prediction_pb2.PredictionReport], Tensors]:
        """Finds the snapshot that was pushed last, here or at the service."""
        last, layout = self._last, self._layout

        def find(report: prediction_pb2.PredictionReport) -> Tensors:
            if last is not None and last[:2] == (report.segment, report.base_step):
                return layout.split(last[2]())
            request = self._request(report, include_base=True)
            return self._ask(
                request, self._deadline(timeout_seconds, self._answer_bytes(1)), AnswerReader.read_base
            )

        return find

    def _request(
        self, report: prediction_pb2.PredictionReport, *, include_base: bool
    ) -> prediction_pb2.PredictAheadRequest:
        """Asks for the displacement of a prediction that was made, or for the snapshot that it was made from."""
        self._check_open()
        return prediction_pb2.PredictAheadRequest(
            job=self.name,
            lease_id=self._lease_id,
            prediction_id=report.prediction_id,
            include_base=include_base,
            reports_only=include_base,
        )

    def _ask(
        self,
        request: prediction_pb2.PredictAheadRequest,
        deadline_seconds: float,
        read: Callable[[AnswerReader, Iterator[Message]], Read],
    ) -> Read:
        reader = AnswerReader(self._layout)
        with self._connection.errors():
            call = predict_ahead(self._connection.channel())
            messages = call(request, timeout=deadline_seconds, metadata=self._connection.metadata)
            try:
                answered = read(reader, messages)
            finally:
                messages.cancel()  # an answer that is not read to its end must not keep the service waiting
                self.bytes_received += reader.bytes_received
        self._touch()
        return answered

    def _answer_bytes(self, arrays: int) -> int:
        return 8 * self._layout.elements * arrays

    def _check_open(self) -> None:
        raise NotImplementedError

    def _deadline(self, timeout_seconds: float | None, transfer_bytes: int) -> float:
        raise NotImplementedError

    def _touch(self) -> None:
        raise NotImplementedError
