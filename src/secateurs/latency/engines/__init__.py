"""What runs inside a worker process, one self-contained file per runtime (see ``latency/worker.py``)."""
