"""Pure translators, one file a runtime: observed facts to phases, wanted servers to steps."""
