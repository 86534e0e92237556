"""Setting the store up, here and in production."""
