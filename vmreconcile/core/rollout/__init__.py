"""How a plan goes through a fleet: which servers are changed when, and how many may be down meanwhile. Pure."""
