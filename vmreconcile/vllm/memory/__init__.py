"""How much GPU memory a vLLM will take, predicted from a model's config.json. Pure; asks nobody.

`reading` makes a `Shape` of a config.json, `weights` and `stored` weigh it, `kv` holds the rules of the KV cache,
`activation` and `graphs` the peaks, `defaults` what depends on version and GPU, `predict` puts them together. Sources
are named as `file: function (version)` of vLLM's own tree. docs/fit.md explains the whole and shows how well it fits.
"""
