"""The door for a shop's front end, which talks to the store's database alone."""
