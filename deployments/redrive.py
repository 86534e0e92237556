"""Put the order queue's dead letters back into it, once their cause is mended.

python -m deployments.redrive
"""

import sys

from store.errors import StoreError
from store.queue import order_queue


def main() -> int:
    """Redrive the queue that the settings choose; return the exit status."""
    try:
        redriven = order_queue().redrive()
    except StoreError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"Dead letters put into the queue again: {redriven}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
