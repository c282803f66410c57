"""koopcast: predicts where a network's weights are going, and jumps them there.

    import koopcast

    client = koopcast.connect("host:50051")
    job = client.open_job("resnet-42", {name: array}, stride=10)
    job.push(step, {name: array})
    prediction = job.predict_ahead(200)

and in a PyTorch training loop ``with koopcast.attach(model, optimizer, target=..., probe=...)``.

Importing koopcast loads neither torch nor the server; `attach` loads torch when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from koopcast.client import Client, connect
from koopcast.errors import (
    AlreadyExists,
    ArgumentTypeError,
    ArgumentValueError,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    KoopcastError,
    LeaseLost,
    MissingExtra,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from koopcast.job import Job
from koopcast.operator import Operator
from koopcast.prediction import Block, Mode, Prediction, Summary
from koopcast.status import HistoryPoint, JobStatus, Lease
from koopcast.upload import PushResult
from koopcast.version import VERSION
from koopcast.wire import TensorSpec

if TYPE_CHECKING:
    from koopcast.hook import Ahead, attach, update_bn

__version__ = VERSION

__all__ = [
    "Ahead",
    "AlreadyExists",
    "ArgumentTypeError",
    "ArgumentValueError",
    "Block",
    "Cancelled",
    "Client",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "HistoryPoint",
    "InternalError",
    "InvalidArgument",
    "Job",
    "JobStatus",
    "KoopcastError",
    "Lease",
    "LeaseLost",
    "MissingExtra",
    "Mode",
    "NotFound",
    "Operator",
    "PermissionDenied",
    "Prediction",
    "PushResult",
    "ResourceExhausted",
    "Summary",
    "TensorSpec",
    "Unauthenticated",
    "Unavailable",
    "__version__",
    "attach",
    "connect",
    "update_bn",
]


def __getattr__(name: str) -> Any:
    """Load the hook, and with it torch, when it is first asked for."""
    if name not in {"Ahead", "attach", "update_bn"}:
        raise AttributeError(f"module 'koopcast' has no attribute {name!r}")
    try:
        from koopcast import hook  # noqa: PLC0415  # keeps `import koopcast` free of torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtra(
            f"koopcast.{name} needs PyTorch: pip install torch (or 'koopcast[server]' to embed the service as well)",
            reason="MISSING_EXTRA",
            extra="torch",
        ) from error
    return getattr(hook, name)
