"""Koopman operators of a window: pure functions on small float64 tensors (design §2), without I/O or logging.

::

    Products (Gram) ┐ trajectory.py               pairs.py
    Vectors         ┼───────────────> coordinates ────────> inputs, outputs, start; folds
    Streamed (R)    ┘ streamed.py  (clock.py resamples)       │
                                                              │ for each candidate: rank × ridge × debiasing
                            rank.py, debias.py ──> reduced.fit ──> spectrum.decompose ──> propagate.advance
                                                              │         (schur.py)                │
                                           backtest.py, confidence.py ──> choice ──> predict.predict ──> displacement
                                                              │                      (trust.py bounds it)
                                  report.py, modes.py, summary.py, predictability.py: for people

All blocks of a source are one batch, and so are all candidates.

The method is dynamic mode decomposition (Schmid 2010; Tu et al. 2014) applied to the weights of a network in
training (Dogra & Redman 2020, arXiv 2006.02361), written so that it never needs the weights: a prediction is
a combination of snapshots, and the coefficients follow from the snapshots' Gram matrix.
"""

from koopcast_server.koopman.clock import Resampling, UnevenClockError, resampling
from koopcast_server.koopman.modes import Modes
from koopcast_server.koopman.predict import PredictionBatch, Source, predict, report
from koopcast_server.koopman.report import Report, joined
from koopcast_server.koopman.settings import (
    Debias,
    Observable,
    OperatorSettings,
    RankRule,
    TooFewSnapshotsError,
)
from koopcast_server.koopman.streamed import Streamed
from koopcast_server.koopman.summary import Totals, totals
from koopcast_server.koopman.trajectory import Products, Vectors, joined_products
from koopcast_server.koopman.trust import TrustedHorizon

__all__ = [
    "Debias",
    "Modes",
    "Observable",
    "OperatorSettings",
    "PredictionBatch",
    "Products",
    "RankRule",
    "Report",
    "Resampling",
    "Source",
    "Streamed",
    "TooFewSnapshotsError",
    "Totals",
    "TrustedHorizon",
    "UnevenClockError",
    "Vectors",
    "joined",
    "joined_products",
    "predict",
    "report",
    "resampling",
    "totals",
]
