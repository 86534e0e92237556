"""The checkout's steps and their undos, one module a resource.

Every task takes the ids of a group of orders, does its step for all of them in a few statements,
and returns the ids of those that go on. Where none goes on it raises the first one's error.
"""

# The saga asks for the table of steps, whichever of these modules is imported.
import tasks.steps  # noqa: F401
