"""Models side by side, beside the limit of the machine.

run ── all candidates on one photo: a JSON result      settings ── how long, how much
├─ model_run ── the candidates of one model
├─ candidates ── what can run a model file here; row ── what is measured of one
├─ timing ── turns, spread, medians; cold ── a fresh process; curves ── batch, canvas, instances
└─ machine, flops, onnx_stages ── the machine's peak, a graph's work, seconds by stage
products ── matrix products as ONNX; recompose, sweep ── other canvases and limits, composed again
report, plots, save ── tables, pictures, files
"""
