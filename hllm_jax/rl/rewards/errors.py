"""The error of a reward that cannot be had: which answer, what happened, what would be right."""

from __future__ import annotations


class RewardError(RuntimeError):
    """A reward function that cannot be loaded, or that gives no reward where there has to be one."""
