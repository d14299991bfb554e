from experiments.engine.runner import main

main()
