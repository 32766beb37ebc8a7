"""Pure translators, one file a runtime: launches to steps, files seen to what differs in them. Phases are `core`'s."""
