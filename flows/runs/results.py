"""The storage of runs' results, which the store does not use."""

from prefect.settings import get_current_settings

ON_THIS_MACHINE = get_current_settings().results.local_storage_path
"""Where Prefect keeps the error of a failed run. Were it not named, each run would ask the server
twice whether it has a default storage."""
