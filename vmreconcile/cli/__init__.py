"""Commands, rendering and exit codes: the only room that prints."""
