"""Networks: built by name, their weights read safely, adapted to one form of input and answer."""
