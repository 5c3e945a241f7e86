"""What all three services stand on, and nothing that belongs to one of them."""

__version__ = "0.1.0"
