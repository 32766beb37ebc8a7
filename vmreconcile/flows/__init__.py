"""Use cases, one file each: the only place where core meets effects."""
