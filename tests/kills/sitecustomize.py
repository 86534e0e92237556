"""Python imports this by itself in every process that has this folder on its PYTHONPATH."""

from tests.kills import killer

killer.install()
