"""`python experiments/study.py FOLDER`: what `python -m experiments.engine FOLDER` does, for records that name it."""

from experiments.engine.runner import main

if __name__ == "__main__":
    main()
