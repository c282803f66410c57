"""A job's calls where the trainer holds the window: Gram rows up, coefficients down."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from koopcast.arguments import check_finite, check_horizons, check_operators, check_whole
from koopcast.channel import Connection
from koopcast.gram import GramRow
from koopcast.gram_messages import fill_row, read_coefficients
from koopcast.operator import Operator
from koopcast.operator_messages import override_to_message
from koopcast.prediction import Prediction
from koopcast.upload import PushResult, result_of
from koopcast.v1 import prediction_pb2, prediction_pb2_grpc, snapshot_pb2, snapshot_pb2_grpc

__all__ = ["GramCalls"]


class GramCalls:
    """The part of `koopcast.Job` for windows that trainers hold; its attributes are the job's."""

    name: str
    shard_index: int
    segment: int
    snapshots_held: int
    bytes_sent: int
    bytes_received: int
    _connection: Connection
    _lease_id: str
    _push_lock: threading.Lock

    def push_gram_row(
        self,
        step: int,
        row: GramRow,
        *,
        averaging: int = 1,
        clock: float | None = None,
        timeout_seconds: float | None = None,
    ) -> PushResult:
        """Sends what the operators need to know of a snapshot that stays here: for a job whose window the trainer holds.

        Args:
            step: as in `push`.
            row: its inner products, from `koopcast.window.held.TrainerWindow.publish`.
            averaging: as in `push`.
            clock: as in `push`.
            timeout_seconds: deadline; by default the client's.

        Returns:
            ``"accepted"`` where this shard's part was taken; `PushResult.snapshots_held` counts those that all shards
            have sent.

        Raises:
            ArgumentValueError, ArgumentTypeError: found before anything is sent, such as products that are not finite.
            InvalidArgument: a row of another length than the window, or a step off the stride.
            FailedPrecondition: a step that does not rise, other shards that are a whole window behind, or a job whose
                window the service holds.
            AlreadyExists: the step is held with other numbers.
            LeaseLost, NotFound, Unavailable, DeadlineExceeded: as their names say.
        """
        self._check_open()
        request = snapshot_pb2.PushGramRowRequest(
            job=self.name,
            lease_id=self._lease_id,
            step=check_whole("step", step, 0),
            averaging=check_whole("averaging", averaging, 1, 2**32 - 1),
            clock=None if clock is None else check_finite("clock", clock),
            shard_index=self.shard_index,
        )
        fill_row(request, row.checked())
        with self._push_lock:
            request.segment = self.segment
            response = self._connection.call(
                lambda channel: snapshot_pb2_grpc.SnapshotServiceStub(channel).PushGramRow,
                request,
                self._deadline(timeout_seconds, 0),
            )
            self.bytes_sent += request.ByteSize()
            self._touch()
            self.snapshots_held = response.snapshots_held
        return result_of(response)

    def predict_coefficients(
        self,
        horizons: Sequence[float] | float | None = None,
        *,
        from_step: int | None = None,
        operators: Sequence[Operator] | None = None,
        clock_intervals: Sequence[float] | None = None,
        from_clock: float | None = None,
        max_blocks: int = 16,
        timeout_seconds: float | None = None,
    ) -> list[Prediction]:
        """Asks where the weights go, for a job whose window the trainer holds: the answers are coefficients on it.

        `koopcast.window.held.TrainerWindow` makes displacements of them, `combine` a tensor, `bind` a prediction like any
        other.

        Args:
            horizons: as in `predict_ahead`.
            from_step: as in `predict_ahead`.
            operators: as in `predict_ahead`.
            clock_intervals: as in `predict_ahead`.
            from_clock: as in `predict_ahead`.
            max_blocks: as in `predict_ahead`; few by default, since reports are longer than coefficients.
            timeout_seconds: deadline; by default the client's.

        Returns:
            One prediction for each horizon of the first operator, then of the second, and so on. Its `coefficients` are
            None where no block moves.

        Raises:
            FailedPrecondition: too few snapshots, a clock too uneven to resample, or a job whose window the service
                holds.
            ArgumentValueError, ArgumentTypeError, InvalidArgument: as `predict_ahead`.
        """
        self._check_open()
        request = prediction_pb2.PredictAheadRequest(
            job=self.name,
            lease_id=self._lease_id,
            horizons=[] if horizons is None else check_horizons(horizons),
            from_step=None if from_step is None else check_whole("from_step", from_step, 0),
            operators=[override_to_message(operator) for operator in check_operators(operators)],
            clock_intervals=[] if clock_intervals is None else check_horizons(clock_intervals),
            from_clock=None if from_clock is None else check_finite("from_clock", from_clock),
            max_blocks=check_whole("max_blocks", max_blocks, 1, 2**32 - 1),
            coefficients_only=True,
        )
        with self._connection.errors():
            stub = prediction_pb2_grpc.PredictionServiceStub(self._connection.channel())
            deadline = self._deadline(timeout_seconds, 0)
            answers = stub.PredictAhead(request, timeout=deadline, metadata=self._connection.metadata)
            try:
                predictions, received = read_coefficients(answers)
            finally:
                answers.cancel()  # an answer that is not read to its end must not keep the service waiting
        self.bytes_received += received
        self._touch()
        return predictions

    @property
    def lease_id(self) -> str:
        """The lease, for the other shards of this job to join with (``open_job(shared_lease_id=...)``). A secret."""
        return self._lease_id

    def _check_open(self) -> None:
        raise NotImplementedError

    def _deadline(self, timeout_seconds: float | None, transfer_bytes: int) -> float:
        raise NotImplementedError

    def _touch(self) -> None:
        raise NotImplementedError
