"""`koopcast demo --task`: one task of the suite, trained with a tuned optimizer, plainly and with koopcast."""

from koopcast_server.demo.suite.listing import task_table
from koopcast_server.demo.suite.run import run_task

__all__ = ["run_task", "task_table"]
