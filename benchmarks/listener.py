"""The measured process of a dispatcher: it listens until it is stopped."""

from flows.dispatch import dispatch_orders

if __name__ == "__main__":
    while True:
        dispatch_orders(listen_seconds=285)
