"""The same federated work in this project, in a bare loop and in three other frameworks, each run as a user would run it.

python -m fedml.experiments.bench.peers.environments DIR    # once: pfl, Flower and NVFLARE, each in an environment of its own
python -m fedml.experiments.bench.peers --environments DIR  # all jobs and runners, 5 repetitions; a Markdown table
"""
