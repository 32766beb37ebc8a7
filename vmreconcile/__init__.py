"""vmreconcile: the vLLM servers of a GPU fleet, as a folder of YAML files asks for them."""

__version__ = "0.1.0"
