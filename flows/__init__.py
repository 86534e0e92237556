"""The flows, their hooks and the modules that they share."""
