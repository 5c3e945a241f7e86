"""From the domain to the wire and back, with every wrong field named."""
