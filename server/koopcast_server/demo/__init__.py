"""`koopcast demo`: a network trained twice, plainly and with koopcast, and compared honestly.

By default one network on real digits, the plain optimizer tuned on the spot; or one of the suite's tasks (`tasks`), with
rates that were tuned before (`tuned.json`).

Part of the command line, above the APIs: it uses the service as any trainer does, over gRPC.
"""

from koopcast_server.demo.data import DemoError
from koopcast_server.demo.run import run_demo
from koopcast_server.demo.suite import run_task, task_table

__all__ = ["DemoError", "run_demo", "run_task", "task_table"]
