"""What a run did, as plain data and as HTML, JSON and metrics lines: pure functions of one `RunReport`."""
