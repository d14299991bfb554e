"""Names that users type: what is registered under them, and which one was meant."""
