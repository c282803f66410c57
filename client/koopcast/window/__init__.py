"""Windows: where a job's snapshots live, and all that is ever read from them.

==========================  ===================================================================================
module                      what it does
==========================  ===================================================================================
`koopcast.window.ring`      the last snapshots of a job: a sliding window
`koopcast.window.segment`   the least-squares problem of a whole segment, accumulated, without its snapshots
`koopcast.window.held`      a window inside the trainer, of which only inner products leave it
==========================  ===================================================================================

Beneath `ring`, `slots` stores the snapshots, `gram` and `long` make a row of Gram matrices with each, `combination`
makes elements of coefficients, and `boxes` says on which elements of the ring to do that at once.
"""

from koopcast.window.qr import absorb
from koopcast.window.readings import WindowProducts, WindowVectors
from koopcast.window.ring import Window
from koopcast.window.segment import Segment, SegmentPairs

__all__ = ["Segment", "SegmentPairs", "Window", "WindowProducts", "WindowVectors", "absorb"]
