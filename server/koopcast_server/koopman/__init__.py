"""Koopman operators of a window: pure functions on small float64 tensors (design §2), without I/O or logging.

::

    Products ── gram.observe ──> Gram of the observable (velocity | state), in frame coordinates
                                   │
                  rank.py ──> reduced.fit ──> Ã, POD modes, start ──> spectrum.decompose ──> propagate.advance
                                   │                                                              │
                            backtest.backtest                                               coefficients
                                   └────────────────> predict.predict <───────────────────────────┘

`partition.block_bounds` says which elements make a block. All blocks of a window are one batch.

The method is dynamic mode decomposition (Schmid 2010; Tu et al. 2014) applied to the weights of a network in
training (Dogra & Redman 2020, arXiv 2006.02361), written so that it never needs the weights: a prediction is
a combination of snapshots, and the coefficients follow from the snapshots' Gram matrix.
"""

from koopcast_server.koopman.gram import Products
from koopcast_server.koopman.partition import Partition, block_bounds
from koopcast_server.koopman.predict import PredictionBatch, Report, predict, report
from koopcast_server.koopman.settings import Observable, OperatorSettings, RankRule, TooFewSnapshotsError

__all__ = [
    "Observable",
    "OperatorSettings",
    "Partition",
    "PredictionBatch",
    "Products",
    "RankRule",
    "Report",
    "TooFewSnapshotsError",
    "block_bounds",
    "predict",
    "report",
]
