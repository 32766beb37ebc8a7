"""The laboratory: real hosts, a slow link and a Hub on this machine, for tests that need them."""
