"""How every command line speaks: its answers, its errors and its numbers."""
