"""The flows, their hooks and what they share. Flows tell the story, tasks do the work."""
