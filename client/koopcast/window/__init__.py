"""Windows: where a job's snapshots live, and all that is ever read from them.

::

    ring (Window)  ──> gram, long   a row of Gram matrices with each snapshot
                   ──> combination  coefficients in, elements out
                   ──> slots        the stored snapshots
    segment (Segment) ──> qr        R factors of all snapshots since the segment began
    all of them    ──> boxes, views blocks as strided views of flat snapshots

torch, NumPy and `koopcast.blocks`, and nothing else of ours: it runs on the service and inside trainers.
"""

from koopcast.window.readings import WindowProducts, WindowVectors
from koopcast.window.ring import Window
from koopcast.window.segment import Segment

__all__ = ["Segment", "Window", "WindowProducts", "WindowVectors"]
