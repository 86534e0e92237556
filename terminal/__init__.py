"""Input and output of every command line."""
