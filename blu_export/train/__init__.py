"""Training: photos and a configuration in, weights in a run folder out.

fit ── the loop: epochs, validation, checkpoints, early stop
├─ config ── every choice, as TOML (toml) and --set map onto it    stages, schedule ── layers and rates by epoch
├─ start, imagenet, torch_file ── the weights it begins with       resume ── a run goes on
├─ feed, samples ── batches of the data set                        distribute ── over devices and machines
├─ step ── forward pass, losses, gradient, update
│    └─ targets, losses, updater ── examples, the five losses, clipping and the optimizer
├─ validate ── average precision and pictures                      memory ── settings that fit
└─ run_folder, checkpoint ── what is left on disk
"""
