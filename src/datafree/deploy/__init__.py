"""A student's files to ship: export, model card, usage snippets, quantisation."""
