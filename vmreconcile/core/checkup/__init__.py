"""What troubleshooting makes of what was seen: one check a line, the remedy under one that is not well. Pure."""
