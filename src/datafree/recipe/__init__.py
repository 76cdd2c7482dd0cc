"""A recipe's sections as objects: task, networks, source, and how the student learns."""
