"""The door to ``builders``: what ``perf`` needs of recipes, data, built rankers and the repository, and no more.

No other module of ``perf`` imports ``builders``, so a change there opens one file here:

data      recipes, folders, judged requests, the endpoints' tensors by name; imports no torch
served    what a model repository serves: the steps and files behind an endpoint
figures   quality metrics, slices, and the form in which Pareto figures are kept
stores    item stores of any size, of generated items; imports no torch
rankers   rankers in this process: loaded, built, published, run by torch and by ONNX Runtime; imports torch
"""

import os

# Before a library reads them: checkpoints are read from folders only, and a hub is never asked.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
