"""The measured process of a batch that listens until it is stopped."""

from flows.batch import batch_checkout

if __name__ == "__main__":
    while True:
        batch_checkout(listen_seconds=310, tolerated_failures=1.0)
