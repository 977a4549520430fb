"""Studies of what trains: adapters, masks, freezing."""
