"""How the store is put up: the local system, its embedded PostgreSQL, the demo."""
