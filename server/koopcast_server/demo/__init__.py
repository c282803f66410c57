"""`koopcast demo`: one network trained twice on real digits, plainly and with koopcast, and compared honestly.

Part of the command line, above the APIs: it uses the service as any trainer does, over gRPC.
"""

from koopcast_server.demo.data import DemoError
from koopcast_server.demo.run import run_demo

__all__ = ["DemoError", "run_demo"]
