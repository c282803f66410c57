"""Fixtures for tests of the hook."""

from trainers import single_thread

__all__ = ["single_thread"]
