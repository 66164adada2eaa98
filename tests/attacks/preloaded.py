"""What a child of `children` finds imported; nothing here may start a thread."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch

import regcache_deploy.contract.run
import regcache_deploy.run.calibrate
import regcache_deploy.run.export
import regcache_deploy.run.search  # noqa: F401
from regcache_deploy.compat import import_open_clip
from regcache_engines.onnxruntime_session import import_onnxruntime

import_onnxruntime()
import_open_clip()
torch.set_num_threads(1)
