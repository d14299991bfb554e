"""From an observation to a decision: encoders, carry rules, distributions, the policy."""
