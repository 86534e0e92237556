"""Manual actions on orders, the dispatcher and work pools."""
