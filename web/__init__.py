"""The door for a shop's front end."""
