"""The folder that `pdeopt run` puts first on PYTHONPATH; its only module is `sitecustomize`."""
