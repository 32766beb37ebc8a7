"""Which GPUs a server gets, how much of their memory, and why it may get none. Pure."""
