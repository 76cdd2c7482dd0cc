"""A student's files to ship: export, formats, model card, usage snippets, quantisation, latency."""
