"""Baselines of Stable-Baselines3 and sb3-contrib on our environments (extra `sb3`), evaluated like our agents.

Nothing else in the package needs these libraries. `python -m hrm_agent.baselines baseline=NAME` trains one.
"""
