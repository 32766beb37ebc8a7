"""A simulator of vLLM for tests and the demo; it says so wherever it shows."""
