"""What runs: one module a flow. Flows tell the story, tasks do the work."""
