"""The shop's first data: the original's books and users, couriers, catalogues for load."""
