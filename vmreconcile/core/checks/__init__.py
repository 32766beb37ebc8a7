"""One file a kind of check; each takes documents or variables and returns what is wrong with them. Pure."""
