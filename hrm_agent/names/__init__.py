"""What users type: names and what is registered under them, and values with types and bounds."""
