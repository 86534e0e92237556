"""The limits of a batch's parameters."""

CHUNK_SIZE = 2_500
"""Orders of a batch that go through a step, or are decided, together."""
CHUNK_SIZE_AT_MOST = 5_000
CONCURRENCY = 2
"""Chunks that are under way at the same time."""
CONCURRENCY_AT_MOST = 32
TOLERATED_FAILURES = 0.25
"""The share of orders that may fail before the run itself counts as failed."""
LISTEN_SECONDS_AT_MOST = 3_600
"""Longer, the run's report would come too late to be of use."""
