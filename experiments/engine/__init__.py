"""One engine for all studies: it runs, records and draws what a folder of `experiments/` asks for.

`runner` has the command line and what a `study.yaml` may say, `runs` starts training and reads its folders, `records`
keeps the JSON files, `tables`, `figures` and `pages` draw from them, `statistics` says something about several seeds.
`machine` and `turns` are for measurements of speed.
"""
